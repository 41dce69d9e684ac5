//! A TPM: PCRs, an attestation key, quotes.
//!
//! [`Tpm`] is one connection to a TPM 2.0, [`Swtpm`] runs a software one, [`SharedTpm`] lets many
//! processes use one connection.
//!
//! A [`Credential`] tells a verifier that two keys are in the same TPM: that of its manufacturer (the
//! [`EndorsementKey`]) and the one that signs quotes.
//!
//! Source: TPM 2.0 Library specification, Part 2 (structures) and Part 3 (commands).
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod claims;
mod command;
mod credential;
mod endorsement;
mod error;
mod key;
mod kind;
mod primary;
mod shared;
mod swtpm;
mod tpm;
mod transport;

pub use credential::{Credential, CredentialError, PublicArea};
pub use endorsement::EndorsementKey;
pub use error::{ResponseCode, TpmError};
pub use key::AttestationKey;
pub use kind::KeyKind;
pub use shared::{Serving, SharedTpm};
pub use swtpm::Swtpm;
pub use tpm::{ClockInfo, PcrSelection, PcrValue, Quote, Tpm};
pub use transport::{Endpoint, EndpointError};
