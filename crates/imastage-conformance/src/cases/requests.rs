//! Every request in every state: nothing there, current records, staged ones, both.

use crate::{
    errno::written,
    report::Recorder,
    target::{CURRENT, STAGED, Target, Trouble, told_deleted},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    deletion(target, note)?;
    nothing(target, note)?;
    current(target, note)?;
    staged(target, note)?;
    both(target, note)
}

/// What all the others rest on.
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

fn nothing(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    for (name, request) in
        [(STAGED, "A\n"), (STAGED, "D\n"), (CURRENT, "1\n"), (CURRENT, "18446744073709551615\n")]
    {
        note.quiet(format!("nothing there: {request:?}"), "ENOENT", || {
            target.empty()?;
            Ok(written(&target.write(name, request.as_bytes())))
        })?;
    }
    for name in [CURRENT, STAGED, "ascii_runtime_measurements_sha1_staged"] {
        note.quiet(format!("nothing there: {name} reads"), "0 bytes", || {
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

    note.quiet("current records: N = one more than there are", "ENOENT del=0", || n(target, 1))?;
    target.at_least(5)?;
    let before = target.list(CURRENT)?;
    let got = written(&target.write(CURRENT, b"3\n"));
    let got = format!("{got} {}", told_deleted(&before, &target.list(CURRENT)?));
    note.expect("current records: N = 3 leaves the rest", "ok:2 del=3", got);

    note.quiet("current records: N = all", "ok del=all", || n(target, 0))?;

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

fn staged(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let only_staged = || {
        target.empty()?;
        target.add(5)?;
        target.must(STAGED, "A\n")?;
        target.list(STAGED)
    };
    for (name, request, errno) in [(STAGED, "A\n", "EEXIST"), (CURRENT, "1\n", "ENOENT")] {
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
    for (name, request, expected) in [
        (STAGED, "A\n", "EEXIST del=0, staged unmoved"),
        (CURRENT, "99999999\n", "ENOENT del=0, staged unmoved"),
        (CURRENT, "2\n", "ok:2 del=2, staged unmoved"),
    ] {
        let before = target.list(CURRENT)?;
        let got = written(&target.write(name, request.as_bytes()));
        let got = format!(
            "{got} {}, {}",
            told_deleted(&before, &target.list(CURRENT)?),
            unmoved(target)?
        );
        note.expect(format!("staged and current records: {request:?}"), expected, got);
    }
    let name = "staged and current records: N = one more than there are";
    note.quiet(name, "ENOENT del=0", || n(target, 1))?;
    target.add(3)?;
    note.expect("new records go to the current part", "staged unmoved", unmoved(target)?);
    let before = target.list(CURRENT)?;
    let got = written(&target.write(STAGED, b"D\n"));
    let got = format!(
        "{got} {}, {} staged",
        told_deleted(&before, &target.list(CURRENT)?),
        target.list(STAGED)?.len()
    );
    note.expect("staged and current records: \"D\\n\"", "ok:2 del=0, 0 staged", got);
    Ok(())
}

/// Asks for N = all current records, at least 3, and `more`.
fn n(target: &Target<'_>, more: usize) -> Result<String, Trouble> {
    target.at_least(3)?;
    let before = target.list(CURRENT)?;
    let request = format!("{}\n", before.len() + more);
    let answer = target.write(CURRENT, request.as_bytes());
    let after = target.list(CURRENT)?;
    let del = told_deleted(&before, &after);
    Ok(match answer {
        Ok(len) if len == request.len() && del == format!("del={}", before.len()) => {
            "ok del=all".into()
        }
        answer => format!("{} {del}", written(&answer)),
    })
}
