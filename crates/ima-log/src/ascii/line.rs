//! What record a line is.

use alloc::{borrow::Cow, vec::Vec};
use core::str;

use super::error::AsciiErrorKind;
use crate::{
    Bank, BuildError, Digest, Endian, FieldKind, MAX_FIELDS, ParseErrorKind, RecordBuf,
    RecordBuilder, Template,
};

/// What is known of a list's lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    /// What the last digest was found to be made with.
    pub(super) bank: Bank,
    pub(super) endian: Endian,
    /// Whether the last line that was proven ended in a CR that is none of its record's.
    pub(super) carriage_returns: Option<bool>,
}

/// A record, and what its line was like.
pub(super) struct Proven {
    pub(super) record: RecordBuf,
    pub(super) context: Context,
}

/// What stands before the fields of a line.
struct Head<'a> {
    pcr: u32,
    template: Template<'a>,
    violation: bool,
    printed: [u8; Digest::MAX],
    size: usize,
}

/// How many records a line that was changed is tried as, at most: all that a record of template
/// `evm-sig` may be. Each guess is hashed, so long lines get fewer: the bytes hashed are bounded.
const MAX_GUESSES: usize = 128;
const MAX_GUESSED: usize = 2 << 20;

/// How many steps are taken to find those.
const MAX_STEPS: usize = 4096;

/// How many empty fields at the end of an unknown template's line are looked for.
const MAX_MISSING: usize = 8;

impl Context {
    /// Reads a line without the newline it ended in, if it did.
    pub(super) fn read(&self, line: &[u8], newline: bool) -> Result<Proven, AsciiErrorKind> {
        let (head, fields) = Head::read(line)?;
        let fields = fields.unwrap_or_default();
        if head.violation {
            let end_is_known =
                newline && !(line.ends_with(b"\r") && self.carriage_returns != Some(false));
            return match as_written(line, fields).and_then(|shown| self.prove(&head, &shown)) {
                Ok(proven) if end_is_known => Ok(proven),
                Err(error)
                    if end_is_known && !matches!(error, AsciiErrorKind::FieldCount { .. }) =>
                {
                    Err(error)
                }
                _ => Err(AsciiErrorKind::Violation),
            };
        }
        match as_written(line, fields).and_then(|shown| self.prove(&head, &shown)) {
            Ok(mut proven) => {
                proven.context.carriage_returns = Some(false);
                Ok(proven)
            }
            Err(error) => self.read_changed(line).ok_or(error),
        }
    }

    /// Reads a line that the kernel did not write like this. Blanks are not in names, so every run of
    /// them separates two words; which empty fields went with them is tried.
    fn read_changed(&self, line: &[u8]) -> Option<Proven> {
        let most = (MAX_GUESSED / line.len().max(1)).clamp(1, MAX_GUESSES);
        let line = without_carriage_returns(line);
        let (head, fields) = Head::read(&line).ok()?;
        let fields = fields.unwrap_or_default();
        let tabs = if fields.contains(&b'\t') { &[false, true][..] } else { &[false] };
        let separators =
            tabs.iter().map(|tabs| move |byte: &u8| *byte == b' ' || *tabs && *byte == b'\t');
        separators.into_iter().find_map(|separator| {
            let words = fields.split(separator).filter(|word| !word.is_empty());
            let words: Vec<&[u8]> = words.take(MAX_FIELDS + 1).collect();
            let mut proven = guesses(head.template, &words, most)
                .iter()
                .find_map(|shown| self.prove(&head, shown).ok())?;
            proven.context.carriage_returns = Some(matches!(line, Cow::Owned(_)));
            Some(proven)
        })
    }

