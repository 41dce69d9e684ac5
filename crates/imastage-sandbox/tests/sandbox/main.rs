//! A mounted sandbox, as any client sees it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod access;
mod clients;
mod kernel;
mod machine;
mod mount;
mod mounted;
