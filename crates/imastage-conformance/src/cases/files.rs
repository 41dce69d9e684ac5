//! Names, kinds and modes of the files, and what other system calls do to them.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
};

use ima_log::Bank;
use rustix::fs::OFlags;

use crate::{
    errno::{Answer, Errno, told},
    report::Recorder,
    target::{COUNT, CURRENT, STAGED, Target, Trouble, VIOLATIONS, file_of},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let banks = target.banks();
    note.holds("there are files of sha1", banks.contains(&Bank::Sha1), "some", "none");
    for form in ["ascii", "binary"] {
        for suffix in ["", "_staged"] {
            let name = format!("{form}_runtime_measurements{suffix}");
            let link = fs::read_link(target.path(&name));
            let got = link.map_or_else(|error| error.to_string(), |to| to.display().to_string());
            let expected = file_of(form, Bank::Sha1, suffix);
            note.expect(format!("{name} is a symbolic link"), expected, got);
            for bank in &banks {
                let name = file_of(form, *bank, suffix);
                note.expect(format!("{name}: kind, mode, size"), "file 660 0", kind(target, &name));
            }
        }
    }
    for name in [COUNT, VIOLATIONS] {
        note.expect(format!("{name}: kind, mode, size"), "file 440 0", kind(target, name));
    }
    calls(target, note)
}

fn kind(target: &Target<'_>, name: &str) -> String {
    match fs::symlink_metadata(target.path(name)) {
        Ok(meta) => {
            let kind = if meta.is_file() { "file" } else { "no file" };
            format!("{kind} {:o} {}", meta.permissions().mode() & 0o7777, meta.len())
        }
        Err(error) => error.to_string(),
    }
}

/// Calls that do nothing, or are refused.
fn calls(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(2)?;
    let before = target.read(CURRENT)?;
    let truncated = rustix::fs::open(target.path(CURRENT), OFlags::WRONLY, 0.into())
        .and_then(|file| rustix::fs::ftruncate(file, 0));
    note.expect("ftruncate of a current file", "ok", told(&truncated.map_err(Errno::from)));
    let kept = target.read(CURRENT)?.starts_with(&before);
    note.holds("ftruncate deletes nothing", kept, "the same records", "others");

    let removed: Answer<()> = fs::remove_file(target.path(STAGED)).map_err(Errno::from);
    note.expect("unlink of a staged file", "EPERM", told(&removed));

    let opened = |name: &str, flags| {
        target.open(name, flags).map_err(|errno| Trouble(format!("opening {name}: {errno}")))
    };
    let mut write_only = opened(STAGED, OFlags::WRONLY)?;
    let read = write_only.read(&mut [0; 16]).map_err(Errno::from);
    note.expect("read of a file opened O_WRONLY", "EBADF", told(&read));
    drop(write_only);
    let mut read_only = opened(STAGED, OFlags::RDONLY)?;
    let written = read_only.write(b"A\n").map_err(Errno::from);
    note.expect("write to a file opened O_RDONLY", "EBADF", told(&written));
    note.expect("fsync", "EINVAL", told(&read_only.sync_all().map_err(Errno::from)));
    let sought = read_only.seek(SeekFrom::Start(0)).map_err(Errno::from);
    note.expect("lseek to 0", "ok", told(&sought));
    let at_end = "lseek to the end";
    if target.is_fuse() {
        note.skip(at_end, "FUSE answers it itself");
    } else {
        let sought = read_only.seek(SeekFrom::End(0)).map_err(Errno::from);
        note.expect(at_end, "EINVAL", told(&sought));
    }
    drop(read_only);
    let name = "pwrite";
    if target.is_fuse() {
        note.skip(name, "FUSE tells no pwrite from a write");
    } else {
        let file = opened(STAGED, OFlags::RDWR)?;
        let written = file.write_at(b"A\n", 0).map_err(Errno::from);
        note.expect(name, Errno::ESPIPE, told(&written));
    }
    for name in [COUNT, VIOLATIONS] {
        // Root's capabilities go past the mode.
        match target.write(name, b"1\n") {
            Err(Errno::EACCES) => note.skip(format!("write to {name}"), "needs CAP_DAC_OVERRIDE"),
            answer => note.expect(format!("write to {name}"), "EINVAL", told(&answer)),
        }
    }
    Ok(())
}
