//! The service's access to the TPM: one connection, one attestation key, and the order of requests.

mod link;
mod turns;

use std::sync::Arc;

use ima_log::{Bank, Digest, PcrSet, PcrTarget};
use imastage_tpm::{ClockInfo, Endpoint, PcrSelection, PcrValue, Quote, TpmError};

use crate::drain::round::AskTpm;
use link::{Connection, Link};
use turns::{Caller, Turns};

/// Quotes and reads PCRs. Cheap to clone; all clones share one connection, which is restored
/// automatically.
///
/// The drain has priority: clients of the API use the TPM only while no drain waits for it, and
/// return it after each command.
#[derive(Clone)]
pub(crate) struct Attester {
    turns: Arc<Turns<Link>>,
    banks: Vec<Bank>,
    clock: ClockInfo,
    identity: Digest,
    public_pem: String,
}

impl Attester {
    /// Connects and creates the attestation key, which is always the same for one TPM.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn connect(endpoint: &Endpoint) -> Result<Attester, TpmError> {
        let mut connection = Connection::make(endpoint)?;
        let banks = connection.tpm.banks()?;
        let clock = connection.tpm.clock()?;
        let public_pem = connection.key.public_pem().to_owned();
        let identity = match connection.tpm.identity() {
            Ok(identity) => identity,
            // Without authorization for the endorsement hierarchy, this key identifies the TPM.
            Err(TpmError::Refused { .. }) => Bank::Sha256.hash(&[public_pem.as_bytes()]),
            Err(error) => return Err(error),
        };
        let turns = Arc::new(Turns::new(Link::new(endpoint.clone(), connection)));
        Ok(Attester { turns, banks, clock, identity, public_pem })
    }

    /// The banks the TPM has.
    pub(crate) fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// The bank that is compared and, unless asked otherwise, quoted.
    pub(crate) fn bank(&self) -> Bank {
        let preferred = [Bank::Sha256, Bank::Sha1].into_iter().find(|b| self.banks.contains(b));
        preferred.or(self.banks.first().copied()).unwrap_or(Bank::Sha256)
    }

    /// The reset and restart counters when the service connected.
    pub(crate) fn clock(&self) -> &ClockInfo {
        &self.clock
    }

    /// The identity of the TPM. Not its attestation key, which earlier versions created in another
    /// hierarchy: an upgrade does not end an epoch.
    pub(crate) fn identity(&self) -> Digest {
        self.identity
    }

    /// The attestation key's public half.
    pub(crate) fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The values of these PCRs at one moment in every bank of the TPM, bank by bank, ascending.
    /// For the drain: before all clients. One TPM command per eight values.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of them.
    pub(crate) fn read(&self, pcrs: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        self.values(Caller::Drain, &selection(&self.banks, pcrs)?)
    }

    /// As [`Attester::read`], for a client: a drain can take place between two PCRs, so only the
    /// values of one PCR are of one moment.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn read_for_client(&self, pcrs: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        self.values_in_turns(&self.banks, pcrs)
    }

    /// The current clock and counters, for the drain: a reset counter that differs from that of
    /// [`Attester::clock`] means that the TPM was reset since the service connected.
    ///
    /// # Errors
    /// [`TpmError`].
    pub(crate) fn clock_now(&self) -> Result<ClockInfo, TpmError> {
        self.with(Caller::Drain, |connection| connection.tpm.clock())
    }

    /// A quote over these PCRs of these banks, for a client, and their values, which are equal
    /// before and after the quote. If the list grows fast, values can change at each attempt: then
    /// only the values of PCRs that did not change are returned.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of them.
    pub(crate) fn quote(
        &self,
        nonce: &[u8],
        banks: &[Bank],
        pcrs: &[u32],
    ) -> Result<(Quote, Vec<PcrValue>), TpmError> {
        const TRIES: usize = 3;
        let selection = selection(banks, pcrs)?;
        let mut before = self.values_in_turns(banks, pcrs)?;
        let mut tries = 1;
        loop {
            let quote = self.with(Caller::Client, |connection| {
                let Connection { tpm, key } = connection;
                tpm.quote(key, nonce, &selection)
            })?;
            // A PCR never returns to an earlier value, so a value that is equal before and after
            // the quote is the quoted one.
            let after = self.values_in_turns(banks, pcrs)?;
            if after == before || tries == TRIES {
                let unchanged = after.into_iter().filter(|value| before.contains(value));
                return Ok((quote, unchanged.collect()));
            }
            before = after;
            tries += 1;
        }
    }

    /// Bank by bank, ascending; one turn per command.
    fn values_in_turns(&self, banks: &[Bank], pcrs: &[u32]) -> Result<Vec<PcrValue>, TpmError> {
        /// The maximum of one command (TPML_DIGEST, TPM 2.0 Library, Part 2, 10.9.6).
        const AT_ONCE: usize = 8;
        let mut pcrs = pcrs.to_vec();
        pcrs.sort_unstable();
        pcrs.dedup();
        let mut values = Vec::new();
        for some in pcrs.chunks((AT_ONCE / banks.len().max(1)).max(1)) {
            values.extend(self.values(Caller::Client, &selection(banks, some)?)?);
        }
        values.sort_by_key(|(bank, pcr, _)| (banks.iter().position(|b| b == bank), *pcr));
        Ok(values)
    }

    fn values(
        &self,
        caller: Caller,
        selection: &[PcrSelection],
    ) -> Result<Vec<PcrValue>, TpmError> {
        self.with(caller, |connection| connection.tpm.pcr_values(selection))
    }

    fn with<T>(
        &self,
        caller: Caller,
        act: impl FnMut(&mut Connection) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.turns.with(caller, |link| link.act(&self.public_pem, act))
    }
}

