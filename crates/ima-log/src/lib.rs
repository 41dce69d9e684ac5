//! Read, write and replay Linux IMA measurement lists.
//!
//! A *measurement list* is what the Linux kernel's Integrity Measurement Architecture shows in
//! `/sys/kernel/security/ima/binary_runtime_measurements`: one [`Record`] after another, no
//! header, no count. This crate parses records and computes what they prove:
//!
//! - [`Record`] borrows one record from a slice, [`RecordBuf`] owns one, [`Records`] iterates over
//!   a list in memory, [`Decoder`] splits a stream of bytes in chunks of any size into records;
//! - [`Record::template_digest`] computes the digest of any [`Bank`] from the template data;
//! - [`Record::write_ascii`] and [`Record::write_binary`] write a record as in the kernel's files of a
//!   bank, byte for byte;
//! - [`Replay`] replays records to a PCR value, [`ListReplay`] replays every PCR that a list names,
//!   in each way in which kernels extend a bank, and finds the prefix that replays to given PCR values;
//! - [`RecordBuilder`] builds records of every template in either byte order, [`AsciiDecoder`] reads
//!   the kernel's ASCII form, [`KexecBuffer`] and [`KexecWriter`] are the list that kexec passes to the
//!   next kernel;
//! - [`Record::file_digest`], [`Record::signature`] and [`Record::event`] return what was measured,
//!   [`check_boot_aggregate`] compares a boot_aggregate with PCR values; the feature `signatures`
//!   verifies file signatures;
//! - [`Printable`] escapes names and other untrusted text for a terminal or a log;
//! - with the feature `json`, the module `json` writes and reads records as JSON lines; with the
//!   feature `cel`, the module `cel` writes and reads the TCG Canonical Event Log.
//!
//! It does no I/O.
//!
//! ```
//! use ima_log::{Bank, Decoder, Extend, Format, RecordBuf, Replay};
//!
//! let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"#!/bin/sh\n"]), b"/usr/bin/true");
//! let mut decoder = Decoder::new(Format::native(Bank::Sha1));
//! decoder.feed(record.as_bytes());
//!
//! let mut pcr = Replay::new(Bank::Sha256, Extend::Own);
//! while let Some(record) = decoder.next_record()? {
//!     assert_eq!(record.event_name(), Some(&b"/usr/bin/true"[..]));
//!     pcr.extend(&record);
//! }
//! decoder.finish()?;
//! println!("PCR 10: {}", pcr.value());
//! # Ok::<(), ima_log::ParseError>(())
//! ```
//!
//! # Crate features
//! None is enabled by default.
//!
//! - `json`: the module `json`, records as JSON lines;
//! - `cel`: the module `cel`, the TCG Canonical Event Log in JSON, CBOR and TLV; enables `json`;
//! - `signatures`: verifies file signatures with public keys or X.509 certificates.
//!
//! Sources: the kernel's `Documentation/security/IMA-templates.rst`; TCG PC Client Platform
//! Firmware Profile (PCR use); TPM 2.0 Library Part 3, `TPM2_PCR_Extend`.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod aggregate;
mod ascii;
mod builder;
#[cfg(feature = "cel")]
pub mod cel;
mod decoder;
mod digest;
mod error;
mod event;
mod explain;
mod format;
mod hash;
mod ima_ng;
#[cfg(feature = "json")]
mod import;
#[cfg(feature = "json")]
pub mod json;
mod kexec;
#[cfg(feature = "signatures")]
mod keys;
mod list_replay;
mod pcrs;
mod printable;
mod record;
mod record_buf;
mod replay;
mod signature;
mod template;

pub use aggregate::{AggregateError, AggregatedPcrs, boot_aggregate, check_boot_aggregate};
pub use ascii::{AsciiDecoder, AsciiError, AsciiErrorKind};
pub use builder::{DigestType, EvmSig, RecordBuilder};
pub use decoder::{Decoder, Records};
pub use digest::{Bank, Digest, DigestLengthError, UnknownBankError};
pub use error::{BuildError, ParseError, ParseErrorKind};
pub use event::{Event, FileDigest, KexecSizes};
pub use explain::{Cause, Explain, Explanation};
pub use format::{Endian, Format, MAX_FIELDS, MAX_NAME, MAX_TEMPLATE_DATA, MAX_TEXT_DATA};
#[cfg(feature = "json")]
pub use import::{ImportError, ImportErrorKind};
pub use kexec::{KexecBuffer, KexecError, KexecRecords, KexecWriter};
#[cfg(feature = "signatures")]
pub use keys::{KeyError, SigningKey, VerifyError};
pub use list_replay::{BankReplay, ListReplay, PcrTarget, Prefix};
pub use pcrs::{BankPcrs, PcrSet, PcrSetError};
pub use printable::Printable;
pub use record::Record;
pub use record_buf::RecordBuf;
pub use replay::{Extend, Replay, UnknownExtendError};
pub use signature::{KeyId, Signature, SignatureError, SignatureKind, SignatureVersion};
pub use template::{Field, FieldKind, Fields, Template};

/// The PCR that IMA extends by default; another one is set by `CONFIG_IMA_MEASURE_PCR_IDX` or by
/// `pcr=` in a policy rule. [`ListReplay::pcr`] is that of a list.
pub const IMA_PCR: u32 = 10;
