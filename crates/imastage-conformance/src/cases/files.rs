//! Names, types and modes of the files.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use ima_log::Bank;
use ima_securityfs::Dialect;

use crate::{
    report::Recorder,
    target::{COUNT, CURRENT, STAGED, TRIM_LOG, Target, Trouble, VIOLATIONS, file_of},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let banks = target.banks();
    note.holds("there are files of sha1", banks.contains(&Bank::Sha1), "files", "none");
    for form in ["ascii", "binary"] {
        for suffix in target.suffixes() {
            let name = format!("{form}_runtime_measurements{suffix}");
            let link = fs::read_link(target.path(&name));
            let got = link.map_or_else(|error| error.to_string(), |to| to.display().to_string());
            let expected = file_of(form, Bank::Sha1, suffix);
            note.expect(format!("{name} is a symbolic link"), expected, got);
            let writable = target.dialect() == Dialect::Linux72 || !suffix.is_empty();
            let expected = if writable { "file 660 0" } else { "file 440 0" };
            for bank in &banks {
                let name = file_of(form, *bank, suffix);
                note.expect(format!("{name}: kind, mode, size"), expected, kind(target, &name));
            }
        }
    }
    for name in [COUNT, VIOLATIONS] {
        note.expect(format!("{name}: kind, mode, size"), "file 440 0", kind(target, name));
    }
    let (there, absent) = match target.dialect() {
        Dialect::Trim => (TRIM_LOG, STAGED),
        Dialect::Linux72 | Dialect::V4 => (STAGED, TRIM_LOG),
    };
    note.expect(format!("{there}: kind, mode, size"), "file 660 0", kind(target, there));
    let found = fs::symlink_metadata(target.path(absent)).is_ok();
    note.expect(format!("there is no {absent}"), "none", if found { "one" } else { "none" });
    if rustix::process::geteuid().is_root() {
        for name in [CURRENT, there, COUNT, VIOLATIONS] {
            let meta = fs::symlink_metadata(target.path(name));
            let owner = meta.map(|meta| format!("{}:{}", meta.uid(), meta.gid()));
            note.expect(format!("{name}: owner"), "0:0", owner.unwrap_or_default());
        }
    }
    unchanged(target, note)
}

/// Size and mtime of a file do not change when records are added.
fn unchanged(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let told = || -> Result<_, Trouble> {
        let meta = fs::metadata(target.path(CURRENT));
        let meta = meta.map_err(|error| Trouble(format!("{CURRENT}: {error}")))?;
        Ok((meta.len(), meta.modified().ok()))
    };
    let before = told()?;
    target.add(1)?;
    let same = told()? == before;
    note.holds("size and mtime do not change with a new record", same, "unchanged", "changed");
    Ok(())
}

fn kind(target: &Target<'_>, name: &str) -> String {
    match fs::symlink_metadata(target.path(name)) {
        Ok(meta) => {
            let kind = if meta.is_file() { "file" } else { "not a file" };
            format!("{kind} {:o} {}", meta.permissions().mode() & 0o7777, meta.len())
        }
        Err(error) => error.to_string(),
    }
}
