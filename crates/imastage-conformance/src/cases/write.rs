//! The grammar of requests, to the byte.

use std::io::{IoSlice, Write};

use rustix::fs::OFlags;

use crate::{
    errno::{Answer, Errno, written},
    report::Recorder,
    target::{CURRENT, STAGED, Target, Trouble, file_of, told_deleted},
};

/// Deletes 5 records.
const FIVE: &[&[u8]] = &[
    b"5\n",
    b"05\n",
    b"+5\n",
    b"+05\n",
    b"5\n\n",
    b"5\0junk\n",
    b"5\n\0junk\n",
    b"00000000000000000005\n",
    b"+0000000000000000005\n",
];

/// Is no number, or too long.
const NO_NUMBER: &[&[u8]] = &[
    b"\n",
    b"5",
    b"A",
    b"55",
    b" 5\n",
    b"5 \n",
    b"\t5\n",
    b"0\n",
    b"00\n",
    b"+0\n",
    b"-1\n",
    b"-0\n",
    b"+\n",
    b"++5\n",
    b"\n\n",
    b"5\n\n\n",
    b"\x005\n",
    b"5\0",
    b"0x5\n",
    b"0X5\n",
    b"5\r\n",
    b"1e1\n",
    b"5.0\n",
    b"1,0\n",
    b"5\n5\n",
    b"5;D\n",
    b"\xd9\xa5\n",
    b"A\n",
    b"D\n",
    b"a\n",
    b"d\n",
    b"A5\n",
    b"D5\n",
    b"000000000000000000005\n",
    b"100000000000000000000\n",
    b"+18446744073709551615\n",
    b"-1844674407370955161\n",
];

/// Is a number of more records than there are.
const TOO_MANY: &[&[u8]] = &[b"18446744073709551615\n", b"9223372036854775808\n", b"99999999\n"];

/// Is a number beyond 64 bits.
const BEYOND: &[&[u8]] = &[b"18446744073709551616\n", b"99999999999999999999\n"];

/// Is no request to a staged file.
const NOT_STAGED: &[&[u8]] = &[
    b"\n",
    b"A",
    b"D",
    b"AA",
    b"A ",
    b"A\0",
    b"A\n\n",
    b"A\r\n",
    b" A\n",
    b"AD\n",
    b"a\n",
    b"d\n",
    b"D\n\n",
    b"5\n",
    b"0\n",
    b"+5\n",
    b"18446744073709551616\n",
    b"1234567890123456789012\n",
    b"AAAAAAAAAAAAAAAAAAAA\n",
];

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let refused = |bytes: &&'static [u8], errno| (*bytes, Err(errno), 0);
    let current = (FIVE.iter().map(|bytes| (*bytes, Ok(bytes.len()), 5)))
        .chain(NO_NUMBER.iter().map(|bytes| refused(bytes, Errno::EINVAL)))
        .chain(TOO_MANY.iter().map(|bytes| refused(bytes, Errno::ENOENT)))
        .chain(BEYOND.iter().map(|bytes| refused(bytes, Errno::ERANGE)));
    for (bytes, answer, del) in current {
        target.at_least(8)?;
        one(target, note, CURRENT, bytes, answer, del)?;
    }
    for bytes in NOT_STAGED {
        // One that was granted must not stand in the way of the others.
        target.unstage()?;
        target.at_least(8)?;
        one(target, note, STAGED, bytes, Err(Errno::EINVAL), 0)?;
    }
    // With something staged, a request taken for D would delete it.
    for bytes in NOT_STAGED {
        if target.list(STAGED)?.is_empty() {
            target.at_least(8)?;
            target.must(STAGED, "A\n")?;
        }
        let before = target.list(STAGED)?;
        let answer = target.write(STAGED, bytes);
        let got = format!("{} {}", written(&answer), told_deleted(&before, &target.list(STAGED)?));
        note.expect(format!("{} to {STAGED}, staged", shown(bytes)), "EINVAL del=0", got);
    }
    target.unstage()?;
    empty_and_vectors(target, note)?;
    every_file(target, note)
}

/// Writes that a FUSE file system sees otherwise, or not at all.
fn empty_and_vectors(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let vectors: [(&[&[u8]], &str); 3] = [
        (&[b"2\n", b"3\n"], "ok:4 del=5"),
        (&[b"2", b"\n"], "EINVAL del=0"),
        (&[b"2\n", b"x\n"], "ok:2 del=2"),
    ];
    if target.is_fuse() {
        note.skip("\"\" to either part", "FUSE passes no empty writes on");
        note.skip("writev: each element is a request", "FUSE passes all elements on as one write");
        return Ok(());
    }
    target.at_least(8)?;
    for name in [CURRENT, STAGED] {
        one(target, note, name, b"", Err(Errno::EINVAL), 0)?;
    }
    for (elements, expected) in vectors {
        target.at_least(8)?;
        let before = target.list(CURRENT)?;
        let slices: Vec<IoSlice<'_>> = elements.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let answer = target
            .open(CURRENT, OFlags::WRONLY)
            .and_then(|mut file| Ok(file.write_vectored(&slices)?));
        let got = format!("{} {}", written(&answer), told_deleted(&before, &target.list(CURRENT)?));
        let shown: Vec<String> = elements.iter().map(|bytes| shown(bytes)).collect();
        note.expect(format!("writev [{}] to {CURRENT}", shown.join(", ")), expected, got);
    }
    Ok(())
}

/// A request to any file is a request to the one list.
fn every_file(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let mut names =
        vec!["ascii_runtime_measurements".to_owned(), "binary_runtime_measurements".to_owned()];
    for bank in target.banks() {
        names.extend(["ascii", "binary"].map(|form| file_of(form, bank, "")));
    }
    for name in names {
        target.at_least(4)?;
        one(target, note, &name, b"2\n", Ok(2), 2)?;
        one(target, note, &name, b"A\n", Err(Errno::EINVAL), 0)?;
        one(target, note, &name, b"D\n", Err(Errno::EINVAL), 0)?;
        let staged = format!("{name}_staged");
        let before = target.list(CURRENT)?;
        let answer = target.write(&staged, b"A\n");
        let shows = target.list(STAGED)?.starts_with(&before);
        let got =
            format!("{} {}", written(&answer), if shows { "all staged" } else { "otherwise" });
        note.expect(format!("\"A\\n\" to {staged}"), "ok:2 all staged", got);
        let answer = target.write(&staged, b"D\n");
        let got = format!("{} {} staged", written(&answer), target.list(STAGED)?.len());
        note.expect(format!("\"D\\n\" to {staged}"), "ok:2 0 staged", got);
    }
    Ok(())
}

/// One write, and what it did to the current list.
fn one(
    target: &Target<'_>,
    note: &mut Recorder,
    name: &str,
    bytes: &[u8],
    answer: Answer<usize>,
    del: usize,
) -> Result<(), Trouble> {
    let before = target.list(CURRENT)?;
    let got = target.write(name, bytes);
    let got = format!("{} {}", written(&got), told_deleted(&before, &target.list(CURRENT)?));
    note.expect(
        format!("{} to {name}", shown(bytes)),
        format!("{} del={del}", written(&answer)),
        got,
    );
    Ok(())
}

fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
