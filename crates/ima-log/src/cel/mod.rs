//! The TCG Canonical Event Log (CEL), version 1.1: a list in the form in which firmware, boot
//! loader and kernel can share one log, in JSON, CBOR or TLV.
//!
//! A record of template *T* becomes a CEL record of content type `ima_template` (CEL section 4.3,
//! Table 2: type 7) with the template's name and data as in the list; the encodings are
//! those of CEL section 5. What is kept and what is not:
//!
//! - **Digests.** A CEL record has the digests its PCR was extended with, one a bank. [`Writer`]
//!   writes the record's own digest first, as printed, then the computed ones of further banks.
//!   [`Decoder`] takes the first it knows as the printed one, and checks the others against it: a
//!   record half of whose digests belong to other data is refused, one whose only digest does is
//!   not ([`crate::Record::digest_is_right`] tells).
//! - **Violations** extend all ones, so a CEL record has all ones where the list has all zeros.
//! - **`recnum`** counts the records of each PCR from 0 (CEL section 4.2.2). It is not read back:
//!   a log may be the tail of one.
//! - **Byte order.** A CEL record does not tell the byte order of the lengths inside the template
//!   data. [`Decoder`] finds out: only one of the two makes sense.
//! - **`ima_tlv`** (type 8), an older proposal no released kernel writes, extends the digest of the
//!   whole content TLV. Such a record becomes one of a template by that name with the TLV as its
//!   data, so that it replays; it goes back as it came.
//! - Records of **other content types** are skipped and counted.
//!
//! A log in JSON is an array of records; objects one after another (JSON text sequences,
//! RFC 7464, as systemd writes them, or lines) are read, too. A log in CBOR is an array of definite
//! or indefinite length, or a CBOR sequence (RFC 8742). A log in TLV is one record after the other.
//!
//! A record that is read has at most [`crate::MAX_TEXT_DATA`] of template data; decoding takes a small
//! multiple of a record's size in memory, and time that is linear in the log, whatever the chunks.
//!
//! ```
//! use ima_log::{Bank, RecordBuf, cel};
//!
//! let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[b"#!/bin/sh\n"]), b"/usr/bin/true");
//! let mut log = Vec::new();
//! let mut writer = cel::Writer::new(cel::Encoding::Json, &[Bank::Sha1, Bank::Sha256]);
//! writer.begin(None, &mut log);
//! writer.record(&record.record(), &mut log);
//! writer.end(&mut log);
//!
//! let mut decoder = cel::Decoder::new(cel::Encoding::Json);
//! decoder.feed(&log);
//! assert_eq!(decoder.next_record()?, Some(record.record()));
//! # Ok::<(), ima_log::ImportError>(())
//! ```

mod cbor;
mod decoder;
mod event;
mod json;
mod tlv;
mod writer;

pub use decoder::Decoder;
pub use event::Encoding;
pub use writer::Writer;

#[cfg(test)]
mod tests;
