//! Requests during shutdown: first the kernel stops measuring, then it dumps the records for the
//! next kernel. Records deleted after the dump would reappear there.

use ima_securityfs::Dialect;

use crate::{
    options::Step,
    report::Recorder,
    target::{CURRENT, List, STAGED, TRIM_LOG, Target, Trouble, VIOLATIONS},
};

/// The content of the list when shutdown begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Current,
    Staged,
    Both,
}

/// Requests and the expected answers. `N=` is followed by a number, by `all` (the number of current
/// records) or by `beyond` (one more). `dump` and `measure` are steps without an answer.
type Script = &'static [(&'static str, &'static str)];

/// The same before and after the dump: every request is refused.
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

/// After the dump, only the records that were staged at that time cannot be deleted.
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
        note.skip("requests during shutdown", "shutdown steps are not available here");
        return Ok(());
    }
    let done = every(target, note);
    // The machine must be restarted after a failure, too.
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
        State::Nothing => "empty list, suspended",
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
                // The measurement is refused; only its effect on the list counts.
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
        let same = if after == expected { "" } else { ", unexpected records" };
        note.expect(case, answer, format!("{got}{same}"));
    }
    Ok(())
}

/// Brings the machine to the point where it has stopped measuring, with the list in `state`.
fn suspended(target: &Target<'_>, state: State) -> Result<(), Trouble> {
    /// Other programs may add records until the machine has stopped measuring.
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
    Err(Trouble(format!("list state {state:?} not reached: other programs keep adding records")))
}

/// The records of both parts, the staged ones first.
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

/// The records of both parts after a granted request.
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

/// After a restart, the list and the requests start from scratch.
fn restarted(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    suspended(target, State::Current)?;
    let before = target.list(CURRENT)?;
    target.step(Step::Restart)?;
    let [staged, current] = lists(target)?;
    note.expect("restarted: staged records", 0, staged.len());
    // Both kernels may measure the same file of other programs: count only files of this run.
    let is_old = |record: &&Vec<u8>| target.is_own(record) && before.contains(record);
    let old = current.iter().filter(is_old).count();
    note.expect("restarted: records from before", 0, old);
    note.holds("restarted: files are measured again", target.add(2).is_ok(), "records", "none");
    if target.dialect().stages() {
        let answer = target.write(STAGED, b"A\n");
        note.expect("restarted: \"A\\n\"", "ok:2", crate::errno::written(&answer));
    } else {
        note.expect("restarted: T", 0, target.number(TRIM_LOG)?);
        note.expect("restarted: T:1", "ok", target.delete(1)?);
    }
    Ok(())
}

/// The next kernel's list starts with the staged records, then the current ones. It does not detect
/// duplicates of them.
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
        "kexec: records are restored, the staged ones first",
        after.starts_with(&all),
        format!("{} records", all.len()),
        format!("{} records, or others", after.len()),
    );
    note.holds("kexec: the new kernel adds a record", after.len() > all.len(), "one", "none");
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
