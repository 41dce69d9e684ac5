use ima_log::{Bank, Digest};
use tpm2_protocol::{
    TpmMarshal, TpmWriter,
    basic::{TpmHandle, TpmUint32},
    data::{
        Tpm2bData, Tpm2bDigest, TpmAlgId, TpmCap, TpmRh, TpmSt, TpmlDigestValues, TpmlPcrSelection,
        TpmsAuthCommand, TpmsPcrSelect, TpmsPcrSelection, TpmtHa, TpmtSigScheme, TpmuCapabilities,
        TpmuHa,
    },
    frame::{
        TpmFlushContextCommand, TpmFrame, TpmGetCapabilityCommand, TpmGetCapabilityResponse,
        TpmPcrExtendCommand, TpmPcrReadCommand, TpmPcrReadResponse, TpmQuoteCommand,
        TpmQuoteResponse, TpmReadClockCommand, TpmReadClockResponse, TpmResponse,
        TpmResponseOutcome, TpmResponseView, TpmUnmarshalBody, tpm_marshal_command,
    },
};

use crate::{
    AttestationKey, Endpoint, TpmError,
    transport::{MAX_FRAME, Transport},
};

/// One connection to a TPM.
pub struct Tpm {
    transport: Transport,
    command: Vec<u8>,
    response: Vec<u8>,
}

/// PCRs of one bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank.
    pub bank: Bank,
    /// Bit i selects PCR i, of 24.
    pub pcrs: u32,
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

/// The TPM's clock and counters (TPMS_CLOCK_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been powered, more or less.
    pub clock: u64,
    /// Resets: PCRs begin anew with each.
    pub reset_count: u32,
    /// Resumes and restarts since the last reset.
    pub restart_count: u32,
    /// Whether `clock` was never set back.
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
        const WHAT: &str = "TPM2_GetCapability(PCRs)";
        let command = TpmGetCapabilityCommand {
            cap: TpmCap::Pcrs,
            property: TpmUint32::from(0),
            property_count: TpmUint32::from(16),
            handles: [],
        };
        let response: TpmGetCapabilityResponse = self.ask(WHAT, &command, &[])?;
        let TpmuCapabilities::Pcrs(selections) = &response.capability_data.data else {
            return Err(malformed(WHAT, "another capability"));
        };
        let banks: Vec<Bank> = selections
            .iter()
            .filter(|selection| selection.pcr_select.iter().any(|byte| *byte != 0))
            .filter_map(|selection| Bank::from_tpm_alg(selection.hash.value()))
            .collect();
        if banks.is_empty() { Err(TpmError::NoBanks) } else { Ok(banks) }
    }

    /// The value of one PCR.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::Malformed`] if the TPM has no such bank or PCR.
    pub fn pcr_read(&mut self, bank: Bank, pcr: u32) -> Result<Digest, TpmError> {
        let values = self.pcr_values(&[PcrSelection { bank, pcrs: 1 << pcr.min(31) }])?;
        match values.as_slice() {
            [(_, _, value)] => Ok(*value),
            _ => Err(malformed(PCR_READ, &format!("no PCR {pcr} in bank {bank}"))),
        }
    }

    /// The values of selected PCRs, all of the same moment, in the order of selection, ascending
    /// in each bank. PCRs that the TPM does not have are left out.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn pcr_values(&mut self, selection: &[PcrSelection]) -> Result<Vec<PcrValue>, TpmError> {
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            if let Some(values) = self.try_pcr_values(selection)? {
                return Ok(values);
            }
        }
        Err(TpmError::Unsteady)
    }

    /// `None` if a PCR was changed in between: a TPM gives at most eight values at once.
    fn try_pcr_values(
        &mut self,
        selection: &[PcrSelection],
    ) -> Result<Option<Vec<PcrValue>>, TpmError> {
        let mut left = selection.to_vec();
        let mut values = Vec::new();
        let mut counter = None;
        while left.iter().any(|selection| selection.pcrs != 0) {
            let command = TpmPcrReadCommand {
                pcr_selection_in: wire_selection(PCR_READ, &left)?,
                handles: [],
            };
            let response: TpmPcrReadResponse = self.ask(PCR_READ, &command, &[])?;
            let read = from_wire_selection(&response.pcr_selection_out);
            let mut digests = response.pcr_values.iter();
            let before = values.len();
            for PcrSelection { bank, pcrs } in read {
                for pcr in (0..32).filter(|pcr| pcrs >> pcr & 1 == 1) {
                    let Some(value) = digests.next() else {
                        return Err(malformed(PCR_READ, "fewer values than PCRs"));
                    };
                    let value = Digest::from_slice(bank, value)
                        .map_err(|error| malformed(PCR_READ, &error.to_string()))?;
                    values.push((bank, pcr, value));
                    if let Some(left) = left.iter_mut().find(|left| left.bank == bank) {
                        left.pcrs &= !(1 << pcr);
                    }
                }
            }
            if values.len() == before {
                // What is left does not exist.
                break;
            }
            let seen = response.pcr_update_counter.value();
            if *counter.get_or_insert(seen) != seen {
                return Ok(None);
            }
        }
        let place = |bank| selection.iter().position(|selection| selection.bank == bank);
        values.sort_by_key(|(bank, pcr, _)| (place(*bank), *pcr));
        Ok(Some(values))
    }

    /// Extends a PCR in the banks of `digests`.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn pcr_extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), TpmError> {
        const WHAT: &str = "TPM2_PCR_Extend";
        let mut values = TpmlDigestValues::default();
        for digest in digests {
            let hash_alg = wire_bank(digest.bank());
            let unwritable = |error| TpmError::Command { command: WHAT, error };
            let digest =
                TpmuHa::Digest(Tpm2bDigest::try_from(digest.as_bytes()).map_err(unwritable)?);
            values.try_push(TpmtHa { hash_alg, digest }).map_err(unwritable)?;
        }
        let command = TpmPcrExtendCommand { digests: values, handles: [TpmHandle::from(pcr)] };
        self.send(WHAT, &command, &[password()]).map(drop)
    }

    /// Quotes PCRs over a nonce of at most 64 bytes.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(
        &mut self,
        key: &AttestationKey,
        nonce: &[u8],
        selection: &[PcrSelection],
    ) -> Result<Quote, TpmError> {
        const WHAT: &str = "TPM2_Quote";
        let unwritable = |error| TpmError::Command { command: WHAT, error };
        let command = TpmQuoteCommand {
            qualifying_data: Tpm2bData::try_from(nonce).map_err(unwritable)?,
            // The key's own scheme.
            in_scheme: TpmtSigScheme::default(),
            pcr_select: wire_selection(WHAT, selection)?,
            handles: [key.handle()],
        };
        let response: TpmQuoteResponse = self.ask(WHAT, &command, &[password()])?;
        Ok(Quote {
            message: bytes_of(WHAT, &response.quoted.inner)?,
            signature: bytes_of(WHAT, &response.signature)?,
        })
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

    pub(crate) fn over(transport: Transport) -> Tpm {
        Tpm {
            transport,
            command: Vec::with_capacity(MAX_FRAME),
            response: Vec::with_capacity(MAX_FRAME),
        }
    }

    pub(crate) fn flush_handle(&mut self, handle: TpmHandle) -> Result<(), TpmError> {
        let command = TpmFlushContextCommand { flush_handle: handle, handles: [] };
        self.send("TPM2_FlushContext", &command, &[]).map(drop)
    }

    /// Passes a whole command on as it is, and gives the whole response.
    pub(crate) fn pass(&mut self, command: &[u8]) -> std::io::Result<&[u8]> {
        self.transport.exchange(command, &mut self.response)?;
        Ok(&self.response)
    }

    pub(crate) fn ask<R: TpmUnmarshalBody>(
        &mut self,
        what: &'static str,
        command: &impl TpmFrame,
        auth: &[TpmsAuthCommand],
    ) -> Result<R, TpmError> {
        self.send(what, command, auth)?
            .unmarshal()
            .map_err(|error| malformed(what, &error.to_string()))
    }

    fn send(
        &mut self,
        what: &'static str,
        command: &impl TpmFrame,
        auth: &[TpmsAuthCommand],
    ) -> Result<&TpmResponse, TpmError> {
        let tag = if auth.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        self.command.resize(MAX_FRAME, 0);
        let mut writer = TpmWriter::new(&mut self.command);
        tpm_marshal_command(command, tag, auth, &mut writer)
            .map_err(|error| TpmError::Command { command: what, error })?;
        let len = writer.len();
        self.command.truncate(len);
        self.transport
            .exchange(&self.command, &mut self.response)
            .map_err(|error| TpmError::Io { command: what, error })?;
        let bad = |error: tpm2_protocol::TpmError| malformed(what, &error.to_string());
        let response = TpmResponse::cast(&self.response).map_err(bad)?;
        match TpmResponseView::cast(command.cc(), response).map_err(bad)? {
            TpmResponseOutcome::Dispatched(_) => Ok(response),
            TpmResponseOutcome::Rejected(code) => Err(TpmError::Refused { command: what, code }),
        }
    }
}

