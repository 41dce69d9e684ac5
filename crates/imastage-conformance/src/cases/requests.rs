//! A, D and N in every state: an empty list, current records, staged records, both.

use ima_securityfs::Dialect;

use crate::{
    errno::written,
    report::Recorder,
    target::{CURRENT, STAGED, Target, Trouble, told_deleted},
};

/// A number larger than any list.
const MOST: &str = "18446744073709551615\n";

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    deletion(target, note)?;
    nothing(target, note)?;
    current(target, note)?;
    staged(target, note)?;
    both(target, note)?;
    rounds(target, note)
}

/// The deletion that all other cases depend on.
fn deletion(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.add(3)?;
    if target.list(STAGED)?.is_empty() {
        target.must(STAGED, "A\n")?;
    }
    let got = written(&target.write(STAGED, b"D\n"));
    let got = format!("{got}, {} staged", target.list(STAGED)?.len());
    note.expect("staged records: \"D\\n\"", "ok:2, 0 staged", got);
    let got = written(&target.write(STAGED, b"D\n"));
    note.expect("staged records: \"D\\n\" twice", "ENOENT", got);
    Ok(())
}

/// `answer`, or EINVAL if numbers are refused.
fn number<'a>(target: &Target<'_>, answer: &'a str) -> &'a str {
    if target.deletes_by_number() { answer } else { "EINVAL" }
}

fn nothing(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let numbered = target.numbered();
    let none = number(target, "ENOENT");
    for (name, request, expected) in [
        (STAGED, "A\n", "ENOENT"),
        (STAGED, "D\n", "ENOENT"),
        (numbered, "1\n", none),
        (numbered, MOST, none),
        (numbered, "0\n", "EINVAL"),
    ] {
        note.quiet(format!("empty list: {request:?}"), expected, || {
            target.empty()?;
            Ok(written(&target.write(name, request.as_bytes())))
        })?;
    }
    for name in [CURRENT, STAGED, "ascii_runtime_measurements_sha1_staged"] {
        note.quiet(format!("empty list: read of {name}"), "0 bytes", || {
            target.empty()?;
            Ok(format!("{} bytes", target.read(name)?.len()))
        })?;
    }
    Ok(())
}

fn current(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(10)?;
    let before = target.list(CURRENT)?;
    let got = written(&target.write(STAGED, b"D\n"));
    let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
    note.expect("current records: \"D\\n\"", "ENOENT del=0", got);

    let numbered = target.numbered();
    if target.deletes_by_number() {
        let case = "current records: N = all + 1";
        note.quiet(case, "ENOENT del=0", || n(target, 1))?;
        by_number(target, note)?;
        note.quiet("current records: N = all", "ok del=all", || n(target, 0))?;
    } else {
        note.quiet("current records: N = all", "EINVAL del=0", || n(target, 0))?;
    }
    target.at_least(5)?;
    for (request, answer) in [(MOST, "ENOENT"), ("0\n", "EINVAL"), ("x\n", "EINVAL")] {
        let before = target.list(CURRENT)?;
        let got = written(&target.write(numbered, request.as_bytes()));
        let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
        let expected = format!("{} del=0", number(target, answer));
        note.expect(format!("current records: {request:?}"), expected, got);
    }

    target.add(5)?;
    let before = target.list(CURRENT)?;
    let got = written(&target.write(STAGED, b"A\n"));
    note.expect("current records: \"A\\n\"", "ok:2", got);
    let staged = target.list(STAGED)?;
    note.holds(
        "current records: \"A\\n\" stages all of them, in order",
        staged.starts_with(&before),
        format!("{} records", before.len()),
        format!("{} records, or others", staged.len()),
    );
    let left = told_deleted(&before, &target.list(CURRENT)?);
    note.expect("current records: \"A\\n\" leaves none", format!("del={}", before.len()), left);
    Ok(())
}

/// N leaves the remaining records unchanged; later ones follow them.
fn by_number(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let numbered = target.numbered();
    target.at_least(5)?;
    let before = target.list(CURRENT)?;
    let refused = written(&target.write(numbered, MOST.as_bytes()));
    target.add(2)?;
    let after = target.list(CURRENT)?;
    let same = after.starts_with(&before) && after.len() >= before.len() + 2;
    note.expect("current records: N beyond all", "ENOENT", refused);
    note.holds(
        "after a refused N, records are unchanged and new ones follow",
        same,
        format!("{} records and 2 more", before.len()),
        format!("{} records, or others", after.len()),
    );
    let staged = target.list(STAGED)?.len();
    note.expect("after a refused N nothing is staged", 0, staged);
    let before = target.list(CURRENT)?;
    let got = written(&target.write(numbered, b"3\n"));
    let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
    note.expect("current records: N = 3 leaves the rest", "ok:2 del=3", got);
    target.add(2)?;
    let follow = told_deleted(&before, &target.list(CURRENT)?);
    note.expect("records added after N = 3 follow the rest", "del=3", follow);
    let staged = target.list(STAGED)?.len();
    note.expect("after N = 3 nothing is staged", 0, staged);
    Ok(())
}

