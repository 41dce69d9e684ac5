//! The drain loop and the local API.
//!
//! A [`Service`] drains one list into one state directory, for good, and answers for what it keeps
//! on a Unix socket: its state, a quote over a verifier's nonce, records from any index on. See
//! [`wire`] for what is said there, [`Client`] for asking.
#![forbid(unsafe_code)]

mod alert;
mod align;
mod api;
mod at_rest;
mod attester;
mod banks;
mod client;
mod closed;
mod compare;
pub mod doctor;
mod drain;
mod drain_loop;
mod durations;
mod epoch;
pub mod health;
mod last_compared;
mod metrics;
mod place;
mod pulse;
mod service;
#[cfg(test)]
mod survival;
mod view;
pub mod wire;

pub use api::SOCKET;
pub use at_rest::{holder, status_at_rest, status_unanswered};
pub use client::{Client, ClientError, MOST_RECORDS, RecordAnswer};
pub use closed::ClosedEpochs;
pub use drain::{DrainError, Round};
pub use service::{Config, Prepared, Service, ServiceError};
pub use view::{View, ViewError};
