//! Dialect v4 accepts requests at offset 0 of a file only. A read advances the offset, a write does
//! not.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

use rustix::fs::OFlags;

use super::open::hold;
use crate::{
    errno::{Errno, written},
    report::Recorder,
    target::{STAGED, Target, Trouble, parse, read_on},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    writes_only(target, note)?;
    after_reads(target, note)?;
    batches(target, note)
}

fn writes_only(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.add(3)?;
    let mut file = hold(target, STAGED, OFlags::RDWR)?;
    note.expect("one descriptor: bytes read with nothing staged", 0, read_on(&mut file)?.len());
    ask(note, &file, "A\n", "after a read of 0 bytes", "ok:2");
    ask(note, &file, "D\n", "right after A", "ok:2");
    target.add(6)?;
    let number =
        |len: &str| if target.deletes_by_number() { len.to_owned() } else { "EINVAL".into() };
    ask(note, &file, "2\n", "as the third request", &number("ok:2"));
    ask(note, &file, "1\n", "as the fourth request", &number("ok:2"));
    if target.is_fuse() {
        note.skip("offset after writes (lseek)", "FUSE advances the offset itself");
    } else {
        let at = file.stream_position().map_err(Errno::from).unwrap_or(u64::MAX);
        note.expect("offset after writes (lseek)", 0, at);
    }
    Ok(())
}

fn after_reads(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(4)?;
    let mut file = hold(target, STAGED, OFlags::RDWR)?;
    ask(note, &file, "A\n", "at the beginning", "ok:2");
    let records = parse(&read_on(&mut file)?).map_or(0, |list| list.len());
    note.holds("the writer reads what is staged", records >= 4, "at least 4 records", records);
    for request in ["D\n", "1\n", "A\n", "x\n", "0\n"] {
        ask(note, &file, request, "after a read", "EINVAL");
    }
    seek(&mut file, 0)?;
    ask(note, &file, "A\n", "after a read and lseek to 0", "EEXIST");
    ask(note, &file, "D\n", "after a read and lseek to 0", "ok:2");
    ask(note, &file, "D\n", "with nothing staged", "ENOENT");

    stage_new(target, note, &file)?;
    let read = file.read_at(&mut [0; 100], 0).map_err(Errno::from);
    let read = read.is_ok_and(|len| len > 0);
    note.holds("pread at the beginning", read, "some bytes", "none");
    if target.is_fuse() {
        // FUSE passes a pread as a read at another offset.
        seek(&mut file, 0)?;
        note.skip("\"D\\n\" after pread", "FUSE does not distinguish pread from read");
    } else {
        ask(note, &file, "D\n", "after pread", "ok:2");
        stage_new(target, note, &file)?;
    }
    let one = file.read(&mut [0; 1]).map_err(Errno::from);
    note.expect("a read of one byte", "ok:1", written(&one));
    ask(note, &file, "D\n", "after a read of one byte", "EINVAL");
    seek(&mut file, 5)?;
    ask(note, &file, "D\n", "after lseek to 5", "EINVAL");
    seek(&mut file, 0)?;
    let mut copy = file.try_clone().map_err(|error| Trouble(format!("dup: {error}")))?;
    copy.read(&mut [0; 10]).map_err(|error| Trouble(format!("reading: {error}")))?;
    ask(note, &file, "D\n", "after a read through a duplicate", "EINVAL");
    drop((copy, file));

    let append = hold(target, STAGED, OFlags::RDWR | OFlags::APPEND)?;
    ask(note, &append, "D\n", "with O_APPEND", "ok:2");
    Ok(())
}

/// Several batches through one descriptor.
fn batches(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    let mut file = hold(target, STAGED, OFlags::RDWR)?;
    for batch in ["first", "second"] {
        let paths = target.add(3)?;
        ask(note, &file, "A\n", &format!("of the {batch} batch"), "ok:2");
        let found = Target::find(&paths, &parse(&read_on(&mut file)?).unwrap_or_default());
        note.expect(format!("the {batch} batch reads"), "[0, 1, 2]", format!("{found:?}"));
        seek(&mut file, 0)?;
        ask(note, &file, "D\n", &format!("of the {batch} batch"), "ok:2");
    }
    drop(file);
    target.add(3)?;
    target.must(STAGED, "A\n")?;
    let staged = target.list(STAGED)?.len();
    note.holds("staged, closed, opened and read", staged >= 3, "at least 3 records", staged);
    let answer = written(&target.write(STAGED, b"D\n"));
    note.expect("staged, closed, opened and deleted", "ok:2", answer);
    Ok(())
}

fn stage_new(target: &Target<'_>, note: &mut Recorder, file: &File) -> Result<(), Trouble> {
    target.add(3)?;
    ask(note, file, "A\n", "once more", "ok:2");
    Ok(())
}

fn ask(note: &mut Recorder, mut file: &File, request: &str, when: &str, expected: &str) {
    let answer = file.write(request.as_bytes()).map_err(Errno::from);
    note.expect(format!("{request:?} {when}"), expected, written(&answer));
}

fn seek(file: &mut File, to: u64) -> Result<(), Trouble> {
    let sought = file.seek(SeekFrom::Start(to));
    sought.map(drop).map_err(|error| Trouble(format!("lseek to {to}: {error}")))
}
