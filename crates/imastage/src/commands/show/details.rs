//! What is in a record, in words.

use std::io::Write as _;

use ima_log::{Bank, Event, KexecSizes, Record, SignatureKind, SignatureVersion};

/// Appends a record: a line with its index and name, then what it says, a line each.
pub fn write(record: &Record<'_>, index: u64, bank: Bank, out: &mut Vec<u8>) {
    let name = record.event_name().map(String::from_utf8_lossy).unwrap_or_default();
    line(out, format_args!("record {index}: {}", name.escape_debug()));
    let template = record.template();
    let digest = record.template_digest(bank);
    line(out, format_args!("  PCR {}, template {}", record.pcr(), template.name()));
    if record.is_violation() {
        line(out, format_args!("  violation: the digest is zero, the PCR was extended with ones"));
    } else {
        let right = if record.digest_is_right() { "" } else { ", the list shows another" };
        line(out, format_args!("  template digest {bank}:{digest}{right}"));
    }
    if let Some(file) = record.file_digest() {
        let kind = file.digest_type.map(|kind| format!("{kind}:")).unwrap_or_default();
        let digest = hex::encode(file.digest);
        line(out, format_args!("  file digest {kind}{}:{digest}", file.algorithm));
    }
    match record.signature() {
        Some(Ok(signature)) => {
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
            line(
                out,
                format_args!(
                    "  signature {kind}: version {version}, {hash}, key {id}, {len} bytes"
                ),
            );
        }
        Some(Err(error)) => line(out, format_args!("  signature that cannot be read: {error}")),
        None => {}
    }
    if let Some(event) = record.event() {
        write_event(&event, out);
    }
}

fn write_event(event: &Event<'_>, out: &mut Vec<u8>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).escape_debug().to_string();
    match event {
        Event::BootAggregate => line(out, format_args!("  a kernel booted")),
        Event::KernelVersion(version) => {
            line(out, format_args!("  kernel version {}", text(version)));
        }
        Event::KexecCommandLine(words) => {
            line(out, format_args!("  kexec command line {}", text(words)));
        }
        Event::KexecLoad(sizes) => write_kexec("another kernel was loaded", sizes, out),
        Event::KexecExecute(sizes) => write_kexec("another kernel is booted", sizes, out),
        Event::Key { keyring, certificate } => line(
            out,
            format_args!(
                "  key added to keyring {}: certificate of {} bytes",
                text(keyring),
                certificate.len()
            ),
        ),
        Event::Data(data) => line(out, format_args!("  data {}", hex::encode(data))),
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

fn line(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "{text}");
}
