//! Which records are shown.

use std::{ffi::OsStr, ops::ControlFlow, os::unix::ffi::OsStrExt, path::Path};

use globset::{Glob, GlobBuilder, GlobMatcher};
use ima_log::{Bank, FieldKind, Record};

use crate::{exit::Failure, input::List};

/// Only records that fit all of these are shown.
#[derive(clap::Args)]
pub struct Filter {
    /// Only records whose name matches: `*` and `?` stop at `/`, `**` does not. A pattern without `/` is
    /// compared with what is behind a name's last `/`.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    path: Option<Glob>,
    /// Only records with this template digest in any bank, or this file digest; in hex.
    #[arg(long, value_name = "HEX", value_parser = digest)]
    digest: Option<DigestBytes>,
    /// Only records of this template.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Only records of this PCR.
    #[arg(long, value_name = "N")]
    pcr: Option<u32>,
    /// Only violations.
    #[arg(long)]
    violations: bool,
    /// Begin with record K; the first record is 0.
    #[arg(long, value_name = "K", default_value_t = 0)]
    from: u64,
    /// Show at most N records.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// A digest of whatever algorithm.
#[derive(Clone)]
struct DigestBytes(Vec<u8>);

impl Filter {
    /// Gives each record of `list` that is to be shown, with its index; says whether any was.
    pub fn each(
        &self,
        list: List,
        mut each: impl FnMut(u64, &Record<'_>) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let path = self.path.as_ref().map(Glob::compile_matcher);
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut any = false;
        if left == 0 {
            return Ok(any);
        }
        list.each(self.from, |index, record| {
            if self.fits(record, path.as_ref()) {
                each(index, record)?;
                left -= 1;
                any = true;
            }
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(any)
    }

    /// Why nothing is shown of a list that has no such records; `None` where all are shown.
    pub fn nothing(&self) -> Option<&'static str> {
        let choosy = self.path.is_some()
            || self.digest.is_some()
            || self.template.is_some()
            || self.pcr.is_some()
            || self.violations;
        match (self.count, choosy, self.from) {
            (Some(0), ..) | (_, false, 0) => None,
            (_, false, _) => Some("the list has no record with this index"),
            _ if self.path.is_some() => Some(
                "no record fits; in a pattern * stops at /, and one without / is compared with the \
                 last part of a name",
            ),
            _ => Some("no record fits"),
        }
    }

    fn fits(&self, record: &Record<'_>, path: Option<&GlobMatcher>) -> bool {
        self.pcr.is_none_or(|pcr| record.pcr() == pcr)
            && (!self.violations || record.is_violation())
            && self.template.as_ref().is_none_or(|name| record.template().name() == name)
            && path.is_none_or(|path| {
                let name =
                    record.likely_name().map(|name| match path.glob().glob().contains('/') {
                        true => name,
                        false => name.rsplit(|byte| *byte == b'/').next().unwrap_or_default(),
                    });
                name.is_some_and(|name| path.is_match(Path::new(OsStr::from_bytes(name))))
            })
            && self.digest.as_ref().is_none_or(|digest| has_digest(record, &digest.0))
    }
}

fn has_digest(record: &Record<'_>, digest: &[u8]) -> bool {
    record.printed_digest().as_bytes() == digest
        || record.fields().any(|field| match field.kind {
            Some(FieldKind::D) => field.bytes == digest,
            // The digest stands behind the algorithm and a NUL.
            Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
                field.bytes.strip_suffix(digest).is_some_and(|head| head.ends_with(&[0]))
            }
            _ => false,
        })
        || Bank::ALL
            .into_iter()
            .filter(|bank| bank.size() == digest.len())
            .any(|bank| record.template_digest(bank).as_bytes() == digest)
}

fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build()
}

fn digest(text: &str) -> Result<DigestBytes, String> {
    let digits = text.rsplit(':').next().unwrap_or_default();
    match hex::decode(digits) {
        Ok(bytes) if (16..=64).contains(&bytes.len()) => Ok(DigestBytes(bytes)),
        Ok(bytes) => Err(format!("a digest has 16 to 64 bytes, this has {}", bytes.len())),
        Err(error) => Err(error.to_string()),
    }
}
