//! The IMA measurement list: append, stage, delete.
//!
//! The kernel keeps every measurement record since boot. Since Linux 7.2 user space can offload
//! records: *stage* the list, read the staged records and *delete* them, or delete the first N.
//! Other patches *trim* (T:N). This crate implements that list so that no operation waits for work
//! that grows with the list:
//!
//! - [`List`] is the list, without a lock. Records are packed in the binary sha1 form, a few
//!   hundred or thousand per segment. Deletion unlinks whole segments; their memory is freed when
//!   the caller drops [`Removed`];
//! - [`Chunk`] is a snapshot of part of the list, taken without copying whole segments. Other forms
//!   (ASCII, other banks) are computed from it, outside any lock;
//! - [`List::dump`] and [`List::restore`] carry a list over a kexec;
//! - [`SharedList`] (feature `std`) is the list for many threads.
//!
//! Digests of deleted records are kept by default, as in the kernel, so that nothing is recorded
//! twice ([`Duplicates`] has the alternatives).
//!
//! ```
//! use ima_list::{AppendError, List, Options, Part};
//! use ima_log::{Bank, RecordBuf};
//!
//! let mut list = List::new(Options::default());
//! let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"#!/bin/sh\n"]), b"/usr/bin/true");
//! let key = record.record().template_digest(Bank::Sha256);
//! list.append(&record, &key)?;
//! assert_eq!(list.append(&record, &key), Err(AppendError::Duplicate));
//!
//! list.stage()?;
//! let chunk = list.snapshot(Part::Staged, 0, 1 << 16);
//! assert_eq!(chunk.slices().collect::<Vec<_>>(), [record.as_bytes()]);
//! let removed = list.delete_staged()?;
//! assert_eq!(removed.records(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Crate features
//! `std` (default): [`SharedList`]. Without `std` the crate is `no_std` with `alloc`.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod chain;
mod digest_set;
mod kexec;
mod list;
mod rules;
mod segments;
#[cfg(feature = "std")]
mod shared;

pub use chain::{Chunk, Cut, Outline, Spare};
pub use list::{Counts, List, Part, Removed};
pub use rules::{AppendError, DeleteError, Duplicates, Options, Rules, StageError, TrimError};
#[cfg(feature = "std")]
pub use shared::SharedList;
