//! What is in a record, in words: every field of every template in some form.

use std::{fmt, io::Write as _};

use ima_log::{
    Bank, Endian, Event, Field, FieldKind, FileDigest, KexecSizes, Printable, Record, Signature,
    SignatureKind, SignatureVersion,
};

/// Appends a record: a line with its index and name, then what it says, a line each.
pub fn write(record: &Record<'_>, index: u64, bank: Bank, out: &mut Vec<u8>) {
    let name = record.likely_name().unwrap_or_default();
    line(out, format_args!("record {index}: {}", Printable::new(name)));
    let template = Printable::new(record.template().name());
    line(out, format_args!("  PCR {}, template {template}", record.pcr()));
    if record.is_violation() {
        line(out, format_args!("  violation: the digest is zero, the PCR was extended with ones"));
    } else {
        let digest = record.template_digest(bank);
        let right = if record.digest_is_right() { "" } else { ", the list shows another" };
        line(out, format_args!("  template digest {bank}:{digest}{right}"));
    }
    let fields: Vec<Field<'_>> = record.fields().collect();
    let (event, mut named) = (record.event(), false);
    for (position, field) in fields.iter().enumerate() {
        match field.kind {
            // In the first line.
            Some(FieldKind::N | FieldKind::NNg) if !named => named = true,
            Some(FieldKind::Buf) if event.is_some() => {
                event.iter().for_each(|event| write_event(event, name, out));
            }
            Some(FieldKind::XattrNames) if xattrs(&fields, record.format().endian).is_some() => {
                for (name, value) in xattrs(&fields, record.format().endian).into_iter().flatten() {
                    line(out, format_args!("  xattr {}: {}", Printable::new(name), Data(value)));
                }
            }
            // Shown with the names.
            Some(FieldKind::XattrLengths | FieldKind::XattrValues)
                if xattrs(&fields, record.format().endian).is_some() => {}
            _ => write_field(field, position, record.format().endian, out),
        }
    }
    if let Some(event @ Event::BootAggregate) = &event {
        write_event(event, name, out);
    }
}

fn write_field(field: &Field<'_>, position: usize, endian: Endian, out: &mut Vec<u8>) {
    let Some(kind) = field.kind else {
        let as_digest = Field { kind: Some(FieldKind::DNg), ..*field };
        if let Some(FileDigest { algorithm, digest, .. }) = FileDigest::from_field(&as_digest) {
            let (algorithm, digest) = (Printable::new(algorithm), hex::encode(digest));
            return line(out, format_args!("  field {position}: digest {algorithm}:{digest}"));
        }
        return line(out, format_args!("  field {position}: {}", Data(field.bytes)));
    };
    if field.bytes.is_empty() {
        return;
    }
    let what = match kind {
        FieldKind::D | FieldKind::DNg | FieldKind::DNgV2 => "file digest",
        FieldKind::DModsig => "digest without the appended signature",
        FieldKind::N | FieldKind::NNg => "name",
        FieldKind::Sig | FieldKind::EvmSig => return write_signature(field.bytes, out),
        FieldKind::Buf => "data",
        FieldKind::Modsig => "appended signature (PKCS#7)",
        FieldKind::IUid => "owner",
        FieldKind::IGid => "group",
        FieldKind::IMode => "mode",
        FieldKind::XattrNames => "xattr names",
        FieldKind::XattrLengths => "xattr lengths",
        FieldKind::XattrValues => "xattr values",
    };
    match (FileDigest::from_field(field), number(field, endian)) {
        (Some(file), _) => {
            let digest_type = file.digest_type.map(|name| format!("{name}:")).unwrap_or_default();
            let (digest_type, name) =
                (Printable::new(&digest_type), Printable::new(file.algorithm));
            line(out, format_args!("  {what} {digest_type}{name}:{}", hex::encode(file.digest)));
        }
        (None, Some(mode)) if kind == FieldKind::IMode => {
            line(out, format_args!("  mode {mode:o} (octal)"));
        }
        (None, Some(id)) => line(out, format_args!("  {what} {id}")),
        (None, None) => line(out, format_args!("  {what} {}", Data(field.bytes))),
    }
}

