//! Dialect trim: `T:N` is written to a file of its own; reading it returns T, the number of records
//! trimmed so far.

use std::{
    fs::File,
    io::{Read, Write},
    thread,
};

use rustix::fs::OFlags;

use super::open::hold;
use crate::{
    errno::{Answer, Errno, told, wrote},
    report::Recorder,
    target::{COUNT, CURRENT, Opener, TRIM_LOG, Target, Trouble, read_anew, read_on, told_deleted},
};

/// Requests, with `T` for the records trimmed so far, and the number deleted or the error.
const REQUESTS: &[(&str, Result<usize, Errno>)] = &[
    ("T:5", Ok(5)),
    ("T:5\n", Ok(5)),
    ("T:5\0", Ok(5)),
    ("T:5\0junk", Ok(5)),
    ("T:5\0\n", Ok(5)),
    ("00T:5", Ok(5)),
    ("T:+5", Ok(5)),
    ("T:05", Ok(5)),
    ("T:05\n", Ok(5)),
    ("T:010", Ok(8)),
    ("T:0x5", Ok(5)),
    ("T:0X0a", Ok(10)),
    ("T:0xA\n", Ok(10)),
    ("T:1\n", Ok(1)),
    ("T:0", Ok(0)),
    ("T:0\n", Ok(0)),
    ("T:00\n", Ok(0)),
    ("T:0x0\n", Ok(0)),
    ("T:5\n\n", Err(Errno::EINVAL)),
    ("T:\n", Err(Errno::EINVAL)),
    ("T:", Err(Errno::EINVAL)),
    (":5", Err(Errno::EINVAL)),
    (":5\n", Err(Errno::EINVAL)),
    (":0\n", Err(Errno::EINVAL)),
    (":\n", Err(Errno::EINVAL)),
    ("T\n", Err(Errno::EINVAL)),
    ("T5\n", Err(Errno::EINVAL)),
    ("T 5\n", Err(Errno::EINVAL)),
    (" T:5", Err(Errno::EINVAL)),
    ("+T:5", Err(Errno::EINVAL)),
    ("-T:5", Err(Errno::EINVAL)),
    ("0xT:5", Err(Errno::EINVAL)),
    ("T :5", Err(Errno::EINVAL)),
    ("T:-1", Err(Errno::EINVAL)),
    ("T:-0", Err(Errno::EINVAL)),
    ("T: 5", Err(Errno::EINVAL)),
    ("T:5 ", Err(Errno::EINVAL)),
    ("T:++5", Err(Errno::EINVAL)),
    ("T:+\n", Err(Errno::EINVAL)),
    ("T:08", Err(Errno::EINVAL)),
    ("T:0b1", Err(Errno::EINVAL)),
    ("T:0x", Err(Errno::EINVAL)),
    ("T:0xg", Err(Errno::EINVAL)),
    ("T:5:5", Err(Errno::EINVAL)),
    ("T::5", Err(Errno::EINVAL)),
    ("T:1e1", Err(Errno::EINVAL)),
    ("T:5.0", Err(Errno::EINVAL)),
    ("T;5\n", Err(Errno::EINVAL)),
    ("A\n", Err(Errno::EINVAL)),
    ("D\n", Err(Errno::EINVAL)),
    ("A", Err(Errno::EINVAL)),
    ("5\n", Err(Errno::EINVAL)),
    ("\n", Err(Errno::EINVAL)),
    ("x:5", Err(Errno::EINVAL)),
    ("T:x", Err(Errno::EINVAL)),
    ("T:5\nT:5\n", Err(Errno::EINVAL)),
    ("T:5\r\n", Err(Errno::EINVAL)),
    ("\0T:5", Err(Errno::EINVAL)),
    ("T\0:5", Err(Errno::EINVAL)),
    ("T:\0", Err(Errno::EINVAL)),
    ("12345678901234567890123:1", Err(Errno::ERANGE)),
    ("9223372036854775808:1", Err(Errno::ERANGE)),
    ("18446744073709551616:1", Err(Errno::ERANGE)),
    ("T:18446744073709551616", Err(Errno::ERANGE)),
    ("T:18446744073709551615", Err(Errno::ERANGE)),
    ("T:9223372036854775808", Err(Errno::ERANGE)),
    ("T:0xffffffffffffffff\n", Err(Errno::ERANGE)),
    ("9223372036854775807:1", Err(Errno::ESTALE)),
    ("T:9223372036854775807", Err(Errno::ENOENT)),
    ("T:99999999\n", Err(Errno::ENOENT)),
];

