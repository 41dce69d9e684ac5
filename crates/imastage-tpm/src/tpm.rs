//! A connection to a TPM and its commands: banks, PCR values, extend, quote, clock.

use ima_log::{Bank, Digest};
use tpm2_protocol::{
    TpmWriter,
    basic::{TpmHandle, TpmUint32},
    data::{
        Tpm2bData, Tpm2bDigest, TpmAlgId, TpmCap, TpmRh, TpmSt, TpmlDigestValues, TpmlPcrSelection,
        TpmsAuthCommand, TpmsPcrSelect, TpmsPcrSelection, TpmtHa, TpmtSigScheme, TpmuAttest,
        TpmuCapabilities, TpmuHa,
    },
    frame::{
        TpmFlushContextCommand, TpmFrame, TpmGetCapabilityCommand, TpmGetCapabilityResponse,
        TpmPcrAllocateCommand, TpmPcrAllocateResponse, TpmPcrExtendCommand, TpmPcrReadCommand,
        TpmPcrReadResponse, TpmQuoteCommand, TpmQuoteResponse, TpmReadClockCommand,
        TpmReadClockResponse, TpmResponse, TpmUnmarshalBody, tpm_marshal_command,
    },
};

use crate::{
    AttestationKey, Endpoint, ResponseCode, TpmError,
    claims::Claims,
    command::{malformed, password, response_code, unwritable},
    transport::{MAX_FRAME, Transport},
};

/// One connection to a TPM. Once an operation failed with [`TpmError::Io`] it has to be made anew.
pub struct Tpm {
    pub(crate) transport: Transport,
    /// What clients have loaded, if the connection is shared.
    pub(crate) claims: Claims,
    command: Box<[u8; MAX_FRAME]>,
}

/// PCRs of one bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank.
    pub bank: Bank,
    /// Bit i selects PCR i, of [`PcrSelection::PCRS`].
    pub pcrs: u32,
}

impl PcrSelection {
    /// How many PCRs a bank has on PCs and servers (TCG PC Client Platform TPM Profile).
    pub const PCRS: u32 = 24;
}

/// A bank, a PCR's number, its value.
pub type PcrValue = (Bank, u32, Digest);

/// A quote as tpm2-tools writes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST (`tpm2_quote -m`).
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE (`tpm2_quote -s`).
    pub signature: Vec<u8>,
}

/// The TPM's clock and counters (TPMS_CLOCK_INFO) as TPM2_ReadClock tells them. A quote tells other
/// counters: the TPM adds a constant of the key's to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been powered; may have been set forward.
    pub clock: u64,
    /// Resets: PCRs begin anew with each.
    pub reset_count: u32,
    /// Resumes and restarts since the last reset.
    pub restart_count: u32,
    /// Whether `clock` never had this value before: `false` for the first seconds after a reset
    /// that was not announced, as swtpm's are.
    pub safe: bool,
}

impl Tpm {
    /// Connects to a TPM that is started up.
    ///
    /// # Errors
    /// [`TpmError::Connect`].
    pub fn connect(endpoint: &Endpoint) -> Result<Tpm, TpmError> {
        let transport = endpoint
            .connect()
            .map_err(|error| TpmError::Connect { endpoint: endpoint.clone(), error })?;
        Ok(Tpm::over(transport))
    }

