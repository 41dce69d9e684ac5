//! A mounted sandbox from a client's perspective.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod access;
mod clients;
mod kernel;
mod machine;
mod mount;
mod mounted;