/// The grammar of `T:N`, byte by byte.
pub(crate) fn grammar(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    // On a new list T is 0: an empty T must not be accepted as 0.
    for text in [":1\n", ":0", "x"] {
        one(target, note, text, text, Err(Errno::EINVAL))?;
    }
    for (text, answer) in REQUESTS {
        let trimmed = target.number(TRIM_LOG)?;
        one(target, note, text, &text.replace('T', &trimmed.to_string()), *answer)?;
    }
    for (len, fits) in [(29, true), (30, true), (31, true), (32, false), (33, false), (40, false)] {
        let answer = if fits { Ok(5) } else { Err(Errno::EINVAL) };
        let trimmed = target.number(TRIM_LOG)?.to_string();
        let zeros = "0".repeat(len - 3 - trimmed.len());
        let text = format!("{trimmed}:{zeros}5\n");
        one(target, note, &format!("T:0...05\\n of {len} bytes"), &text, answer)?;
        let trimmed = target.number(TRIM_LOG)?;
        let text = format!("{trimmed:0width$}:5\n", width = len - 3);
        one(target, note, &format!("0...0T:5\\n of {len} bytes"), &text, answer)?;
    }
    for (text, case) in
        [("1".repeat(32), "32 digits"), ("x".repeat(32), "32 bytes of an invalid request")]
    {
        one(target, note, case, &text, Err(Errno::EINVAL))?;
    }
    // A refused request must not affect the next one.
    target.at_least(8)?;
    let file = hold(target, TRIM_LOG, OFlags::WRONLY)?;
    let refused = ask(&file, &"7".repeat(31));
    let trimmed = target.number(TRIM_LOG)?;
    let granted = ask(&file, &format!("{trimmed}:1"));
    note.expect(
        "31 digits, then T:1 through one descriptor",
        "EINVAL ok",
        format!("{refused} {granted}"),
    );
    Ok(())
}

/// `T:N` in every state of the list and of T.
pub(crate) fn requests(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    for (n, expected) in [("1", "ENOENT"), ("9223372036854775807", "ENOENT"), ("0", "ok")] {
        note.quiet(format!("empty list: T:{n}"), expected, || {
            target.empty()?;
            target.delete(n)
        })?;
    }
    note.quiet("empty list: read", "0 bytes", || {
        target.empty()?;
        Ok(format!("{} bytes", target.read(CURRENT)?.len()))
    })?;
    counted(target, note, "records: T:3", 3)?;
    counted(target, note, "records: T:0", 0)?;
    note.quiet("records: N = all + 1", "ENOENT del=0", || all_and(target, 1))?;
    note.quiet("records: N = all", "ok del=all", || all_and(target, 0))?;

    target.at_least(6)?;
    let before = target.list(CURRENT)?;
    let refused = target.delete("99999999")?;
    target.add(2)?;
    let after = target.list(CURRENT)?;
    let same = after.starts_with(&before) && after.len() >= before.len() + 2;
    note.expect("records: N beyond all", "ENOENT", refused);
    let what = "after a refused N, records are unchanged and new ones follow";
    note.holds(what, same, "all and 2 more", "others");
    let before = target.list(CURRENT)?;
    target.must_delete(2)?;
    target.add(2)?;
    let follow = told_deleted(&before, &target.list(CURRENT)?);
    note.expect("records added after T:2 follow the rest", "del=2", follow);
    wrong_total(target, note)?;
    agents(target, note)
}

/// A wrong T is reported before any other error, except for an invalid request.
fn wrong_total(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let (stale, invalid) = ("ESTALE del=0", "EINVAL del=0");
    target.at_least(6)?;
    // T must not be 0.
    target.must_delete(1)?;
    for (case, off, n, expected) in [
        ("T one too large: N = 5", 1, "5", stale),
        ("T one too small: N = 5", -1, "5", stale),
        ("T far too large: N = 5", 1_000_000, "5", stale),
        ("T one too large: N = 0", 1, "0", stale),
        ("T one too large: N beyond all", 1, "99999999", stale),
        ("T one too large: invalid N", 1, "x", invalid),
    ] {
        let before = target.list(CURRENT)?;
        let trimmed = target.number(TRIM_LOG)?.saturating_add_signed(off);
        let request = format!("{trimmed}:{n}\n");
        let got = wrote(&target.write(TRIM_LOG, request.as_bytes()), request.len());
        let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
        note.expect(case, expected, got);
    }
    let before = target.list(CURRENT)?;
    let got = wrote(&target.write(TRIM_LOG, b"0:5\n"), 4);
    let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
    note.expect("T = 0 after a trim: N = 5", stale, got);
    Ok(())
}

