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
