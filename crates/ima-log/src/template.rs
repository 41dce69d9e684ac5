//! Templates, and the fields that their template data consists of.

use core::str;

use crate::format::Cursor;
use crate::{Bank, Digest, Endian, Format, ParseErrorKind};

/// A record's template: which fields its data is made of.
/// Source: the kernel's `Documentation/security/IMA-templates.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Template<'a> {
    /// `ima`: `d|n`, the oldest, serialized without lengths.
    Ima,
    /// `ima-ng`: `d-ng|n-ng`.
    ImaNg,
    /// `ima-sig`: `d-ng|n-ng|sig`.
    ImaSig,
    /// `ima-ngv2`: `d-ngv2|n-ng`.
    ImaNgV2,
    /// `ima-sigv2`: `d-ngv2|n-ng|sig`.
    ImaSigV2,
    /// `ima-buf`: `d-ng|n-ng|buf`.
    ImaBuf,
    /// `ima-modsig`: `d-ng|n-ng|sig|d-modsig|modsig`.
    ImaModsig,
    /// `evm-sig`: `d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode`.
    EvmSig,
    /// A format given with `ima_template_fmt=`, which then is the name: known field ids with `|`
    /// between them.
    Custom(&'a str),
    /// A template this crate does not know. Its data is kept as it is.
    Unknown(&'a str),
}

/// What a field holds. Source: as [`Template`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// `d`: a bare SHA-1 or MD5 digest.
    D,
    /// `d-ng`: `ALGORITHM:`, NUL, digest.
    DNg,
    /// `d-ngv2`: `TYPE:ALGORITHM:`, NUL, digest.
    DNgV2,
    /// `n`: the event's name, at most 255 bytes.
    N,
    /// `n-ng`: the event's name and a NUL.
    NNg,
    /// `sig`: a file signature (`security.ima`).
    Sig,
    /// `buf`: measured data itself, such as a command line or a key.
    Buf,
    /// `d-modsig`: as `d-ng`, of the file without its appended signature.
    DModsig,
    /// `modsig`: the appended signature (PKCS#7).
    Modsig,
    /// `evmsig`: a portable signature (`security.evm`).
    EvmSig,
    /// `iuid`: the inode's owner.
    IUid,
    /// `igid`: the inode's group.
    IGid,
    /// `imode`: the inode's mode.
    IMode,
    /// `xattrnames`: names with `|` between them and a NUL.
    XattrNames,
    /// `xattrlengths`: one u32 for each name.
    XattrLengths,
    /// `xattrvalues`: the values, one after another.
    XattrValues,
}

/// One field of a record's template data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What it holds; `None` in an unknown template.
    pub kind: Option<FieldKind>,
    /// Its bytes, without the length before them.
    pub bytes: &'a [u8],
}

/// The fields of a record, in order. See [`crate::Record::fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    state: State<'a>,
    endian: Endian,
}

impl<'a> Template<'a> {
    /// The template with this name; `None` unless the name is printable ASCII.
    #[inline]
    pub(crate) fn from_name(name: &'a [u8]) -> Option<Template<'a>> {
        // Nearly all records: told before anything is looked at byte by byte.
        Some(match name {
            b"ima" => Template::Ima,
            b"ima-ng" => Template::ImaNg,
            b"ima-sig" => Template::ImaSig,
            b"ima-ngv2" => Template::ImaNgV2,
            b"ima-sigv2" => Template::ImaSigV2,
            b"ima-buf" => Template::ImaBuf,
            b"ima-modsig" => Template::ImaModsig,
            b"evm-sig" => Template::EvmSig,
            _ => return Template::from_other_name(name),
        })
    }

    fn from_other_name(name: &'a [u8]) -> Option<Template<'a>> {
        let graphic = name.iter().all(u8::is_ascii_graphic);
        let name = str::from_utf8(name).ok().filter(|_| graphic)?;
        let custom = name.split('|').all(|id| FieldKind::from_id(id).is_some());
        Some(if custom { Template::Custom(name) } else { Template::Unknown(name) })
    }

    /// The name as in a record.
    pub fn name(&self) -> &'a str {
        match self {
            Template::Ima => "ima",
            Template::ImaNg => "ima-ng",
            Template::ImaSig => "ima-sig",
            Template::ImaNgV2 => "ima-ngv2",
            Template::ImaSigV2 => "ima-sigv2",
            Template::ImaBuf => "ima-buf",
            Template::ImaModsig => "ima-modsig",
            Template::EvmSig => "evm-sig",
            Template::Custom(name) | Template::Unknown(name) => name,
        }
    }

    /// The field ids with `|` between them; empty for an unknown template.
    pub fn format(&self) -> &'a str {
        match self {
            Template::Ima => "d|n",
            Template::ImaNg => "d-ng|n-ng",
            Template::ImaSig => "d-ng|n-ng|sig",
            Template::ImaNgV2 => "d-ngv2|n-ng",
            Template::ImaSigV2 => "d-ngv2|n-ng|sig",
            Template::ImaBuf => "d-ng|n-ng|buf",
            Template::ImaModsig => "d-ng|n-ng|sig|d-modsig|modsig",
            Template::EvmSig => {
                "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"
            }
            Template::Custom(format) => format,
            Template::Unknown(_) => "",
        }
    }

