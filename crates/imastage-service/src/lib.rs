//! The service: drains one list into one state directory and answers for what is stored.
//!
//! A [`Service`] runs the drain loop, serves the local API (types and client: `imastage-client`) and
//! mounts the view (`imastage-view`).
#![forbid(unsafe_code)]

mod alert;
mod api;
mod at_rest;
mod attester;
mod clock;
mod closed;
mod config;
mod drain;
mod durations;
mod handle;
mod metrics;
mod opening;
mod pulse;
mod service;
#[cfg(test)]
mod tests;
mod told;

pub use at_rest::{holder, status_at_rest, status_unanswered};
pub use closed::ClosedEpochs;
pub use config::{Config, ServiceError};
pub use drain::round::{DrainError, Round};
pub use service::{Prepared, Service};
