use core::fmt::{self, Write};

/// A PCR bank of the TPM, by its `TPM_ALG_ID` (TCG Algorithm Registry). Files are named after the
/// hash algorithm, or after this number if the kernel does not know the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank(pub u16);

/// A file of the directory, of those that show the list or tell about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    /// The records: `FORM_runtime_measurements`, then `_BANK` but for the symbolic link, then
    /// `_staged` for the staged part.
    Measurements {
        /// How records are shown.
        form: Form,
        /// Whose digests are shown; `None` is the symbolic link to [`Bank::SHA1`]'s file.
        bank: Option<Bank>,
        /// Which records are shown, and what can be asked.
        part: Part,
    },
    /// `runtime_measurements_count`: how many records the current part holds.
    Count,
    /// `violations`: how many violations were measured since the kernel started.
    Violations,
}

/// How records are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One line each.
    Ascii,
    /// As they are hashed.
    Binary,
}

/// A part of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The records since the list was last staged, without those that were deleted.
    Current,
    /// The records that were staged and not yet deleted.
    Staged,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of root's, with these permission bits.
    File {
        /// Such as `0o660`.
        mode: u16,
    },
    /// A symbolic link to this file, in the same directory.
    Symlink(FileName),
}

/// The files that there are when the TPM has `banks`, each of which is given once. There is a file
/// of the sha1 bank whether the TPM has one or not.
pub fn directory(banks: &[Bank]) -> impl Iterator<Item = FileName> + Clone + '_ {
    let banks = banks.iter().filter(|bank| **bank != Bank::SHA1);
    let banks = [None, Some(Bank::SHA1)].into_iter().chain(banks.map(|bank| Some(*bank)));
    let measurements = [Part::Current, Part::Staged].into_iter().flat_map(move |part| {
        banks.clone().flat_map(move |bank| {
            [Form::Ascii, Form::Binary].map(|form| FileName::Measurements { form, bank, part })
        })
    });
    measurements.chain([FileName::Count, FileName::Violations])
}

impl Bank {
    /// SHA-1.
    pub const SHA1: Bank = Bank(0x0004);
}

impl FileName {
    /// The file called `name`, if it is one of [`directory`]. Linear in the number of banks.
    pub fn parse(name: &[u8], banks: &[Bank]) -> Option<FileName> {
        directory(banks).find(|file| {
            let mut rest = Rest(name);
            write!(rest, "{file}").is_ok() && rest.0.is_empty()
        })
    }

    /// The part of the list that the file shows; `None` for the files that only count. These need
    /// no [`crate::Doors`].
    pub fn part(&self) -> Option<Part> {
        match self {
            FileName::Measurements { part, .. } => Some(*part),
            FileName::Count | FileName::Violations => None,
        }
    }

    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        match *self {
            FileName::Measurements { form, bank: None, part } => {
                Kind::Symlink(FileName::Measurements { form, bank: Some(Bank::SHA1), part })
            }
            FileName::Measurements { .. } => Kind::File { mode: 0o660 },
            FileName::Count | FileName::Violations => Kind::File { mode: 0o440 },
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, bank, part) = match self {
            FileName::Count => return f.write_str("runtime_measurements_count"),
            FileName::Violations => return f.write_str("violations"),
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
    /// As in a file's name: the kernel's name of the algorithm, or `tpm_alg_` and the number in
    /// hex.
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

/// What is left of a name after it agreed with what was written so far.
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
    fn the_directory_of_a_tpm_with_a_bank_the_kernel_does_not_know() {
        let banks = [Bank(0x000b), Bank(0x0027)];
        let mut names: Vec<_> = directory(&banks).map(|file| file.to_string()).collect();
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
    fn names_are_those_of_the_directory_and_no_others() {
        let banks = [Bank::SHA1, Bank(0x000c)];
        let files: Vec<_> = directory(&banks).collect();
        for file in &files {
            let name = file.to_string();
            assert_eq!(FileName::parse(name.as_bytes(), &banks), Some(*file), "{name}");
            assert_eq!(FileName::parse(&name.as_bytes()[1..], &banks), None, "{name}");
            let longer = name.clone() + "x";
            assert_eq!(FileName::parse(longer.as_bytes(), &banks), None, "{longer}");
            assert_eq!(FileName::parse(name.to_uppercase().as_bytes(), &banks), None, "{name}");
            let same = files.iter().filter(|other| *other == file).count();
            assert_eq!(same, 1, "{name}");
        }
        assert_eq!(FileName::parse(b"", &banks), None);
        assert_eq!(FileName::parse(b"ascii_runtime_measurements_sha256", &banks), None);
    }

    #[test]
    fn links_lead_to_sha1_files_of_the_same_form_and_part() {
        for file in directory(&[]) {
            match file.kind() {
                Kind::Symlink(target) => {
                    let (form, part) = file.to_string().split_once("_staged").map_or_else(
                        || (file.to_string(), ""),
                        |(form, _)| (form.to_string(), "_staged"),
                    );
                    assert_eq!(target.to_string(), form + "_sha1" + part);
                    assert_eq!(target.kind(), Kind::File { mode: 0o660 });
                }
                Kind::File { mode } => {
                    assert_eq!(mode == 0o660, file.part().is_some(), "{file}");
                }
            }
        }
    }
}