    /// How many fields the template has; 0 for an unknown one.
    fn field_count(&self) -> usize {
        match self {
            Template::Ima | Template::ImaNg | Template::ImaNgV2 => 2,
            Template::ImaSig | Template::ImaSigV2 | Template::ImaBuf => 3,
            Template::ImaModsig => 5,
            Template::EvmSig => 9,
            Template::Custom(format) => format.split('|').count(),
            Template::Unknown(_) => 0,
        }
    }

    /// Checks that `data` is exactly this template's fields. Anything will do for an unknown one.
    #[inline]
    pub(crate) fn check_data(&self, data: &[u8], endian: Endian) -> Result<(), ParseErrorKind> {
        if matches!(self, Template::Unknown(_)) {
            return Ok(());
        }
        let expected = self.field_count();
        let mut cursor = Cursor { rest: data, endian };
        for field in 0..expected {
            let Some(claimed) = cursor.u32() else {
                return Err(ParseErrorKind::FieldCount { expected, found: field });
            };
            let left = cursor.rest.len();
            if cursor.take(claimed as usize).is_none() {
                return Err(ParseErrorKind::FieldLength { field, claimed, left });
            }
        }
        if cursor.rest.is_empty() {
            Ok(())
        } else {
            Err(ParseErrorKind::FieldCount { expected, found: expected + 1 })
        }
    }
}

impl FieldKind {
    /// The kernel's id of the field.
    pub const fn id(self) -> &'static str {
        match self {
            FieldKind::D => "d",
            FieldKind::DNg => "d-ng",
            FieldKind::DNgV2 => "d-ngv2",
            FieldKind::N => "n",
            FieldKind::NNg => "n-ng",
            FieldKind::Sig => "sig",
            FieldKind::Buf => "buf",
            FieldKind::DModsig => "d-modsig",
            FieldKind::Modsig => "modsig",
            FieldKind::EvmSig => "evmsig",
            FieldKind::IUid => "iuid",
            FieldKind::IGid => "igid",
            FieldKind::IMode => "imode",
            FieldKind::XattrNames => "xattrnames",
            FieldKind::XattrLengths => "xattrlengths",
            FieldKind::XattrValues => "xattrvalues",
        }
    }

    pub(crate) fn from_id(id: &str) -> Option<FieldKind> {
        use FieldKind::*;
        [
            D,
            DNg,
            DNgV2,
            N,
            NNg,
            Sig,
            Buf,
            DModsig,
            Modsig,
            EvmSig,
            IUid,
            IGid,
            IMode,
            XattrNames,
            XattrLengths,
            XattrValues,
        ]
        .into_iter()
        .find(|kind| kind.id() == id)
    }
}

#[derive(Clone, Debug)]
enum State<'a> {
    /// Template `ima`: digest, then name.
    Ima { digest: Option<&'a [u8]>, name: Option<&'a [u8]> },
    /// Fields after their lengths. `format` is what is left of the template's format.
    Prefixed { format: Option<&'a str>, data: &'a [u8] },
    /// An unknown template whose data is no sequence of fields: all of it at once.
    Opaque(Option<&'a [u8]>),
}

impl<'a> Fields<'a> {
    pub(crate) fn new(template: Template<'a>, data: &'a [u8], endian: Endian) -> Fields<'a> {
        let state = match template {
            Template::Ima => {
                // `ima_data` cut `data` so that the name is what its length says, up to the end.
                let at = if is_ima_split(data, 20, endian) { 20 } else { 16 };
                let (digest, name) = data.split_at_checked(at).unwrap_or((data, &[]));
                State::Ima { digest: Some(digest), name: Some(name.get(4..).unwrap_or_default()) }
            }
            Template::Unknown(_) if !is_prefixed(data, endian) => State::Opaque(Some(data)),
            Template::Unknown(_) => State::Prefixed { format: None, data },
            _ => State::Prefixed { format: Some(template.format()), data },
        };
        Fields { state, endian }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        match &mut self.state {
            State::Ima { digest, name } => {
                if let Some(bytes) = digest.take() {
                    return Some(Field { kind: Some(FieldKind::D), bytes });
                }
                name.take().map(|bytes| Field { kind: Some(FieldKind::N), bytes })
            }
            State::Prefixed { format, data } => {
                let mut cursor = Cursor { rest: data, endian: self.endian };
                let len = cursor.u32()?;
                let bytes = cursor.take(len as usize)?;
                *data = cursor.rest;
                let kind = format.as_mut().and_then(|left| {
                    let (id, rest) = left.split_once('|').unwrap_or((left, ""));
                    *left = rest;
                    FieldKind::from_id(id)
                });
                Some(Field { kind, bytes })
            }
            State::Opaque(data) => data.take().map(|bytes| Field { kind: None, bytes }),
        }
    }
}

