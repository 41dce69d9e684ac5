//! What is refused while the machine goes down, and in which order: first it stops measuring, then
//! it writes the records for the next kernel. What was asked for too late would be lost here and
//! come back there.

use ima_securityfs::Dialect;

use crate::{
    Step,
    report::Recorder,
    target::{CURRENT, List, STAGED, TRIM_LOG, Target, Trouble, VIOLATIONS},
};

/// What is in the list when the machine begins to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Current,
    Staged,
    Both,
}

/// Something that is asked, and the answer. `N=` is followed by a number, or by what it is of the
/// current records. `dump` and `measure` ask nothing.
type Script = &'static [(&'static str, &'static str)];

/// The same before and after the dump, as no request is granted.
const LINUX72: &[(State, Script)] = &[
    (
        State::Nothing,
        &[("A", "ENOENT"), ("D", "ENOENT"), ("N=1", "ENOENT"), ("N=0", "EINVAL"), ("x", "EINVAL")],
    ),
    (
        State::Current,
        &[
            ("measure", ""),
            ("A", "EACCES"),
            ("D", "ENOENT"),
            ("N=1", "ESTALE"),
            ("N=all", "ESTALE"),
            ("N=beyond", "ENOENT"),
            ("N=0", "EINVAL"),
            ("x", "EINVAL"),
        ],
    ),
    (
        State::Staged,
        &[("A", "EEXIST"), ("D", "ESTALE"), ("D", "ESTALE"), ("N=1", "ENOENT"), ("N=0", "EINVAL")],
    ),
    (
        State::Both,
        &[
            ("A", "EEXIST"),
            ("D", "ESTALE"),
            ("N=1", "ESTALE"),
            ("N=beyond", "ENOENT"),
            ("N=0", "EINVAL"),
        ],
    ),
];

/// Only what was staged when the records were written is kept.
const V4: &[(State, Script)] = &[
    (State::Nothing, &[("A", "ENOENT"), ("D", "ENOENT"), ("N=1", "ENOENT"), ("N=0", "EINVAL")]),
    (
        State::Both,
        &[
            ("measure", ""),
            ("A", "EEXIST"),
            ("N=1", "EEXIST"),
            ("N=0", "EINVAL"),
            ("D", "ok"),
            ("A", "ok"),
            ("D", "ok"),
            ("A", "ENOENT"),
            ("N=1", "ENOENT"),
        ],
    ),
    (
        State::Both,
        &[
            ("dump", ""),
            ("A", "EEXIST"),
            ("N=1", "EEXIST"),
            ("N=0", "EINVAL"),
            ("D", "ESTALE"),
            ("D", "ESTALE"),
        ],
    ),
    (
        State::Both,
        &[
            ("D", "ok"),
            ("A", "ok"),
            ("dump", ""),
            ("A", "EEXIST"),
            ("N=1", "EEXIST"),
            ("D", "ESTALE"),
        ],
    ),
    (
        State::Current,
        &[
            ("dump", ""),
            ("D", "ENOENT"),
            ("A", "ok"),
            ("D", "ok"),
            ("A", "ENOENT"),
            ("D", "ENOENT"),
        ],
    ),
    (
        State::Current,
        &[
            ("N=2", "ok"),
            ("dump", ""),
            ("N=1", "ok"),
            ("N=beyond", "ENOENT"),
            ("A", "ok"),
            ("D", "ok"),
        ],
    ),
];

const TRIM: &[(State, Script)] = &[
    (State::Nothing, &[("N=1", "ENOENT"), ("N=0", "ok"), ("x", "EINVAL")]),
    (
        State::Current,
        &[
            ("measure", ""),
            ("N=2", "ESTALE"),
            ("N=all", "ESTALE"),
            ("N=beyond", "ENOENT"),
            ("N=0", "ok"),
            ("T+1:1", "ESTALE"),
            ("T+1:beyond", "ESTALE"),
            ("x", "EINVAL"),
        ],
    ),
];

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if !target.goes_down() {
        note.skip("requests of a machine that goes down", "it cannot be brought to from here");
        return Ok(());
    }
    let done = every(target, note);
    // Whatever happened, it must be up again.
    done.and(target.step(Step::Restart))
}

fn every(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let (scripts, when): (_, &[bool]) = match target.dialect() {
        Dialect::Linux72 => (LINUX72, &[false, true]),
        Dialect::V4 => (V4, &[false]),
        Dialect::Trim => (TRIM, &[false, true]),
    };
    for dumped in when {
        for (state, script) in scripts {
            play(target, note, *state, *dumped, script)?;
        }
    }
    restarted(target, note)?;
    carried(target, note)
}

