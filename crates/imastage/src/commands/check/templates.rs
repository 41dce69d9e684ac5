//! Whether a record is of the template that it says: its name is not protected by the PCR.

use ima_log::{FieldKind, Record, Signature, Template};

/// Whether the template is not known.
pub fn is_unknown(record: &Record<'_>) -> bool {
    matches!(record.template(), Template::Unknown(_))
}

/// Which field holds a file signature though it is none that has one. Under the template that the
/// record was made with it would be verified.
pub fn hidden_signature(record: &Record<'_>) -> Option<usize> {
    // The values of all attributes in a row, which may begin with that of security.ima.
    let values = record.fields().any(|field| field.kind == Some(FieldKind::XattrNames));
    record.fields().position(|field| match field.kind {
        Some(FieldKind::Sig | FieldKind::EvmSig) => false,
        Some(FieldKind::XattrValues) if values => false,
        _ => Signature::parse(field.bytes).is_ok(),
    })
}

/// Whether a record is certainly of a file, as it is a violation or has what only files have.
pub fn is_of_a_file(record: &Record<'_>) -> bool {
    record.is_violation()
        || record.fields().any(|field| {
            matches!(field.kind, Some(FieldKind::Sig | FieldKind::EvmSig | FieldKind::Modsig))
                && !field.bytes.is_empty()
        })
}
