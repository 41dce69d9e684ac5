//! Writes records as a Canonical Event Log.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    cbor,
    event::{Encoding, IMA_TEMPLATE, IMA_TLV, TLV_TEMPLATE, extended, hash_name, tlv_value},
    tlv as encoded,
};
use crate::import::push_string;
use crate::{Bank, Record, ascii};

/// Writes a Canonical Event Log, record by record.
#[derive(Debug)]
pub struct Writer {
    encoding: Encoding,
    banks: Vec<Bank>,
    /// The next `recnum` of each PCR.
    recnums: BTreeMap<u32, u64>,
    any: bool,
    /// Whether the CBOR array has no length.
    indefinite: bool,
}

impl Writer {
    /// A writer of records with digests of these banks, besides each record's own.
    pub fn new(encoding: Encoding, banks: &[Bank]) -> Writer {
        let banks = banks.to_vec();
        Writer { encoding, banks, recnums: BTreeMap::new(), any: false, indefinite: false }
    }

    /// Appends what a log begins with. If the number of records is known, CBOR is deterministic
    /// (RFC 8949 section 4.2.1), as strict readers want it; otherwise the array has no length.
    pub fn begin(&mut self, records: Option<u64>, out: &mut Vec<u8>) {
        match (self.encoding, records) {
            (Encoding::Json, _) => out.push(b'['),
            (Encoding::Cbor, Some(records)) => cbor::head(cbor::ARRAY, records, out),
            (Encoding::Cbor, None) => {
                self.indefinite = true;
                out.push(cbor::INDEFINITE_ARRAY);
            }
            (Encoding::Tlv, _) => {}
        }
    }

    /// Appends a record. Linear in its template data, which is hashed once for each bank that is
    /// not its own.
    pub fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        let recnum = self.recnums.entry(record.pcr()).or_default();
        let own = record.format().bank;
        let others = self.banks.iter().copied().filter(|bank| *bank != own);
        let banks: Vec<Bank> = core::iter::once(own).chain(others).collect();
        match self.encoding {
            Encoding::Json => {
                out.extend_from_slice(if self.any { b",\n" } else { b"\n" });
                json(record, *recnum, &banks, out);
            }
            Encoding::Cbor => cbor(record, *recnum, &banks, out),
            Encoding::Tlv => encoded::write(record, *recnum, &banks, tlv(record), out),
        }
        *recnum += 1;
        self.any = true;
    }

    /// Appends what a log ends with.
    pub fn end(self, out: &mut Vec<u8>) {
        match self.encoding {
            Encoding::Json => out.extend_from_slice(b"\n]\n"),
            Encoding::Cbor if self.indefinite => out.push(cbor::BREAK),
            Encoding::Cbor | Encoding::Tlv => {}
        }
    }
}

/// The value of an `ima_tlv` record.
fn tlv<'a>(record: &Record<'a>) -> Option<&'a [u8]> {
    if record.template().name() == TLV_TEMPLATE { tlv_value(record.template_data()) } else { None }
}

/// CEL section 5.2: byte strings are in hex.
fn json(record: &Record<'_>, recnum: u64, banks: &[Bank], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"recnum\":");
    ascii::decimal(recnum, out);
    out.extend_from_slice(b",\"pcr\":");
    ascii::decimal(record.pcr().into(), out);
    out.extend_from_slice(b",\"digests\":[");
    for (position, bank) in banks.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"hashAlg\":");
        push_string(hash_name(*bank), out);
        out.extend_from_slice(b",\"digest\":\"");
        ascii::hex(extended(record, *bank).as_bytes(), out);
        out.extend_from_slice(b"\"}");
    }
    if let Some(value) = tlv(record) {
        out.extend_from_slice(b"],\"content_type\":\"ima_tlv\",\"content\":\"");
        ascii::hex(value, out);
        out.extend_from_slice(b"\"}");
    } else {
        out.extend_from_slice(
            b"],\"content_type\":\"ima_template\",\"content\":{\"template_name\":",
        );
        push_string(record.template().name(), out);
        out.extend_from_slice(b",\"template_data\":\"");
        ascii::hex(record.template_data(), out);
        out.extend_from_slice(b"\"}}");
    }
}

/// CEL section 5.2: the keys are numbers.
fn cbor(record: &Record<'_>, recnum: u64, banks: &[Bank], out: &mut Vec<u8>) {
    cbor::head(cbor::MAP, 5, out);
    cbor::uint(0, out);
    cbor::uint(recnum, out);
    cbor::uint(1, out);
    cbor::uint(record.pcr().into(), out);
    cbor::uint(3, out);
    cbor::head(cbor::ARRAY, banks.len() as u64, out);
    for bank in banks {
        cbor::head(cbor::MAP, 2, out);
        cbor::uint(0, out);
        cbor::uint(bank.tpm_alg().into(), out);
        cbor::uint(1, out);
        cbor::string(cbor::BYTES, extended(record, *bank).as_bytes(), out);
    }
    cbor::uint(9, out);
    if let Some(value) = tlv(record) {
        cbor::uint(IMA_TLV, out);
        cbor::uint(10, out);
        cbor::string(cbor::BYTES, value, out);
    } else {
        cbor::uint(IMA_TEMPLATE, out);
        cbor::uint(10, out);
        cbor::head(cbor::MAP, 2, out);
        cbor::uint(0, out);
        cbor::string(cbor::TEXT, record.template().name().as_bytes(), out);
        cbor::uint(1, out);
        cbor::string(cbor::BYTES, record.template_data(), out);
    }
}