fn play(
    target: &Target<'_>,
    note: &mut Recorder,
    state: State,
    dumped: bool,
    script: Script,
) -> Result<(), Trouble> {
    suspended(target, state)?;
    let mut told = vec![match state {
        State::Nothing => "nothing there, suspended",
        State::Current => "current records, suspended",
        State::Staged => "staged records, suspended",
        State::Both => "staged and current records, suspended",
    }];
    if dumped {
        target.step(Step::Dump)?;
        told.push("dumped");
    }
    for (request, answer) in script {
        let before = lists(target)?;
        let case = format!("{}: {request}", told.join(", "));
        told.push(request);
        let got = match *request {
            "dump" => {
                target.step(Step::Dump)?;
                continue;
            }
            "measure" => {
                // Nobody needs to be told that it was refused.
                let _ = target.add(1);
                String::new()
            }
            request => ask(target, request, &before)?,
        };
        let numbers = request.starts_with("N=") || *request == "x";
        let refused = numbers && !target.deletes_by_number();
        let answer = if refused { "EINVAL" } else { *answer };
        let after = lists(target)?;
        let expected = if answer == "ok" { granted(before, request) } else { before };
        let same = if after == expected { "" } else { ", but other records than expected" };
        note.expect(case, answer, format!("{got}{same}"));
    }
    Ok(())
}

/// A machine that has just stopped measuring, with so much in its list. Both parts, the staged one
/// first.
fn suspended(target: &Target<'_>, state: State) -> Result<(), Trouble> {
    /// Others may add records until it has stopped.
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        target.step(Step::Restart)?;
        target.empty()?;
        if matches!(state, State::Staged | State::Both) {
            target.add(4)?;
            target.must(STAGED, "A\n")?;
        }
        if matches!(state, State::Current | State::Both) {
            target.add(5)?;
        }
        target.step(Step::Suspend)?;
        let [staged, current] = lists(target)?.map(|list| !list.is_empty());
        let wanted = match state {
            State::Nothing => (false, false),
            State::Current => (false, true),
            State::Staged => (true, false),
            State::Both => (true, true),
        };
        if (staged, current) == wanted {
            return Ok(());
        }
    }
    Err(Trouble(format!("others add records all the time: no list with {state:?}")))
}

fn lists(target: &Target<'_>) -> Result<[List; 2], Trouble> {
    let staged = if target.dialect().stages() { target.list(STAGED)? } else { List::new() };
    Ok([staged, target.list(CURRENT)?])
}

fn ask(target: &Target<'_>, request: &str, [_, current]: &[List; 2]) -> Result<String, Trouble> {
    let number = |of: &str| match of {
        "all" => current.len().to_string(),
        "beyond" => (current.len() + 1).to_string(),
        n => n.to_owned(),
    };
    if let Some(of) = request.strip_prefix("N=") {
        return target.delete(number(of));
    }
    let (name, request) = match request.strip_prefix("T+1:") {
        Some(n) => (TRIM_LOG, format!("{}:{}\n", target.number(TRIM_LOG)? + 1, number(n))),
        None if request == "x" => (target.numbered(), "x\n".into()),
        None => (STAGED, format!("{request}\n")),
    };
    Ok(crate::errno::wrote(&target.write(name, request.as_bytes()), request.len()))
}

/// What is left when a request was granted.
fn granted([staged, current]: [List; 2], request: &str) -> [List; 2] {
    match request {
        "A" => [current, List::new()],
        "D" => [List::new(), current],
        _ => {
            let n = request.strip_prefix("N=").and_then(|n| n.parse().ok()).unwrap_or_default();
            [staged, current.into_iter().skip(n).collect()]
        }
    }
}

/// The next kernel knows nothing of it.
fn restarted(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    suspended(target, State::Current)?;
    let before = target.list(CURRENT)?;
    target.step(Step::Restart)?;
    let [staged, current] = lists(target)?;
    note.expect("restarted: staged records", 0, staged.len());
    // A program that others execute before and after it is measured by both kernels.
    let is_old = |record: &&Vec<u8>| target.is_own(record) && before.contains(record);
    let old = current.iter().filter(is_old).count();
    note.expect("restarted: records of before", 0, old);
    note.holds("restarted: it measures again", target.add(2).is_ok(), "records", "none");
    if target.dialect().stages() {
        let answer = target.write(STAGED, b"A\n");
        note.expect("restarted: \"A\\n\"", "ok:2", crate::errno::written(&answer));
    } else {
        note.expect("restarted: T", 0, target.number(TRIM_LOG)?);
        note.expect("restarted: T:1", "ok", target.delete(1)?);
    }
    Ok(())
}

/// Staged records come first in the next kernel's list, then the current ones. Their digests are
/// not known there.
fn carried(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.step(Step::Restart)?;
    target.empty()?;
    let paths = target.add(3)?;
    if target.dialect().stages() {
        target.must(STAGED, "A\n")?;
        target.add(3)?;
    }
    let [staged, current] = lists(target)?;
    target.step(Step::Kexec)?;
    let [after_staged, after] = lists(target)?;
    note.expect("kexec: staged records", 0, after_staged.len());
    let all = [staged, current].concat();
    note.holds(
        "kexec: the records are carried over, the staged ones first",
        after.starts_with(&all),
        format!("{} records", all.len()),
        format!("{} records, or others", after.len()),
    );
    note.holds("kexec: a record of its own follows", after.len() > all.len(), "one", "none");
    note.expect("kexec: violations", 0, target.number(VIOLATIONS)?);
    if target.dialect() == Dialect::Trim {
        note.expect("kexec: T", 0, target.number(TRIM_LOG)?);
    }
    if let [path, ..] = &*paths {
        target.measure(path)?;
        let found = Target::find(std::slice::from_ref(path), &target.list(CURRENT)?).len();
        note.expect("kexec: a file measured before is recorded again", 2, found);
    }
    Ok(())
}