/// These PCRs of each bank.
fn selection(banks: &[Bank], pcrs: &[u32]) -> Result<Vec<PcrSelection>, TpmError> {
    let mut selected = 0;
    for pcr in pcrs.iter().copied() {
        if pcr >= PcrSelection::PCRS {
            let bank = banks.first().copied().unwrap_or(Bank::Sha256);
            return Err(TpmError::NoPcr { bank, pcr });
        }
        selected |= 1 << pcr;
    }
    Ok(banks.iter().map(|bank| PcrSelection { bank: *bank, pcrs: selected }).collect())
}

impl AskTpm for Attester {
    fn pcrs(&mut self, pcrs: PcrSet) -> Result<Vec<PcrTarget>, String> {
        let pcrs: Vec<u32> = pcrs.iter().collect();
        let values = self.read(&pcrs).map_err(|error| error.to_string())?;
        Ok(values.into_iter().map(|(_, pcr, value)| PcrTarget { pcr, value }).collect())
    }

    fn reset_count(&mut self) -> Result<Option<u32>, String> {
        self.clock_now().map(|clock| Some(clock.reset_count)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
#[allow(dead_code)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
#[allow(dead_code)]
#[path = "../tests/common/relay.rs"]
mod relay;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use common::TestTpm;
    use relay::{PCR_READ, QUOTE, Relay};

    #[test]
    fn finding_02_a_drain_waits_for_one_command_of_a_client() {
        let dir = tempfile::tempdir().unwrap();
        let _tpm = TestTpm::start(dir.path());
        let relay = Relay::start(dir.path().join("tpm.sock"), &dir.path().join("relay.sock"));
        let attester = Attester::connect(&relay.endpoint).unwrap();
        relay.close(None);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let attester = attester.clone();
                thread::spawn(move || attester.quote(b"nonce", &[Bank::Sha1], &[10]).map(drop))
            })
            .collect();
        relay.wait_until_one_is_held();
        let before = relay.passed().len();
        let drain = {
            let attester = attester.clone();
            thread::spawn(move || attester.read(&[10, 11]).unwrap())
        };
        attester.turns.wait_for_drains(1);
        relay.open();
        let values = drain.join().unwrap();
        assert_eq!(values.len(), attester.banks().len() * 2);
        clients.into_iter().for_each(|client| client.join().unwrap().unwrap());
        let passed = relay.passed();
        // After the one command under way: a read of all banks.
        let drains = &passed[before + 1];
        assert_eq!(relay::code(drains), PCR_READ);
        assert_eq!(drains[13] as usize, attester.banks().len());
        assert_eq!(relay.count(QUOTE), 8);
    }

    #[test]
    fn a_quote_tells_the_values_of_pcrs_that_did_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let tpm = TestTpm::start(dir.path());
        let relay = Relay::start(dir.path().join("tpm.sock"), &dir.path().join("relay.sock"));
        let attester = Attester::connect(&relay.endpoint).unwrap();
        relay.close(Some(QUOTE));
        let quoting = {
            let attester = attester.clone();
            thread::spawn(move || attester.quote(b"nonce", &[Bank::Sha256], &[0, 1, 16]).unwrap())
        };
        // Each time it is tried PCR 16 changes, then no more.
        for quotes in 0..3 {
            relay.wait_until_one_is_held();
            let value = Bank::Sha256.hash(&[&[quotes]]);
            tpm.shared.lock().pcr_extend(16, &[value]).unwrap();
            relay.let_one_through();
        }
        let (_, values) = quoting.join().unwrap();
        assert_eq!(values.iter().map(|(_, pcr, _)| *pcr).collect::<Vec<_>>(), [0, 1]);
        relay.open();
        let (_, values) = attester.quote(b"nonce", &[Bank::Sha256], &[16, 1, 0]).unwrap();
        assert_eq!(values.iter().map(|(_, pcr, _)| *pcr).collect::<Vec<_>>(), [0, 1, 16]);
        assert_eq!(relay.count(QUOTE), 4);
    }

    #[test]
    fn a_connection_that_broke_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let tpm = TestTpm::start(dir.path());
        let attester = Attester::connect(&tpm.endpoint).unwrap();
        let pcrs = attester.read(&[10]).unwrap();
        let Endpoint::Unix(socket) = &tpm.endpoint else { panic!() };
        std::fs::rename(socket, socket.with_extension("away")).unwrap();
        tpm.serving.stop();
        // It says what failed, the same each time, and that nobody need do anything.
        let error = attester.read(&[10]).unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("is tried again"), "{error}");
        assert_eq!(attester.clock_now().unwrap_err().to_string(), error);
        tpm.shared.serve(std::os::unix::net::UnixListener::bind(socket).unwrap()).unwrap();
        let since = std::time::Instant::now();
        while let Err(error) = attester.read(&[10]) {
            assert!(since.elapsed() < relay::PATIENCE, "{error}");
            thread::yield_now();
        }
        assert_eq!(attester.read(&[10]).unwrap(), pcrs);
        assert!(attester.quote(b"nonce", &[Bank::Sha256], &[0, 10]).unwrap().1.len() == 2);
    }

    #[test]
    fn pcrs_that_no_tpm_has_are_refused() {
        assert!(matches!(
            selection(&[Bank::Sha1], &[10, 24]),
            Err(TpmError::NoPcr { bank: Bank::Sha1, pcr: 24 })
        ));
        assert!(selection(&[], &[u32::MAX]).is_err());
    }
}
