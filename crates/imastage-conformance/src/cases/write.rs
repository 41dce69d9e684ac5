//! The grammar of requests, byte by byte.

use std::io::{IoSlice, Write};

use ima_securityfs::Dialect;
use rustix::fs::OFlags;

use crate::{
    errno::{Answer, Errno, written},
    report::Recorder,
    target::{CURRENT, STAGED, TRIM_LOG, Target, Trouble, file_of, told_deleted},
};

/// Requests that delete 5 records.
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

/// Not a number, or too long.
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

/// More records than the list has.
const TOO_MANY: &[&[u8]] = &[b"18446744073709551615\n", b"9223372036854775808\n", b"99999999\n"];

/// Numbers beyond 64 bits.
const BEYOND: &[&[u8]] = &[b"18446744073709551616\n", b"99999999999999999999\n"];

/// Invalid requests for a staged file.
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
    match target.dialect() {
        Dialect::Linux72 => {
            numbers(target, note, CURRENT)?;
            others(target, note, STAGED)?;
            over_staged(target, note)?;
        }
        Dialect::V4 => {
            numbers(target, note, STAGED)?;
            others(target, note, CURRENT)?;
            over_staged(target, note)?;
        }
        Dialect::Trim => {
            others(target, note, CURRENT)?;
            if !target.deletes_by_number() {
                flushed(target, note)?;
            }
        }
    }
    empty_and_vectors(target, note)?;
    every_file(target, note)
}

/// The answers of the file that accepts N, and the number of deleted records.
fn answers(target: &Target<'_>) -> impl Iterator<Item = (&'static [u8], Answer<usize>, usize)> {
    let refused = |bytes: &&'static [u8], errno| (*bytes, Err(errno), 0);
    let (v4, deletes) = (target.dialect() == Dialect::V4, target.deletes_by_number());
    (FIVE.iter().map(|bytes| (*bytes, Ok(bytes.len()), 5)))
        .chain(NO_NUMBER.iter().map(move |bytes| refused(bytes, Errno::EINVAL)))
        .chain(TOO_MANY.iter().map(move |bytes| refused(bytes, Errno::ENOENT)))
        .chain(BEYOND.iter().map(move |bytes| refused(bytes, Errno::ERANGE)))
        // In v4 one file accepts all requests, these included.
        .filter(move |(bytes, _, _)| !(v4 && [&b"A\n"[..], b"D\n"].contains(bytes)))
        // With flushed digests, numbers are refused unparsed.
        .map(
            move |(bytes, answer, del)| {
                if deletes { (bytes, answer, del) } else { (bytes, Err(Errno::EINVAL), 0) }
            },
        )
}

/// The file that accepts N.
fn numbers(target: &Target<'_>, note: &mut Recorder, name: &str) -> Result<(), Trouble> {
    for (bytes, answer, del) in answers(target) {
        target.unstage()?;
        target.at_least(8)?;
        one(target, note, name, bytes, answer, del)?;
    }
    Ok(())
}

/// The file that does not accept N.
fn others(target: &Target<'_>, note: &mut Recorder, name: &str) -> Result<(), Trouble> {
    if name == CURRENT && !target.overrides_modes() {
        note.skip(format!("invalid requests to {name}"), "needs CAP_DAC_OVERRIDE");
        return Ok(());
    }
    let requests = [&b"A\n"[..], b"D\n", b"0:5\n"];
    let more: Vec<&[u8]> = match name {
        CURRENT => FIVE.iter().chain(&requests).copied().collect(),
        _ => Vec::new(),
    };
    for bytes in NOT_STAGED.iter().copied().chain(more) {
        // A wrongly granted request must not affect the following ones.
        if target.dialect().stages() {
            target.unstage()?;
        }
        target.at_least(8)?;
        one(target, note, name, bytes, Err(Errno::EINVAL), 0)?;
    }
    Ok(())
}

/// Invalid requests with records staged: one misread as D would delete them.
fn over_staged(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let v4 = target.dialect() == Dialect::V4;
    let not_staged = NOT_STAGED.iter().map(|bytes| (*bytes, Errno::EINVAL));
    // In v4, N stages first and fails with EEXIST if records are staged.
    let numbers = answers(target).map(|(bytes, answer, _)| match answer {
        Ok(_) | Err(Errno::ENOENT) => (bytes, Errno::EEXIST),
        Err(errno) => (bytes, errno),
    });
    let all: Vec<_> = if v4 { numbers.collect() } else { not_staged.collect() };
    for (bytes, errno) in all {
        if target.list(STAGED)?.is_empty() {
            target.at_least(8)?;
            target.must(STAGED, "A\n")?;
        }
        let before = target.list(STAGED)?;
        let answer = target.write(STAGED, bytes);
        let got = format!("{} {}", written(&answer), told_deleted(&before, &target.list(STAGED)?));
        let expected = format!("{errno} del=0");
        note.expect(format!("{} to {STAGED}, staged", shown(bytes)), expected, got);
    }
    target.unstage()
}