/// The first name field, without the NUL that `n-ng` ends with.
pub(crate) fn event_name(mut fields: Fields<'_>) -> Option<&[u8]> {
    let name = fields.find(|field| matches!(field.kind, Some(FieldKind::N | FieldKind::NNg)))?;
    Some(name.bytes.strip_suffix(&[0]).unwrap_or(name.bytes))
}

/// Cuts the data of template `ima` off the front of `rest`: a digest of 20 bytes, or 16 where the
/// kernel hashes with MD5, the name's length, the name. Nothing says which of the two it is but the
/// template digest, so that decides where both could be.
pub(crate) fn ima_data<'a>(
    rest: &'a [u8],
    printed: &[u8],
    format: Format,
) -> Result<Option<&'a [u8]>, ParseErrorKind> {
    let violation = printed.iter().all(|byte| *byte == 0);
    let sha1_sized = ima_split(rest, 20, format.endian);
    if let Ok(Some(data)) = sha1_sized
        && (violation || ima_digest(format.bank, data, format.endian).as_bytes() == printed)
    {
        return Ok(Some(data));
    }
    if violation {
        return sha1_sized;
    }
    match ima_split(rest, 16, format.endian) {
        Ok(Some(data)) if ima_digest_at(format.bank, data, 16).as_bytes() == printed => {
            Ok(Some(data))
        }
        // Bytes that are still to come may decide for this one: whoever reads in chunks must find
        // what one who has the whole list finds.
        Ok(None) => Ok(None),
        _ => sha1_sized,
    }
}

/// The template digest of template `ima`: over the file digest and the name, zero-padded to 256
/// bytes, without the length between them.
pub(crate) fn ima_digest(bank: Bank, data: &[u8], endian: Endian) -> Digest {
    ima_digest_at(bank, data, if is_ima_split(data, 20, endian) { 20 } else { 16 })
}

fn ima_digest_at(bank: Bank, data: &[u8], digest_len: usize) -> Digest {
    const PADDED: usize = 256;
    let (digest, name) = data.split_at_checked(digest_len).unwrap_or((data, &[]));
    let name = name.get(4..).unwrap_or_default();
    let name = &name[..name.len().min(PADDED)];
    bank.hash(&[digest, name, &[0; PADDED][name.len()..]])
}

fn ima_split(
    rest: &[u8],
    digest_len: usize,
    endian: Endian,
) -> Result<Option<&[u8]>, ParseErrorKind> {
    let mut cursor = Cursor { rest, endian };
    let (Some(_), Some(name_len)) = (cursor.take(digest_len), cursor.u32()) else {
        return Ok(None);
    };
    if name_len > 255 {
        return Err(ParseErrorKind::EventNameLength(name_len));
    }
    Ok(rest.get(..digest_len + 4 + name_len as usize))
}

fn is_ima_split(data: &[u8], digest_len: usize, endian: Endian) -> bool {
    matches!(ima_split(data, digest_len, endian), Ok(Some(whole)) if whole.len() == data.len())
}

fn is_prefixed(data: &[u8], endian: Endian) -> bool {
    let mut cursor = Cursor { rest: data, endian };
    while !cursor.rest.is_empty() {
        let Some(len) = cursor.u32() else { return false };
        if cursor.take(len as usize).is_none() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn an_md5_digest_that_could_be_sha1_s_is_read_alike_in_chunks_and_whole() {
        // The name's length stands where a SHA-1 digest would end, and four zeros follow, which
        // could be the length of no name.
        let format = Format::native(Bank::Sha1);
        let mut data = Vec::from([7; 16]);
        data.extend_from_slice(&format.endian.bytes(168));
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&[b'x'; 164]);
        let digest = ima_digest_at(Bank::Sha1, &data, 16);
        for cut in 0..data.len() {
            let found = ima_data(&data[..cut], digest.as_bytes(), format);
            assert_eq!(found, Ok(None), "after {cut} bytes");
        }
        assert_eq!(ima_data(&data, digest.as_bytes(), format), Ok(Some(&data[..])));
    }
}
