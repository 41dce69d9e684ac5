//! The names of the list's files, and the content that each name denotes.

use core::fmt::{self, Write};

use crate::{Dialect, FileClass};

/// A PCR bank of the TPM, by its `TPM_ALG_ID` (TCG Algorithm Registry). Files are named after the
/// hash algorithm, or after this number if the kernel does not know the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank(pub u16);

/// A file of the `ima` directory that shows the list or its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    /// The records: `FORM_runtime_measurements`, then `_BANK` except for the symbolic link, then
    /// `_staged` for the staged part.
    Measurements {
        /// The form of the records.
        form: Form,
        /// The bank whose digests are shown; `None` is the symbolic link to [`Bank::SHA1`]'s file.
        bank: Option<Bank>,
        /// The records shown; also determines the valid requests.
        part: Part,
    },
    /// `runtime_measurements_count`: the number of records in the current part.
    Count,
    /// `violations`: the number of violations measured since the kernel started.
    Violations,
    /// `ima_trim_log`: the number of records trimmed since the kernel started. Only in
    /// [`Dialect::Trim`].
    TrimLog,
}

/// The form in which records are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One line of text per record.
    Ascii,
    /// The binary records.
    Binary,
}

/// A part of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The records added since the list was last staged and not deleted.
    Current,
    /// The records that were staged and not yet deleted.
    Staged,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link to this file, in the same directory.
    Symlink(FileName),
}

/// The files that exist if the TPM has `banks`; each bank must be given once. The files of the sha1
/// bank exist even if the TPM has no such bank.
pub fn directory(dialect: Dialect, banks: &[Bank]) -> impl Iterator<Item = FileName> + Clone + '_ {
    let parts: &[Part] =
        if dialect.stages() { &[Part::Current, Part::Staged] } else { &[Part::Current] };
    let trim_log = (dialect == Dialect::Trim).then_some(FileName::TrimLog);
    let banks = banks.iter().filter(|bank| **bank != Bank::SHA1);
    let banks = [None, Some(Bank::SHA1)].into_iter().chain(banks.map(|bank| Some(*bank)));
    let measurements = parts.iter().flat_map(move |part| {
        banks.clone().flat_map(move |bank| {
            let file = move |form| FileName::Measurements { form, bank, part: *part };
            [Form::Ascii, Form::Binary].map(file)
        })
    });
    measurements.chain([FileName::Count, FileName::Violations]).chain(trim_log)
}

impl Bank {
    /// SHA-1.
    pub const SHA1: Bank = Bank(0x0004);
}

impl FileName {
    /// The file named `name`, if [`directory`] lists such a file. Linear in the number of banks.
    pub fn parse(name: &[u8], dialect: Dialect, banks: &[Bank]) -> Option<FileName> {
        directory(dialect, banks).find(|file| {
            let mut rest = Rest(name);
            write!(rest, "{file}").is_ok() && rest.0.is_empty()
        })
    }

    /// The file's lock class; `None` for the counter files.
    pub fn class(&self) -> Option<FileClass> {
        match self {
            FileName::Measurements { .. } => Some(FileClass::Measurements),
            FileName::TrimLog => Some(FileClass::TrimLog),
            FileName::Count | FileName::Violations => None,
        }
    }

    /// The file's type.
    pub fn kind(&self) -> Kind {
        match *self {
            FileName::Measurements { form, bank: None, part } => {
                Kind::Symlink(FileName::Measurements { form, bank: Some(Bank::SHA1), part })
            }
            _ => Kind::File,
        }
    }

    /// The permission bits of the file, such as `0o660`; its owner is root.
    pub fn mode(&self, dialect: Dialect) -> u16 {
        match self {
            FileName::Measurements { part: Part::Current, .. } if dialect != Dialect::Linux72 => {
                0o440
            }
            FileName::Measurements { .. } | FileName::TrimLog => 0o660,
            FileName::Count | FileName::Violations => 0o440,
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, bank, part) = match self {
            FileName::Count => return f.write_str("runtime_measurements_count"),
            FileName::Violations => return f.write_str("violations"),
            FileName::TrimLog => return f.write_str("ima_trim_log"),
            FileName::Measurements { form, bank, part } => (form, bank, part),
        };
        f.write_str(match form {
            Form::Ascii => "ascii",
            Form::Binary => "binary",
        })?;
        f.write_str("_runtime_measurements")?;
        if let Some(bank) = bank {
            write!(f, "_{bank}")?;
        }
        match part {
            Part::Current => Ok(()),
            Part::Staged => f.write_str("_staged"),
        }
    }
}

