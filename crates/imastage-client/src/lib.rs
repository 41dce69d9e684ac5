//! The local API of an imastage service: its types, and a client.
//!
//! A service listens on a Unix socket ([`SOCKET`]) in its state directory. [`Client`] asks for its
//! status, for quotes and for records; [`wire`] has the JSON types of the API, [`health`] the
//! conditions that a status reports.
#![forbid(unsafe_code)]

mod client;
mod diagnosis;
pub mod health;
pub mod text;
pub mod wire;

pub use client::{Client, ClientError, MOST_RECORDS, RecordAnswer};
pub use wire::SOCKET;