/// Two agents read the same T: the request of the second one is stale.
fn agents(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(8)?;
    let before = target.list(CURRENT)?;
    let trimmed = target.number(TRIM_LOG)?;
    let (first, second) = (format!("{trimmed}:2\n"), format!("{trimmed}:4\n"));
    let got = wrote(&target.write(TRIM_LOG, first.as_bytes()), first.len());
    note.expect("two agents with one T: the first", "ok", got);
    let other = thread::scope(|scope| {
        let write = || target.write(TRIM_LOG, second.as_bytes());
        scope.spawn(write).join().unwrap_or(Err(Errno(0)))
    });
    note.expect("two agents with one T: the second", "ESTALE", wrote(&other, second.len()));
    let left = told_deleted(&before, &target.list(CURRENT)?);
    note.expect("two agents with one T: deleted records", "del=2", left);
    let again = format!("{}:2\n", trimmed + 2);
    let got = wrote(&target.write(TRIM_LOG, again.as_bytes()), again.len());
    note.expect("the second reads T again and trims the rest", "ok", got);
    let left = told_deleted(&before, &target.list(CURRENT)?);
    note.expect("records trimmed by both", "del=4", left);
    Ok(())
}

/// The content of the file to which T:N is written.
pub(crate) fn reads(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let trimmed = target.number(TRIM_LOG)?;
    let text = target.read(TRIM_LOG)?;
    let expected = format!("{trimmed}\n");
    let digits = String::from_utf8_lossy(&text).into_owned();
    note.expect("T reads as digits and a newline", expected.escape_debug(), digits.escape_debug());
    target.add(6)?;
    let same = target.number(TRIM_LOG)?;
    note.expect("T after records were added", trimmed, same);
    let answer = target.write(TRIM_LOG, format!("{trimmed}:4\n").as_bytes());
    note.expect("T:4", "ok", told(&answer));
    note.expect("T after T:4", trimmed + 4, target.number(TRIM_LOG)?);
    let answer = target.write(TRIM_LOG, format!("{}:0\n", trimmed + 4).as_bytes());
    note.expect("T:0", "ok", told(&answer));
    note.expect("T after T:0", trimmed + 4, target.number(TRIM_LOG)?);
    // Another case checks the refusal.
    let _ = target.write(TRIM_LOG, format!("{}:99999999\n", trimmed + 4).as_bytes());
    note.expect("T after a refused N", trimmed + 4, target.number(TRIM_LOG)?);
    beside_a_writer(target, note)?;
    on_descriptors(target, note)
}

fn beside_a_writer(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(4)?;
    let writer = hold(target, TRIM_LOG, OFlags::WRONLY)?;
    let reader = target.open(TRIM_LOG, OFlags::RDONLY);
    note.expect("T O_RDONLY while a writer has it open", "ok", told(&reader));
    let before = target.number(TRIM_LOG)?;
    let asked = ask(&writer, &format!("{before}:2\n"));
    note.expect("T:2 while a reader has T open", "ok", asked);
    if let Ok(mut reader) = reader {
        let text = String::from_utf8_lossy(&read_anew(&mut reader)?).into_owned();
        let expected = format!("{}\\n", before + 2);
        note.expect("the reader reads the new T", expected, text.escape_debug());
    }
    let got = target.try_open(CURRENT, OFlags::RDONLY, Opener::OtherThread);
    note.expect("the list O_RDONLY while a writer has T open", "EBUSY", told(&got));
    drop(writer);

    let reader = hold(target, TRIM_LOG, OFlags::RDONLY)?;
    let got = target.try_open(TRIM_LOG, OFlags::RDWR, Opener::OtherProcess);
    note.expect("a writer opens T while a reader has it open", "ok", told(&got));
    drop(reader);
    let reader = hold(target, CURRENT, OFlags::RDONLY)?;
    let request = target.number_request(1)?;
    let got: Answer<usize> = target.write(TRIM_LOG, request.as_bytes());
    note.expect("T:1 while a reader has the list open", "EBUSY", told(&got));
    drop(reader);
    Ok(())
}