impl fmt::Display for Bank {
    /// The bank as in a file name: the kernel's name of the algorithm, or `tpm_alg_` and the number
    /// in hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0x0004 => "sha1",
            0x000b => "sha256",
            0x000c => "sha384",
            0x000d => "sha512",
            0x0012 => "sm3",
            other => return write!(f, "tpm_alg_{other:x}"),
        })
    }
}

/// The rest of a name after the prefix that matched the text written so far.
struct Rest<'a>(&'a [u8]);

impl Write for Rest<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text.as_bytes()).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{string::ToString, vec::Vec};

    #[test]
    fn directory_names_a_bank_unknown_to_the_kernel_by_number() {
        let banks = [Bank(0x000b), Bank(0x0027)];
        let mut names: Vec<_> =
            directory(Dialect::Linux72, &banks).map(|file| file.to_string()).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "ascii_runtime_measurements",
                "ascii_runtime_measurements_sha1",
                "ascii_runtime_measurements_sha1_staged",
                "ascii_runtime_measurements_sha256",
                "ascii_runtime_measurements_sha256_staged",
                "ascii_runtime_measurements_staged",
                "ascii_runtime_measurements_tpm_alg_27",
                "ascii_runtime_measurements_tpm_alg_27_staged",
                "binary_runtime_measurements",
                "binary_runtime_measurements_sha1",
                "binary_runtime_measurements_sha1_staged",
                "binary_runtime_measurements_sha256",
                "binary_runtime_measurements_sha256_staged",
                "binary_runtime_measurements_staged",
                "binary_runtime_measurements_tpm_alg_27",
                "binary_runtime_measurements_tpm_alg_27_staged",
                "runtime_measurements_count",
                "violations",
            ]
        );
    }

    #[test]
    fn only_names_in_the_directory_parse() {
        let banks = [Bank::SHA1, Bank(0x000c)];
        for dialect in Dialect::ALL {
            let parse = |name: &[u8]| FileName::parse(name, dialect, &banks);
            let files: Vec<_> = directory(dialect, &banks).collect();
            for file in &files {
                let name = file.to_string();
                assert_eq!(parse(name.as_bytes()), Some(*file), "{name}");
                assert_eq!(parse(&name.as_bytes()[1..]), None, "{name}");
                let longer = name.clone() + "x";
                assert_eq!(parse(longer.as_bytes()), None, "{longer}");
                assert_eq!(parse(name.to_uppercase().as_bytes()), None, "{name}");
                let same = files.iter().filter(|other| *other == file).count();
                assert_eq!(same, 1, "{name}");
            }
            assert_eq!(parse(b""), None);
            assert_eq!(parse(b"ascii_runtime_measurements_sha256"), None);
            let staged = parse(b"binary_runtime_measurements_sha1_staged");
            assert_eq!(staged.is_some(), dialect.stages());
            assert_eq!(parse(b"ima_trim_log").is_some(), dialect == Dialect::Trim);
        }
    }

    #[test]
    fn links_point_to_sha1_files_of_the_same_form_and_part() {
        let dialect = Dialect::Linux72;
        for file in directory(dialect, &[]) {
            match file.kind() {
                Kind::Symlink(target) => {
                    let (form, part) = file.to_string().split_once("_staged").map_or_else(
                        || (file.to_string(), ""),
                        |(form, _)| (form.to_string(), "_staged"),
                    );
                    assert_eq!(target.to_string(), form + "_sha1" + part);
                    assert_eq!((target.kind(), target.mode(dialect)), (Kind::File, 0o660));
                }
                Kind::File => {
                    let writable = file.mode(dialect) == 0o660;
                    assert_eq!(writable, file.class().is_some(), "{file}");
                }
            }
        }
    }
}
