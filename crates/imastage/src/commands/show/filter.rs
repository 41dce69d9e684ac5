//! Which records are shown.

use std::{ffi::OsStr, ops::ControlFlow, os::unix::ffi::OsStrExt, path::Path};

use globset::{GlobBuilder, GlobSet};
use ima_log::{Bank, FieldKind, Record};

use crate::{exit::Failure, input::List};

/// Only records that fit all of these are shown.
#[derive(clap::Args)]
pub struct Filter {
    /// Only records whose name matches. `*` is any text without `/`, `?` one byte, `[a-z]` one of these,
    /// `[!a-z]` none of these, `{a,b}` one or the other; `**` as a whole part between `/` is any number of
    /// directories. A pattern without `/` is compared with the last part of a name. A directory, which
    /// is a path without a wildcard or any pattern with `/` at its end, matches all below it.
    #[arg(long, value_name = "GLOB", value_parser = Pattern::parse)]
    path: Option<Pattern>,
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

/// A pattern for names.
#[derive(Clone)]
struct Pattern {
    set: GlobSet,
    /// Compared with the last part of a name only.
    of_last_part: bool,
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
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut any = false;
        if left == 0 {
            return Ok(any);
        }
        list.each(self.from, |index, record| {
            if self.fits(record) {
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

    fn fits(&self, record: &Record<'_>) -> bool {
        self.pcr.is_none_or(|pcr| record.pcr() == pcr)
            && (!self.violations || record.is_violation())
            && self.template.as_ref().is_none_or(|name| record.template().name() == name)
            && self
                .path
                .as_ref()
                .is_none_or(|path| record.likely_name().is_some_and(|name| path.matches(name)))
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

impl Pattern {
    fn parse(text: &str) -> Result<Pattern, globset::Error> {
        let glob = |text: &str| GlobBuilder::new(text).literal_separator(true).build();
        let mut set = GlobSet::builder();
        set.add(glob(text)?);
        let of_last_part = !text.contains('/');
        let is_plain = !text.contains(['*', '?', '[', '{']);
        if text.ends_with('/') || (is_plain && !of_last_part) {
            set.add(glob(&format!("{}/**", text.trim_end_matches('/')))?);
        }
        Ok(Pattern { set: set.build()?, of_last_part })
    }

    fn matches(&self, name: &[u8]) -> bool {
        let name = match self.of_last_part {
            true => name.rsplit(|byte| *byte == b'/').next().unwrap_or_default(),
            false => name,
        };
        self.set.is_match(Path::new(OsStr::from_bytes(name)))
    }
}

fn digest(text: &str) -> Result<DigestBytes, String> {
    let digits = text.rsplit(':').next().unwrap_or_default();
    match hex::decode(digits) {
        Ok(bytes) if (16..=64).contains(&bytes.len()) => Ok(DigestBytes(bytes)),
        Ok(bytes) => Err(format!("a digest has 16 to 64 bytes, this has {}", bytes.len())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_people_type_patterns() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("busybox", &["/bin/busybox", "busybox"], &["/bin/busybox.sh", "/busybox/a"]),
            ("*.ko", &["/lib/modules/6.1/a.ko", ".ko"], &["/lib/a.ko.xz", "/lib/a.ko/b"]),
            ("?s", &["/bin/ls", "/usr/bin/ps"], &["/bin/lss", "/bin/s"]),
            ("[a-c]*", &["/bin/cat", "/bin/b"], &["/bin/ls", "/abc/dd"]),
            ("[!a-c]*", &["/bin/ls"], &["/bin/cat"]),
            ("*.{so,ko}", &["/a/b.so", "/a/b.ko"], &["/a/b.o"]),
            ("/usr/bin/*", &["/usr/bin/ls"], &["/usr/bin/a/b", "/usr/bin", "/x/usr/bin/ls"]),
            ("/usr/*/ls", &["/usr/bin/ls"], &["/usr/ls", "/usr/a/b/ls"]),
            ("/usr/?s", &["/usr/ls"], &["/usr//s"]),
            ("/usr/[!a]s", &["/usr/ls"], &["/usr/as"]),
            ("/usr/**", &["/usr/bin/ls", "/usr/a"], &["/usr", "/usrx/a", "/var/usr/a"]),
            ("/usr/**/ls", &["/usr/ls", "/usr/bin/ls", "/usr/a/b/ls"], &["/ls", "/usr/als"]),
            ("**/ls", &["/bin/ls", "ls", "/a/b/ls"], &["/bin/als", "/ls/a"]),
            ("/usr/bin/ls", &["/usr/bin/ls"], &["/usr/bin/lsx", "/x/usr/bin/ls"]),
            ("/usr/lib", &["/usr/lib", "/usr/lib/a", "/usr/lib/a/b"], &["/usr/lib64/a", "/usr"]),
            ("/usr/lib/", &["/usr/lib/a", "/usr/lib/a/b"], &["/usr/lib64/a"]),
            ("/usr/lib*/", &["/usr/lib/a", "/usr/lib64/a/b"], &["/usr/bin/a", "/usr/libx"]),
            ("/", &["/a", "/a/b"], &["boot_aggregate"]),
            ("boot_aggregate", &["boot_aggregate"], &["/x"]),
            ("a\\*", &["/x/a*"], &["/x/ab"]),
        ];
        for (pattern, fitting, others) in cases {
            let compiled = Pattern::parse(pattern).unwrap();
            for name in *fitting {
                assert!(compiled.matches(name.as_bytes()), "{pattern} and {name}");
            }
            for name in *others {
                assert!(!compiled.matches(name.as_bytes()), "{pattern} and {name}");
            }
        }
        assert!(Pattern::parse("*").unwrap().matches(b"/a/\xff"));
        assert!(Pattern::parse("[").is_err() && Pattern::parse("/a/{b").is_err());
    }
}