/// T through descriptors that stay open.
fn on_descriptors(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(8)?;
    let mut file = hold(target, TRIM_LOG, OFlags::RDWR)?;
    let text = read_on(&mut file)?;
    let trimmed = target.number(TRIM_LOG)?;
    let expected = format!("{trimmed}\n");
    note.expect("T through the writer's descriptor", expected.len(), text.len());
    note.expect("at its end: bytes", 0, read_on(&mut file)?.len());
    let stale = format!("{trimmed}:2\n");
    note.expect("T:2 after a read", "EINVAL", ask(&file, &stale));
    let trace = told(&Ok(read_anew(&mut file)?));
    note.expect("lseek to 0 and a read", "ok", trace);
    std::io::Seek::rewind(&mut file).map_err(|error| Trouble(format!("lseek: {error}")))?;
    note.expect("T:2 after lseek to 0", "ok", ask(&file, &stale));
    note.expect("the same T:2 again", "ESTALE", ask(&file, &stale));
    let fresh = format!("{}:2\n", trimmed + 2);
    note.expect("T:2 with the T that another descriptor reads", "ok", ask(&file, &fresh));
    let text = String::from_utf8_lossy(&read_anew(&mut file)?).into_owned();
    let expected = format!("{}\\n", trimmed + 4);
    note.expect("the writer's descriptor reads the new T", &expected, text.escape_debug());
    std::io::Seek::rewind(&mut file).map_err(|error| Trouble(format!("lseek: {error}")))?;
    let first = file.read(&mut [0; 1]).map_err(Errno::from);
    note.expect("a read of one byte", "ok", wrote(&first, 1));
    let rest = read_on(&mut file)?;
    note.expect("and the rest: bytes", expected.len() - 2, rest.len());
    drop(file);
    let count = target.number(COUNT)?;
    let listed = target.list(CURRENT)?.len() as u64;
    note.holds("the count agrees with the list", count <= listed, count, listed);
    Ok(())
}

fn one(
    target: &Target<'_>,
    note: &mut Recorder,
    case: &str,
    text: &str,
    answer: Result<usize, Errno>,
) -> Result<(), Trouble> {
    target.at_least(12)?;
    let (before, trimmed) = (target.list(CURRENT)?, target.number(TRIM_LOG)?);
    let got = wrote(&target.write(TRIM_LOG, text.as_bytes()), text.len());
    let more = target.number(TRIM_LOG)?.wrapping_sub(trimmed);
    let got = format!("{got} {} T+{more}", told_deleted(&before, &target.list(CURRENT)?));
    let expected = match answer {
        Ok(n) => format!("ok del={n} T+{n}"),
        Err(errno) => format!("{errno} del=0 T+0"),
    };
    let case = case.escape_debug().to_string().replace("\\\\", "\\");
    note.expect(format!("\"{case}\""), expected, got);
    Ok(())
}

fn counted(target: &Target<'_>, note: &mut Recorder, case: &str, n: usize) -> Result<(), Trouble> {
    target.at_least(8)?;
    let (before, trimmed) = (target.list(CURRENT)?, target.number(TRIM_LOG)?);
    let got = target.delete(n)?;
    let more = target.number(TRIM_LOG)?.wrapping_sub(trimmed);
    let got = format!("{got} {} T+{more}", told_deleted(&before, &target.list(CURRENT)?));
    note.expect(case, format!("ok del={n} T+{n}"), got);
    Ok(())
}

/// Requests N = all records (at least 3) + `more`.
fn all_and(target: &Target<'_>, more: usize) -> Result<String, Trouble> {
    target.at_least(3)?;
    let before = target.list(CURRENT)?;
    let answer = target.delete(before.len() + more)?;
    let del = told_deleted(&before, &target.list(CURRENT)?);
    Ok(match (&*answer, del == format!("del={}", before.len())) {
        ("ok", true) => "ok del=all".into(),
        _ => format!("{answer} {del}"),
    })
}

fn ask(mut file: &File, request: &str) -> String {
    wrote(&file.write(request.as_bytes()).map_err(Errno::from), request.len())
}
