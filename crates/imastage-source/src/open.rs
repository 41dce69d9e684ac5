//! Which dialect a directory speaks, found out by looking.

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

/// Where Linux shows the files.
pub const DEFAULT_DIR: &str = "/sys/kernel/security/ima";

impl Dialect {
    /// The dialect of the files in `dir`.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if there is no binary list in it, [`SourceError::NotPermitted`] if
    /// it cannot be entered.
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

/// The list whose files are in `dir`, in the dialect that they speak. `mode` chooses where there
/// is a choice: with [`Dialect::Linux72`], and where a kernel without staged files takes N
/// ([`Dialect::Follow`] unless it is asked for). Any list can be followed ([`DeleteMode::None`]): then no
/// file is opened for writing.
///
/// # Errors
/// As [`Dialect::of`]; [`SourceError::NoDeleteMode`] if the dialect does not know `mode`.
pub fn open(dir: &Path, mode: Option<DeleteMode>) -> Result<Box<dyn Source>, SourceError> {
    let files = Files::new(dir);
    let dialect = Dialect::of(dir)?;
    // A kernel that has 7.2's code and not its option: no staged files, yet N is taken.
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
        // Others may delete, and could not while a descriptor is kept.
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
    fn a_directory_without_a_list_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Dialect::of(dir.path()).unwrap_err().to_string();
        assert!(error.contains("binary_runtime_measurements: not there"), "{error}");
    }

    #[test]
    fn dialects_are_told_by_the_files_and_delete_modes_only_taken_where_they_exist() {
        let all = [None, Some(DeleteMode::Stage), Some(DeleteMode::FirstN), Some(DeleteMode::None)];
        for (files, mode, dialect, known) in [
            (&[][..], 0o440, Dialect::Follow, [true, false, false, true]),
            // 7.2 without CONFIG_IMA_STAGING takes N, where that is asked for.
            (&[][..], 0o660, Dialect::Follow, [true, false, true, true]),
            (&[STAGED][..], 0o660, Dialect::Linux72, [true, true, true, true]),
            // Its N acts on the list as it is then, which is not the list that was read.
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