const PCR_READ: &str = "TPM2_PCR_Read";

/// An empty password, which hierarchies and our keys have.
pub(crate) fn password() -> TpmsAuthCommand {
    TpmsAuthCommand { session_handle: TpmHandle::from(TpmRh::Pw as u32), ..Default::default() }
}

pub(crate) fn malformed(command: &'static str, why: &str) -> TpmError {
    TpmError::Malformed { command, why: why.to_owned() }
}

pub(crate) fn bytes_of(what: &'static str, value: &impl TpmMarshal) -> Result<Vec<u8>, TpmError> {
    let mut bytes = vec![0; MAX_FRAME];
    let mut writer = TpmWriter::new(&mut bytes);
    value.marshal(&mut writer).map_err(|error| TpmError::Command { command: what, error })?;
    let len = writer.len();
    bytes.truncate(len);
    Ok(bytes)
}

fn wire_bank(bank: Bank) -> TpmAlgId {
    match bank {
        Bank::Sha1 => TpmAlgId::Sha1,
        Bank::Sha256 => TpmAlgId::Sha256,
        Bank::Sha384 => TpmAlgId::Sha384,
        Bank::Sha512 => TpmAlgId::Sha512,
    }
}

fn wire_selection(
    what: &'static str,
    selection: &[PcrSelection],
) -> Result<TpmlPcrSelection, TpmError> {
    let unwritable = |error| TpmError::Command { command: what, error };
    let mut list = TpmlPcrSelection::default();
    for PcrSelection { bank, pcrs } in selection {
        // 24 PCRs in three bytes, PCR 0 in the lowest bit of the first.
        let [a, b, c, _] = pcrs.to_le_bytes();
        let pcr_select = TpmsPcrSelect::try_from(&[a, b, c][..]).map_err(unwritable)?;
        list.try_push(TpmsPcrSelection { hash: wire_bank(*bank), pcr_select })
            .map_err(unwritable)?;
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
