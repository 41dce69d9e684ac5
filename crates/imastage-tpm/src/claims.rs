//! Which client of a shared TPM owns which handles.

use tpm2_protocol::{
    TpmError, TpmUnmarshal,
    basic::TpmHandle,
    data::{TpmCap, TpmCc, TpmRcBase, TpmSt, TpmsAuthCommand},
    frame::TpmCommand,
};

use crate::{ResponseCode, command::response_code, transport::HEADER};

/// The client that has loaded each transient object and session of a shared TPM, by handle.
///
/// A TPM reuses a handle when its object is gone, also without a TPM2_FlushContext: after a
/// completed sequence, a session that is not continued, or a cleared hierarchy. A claim therefore
/// ends at the latest when another client gets the handle. Until then it is harmless.
#[derive(Default)]
pub(crate) struct Claims {
    clients: u64,
    loaded: Vec<Claim>,
}

#[derive(Clone, Copy)]
struct Claim {
    handle: u32,
    client: u64,
}

impl Claims {
    /// A new number for a client.
    pub(crate) fn client(&mut self) -> u64 {
        self.clients += 1;
        self.clients
    }

    /// What is left of these when nothing is loaded any more: the numbers that clients have.
    pub(crate) fn after_reset(&self) -> Claims {
        Claims { clients: self.clients, loaded: Vec::new() }
    }

    /// The response to a client's command that is malformed or names an object of another client;
    /// `None` if the command may be passed to the TPM.
    pub(crate) fn refusal(&self, client: u64, command: &[u8]) -> Option<ResponseCode> {
        match self.parse(client, command) {
            Ok(refusal) => refusal,
            Err(TpmError::InvalidCc { .. }) => Some(code(TpmRcBase::CommandCode, 0)),
            Err(TpmError::InvalidTag { .. }) => Some(code(TpmRcBase::BadTag, 0)),
            Err(_) => Some(code(TpmRcBase::CommandSize, 0)),
        }
    }

    /// Records the objects that a command loaded or flushed.
    pub(crate) fn note(&mut self, client: u64, command: &[u8], response: &[u8]) {
        /// Commands whose response begins with the handle of something now loaded.
        const LOADING: [TpmCc; 8] = [
            TpmCc::ContextLoad,
            TpmCc::CreateLoaded,
            TpmCc::CreatePrimary,
            TpmCc::HashSequenceStart,
            TpmCc::HmacStart,
            TpmCc::Load,
            TpmCc::LoadExternal,
            TpmCc::StartAuthSession,
        ];
        if response_code(response) != ResponseCode(0) {
            return;
        }
        let Some(cc) = word(command, 6) else { return };
        if cc == TpmCc::FlushContext as u32 {
            if let Some(handle) = word(command, HEADER) {
                self.forget(handle);
            }
        } else if LOADING.iter().any(|loading| *loading as u32 == cc)
            && let Some(handle) = word(response, HEADER)
        {
            self.forget(handle);
            self.loaded.push(Claim { handle, client });
        }
    }

    /// Removes the objects of other clients from a TPM2_GetCapability of handles, so that the
    /// client does not flush them.
    pub(crate) fn hide(&self, client: u64, command: &[u8], response: &mut Vec<u8>) {
        /// After moreData, capability and count. With a session there would be a size before.
        const LIST: usize = HEADER + 9;
        if word(command, 6) != Some(TpmCc::GetCapability as u32)
            || !response.starts_with(&(TpmSt::NoSessions as u16).to_be_bytes())
            || word(response, HEADER + 1) != Some(TpmCap::Handles as u32)
            || response.len() < LIST
        {
            return;
        }
        let list = response.split_off(LIST);
        let own = list.chunks_exact(4).filter(|handle| {
            word(handle, 0).is_some_and(|handle| !self.foreign(client, handle.into()))
        });
        response.extend(own.flatten());
        let (size, count) = (response.len() as u32, (response.len() - LIST) as u32 / 4);
        response[2..6].copy_from_slice(&size.to_be_bytes());
        response[LIST - 4..LIST].copy_from_slice(&count.to_be_bytes());
    }

    /// The handle's object is gone.
    pub(crate) fn forget(&mut self, handle: u32) {
        self.loaded.retain(|claim| claim.handle != handle);
    }

    /// Ends all claims of a client; returns their handles.
    pub(crate) fn take(&mut self, client: u64) -> Vec<u32> {
        let (taken, kept) = self.loaded.iter().partition(|claim| claim.client == client);
        self.loaded = kept;
        let taken: Vec<Claim> = taken;
        taken.iter().map(|claim| claim.handle).collect()
    }

    fn parse(&self, client: u64, command: &[u8]) -> Result<Option<ResponseCode>, TpmError> {
        let command = TpmCommand::cast(command)?;
        if command.cc()? == TpmCc::FlushContext {
            let (handle, _) = TpmHandle::unmarshal(command.parameters()?)?;
            return Ok(self.foreign(client, handle).then_some(FLUSH_REFUSED));
        }
        let mut handles = command.handles()?;
        for n in 0.. {
            if handles.is_empty() {
                break;
            }
            let (handle, rest) = TpmHandle::unmarshal(handles)?;
            if self.foreign(client, handle) {
                return Ok(Some(code(TpmRcBase::ReferenceH0, n)));
            }
            handles = rest;
        }
        let mut sessions = command.auth_area()?;
        for n in 0.. {
            if sessions.is_empty() {
                break;
            }
            let (session, rest) = TpmsAuthCommand::unmarshal(sessions)?;
            if self.foreign(client, session.session_handle) {
                return Ok(Some(code(TpmRcBase::ReferenceS0, n.min(6))));
            }
            sessions = rest;
        }
        Ok(None)
    }

    /// Whether the handle is of an object that another client has loaded.
    fn foreign(&self, client: u64, handle: TpmHandle) -> bool {
        let handle = handle.value();
        // HMAC session, policy session, transient object (Part 2, 7.2).
        matches!(handle >> 24, 0x02 | 0x03 | 0x80)
            && !self.loaded.iter().any(|claim| claim.handle == handle && claim.client == client)
    }
}

/// TPM_RC_HANDLE of the first parameter.
const FLUSH_REFUSED: ResponseCode = ResponseCode(TpmRcBase::Handle as u32 | 0x140);

/// TPM_RC_REFERENCE_H0 is followed by H1 to H6, and so is S0 (Part 2, 6.6.3).
fn code(base: TpmRcBase, n: u32) -> ResponseCode {
    ResponseCode(base as u32 + n)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}
