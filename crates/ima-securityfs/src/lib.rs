//! The securityfs interface of IMA's measurement list: file names, access rules and requests.
//!
//! Linux exports IMA's measurement list as files in `/sys/kernel/security/integrity/ima`. Since
//! Linux 7.2 a process that has one of them open for writing can stage the list and delete records.
//! This crate implements that interface without the list:
//!
//! - [`Dialect`] selects the interface: that of Linux 7.2, or an earlier proposal;
//! - [`FileName`] names the files, [`directory`] lists them;
//! - [`OpenLock`] grants opens: many readers or one writer, over all files together;
//! - [`Request`] is the request in one write;
//! - [`Errno`] is the error number of a refusal.
//!
//! All are plain state machines without allocation or dependencies, so that a kernel module can use
//! the same code. For the same reason a [`Bank`] is only a `TPM_ALG_ID`: the kernel has this number
//! for each bank of the TPM, and the file names derive from it. Callers with a richer bank type
//! convert by this number.
//!
//! ```
//! use ima_securityfs::{Access, Caller, Dialect, OpenLock, Errno, FileName, Request, Grammar};
//!
//! let grammar = Grammar::default();
//! assert_eq!(grammar.dialect, Dialect::Linux72);
//! let name = b"binary_runtime_measurements_sha1_staged";
//! let file = FileName::parse(name, grammar.dialect, &[]).unwrap();
//! let class = file.class().unwrap();
//! let mut lock = OpenLock::new(grammar.dialect);
//! let (service, agent) = (Caller { thread: 1, admin: true }, Caller { thread: 2, admin: true });
//! let open = lock.open(class, Access::Write, service)?;
//! assert_eq!(lock.open(class, Access::Read, agent).unwrap_err(), Errno::EBUSY);
//!
//! assert_eq!(Request::parse(b"A\n", file, 0, grammar)?, Request::Stage);
//! lock.release(open, service.thread);
//! # Ok::<(), Errno>(())
//! ```
//!
//! Sources: the kernel's documentation of exporting and deleting IMA's measurement list, and the
//! observed behaviour of Linux 7.2 (`tests/observed-7.2.tsv`) and of kernels with the patches of
//! the other dialects (`tests/observed-v4.tsv`, `tests/observed-trim.tsv`).
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![no_std]
#![forbid(unsafe_code)]

mod dialect;
mod errno;
mod file_name;
mod open_lock;
mod request;

pub use dialect::{Dialect, UnknownDialect};
pub use errno::Errno;
pub use file_name::{Bank, FileName, Form, Kind, Part, directory};
pub use open_lock::{Access, Caller, FileClass, Open, OpenLock};
pub use request::{Grammar, Request};