fn staged(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let only_staged = || {
        target.empty()?;
        target.add(5)?;
        target.must(STAGED, "A\n")?;
        target.list(STAGED)
    };
    let numbered = target.numbered();
    // In 7.2, N deletes current records; in v4, it stages them first.
    let v4 = target.dialect() == Dialect::V4;
    let none = number(target, if v4 { "EEXIST" } else { "ENOENT" });
    for (name, request, errno) in [
        (STAGED, "A\n", "EEXIST"),
        (numbered, "1\n", none),
        (numbered, MOST, none),
        (numbered, "0\n", "EINVAL"),
        (numbered, "x\n", "EINVAL"),
    ] {
        let expected = format!("{errno} del=0");
        note.quiet(format!("staged records: {request:?}"), expected, || {
            let before = only_staged()?;
            let got = written(&target.write(name, request.as_bytes()));
            Ok(format!("{got} {}", told_deleted(&before, &target.list(STAGED)?)))
        })?;
    }
    Ok(())
}

fn both(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(10)?;
    target.must(STAGED, "A\n")?;
    target.add(5)?;
    let staged = target.list(STAGED)?;
    let unmoved = |target: &Target<'_>| -> Result<&str, Trouble> {
        Ok(if target.list(STAGED)? == staged { "staged unmoved" } else { "staged changed" })
    };
    let numbered = target.numbered();
    let v4 = target.dialect() == Dialect::V4;
    let (two, many) = if v4 { ("EEXIST del=0", "EEXIST") } else { ("ok:2 del=2", "ENOENT") };
    let two = if target.deletes_by_number() { two } else { "EINVAL del=0" };
    let many = format!("{} del=0", number(target, many));
    let as_many = format!("{}\n", staged.len());
    for (name, request, expected) in [
        (STAGED, "A\n", "EEXIST del=0"),
        (numbered, "99999999\n", &*many),
        (numbered, MOST, &*many),
        (numbered, "2\n", two),
        (numbered, "0\n", "EINVAL del=0"),
    ] {
        let before = target.list(CURRENT)?;
        let got = written(&target.write(name, request.as_bytes()));
        let got = format!(
            "{got} {}, {}",
            told_deleted(&before, &target.list(CURRENT)?),
            unmoved(target)?
        );
        let expected = format!("{expected}, staged unmoved");
        note.expect(format!("staged and current records: {request:?}"), expected, got);
    }
    if v4 {
        let got = written(&target.write(numbered, as_many.as_bytes()));
        let expected = number(target, "EEXIST");
        note.expect("staged and current records: N = all staged", expected, got);
    } else if target.deletes_by_number() {
        let name = "staged and current records: N = all + 1";
        note.quiet(name, "ENOENT del=0", || n(target, 1))?;
    }
    target.add(3)?;
    note.expect("new records are added to the current part", "staged unmoved", unmoved(target)?);
    let before = target.list(CURRENT)?;
    let got = written(&target.write(STAGED, b"D\n"));
    let got = format!(
        "{got} {}, {} staged",
        told_deleted(&before, &target.list(CURRENT)?),
        target.list(STAGED)?.len()
    );
    note.expect("staged and current records: \"D\\n\"", "ok:2 del=0, 0 staged", got);
    let got = written(&target.write(STAGED, b"D\n"));
    note.expect("staged and current records: \"D\\n\" twice", "ENOENT", got);
    Ok(())
}

/// After each deletion, only new records are staged.
fn rounds(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    for round in ["first", "second", "third"] {
        let paths = target.add(3)?;
        target.must(STAGED, "A\n")?;
        let found = Target::find(&paths, &target.list(STAGED)?);
        let case = format!("the {round} batch has the records since the previous one");
        note.expect(case, "[0, 1, 2]", format!("{found:?}"));
        let answer = written(&target.write(STAGED, b"A\n"));
        note.expect(format!("the {round} batch is pending: \"A\\n\""), "EEXIST", answer);
        target.must(STAGED, "D\n")?;
    }
    Ok(())
}

/// Requests N = all current records (at least 3) + `more`.
fn n(target: &Target<'_>, more: usize) -> Result<String, Trouble> {
    target.at_least(3)?;
    let before = target.list(CURRENT)?;
    let request = format!("{}\n", before.len() + more);
    let answer = target.write(target.numbered(), request.as_bytes());
    let after = target.list(CURRENT)?;
    let del = told_deleted(&before, &after);
    Ok(match answer {
        Ok(len) if len == request.len() && del == format!("del={}", before.len()) => {
            "ok del=all".into()
        }
        answer => format!("{} {del}", written(&answer)),
    })
}