    /// The banks that have PCRs, of those that are known, in the TPM's order.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn banks(&mut self) -> Result<Vec<Bank>, TpmError> {
        let mut banks = self.bank_selections()?;
        banks.retain(|selection| selection.pcrs != 0);
        let banks: Vec<Bank> = banks.into_iter().map(|selection| selection.bank).collect();
        if banks.is_empty() { Err(TpmError::NoBanks) } else { Ok(banks) }
    }

    /// Has the TPM give PCRs to these banks and to no others, from its next reset on. Needs the
    /// platform's authorization to be empty, which firmware does not leave so: for a software TPM.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not know one of them.
    pub fn allocate_banks(&mut self, banks: &[Bank]) -> Result<(), TpmError> {
        const WHAT: &str = "TPM2_PCR_Allocate";
        const ALL: u32 = (1 << 24) - 1;
        let mut selection = self.bank_selections()?;
        if let Some(bank) =
            banks.iter().find(|bank| !selection.iter().any(|known| known.bank == **bank))
        {
            return Err(TpmError::NoPcr { bank: *bank, pcr: 0 });
        }
        for known in &mut selection {
            known.pcrs = if banks.contains(&known.bank) { ALL } else { 0 };
        }
        let command = TpmPcrAllocateCommand {
            pcr_allocation: wire_selection(WHAT, &selection)?,
            handles: [TpmHandle::from(TpmRh::Platform as u32)],
        };
        let response: TpmPcrAllocateResponse = self.ask(WHAT, &command, &[password()])?;
        match bool::from(response.allocation_success) {
            true => Ok(()),
            false => Err(malformed(WHAT, "it cannot have these banks at once")),
        }
    }

    /// The value of one PCR.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM has no such bank or PCR.
    pub fn pcr_read(&mut self, bank: Bank, pcr: u32) -> Result<Digest, TpmError> {
        let no_pcr = TpmError::NoPcr { bank, pcr };
        let Some(pcrs) = 1u32.checked_shl(pcr) else { return Err(no_pcr) };
        let values = self.pcr_values(&[PcrSelection { bank, pcrs }])?;
        values.first().map(|(_, _, value)| *value).ok_or(no_pcr)
    }

    /// The values of selected PCRs, all of the same moment: banks in the order in which they are
    /// first selected, PCRs ascending in each, every one once.
    ///
    /// A TPM gives at most eight values at once. Its count of PCR updates tells whether one came
    /// in between, and then all are read again. It does not count updates of PCRs that it lists
    /// under TPM_PT_PCR_NO_INCREMENT, such as the debug PCR 16.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of them,
    /// [`TpmError::Unsteady`] after ten attempts.
    pub fn pcr_values(&mut self, selection: &[PcrSelection]) -> Result<Vec<PcrValue>, TpmError> {
        const TRIES: usize = 10;
        let selection = merged(selection)?;
        for _ in 0..TRIES {
            match self.try_pcr_values(&selection) {
                Ok(Some(values)) => return Ok(values),
                Ok(None) => {}
                Err(error) => return Err(self.missing_bank(error, &selection)),
            }
        }
        Err(TpmError::Unsteady)
    }

    /// The banks that the TPM could have, of those that are known, and which PCRs each has.
    fn bank_selections(&mut self) -> Result<Vec<PcrSelection>, TpmError> {
        const WHAT: &str = "TPM2_GetCapability(PCRs)";
        let command = TpmGetCapabilityCommand {
            cap: TpmCap::Pcrs,
            property: TpmUint32::from(0),
            property_count: TpmUint32::from(16),
            handles: [],
        };
        let response: TpmGetCapabilityResponse = self.ask(WHAT, &command, &[])?;
        match &response.capability_data.data {
            TpmuCapabilities::Pcrs(selections) => Ok(from_wire_selection(selections)),
            _ => Err(malformed(WHAT, "another capability")),
        }
    }

    /// `None` if a PCR was changed in between.
    fn try_pcr_values(
        &mut self,
        selection: &[PcrSelection],
    ) -> Result<Option<Vec<PcrValue>>, TpmError> {
        const WHAT: &str = "TPM2_PCR_Read";
        let mut left = selection.to_vec();
        let mut values = Vec::new();
        let mut counter = None;
        while let Some(missing) = left.iter().find(|left| left.pcrs != 0) {
            let no_pcr = TpmError::NoPcr { bank: missing.bank, pcr: missing.pcrs.trailing_zeros() };
            let command =
                TpmPcrReadCommand { pcr_selection_in: wire_selection(WHAT, &left)?, handles: [] };
            let response: TpmPcrReadResponse = self.ask(WHAT, &command, &[])?;
            let seen = response.pcr_update_counter.value();
            if *counter.get_or_insert(seen) != seen {
                return Ok(None);
            }
            let read = from_wire_selection(&response.pcr_selection_out);
            let mut digests = response.pcr_values.iter();
            for (bank, pcr) in read.iter().flat_map(PcrSelection::each) {
                // Each response leaves less to ask for, or this would not end.
                match left.iter_mut().find(|left| left.bank == bank && left.pcrs >> pcr & 1 == 1) {
                    Some(left) => left.pcrs &= !(1 << pcr),
                    None => return Err(malformed(WHAT, "a PCR that was not asked for")),
                }
                let value = digests.next().ok_or_else(|| malformed(WHAT, "too few values"))?;
                let value = Digest::from_slice(bank, value)
                    .map_err(|error| malformed(WHAT, &error.to_string()))?;
                values.push((bank, pcr, value));
            }
            if digests.next().is_some() {
                return Err(malformed(WHAT, "too many values"));
            }
            if read.iter().all(|read| read.pcrs == 0) {
                return Err(no_pcr);
            }
        }
        let place = |bank| selection.iter().position(|selection| selection.bank == bank);
        values.sort_by_key(|(bank, pcr, _)| (place(*bank), *pcr));
        Ok(Some(values))
    }

    /// Extends a PCR in the banks of `digests`, in one command.
    ///
    /// Banks that are not named keep their value, so name all that [`Tpm::banks`] has.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn pcr_extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), TpmError> {
        const WHAT: &str = "TPM2_PCR_Extend";
        let mut values = TpmlDigestValues::default();
        for digest in digests {
            let hash_alg = wire_bank(digest.bank());
            let digest = Tpm2bDigest::try_from(digest.as_bytes()).map_err(unwritable(WHAT))?;
            let digest = TpmuHa::Digest(digest);
            values.try_push(TpmtHa { hash_alg, digest }).map_err(unwritable(WHAT))?;
        }
        let command = TpmPcrExtendCommand { digests: values, handles: [TpmHandle::from(pcr)] };
        self.send(WHAT, &command, &[password()]).map(drop)
    }

    /// Quotes PCRs over a nonce, which may have as many bytes as the TPM's largest digest and two
    /// more: 34 always fit, 66 if it has sha512.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::NoPcr`] if the TPM does not have one of the PCRs.
    pub fn quote(
        &mut self,
        key: &AttestationKey,
        nonce: &[u8],
        selection: &[PcrSelection],
    ) -> Result<Quote, TpmError> {
        const WHAT: &str = "TPM2_Quote";
        let selection = merged(selection)?;
        let command = TpmQuoteCommand {
            qualifying_data: Tpm2bData::try_from(nonce).map_err(unwritable(WHAT))?,
            // The key's own scheme.
            in_scheme: TpmtSigScheme::default(),
            pcr_select: wire_selection(WHAT, &selection)?,
            handles: [key.handle()],
        };
        let response = match self.send(WHAT, &command, &[password()]) {
            Ok(response) => response,
            Err(error) => return Err(self.missing_bank(error, &selection)),
        };
        let parsed: TpmQuoteResponse = unmarshal(WHAT, response)?;
        let TpmuAttest::Quote(info) = &parsed.quoted.inner.attested else {
            return Err(malformed(WHAT, "it attests something else"));
        };
        // What a TPM does not have it leaves out without a word.
        let quoted = from_wire_selection(&info.pcr_select);
        for (bank, pcr) in selection.iter().flat_map(PcrSelection::each) {
            if !quoted.iter().any(|quoted| quoted.bank == bank && quoted.pcrs >> pcr & 1 == 1) {
                return Err(TpmError::NoPcr { bank, pcr });
            }
        }
        let (message, signature) =
            quote_parts(response).ok_or_else(|| malformed(WHAT, "it is cut short"))?;
        Ok(Quote { message: message.to_vec(), signature: signature.to_vec() })
    }

    /// The clock and the counters.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn clock(&mut self) -> Result<ClockInfo, TpmError> {
        let command = TpmReadClockCommand { handles: [] };
        let response: TpmReadClockResponse = self.ask("TPM2_ReadClock", &command, &[])?;
        let info = response.current_time.clock_info;
        Ok(ClockInfo {
            clock: info.clock.value(),
            reset_count: info.reset_count.value(),
            restart_count: info.restart_count.value(),
            safe: bool::from(info.safe),
        })
    }

    /// Removes a key from the TPM's memory.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn flush(&mut self, key: AttestationKey) -> Result<(), TpmError> {
        self.flush_handle(key.handle())
    }

    /// A TPM says only that it does not know a hash: which of the selected?
    fn missing_bank(&mut self, error: TpmError, selection: &[PcrSelection]) -> TpmError {
        if matches!(&error, TpmError::Refused { code, .. } if code.is_unknown_hash())
            && let Ok(banks) = self.banks()
            && let Some(missing) = selection.iter().find(|asked| !banks.contains(&asked.bank))
            && let Some((bank, pcr)) = missing.each().next()
        {
            return TpmError::NoPcr { bank, pcr };
        }
        error
    }

    pub(crate) fn over(transport: Transport) -> Tpm {
        Tpm { transport, claims: Claims::default(), command: Box::new([0; MAX_FRAME]) }
    }

    pub(crate) fn flush_handle(&mut self, handle: TpmHandle) -> Result<(), TpmError> {
        let command = TpmFlushContextCommand { flush_handle: handle, handles: [] };
        self.send("TPM2_FlushContext", &command, &[]).map(drop)
    }

    pub(crate) fn ask<R: TpmUnmarshalBody>(
        &mut self,
        what: &'static str,
        command: &impl TpmFrame,
        auth: &[TpmsAuthCommand],
    ) -> Result<R, TpmError> {
        unmarshal(what, self.send(what, command, auth)?)
    }

    /// Sends a command and gives the response of a TPM that did as it was told.
    fn send(
        &mut self,
        what: &'static str,
        command: &impl TpmFrame,
        auth: &[TpmsAuthCommand],
    ) -> Result<&TpmResponse, TpmError> {
        let tag = if auth.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let mut writer = TpmWriter::new(&mut self.command[..]);
        tpm_marshal_command(command, tag, auth, &mut writer).map_err(unwritable(what))?;
        let response = self
            .transport
            .exchange(writer.as_bytes())
            .map_err(|error| TpmError::Io { command: what, error })?;
        match response_code(response) {
            ResponseCode(0) => {}
            code => return Err(TpmError::Refused { command: what, code }),
        }
        let bad = |error: tpm2_protocol::TpmError| malformed(what, &format!("{error:?}"));
        let response = TpmResponse::cast(response).map_err(bad)?;
        response.validate(command.cc()).map_err(bad)?;
        if response.tag() != Ok(tag) {
            return Err(malformed(what, "its tag is not the command's"));
        }
        Ok(response)
    }
}

