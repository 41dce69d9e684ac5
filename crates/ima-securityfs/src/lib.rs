//! The interface of the measurement list: what its files are called, who may open which when, and what
//! can be asked through them.
//!
//! Linux shows IMA's measurement list as files in `/sys/kernel/security/integrity/ima`, and since
//! 7.2 shortens it on request: whoever holds one of them open for writing can stage the list and
//! delete records. This crate is that interface without the list behind it:
//!
//! - [`Dialect`] is which interface it is: that of Linux 7.2, or one that was proposed before;
//! - [`FileName`] names the files, [`directory`] lists them;
//! - [`OpenLock`] decides who may open: many readers or one writer, over all files together;
//! - [`Request`] is what one write asks for;
//! - [`Errno`] is how a refusal is told.
//!
//! All are plain state machines that allocate nothing and depend on nothing, so that a kernel
//! module can use the very same code. That is also why a [`Bank`] is here nothing but its
//! `TPM_ALG_ID`: the number is what the kernel has for each bank of the TPM, the names follow from
//! it, and whoever knows more about banks converts by it.
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
//! Source: the kernel's documentation of exporting and deleting IMA's measurement list, and what
//! Linux 7.2's code was seen to do (`tests/observed-7.2.tsv`); for the other dialects what kernels
//! with those patches did (`tests/observed-v4.tsv`, `tests/observed-trim.tsv`).
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