    /// The record whose fields are shown like this, if the line's digest is its digest.
    fn prove(&self, head: &Head<'_>, shown: &[&[u8]]) -> Result<Proven, AsciiErrorKind> {
        let template = head.template;
        let kinds: Vec<Option<FieldKind>> = match template {
            Template::Unknown(_) => alloc::vec![None; shown.len()],
            _ => template.format().split('|').map(FieldKind::from_id).collect(),
        };
        if kinds.len() != shown.len() {
            let (expected, found) = (kinds.len(), shown.len());
            return Err(AsciiErrorKind::FieldCount { expected, found });
        }
        let other = if self.endian == Endian::Little { Endian::Big } else { Endian::Little };
        let empty_name = |(kind, shown): (&Option<FieldKind>, &&[u8])| {
            shown.is_empty() && matches!(kind, Some(FieldKind::N | FieldKind::NNg))
        };
        let either = kinds.iter().zip(shown).any(empty_name);
        for endian in [self.endian, other] {
            // An empty name is a NUL in all that kernels write, and nothing in what others may.
            for name_ends in [b"\0".as_slice(), b""].into_iter().take(1 + usize::from(either)) {
                let fields = kinds
                    .iter()
                    .zip(shown)
                    .enumerate()
                    .map(|(index, (kind, shown))| {
                        let end = if shown.is_empty() { name_ends } else { b"\0" };
                        field(*kind, template, shown, end, endian)
                            .map_err(|expected| AsciiErrorKind::Field { field: index, expected })
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
                let mut builder = RecordBuilder::new(head.pcr).endian(endian);
                if head.violation {
                    builder = builder.violation();
                }
                let record = builder.record(template.name(), &fields)?;
                if head.violation {
                    return Ok(Proven { record, context: *self });
                }
                if let Some(bank) = self.proven_in(&record, head.printed()) {
                    return Ok(Proven { record, context: Context { bank, endian, ..*self } });
                }
            }
        }
        Err(AsciiErrorKind::Unproven)
    }

    /// The bank in which the record has the digest printed; the last one's, if it does in that.
    fn proven_in(&self, record: &RecordBuf, printed: &[u8]) -> Option<Bank> {
        let record = record.record();
        let fits = |bank: Bank| bank.size() == printed.len();
        let is_right = |bank: &Bank| record.template_digest(*bank).as_bytes() == printed;
        let others = Bank::ALL.into_iter().filter(|bank| *bank != self.bank);
        let own = [self.bank].into_iter().chain(others).filter(|bank| fits(*bank)).find(is_right);
        own.or_else(|| {
            // The bank of a kernel that does not know its hash.
            let bank = Bank::ALL.into_iter().find(|bank| fits(*bank))?;
            let padded = record.template_digest(Bank::Sha1).padded_to(bank);
            (padded.as_bytes() == printed).then_some(self.bank)
        })
    }
}

impl<'a> Head<'a> {
    /// PCR, template digest and name, and what follows the blank after them, if there is one.
    fn read(line: &'a [u8]) -> Result<(Head<'a>, Option<&'a [u8]>), AsciiErrorKind> {
        let (pcr, rest) = word(line);
        let pcr = decimal(pcr).ok_or(AsciiErrorKind::Pcr)?;
        let (digest, rest) = word(rest.unwrap_or_default());
        let (mut printed, size) = ([0; Digest::MAX], digest.len() / 2);
        let bytes = printed.get_mut(..size).ok_or(AsciiErrorKind::TemplateDigest)?;
        hex::decode_to_slice(digest, bytes).map_err(|_| AsciiErrorKind::TemplateDigest)?;
        let violation = bytes.iter().all(|byte| *byte == 0);
        if !Bank::ALL.iter().any(|bank| bank.size() == size) {
            return Err(AsciiErrorKind::TemplateDigest);
        }
        let (name, fields) = word(rest.unwrap_or_default());
        let template =
            Template::from_name(name).ok_or(BuildError::from(ParseErrorKind::NameBytes))?;
        Ok((Head { pcr, template, violation, printed, size }, fields))
    }

    fn printed(&self) -> &[u8] {
        self.printed.get(..self.size).unwrap_or_default()
    }
}

/// The fields as the kernel writes them: a blank before each, of which `fields` is what follows
/// the first.
fn as_written<'a>(line: &[u8], fields: &'a [u8]) -> Result<Vec<&'a [u8]>, AsciiErrorKind> {
    // No blank after the name: a template without fields.
    if fields.is_empty() && line.last() != Some(&b' ') {
        return Ok(Vec::new());
    }
    let count = 1 + fields.iter().filter(|byte| **byte == b' ').count();
    if count > MAX_FIELDS {
        return Err(AsciiErrorKind::TooManyFields(count));
    }
    Ok(fields.split(|byte| *byte == b' ').collect())
}