impl PcrSelection {
    fn each(&self) -> impl Iterator<Item = (Bank, u32)> + use<> {
        let PcrSelection { bank, pcrs } = *self;
        (0..u32::BITS).filter(move |pcr| pcrs >> pcr & 1 == 1).map(move |pcr| (bank, pcr))
    }
}

fn unmarshal<R: TpmUnmarshalBody>(
    what: &'static str,
    response: &TpmResponse,
) -> Result<R, TpmError> {
    response.unmarshal().map_err(|error| malformed(what, &format!("{error:?}")))
}

/// The TPMS_ATTEST and the TPMT_SIGNATURE in a response to TPM2_Quote, as the TPM wrote them: what
/// is signed are those bytes.
fn quote_parts(response: &TpmResponse) -> Option<(&[u8], &[u8])> {
    let (size, rest) = response.body().split_first_chunk()?;
    let parameters = rest.get(..u32::from_be_bytes(*size) as usize)?;
    let (size, rest) = parameters.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))
}

fn wire_bank(bank: Bank) -> TpmAlgId {
    match bank {
        Bank::Sha1 => TpmAlgId::Sha1,
        Bank::Sha256 => TpmAlgId::Sha256,
        Bank::Sha384 => TpmAlgId::Sha384,
        Bank::Sha512 => TpmAlgId::Sha512,
        Bank::Sm3 => TpmAlgId::Sm3_256,
    }
}