fn write_signature(bytes: &[u8], out: &mut Vec<u8>) {
    let signature = match Signature::parse(bytes) {
        Ok(signature) => signature,
        Err(error) => {
            let bytes = Data(bytes);
            return line(out, format_args!("  signature that cannot be read ({error}): {bytes}"));
        }
    };
    let kind = match signature.kind {
        SignatureKind::Ima => "of the file",
        SignatureKind::EvmPortable => "of the inode's metadata (EVM, portable)",
        SignatureKind::Verity => "of the file's fs-verity tree",
    };
    let version = match signature.version {
        SignatureVersion::V2 => 2,
        SignatureVersion::V3 => 3,
    };
    let hash = signature.hash_name().unwrap_or("an unknown hash");
    let (id, len) = (signature.key_id, signature.bytes.len());
    line(out, format_args!("  signature {kind}: version {version}, {hash}, key {id}, {len} bytes"));
}

fn write_event(event: &Event<'_>, name: &[u8], out: &mut Vec<u8>) {
    match event {
        Event::BootAggregate => {
            let late = if name == b"boot_aggregate_late" { ", its TPM was there late" } else { "" };
            line(out, format_args!("  a kernel booted{late}"));
        }
        Event::KernelVersion(version) => {
            line(out, format_args!("  kernel version {}", Data(version)))
        }
        Event::KexecCommandLine(words) => {
            line(out, format_args!("  kexec command line {}", Data(words)));
        }
        Event::KexecLoad(sizes) => write_kexec("another kernel was loaded", sizes, out),
        Event::KexecExecute(sizes) => write_kexec("another kernel is booted", sizes, out),
        Event::Key { keyring, certificate } => line(
            out,
            format_args!(
                "  key added to keyring {}: certificate of {}",
                Printable::new(keyring),
                Data(certificate)
            ),
        ),
        Event::Data(data) => line(out, format_args!("  data {}", Data(data))),
        _ => {}
    }
}

fn write_kexec(what: &str, sizes: &KexecSizes, out: &mut Vec<u8>) {
    let KexecSizes { segment_size, runtime_size, measurements } = sizes;
    line(
        out,
        format_args!(
            "  kexec: {what}; {measurements} records so far, {runtime_size} of {segment_size} bytes"
        ),
    );
}

/// Names and values of the extended attributes that a record has, if they fit together.
fn xattrs<'a>(fields: &[Field<'a>], endian: Endian) -> Option<Vec<(&'a [u8], &'a [u8])>> {
    let field = |kind| Some(fields.iter().find(|field| field.kind == Some(kind))?.bytes);
    let names = field(FieldKind::XattrNames)?;
    let (lengths, mut values) = (field(FieldKind::XattrLengths)?, field(FieldKind::XattrValues)?);
    let mut lengths = lengths.chunks(4);
    let mut all = Vec::new();
    if !names.is_empty() {
        for name in names.strip_suffix(&[0])?.split(|byte| *byte == b'|') {
            let length = endian.u32(lengths.next()?.try_into().ok()?);
            let (value, rest) = values.split_at_checked(length as usize)?;
            values = rest;
            all.push((name, value));
        }
    }
    (lengths.next().is_none() && values.is_empty()).then_some(all)
}

/// What a field of an inode holds.
fn number(field: &Field<'_>, endian: Endian) -> Option<u32> {
    let kind = field.kind?;
    if !matches!(kind, FieldKind::IUid | FieldKind::IGid | FieldKind::IMode) {
        return None;
    }
    match (field.bytes, endian) {
        (&[a, b, c, d], _) => Some(endian.u32([a, b, c, d])),
        (&[a, b], Endian::Little) => Some(u16::from_le_bytes([a, b]).into()),
        (&[a, b], Endian::Big) => Some(u16::from_be_bytes([a, b]).into()),
        (&[a], _) => Some(a.into()),
        _ => None,
    }
}

/// Measured bytes: text as text, others in hex.
struct Data<'a>(&'a [u8]);

impl fmt::Display for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.strip_suffix(&[0]).unwrap_or(self.0);
        let is_text = |text: &str| {
            let blank = |c: char| matches!(c, '\t' | '\n' | '\r');
            !text.is_empty() && text.chars().all(|c| !c.is_control() || blank(c))
        };
        match std::str::from_utf8(text) {
            Ok(text) if is_text(text) => Printable::new(text).fmt(f),
            _ if self.0.is_empty() => f.write_str("0 bytes"),
            _ => write!(f, "{} bytes in hex: {}", self.0.len(), hex::encode(self.0)),
        }
    }
}

fn line(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "{text}");
}
