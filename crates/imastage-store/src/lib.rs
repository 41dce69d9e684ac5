//! Durable storage of the records of an epoch.
//!
//! A [`Store`] keeps every record of an epoch (from one TPM reset to the next), verbatim, in files
//! that evmctl can read. [`Store::append`] and [`Store::commit`] add records: when `commit`
//! returns, they survive a power cut and may be deleted from the kernel. A [`Reader`] reads from
//! any index, in parallel with the writer. [`check`] reads everything and reports damage with its
//! place; [`repair`] repairs what is safe to repair. [`pack`] compresses closed epochs, and
//! [`prune`] removes them.
//!
//! `docs/store-format.md` specifies the files byte by byte.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod beneath;
mod check;
mod checkpoints;
mod closed;
mod commits;
mod damage;
mod directory;
mod disk;
mod epoch;
mod error;
mod files;
mod notes;
mod packed;
mod reader;
mod rebuild;
mod repair;
#[cfg(test)]
mod sim;
mod store;
#[cfg(test)]
mod survival;
mod writing;

pub use check::{CheckReport, check, check_epoch, check_with};
pub use closed::{EpochSummary, Packing, Retention, epochs, pack, prune};
pub use damage::{Damage, Remedy};
pub use directory::{COMPARED, DirectoryReport, SideFile, check_directory};
pub use epoch::{Epoch, EpochId};
pub use error::StoreError;
pub use notes::{KeptNote, Note, Withdrawal, all_notes, notes};
pub use reader::{Cursor, Reader};
pub use repair::{Repair, RepairReport, repair};
pub use store::Store;
pub use writing::Recovery;