/// Each bank once.
fn merged(selection: &[PcrSelection]) -> Result<Vec<PcrSelection>, TpmError> {
    let mut merged: Vec<PcrSelection> = Vec::new();
    for PcrSelection { bank, pcrs } in selection.iter().copied() {
        let beyond = pcrs >> PcrSelection::PCRS;
        if beyond != 0 {
            return Err(TpmError::NoPcr {
                bank,
                pcr: PcrSelection::PCRS + beyond.trailing_zeros(),
            });
        }
        match merged.iter_mut().find(|merged| merged.bank == bank) {
            Some(merged) => merged.pcrs |= pcrs,
            None => merged.push(PcrSelection { bank, pcrs }),
        }
    }
    Ok(merged)
}

fn wire_selection(
    what: &'static str,
    selection: &[PcrSelection],
) -> Result<TpmlPcrSelection, TpmError> {
    let mut list = TpmlPcrSelection::default();
    for PcrSelection { bank, pcrs } in selection {
        // 24 PCRs in three bytes, PCR 0 in the lowest bit of the first.
        let [a, b, c, _] = pcrs.to_le_bytes();
        let pcr_select = TpmsPcrSelect::try_from(&[a, b, c][..]).map_err(unwritable(what))?;
        list.try_push(TpmsPcrSelection { hash: wire_bank(*bank), pcr_select })
            .map_err(unwritable(what))?;
    }
    Ok(list)
}

fn from_wire_selection(list: &TpmlPcrSelection) -> Vec<PcrSelection> {
    list.iter()
        .filter_map(|selection| {
            let bank = Bank::from_tpm_alg(selection.hash.value())?;
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(selection.pcr_select.iter()) {
                *to = *from;
            }
            Some(PcrSelection { bank, pcrs: u32::from_le_bytes(bytes) })
        })
        .collect()
}
