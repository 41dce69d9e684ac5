//! Other system calls on the files have no effect, or fail.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
};

use ima_securityfs::Dialect;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    pipe::SpliceFlags,
};

use crate::{
    errno::{Answer, Errno, told},
    report::Recorder,
    target::{COUNT, CURRENT, Target, Trouble, VIOLATIONS, read_on},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    on_the_directory(target, note)?;
    on_descriptors(target, note)?;
    copying(target, note)?;
    unwritable(target, note)
}

fn on_the_directory(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    target.at_least(2)?;
    let before = target.read(CURRENT)?;
    let truncated = rustix::fs::open(target.path(writable), OFlags::WRONLY, 0.into())
        .and_then(|file| rustix::fs::ftruncate(file, 0));
    note.expect("ftruncate", "ok", told(&truncated.map_err(Errno::from)));
    let truncated = File::options().write(true).truncate(true).open(target.path(writable));
    note.expect("open with O_TRUNC", "ok", told(&truncated.map_err(Errno::from)));
    let kept = target.read(CURRENT)?.starts_with(&before);
    note.holds("truncation deletes nothing", kept, "the same records", "others");

    let removed: Answer<()> = fs::remove_file(target.path(writable)).map_err(Errno::from);
    note.expect("unlink", "EPERM", told(&removed));

    let mode = |mode| {
        let path = target.path(writable);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Errno::from)
    };
    note.expect("chmod 0600", "ok", told(&mode(0o600)));
    let now = fs::metadata(target.path(writable)).map(|meta| meta.permissions().mode() & 0o7777);
    note.expect("the mode after chmod 0600", "600", format!("{:o}", now.unwrap_or_default()));
    note.expect("chmod back to 0660", "ok", told(&mode(0o660)));
    Ok(())
}

fn on_descriptors(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    let mut write_only = opened(target, writable, OFlags::WRONLY)?;
    let read = write_only.read(&mut [0; 16]).map_err(Errno::from);
    note.expect("read of a file opened O_WRONLY", "EBADF", told(&read));
    drop(write_only);
    let mut read_only = opened(target, writable, OFlags::RDONLY)?;
    let written = read_only.write(b"A\n").map_err(Errno::from);
    note.expect("write to a file opened O_RDONLY", "EBADF", told(&written));
    note.expect("fsync", "EINVAL", told(&read_only.sync_all().map_err(Errno::from)));
    let sought = read_only.seek(SeekFrom::Start(0)).map_err(Errno::from);
    note.expect("lseek to 0", "ok", told(&sought));
    drop(read_only);

    let mut file = opened(target, CURRENT, OFlags::RDONLY)?;
    note.expect("poll is ready at the beginning", "ready", ready(&file)?);
    read_on(&mut file)?;
    note.expect("poll is ready at the end", "ready", ready(&file)?);
    drop(file);

    // Files of records are seq_files; the file of T is plain text.
    let (at_end, expected) = match target.dialect() {
        Dialect::Trim => ("lseek to the end of T", "ok"),
        Dialect::Linux72 | Dialect::V4 => ("lseek to the end", "EINVAL"),
    };
    if target.is_fuse() {
        note.skip(at_end, "FUSE handles the call itself");
        note.skip("pwrite", "FUSE does not distinguish pwrite from write");
        note.skip("open with O_DIRECT", "FUSE permits it");
        return Ok(());
    }
    let mut file = opened(target, writable, OFlags::RDWR)?;
    let sought = file.seek(SeekFrom::End(0)).map_err(Errno::from);
    note.expect(at_end, expected, told(&sought));
    let written = file.write_at(b"A\n", 0).map_err(Errno::from);
    note.expect("pwrite", "ESPIPE", told(&written));
    drop(file);
    let direct = target.open(CURRENT, OFlags::RDONLY | OFlags::DIRECT);
    note.expect("open with O_DIRECT", "EINVAL", told(&direct));
    Ok(())
}

fn ready(file: &File) -> Result<&'static str, Trouble> {
    let mut files = [PollFd::new(file, PollFlags::IN | PollFlags::OUT)];
    poll(&mut files, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(|errno| Trouble(format!("poll: {}", Errno::from(errno))))?;
    let [file] = &files;
    Ok(if file.revents().contains(PollFlags::IN | PollFlags::OUT) { "ready" } else { "not ready" })
}

/// Only read(2) returns records, and only write(2) makes requests.
fn copying(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let names = ["sendfile", "copy_file_range to another file system", "splice from the list"];
    if target.is_fuse() {
        for name in names.into_iter().chain(["splice into a file"]) {
            note.skip(name, "FUSE turns the call into reads and writes");
        }
        return Ok(());
    }
    let trouble = |what: &str, error: &dyn std::fmt::Display| Trouble(format!("{what}: {error}"));
    let sink =
        tempfile::tempfile().map_err(|error| trouble("creating a file to copy to", &error))?;
    let (read, write) = rustix::pipe::pipe().map_err(|error| trouble("creating a pipe", &error))?;
    let flags = SpliceFlags::empty();
    let file = opened(target, CURRENT, OFlags::RDONLY)?;
    let done = [
        ("EINVAL", rustix::fs::sendfile(&sink, &file, None, 100)),
        ("EXDEV", rustix::fs::copy_file_range(&file, None, &sink, None, 100)),
        ("EINVAL", rustix::pipe::splice(&file, None, &write, None, 100, flags)),
    ];
    for (name, (expected, done)) in names.into_iter().zip(done) {
        note.expect(name, expected, told(&done.map_err(Errno::from)));
    }
    drop(file);
    let file = opened(target, target.writable(), OFlags::WRONLY)?;
    let filled = rustix::io::write(&write, b"A\n");
    filled.map_err(|error| trouble("writing to a pipe", &error))?;
    let done = rustix::pipe::splice(&read, None, &file, None, 2, flags);
    note.expect("splice into a file", "EINVAL", told(&done.map_err(Errno::from)));
    Ok(())
}

/// Files that CAP_DAC_OVERRIDE can open for writing against their mode refuse every request.
fn unwritable(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let mut names = vec![(COUNT, "1\n"), (VIOLATIONS, "1\n")];
    if target.dialect() != Dialect::Linux72 {
        names.extend([(CURRENT, "1\n"), (CURRENT, "A\n"), (CURRENT, "0:1\n")]);
    }
    for (name, request) in names {
        let case = format!("write of {request:?} to {name}");
        if target.overrides_modes() {
            let answer = target.write(name, request.as_bytes());
            note.expect(case, "EINVAL", told(&answer));
        } else {
            note.skip(case, "needs CAP_DAC_OVERRIDE");
        }
    }
    if target.dialect() != Dialect::Linux72 && target.overrides_modes() {
        target.at_least(3)?;
        let before = target.list(CURRENT)?;
        let mut file = opened(target, CURRENT, OFlags::RDWR)?;
        let read = crate::target::parse(&read_on(&mut file)?);
        let same = read.is_ok_and(|read| read.starts_with(&before));
        note.holds(format!("{CURRENT} opened O_RDWR reads"), same, "all records", "others");
        let written = file.write(b"1\n").map_err(Errno::from);
        note.expect(format!("{CURRENT} opened O_RDWR refuses N"), "EINVAL", told(&written));
    }
    Ok(())
}

fn opened(target: &Target<'_>, name: &str, flags: OFlags) -> Result<File, Trouble> {
    target.open(name, flags).map_err(|errno| Trouble(format!("opening {name}: {errno}")))
}