/// What fields these words may be of which those that are empty are missing: at the end first.
fn guesses<'a>(template: Template<'_>, words: &[&'a [u8]], most: usize) -> Vec<Vec<&'a [u8]>> {
    let mut found = Vec::new();
    if words.len() > MAX_FIELDS {
        return found;
    }
    if let Template::Unknown(_) = template {
        let mut shown = words.to_vec();
        for _ in 0..most.min(1 + MAX_MISSING) {
            found.push(shown.clone());
            shown.push(&[]);
        }
        return found;
    }
    let kinds: Vec<Option<FieldKind>> =
        template.format().split('|').map(FieldKind::from_id).collect();
    let fits: Vec<Vec<bool>> = kinds
        .iter()
        .map(|kind| {
            let fits = |word: &&[u8]| field(*kind, template, word, b"\0", Endian::Little).is_ok();
            words.iter().map(fits).collect()
        })
        .collect();
    let mut placing = Placing { fits: &fits, words, most, steps: MAX_STEPS, found: &mut found };
    placing.place(&mut Vec::new(), 0);
    found
}

/// Words being placed on fields.
struct Placing<'a, 'b> {
    /// For each field, which words it may be.
    fits: &'b [Vec<bool>],
    words: &'b [&'a [u8]],
    most: usize,
    steps: usize,
    found: &'b mut Vec<Vec<&'a [u8]>>,
}

impl<'a> Placing<'a, '_> {
    fn place(&mut self, shown: &mut Vec<&'a [u8]>, used: usize) {
        if self.steps == 0 || self.found.len() == self.most {
            return;
        }
        self.steps -= 1;
        let (fields, words) = (self.fits.len() - shown.len(), self.words.len() - used);
        if fields == 0 && words == 0 {
            self.found.push(shown.clone());
        }
        if let (Some(fits), Some(word)) = (self.fits.get(shown.len()), self.words.get(used))
            && fits.get(used) == Some(&true)
        {
            shown.push(word);
            self.place(shown, used + 1);
            shown.pop();
        }
        if fields > words {
            shown.push(&[]);
            self.place(shown, used);
            shown.pop();
        }
    }
}

/// The word that a line begins with, past blanks, and what follows the blank after it.
fn word(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = line.iter().position(|byte| !is_blank(byte)).unwrap_or(line.len());
    let line = line.get(begin..).unwrap_or_default();
    match line.iter().position(is_blank) {
        Some(blank) => (line.get(..blank).unwrap_or_default(), line.get(blank + 1..)),
        None => (line, None),
    }
}

/// The line as it was before its ends became CRLF.
fn without_carriage_returns(line: &[u8]) -> Cow<'_, [u8]> {
    if !line.ends_with(b"\r") {
        return line.into();
    }
    let mut kept = Vec::with_capacity(line.len());
    for (at, byte) in line.iter().enumerate() {
        if *byte != b'\r' || !matches!(line.get(at + 1), None | Some(b'\n')) {
            kept.push(*byte);
        }
    }
    kept.into()
}

/// Only what is written like this: digits without a zero before them.
fn decimal(digits: &[u8]) -> Option<u32> {
    let plain = digits == b"0" || digits.first().is_some_and(|digit| *digit != b'0');
    let text = str::from_utf8(digits).ok()?;
    (plain && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The bytes of a field out of what is shown of it, or what should have been shown.
fn field(
    kind: Option<FieldKind>,
    template: Template<'_>,
    shown: &[u8],
    name_end: &[u8],
    endian: Endian,
) -> Result<Vec<u8>, &'static str> {
    let hex = |digits: &[u8]| hex::decode(digits).map_err(|_| "hex digits");
    match kind {
        Some(FieldKind::N | FieldKind::NNg) => {
            let end = if template == Template::Ima { b"" } else { name_end };
            Ok([shown, end].concat())
        }
        _ if shown.is_empty() => Ok(Vec::new()),
        Some(FieldKind::XattrNames) => Ok([shown, b"\0"].concat()),
        Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
            let Some(colon) = shown.iter().rposition(|byte| *byte == b':') else {
                return hex(shown);
            };
            let (head, digest) = shown.split_at(colon + 1);
            Ok([head, b"\0", &hex(digest)?].concat())
        }
        Some(FieldKind::IUid | FieldKind::IGid) => {
            let value = decimal(shown).ok_or("a decimal number of 32 bits")?;
            Ok(endian.bytes(value).to_vec())
        }
        Some(FieldKind::IMode) => {
            let mode = decimal(shown).and_then(|mode| u16::try_from(mode).ok());
            let mode = mode.ok_or("a decimal number of 16 bits")?;
            Ok(match endian {
                Endian::Little => mode.to_le_bytes().to_vec(),
                Endian::Big => mode.to_be_bytes().to_vec(),
            })
        }
        _ => hex(shown),
    }
}
