//! Detection of a directory's dialect, and opening of its list.

use std::{
    fs::Metadata,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    DeleteMode, Dialect, Source, SourceError,
    files::Files,
    first::First,
    follow::Follow,
    follow_staged::FollowStaged,
    names::{STAGED, TRIM},
    staged::Staged,
    trim::Trim,
};

/// The directory in which Linux exports the files.
pub const DEFAULT_DIR: &str = "/sys/kernel/security/ima";

impl Dialect {
    /// The dialect of the files in `dir`.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if `dir` has no binary list, [`SourceError::NotPermitted`] if `dir`
    /// cannot be searched.
    pub fn of(dir: &Path) -> Result<Dialect, SourceError> {
        let files = Files::new(dir);
        let list = files.look_at(&files.current())?;
        let is_there = |name: &str| dir.join(name).symlink_metadata().is_ok();
        Ok(if is_there(TRIM) {
            Dialect::Trim
        } else if !is_there(STAGED) {
            Dialect::Follow
        } else if is_writable(&list) {
            Dialect::Linux72
        } else {
            Dialect::V4
        })
    }
}

/// Opens the list whose files are in `dir`, in the dialect that [`Dialect::of`] detects. `mode`
/// selects between the delete modes of [`Dialect::Linux72`], and enables N on a kernel without
/// staged files that accepts N ([`Dialect::Follow`] otherwise). Any list can be followed
/// ([`DeleteMode::None`]); no file is then opened for writing.
///
/// # Errors
/// As [`Dialect::of`]; [`SourceError::NoDeleteMode`] if the dialect does not support `mode`.
pub fn open(dir: &Path, mode: Option<DeleteMode>) -> Result<Box<dyn Source>, SourceError> {
    let files = Files::new(dir);
    let dialect = Dialect::of(dir)?;
    // Linux 7.2 without CONFIG_IMA_STAGING has no staged files but accepts N.
    let takes_n = || Ok::<bool, SourceError>(is_writable(&files.look_at(&files.current())?));
    Ok(match (dialect, mode) {
        (Dialect::Linux72 | Dialect::V4, None | Some(DeleteMode::Stage)) => {
            Box::new(Staged::new(files, dialect))
        }
        (Dialect::Linux72, Some(DeleteMode::FirstN)) => Box::new(First::new(files)),
        (Dialect::Follow, Some(DeleteMode::FirstN)) if takes_n()? => Box::new(First::new(files)),
        (Dialect::Trim, None) => Box::new(Trim::new(files)),
        (Dialect::Follow, None) => Box::new(Follow::new(files)),
        (Dialect::Follow, Some(DeleteMode::None)) if !takes_n()? => Box::new(Follow::new(files)),
        // Other processes may delete, which a permanently open descriptor would prevent.
        (_, Some(DeleteMode::None)) => Box::new(FollowStaged::new(files)),
        (_, Some(mode)) => {
            return Err(SourceError::NoDeleteMode { path: PathBuf::from(dir), dialect, mode });
        }
    })
}

fn is_writable(list: &Metadata) -> bool {
    list.permissions().mode() & 0o222 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn directory_without_a_list_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Dialect::of(dir.path()).unwrap_err().to_string();
        assert!(error.contains("binary_runtime_measurements: not found"), "{error}");
    }

    #[test]
    fn dialect_is_detected_and_unsupported_delete_modes_are_refused() {
        let all = [None, Some(DeleteMode::Stage), Some(DeleteMode::FirstN), Some(DeleteMode::None)];
        for (files, mode, dialect, known) in [
            (&[][..], 0o440, Dialect::Follow, [true, false, false, true]),
            // 7.2 without CONFIG_IMA_STAGING: N on request.
            (&[][..], 0o660, Dialect::Follow, [true, false, true, true]),
            (&[STAGED][..], 0o660, Dialect::Linux72, [true, true, true, true]),
            // N of v4 acts on the list at the time of the request, not on the list that was read.
            (&[STAGED][..], 0o440, Dialect::V4, [true, true, false, true]),
            (&[TRIM][..], 0o440, Dialect::Trim, [true, false, false, true]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let list = dir.path().join("binary_runtime_measurements_sha1");
            fs::write(&list, b"").unwrap();
            fs::set_permissions(&list, fs::Permissions::from_mode(mode)).unwrap();
            let link = dir.path().join("binary_runtime_measurements");
            std::os::unix::fs::symlink("binary_runtime_measurements_sha1", link).unwrap();
            files.iter().for_each(|name| fs::write(dir.path().join(name), b"").unwrap());

            assert_eq!(Dialect::of(dir.path()).unwrap(), dialect);
            for (mode, known) in all.into_iter().zip(known) {
                match open(dir.path(), mode) {
                    Ok(source) => assert!(known, "{dialect} {mode:?} {}", source.name()),
                    Err(SourceError::NoDeleteMode { .. }) => assert!(!known, "{dialect} {mode:?}"),
                    Err(error) => panic!("{dialect} {mode:?}: {error}"),
                }
            }
        }
    }
}