/// Dialect trim with flushed digests refuses every request.
fn flushed(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(8)?;
    for bytes in [&b"0:5\n"[..], b"0:5", b"0:0\n", b"1:5\n", b"0:99999999\n", b"x\n", b"5\n"] {
        one(target, note, TRIM_LOG, bytes, Err(Errno::EINVAL), 0)?;
    }
    Ok(())
}

/// Writes that FUSE changes, or does not pass to the file system.
fn empty_and_vectors(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if target.is_fuse() {
        note.skip("\"\" to every part", "FUSE does not pass empty writes");
        note.skip("writev: each element is a request", "FUSE passes all elements as one write");
        return Ok(());
    }
    target.at_least(8)?;
    one(target, note, target.writable(), b"", Err(Errno::EINVAL), 0)?;
    if !target.deletes_by_number() {
        return Ok(());
    }
    let name = target.numbered();
    let trims = target.dialect() == Dialect::Trim;
    let vectors: [(&[usize], &[&str], &str); 3] = [
        (&[2, 3], &[], "all del=5"),
        (&[2], &["x\n"], "1st del=2"),
        (&[], &["2", "\n"], "EINVAL del=0"),
    ];
    for (numbers, last, expected) in vectors {
        target.at_least(8)?;
        let before = target.list(CURRENT)?;
        let mut trimmed = if trims { target.number(TRIM_LOG)? } else { 0 };
        let mut elements = Vec::new();
        for n in numbers {
            elements.push(if trims { format!("{trimmed}:{n}\n") } else { format!("{n}\n") });
            trimmed += *n as u64;
        }
        let first = elements.first().map_or(0, String::len);
        elements.extend(last.iter().map(|text| (*text).to_owned()));
        let all: usize = elements.iter().map(String::len).sum();
        let slices: Vec<_> = elements.iter().map(|text| IoSlice::new(text.as_bytes())).collect();
        let answer = target
            .open(name, OFlags::WRONLY)
            .and_then(|mut file| Ok(file.write_vectored(&slices)?));
        let len = match answer {
            Ok(len) if len == all => "all".into(),
            Ok(len) if len == first => "1st".into(),
            answer => written(&answer),
        };
        let got = format!("{len} {}", told_deleted(&before, &target.list(CURRENT)?));
        note.expect(format!("writev {elements:?} to {name}"), expected, got);
    }
    Ok(())
}

/// A request to any file of a part acts on the same list.
fn every_file(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let mut names =
        vec!["ascii_runtime_measurements".to_owned(), "binary_runtime_measurements".to_owned()];
    for bank in target.banks() {
        names.extend(["ascii", "binary"].map(|form| file_of(form, bank, "")));
    }
    let refused = || Err(Errno::EINVAL);
    let (answer, del) = if target.deletes_by_number() { (Ok(2), 2) } else { (refused(), 0) };
    for name in names {
        let originals = target.dialect() == Dialect::Linux72;
        if originals || target.overrides_modes() {
            target.at_least(4)?;
            let (answer, del) = if originals { (answer, del) } else { (refused(), 0) };
            one(target, note, &name, b"2\n", answer, del)?;
            one(target, note, &name, b"A\n", refused(), 0)?;
            one(target, note, &name, b"D\n", refused(), 0)?;
        }
        if !target.dialect().stages() {
            continue;
        }
        let staged = format!("{name}_staged");
        target.at_least(4)?;
        let (answer, del) = if originals { (refused(), 0) } else { (answer, del) };
        one(target, note, &staged, b"2\n", answer, del)?;
        let before = target.list(CURRENT)?;
        let answer = target.write(&staged, b"A\n");
        let shows = target.list(STAGED)?.starts_with(&before);
        let got =
            format!("{} {}", written(&answer), if shows { "all staged" } else { "not all staged" });
        note.expect(format!("\"A\\n\" to {staged}"), "ok:2 all staged", got);
        let answer = target.write(&staged, b"D\n");
        let got = format!("{} {} staged", written(&answer), target.list(STAGED)?.len());
        note.expect(format!("\"D\\n\" to {staged}"), "ok:2 0 staged", got);
    }
    Ok(())
}

/// One write, and its effect on the current list.
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
