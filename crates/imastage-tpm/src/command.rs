//! What commands and responses of a TPM have in common.

use tpm2_protocol::{
    basic::TpmHandle,
    data::{TpmRh, TpmsAuthCommand},
};

use crate::{ResponseCode, TpmError, transport::HEADER};

/// The code of a response, which has a header.
pub(crate) fn response_code(response: &[u8]) -> ResponseCode {
    let code = response.get(6..HEADER).and_then(|code| code.first_chunk());
    ResponseCode(code.map_or(u32::MAX, |code| u32::from_be_bytes(*code)))
}

/// An empty password, which hierarchies and our keys have.
pub(crate) fn password() -> TpmsAuthCommand {
    TpmsAuthCommand { session_handle: TpmHandle::from(TpmRh::Pw as u32), ..Default::default() }
}

pub(crate) fn malformed(command: &'static str, why: &str) -> TpmError {
    TpmError::Malformed { command, why: why.to_owned() }
}

pub(crate) fn unwritable(command: &'static str) -> impl Fn(tpm2_protocol::TpmError) -> TpmError {
    move |error| TpmError::Command { command, error }
}
