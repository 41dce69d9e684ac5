//! IMA in user space: a measurement list behind a FUSE mount with securityfs's files.
//!
//! A [`Sandbox`] measures real files (on request, and as root every executed program), keeps their
//! records in a list of `ima-list`, extends a PCR of a TPM with them in list order, and serves
//! securityfs's files through FUSE: for development, for tests, and for machines whose kernel
//! cannot stage.
#![forbid(unsafe_code)]

mod caller;
mod commands;
pub mod control;
mod descriptor;
mod error;
mod exec_watch;
mod fault;
mod faults;
mod files;
mod filesystem;
mod ima;
mod kernel;
mod machine;
mod reading;
mod run_dir;
mod sandbox;
mod wire;

pub use error::SandboxError;
pub use fault::{Fault, UnknownFault};
pub use ima::{HASH, Ima, Outcome, Policy};
pub use ima_list::Duplicates;
pub use ima_securityfs::Dialect;
pub use kernel::Kernel;
pub use machine::{Carried, Hazard, Kexec, Machine};
pub use sandbox::{Config, Sandbox, TpmChoice, tpm_of};
