//! Many readers or one writer, over all files together.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use rustix::fs::OFlags;

use crate::{
    errno::{Answer, Errno, told},
    report::Recorder,
    target::{COUNT, CURRENT, Opener, STAGED, Target, Trouble},
};

/// Files of both parts and both forms; one is a symbolic link.
const FILES: [&str; 5] = [
    CURRENT,
    STAGED,
    "ascii_runtime_measurements_sha1",
    "ascii_runtime_measurements_sha1_staged",
    "binary_runtime_measurements_staged",
];

const OPENERS: [(Opener, &str); 3] = [
    (Opener::SameThread, "the same thread"),
    (Opener::OtherThread, "another thread"),
    (Opener::OtherProcess, "another process"),
];

const ACCESS: [(OFlags, &str); 3] =
    [(OFlags::RDONLY, "O_RDONLY"), (OFlags::WRONLY, "O_WRONLY"), (OFlags::RDWR, "O_RDWR")];

/// Flags that make no difference.
const FLAGS: [(OFlags, &str); 5] = [
    (OFlags::RDONLY.union(OFlags::NONBLOCK), "O_RDONLY|O_NONBLOCK"),
    (OFlags::RDWR.union(OFlags::NONBLOCK), "O_RDWR|O_NONBLOCK"),
    (OFlags::WRONLY.union(OFlags::TRUNC), "O_WRONLY|O_TRUNC"),
    (OFlags::WRONLY.union(OFlags::CREATE), "O_WRONLY|O_CREAT"),
    (OFlags::RDWR.union(OFlags::APPEND), "O_RDWR|O_APPEND"),
];

/// Who has what open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Readers,
    /// The same thread writes.
    Writing,
    /// Another one does.
    Written,
}

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    matrix(target, note, "idle", State::Idle);
    let reading = hold(target, CURRENT, OFlags::RDONLY)?;
    matrix(target, note, "this thread reads", State::Readers);
    let second = hold(target, FILES[3], OFlags::RDONLY)?;
    matrix(target, note, "this thread reads two files", State::Readers);
    drop(reading);
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect("one of two readers closed: O_RDWR", "EBUSY", told(&got));
    drop(second);
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect("the last reader closed: O_RDWR", "ok", told(&got));

    for (name, flags, held) in [
        (STAGED, OFlags::RDWR, "this thread writes (staged, O_RDWR)"),
        (CURRENT, OFlags::WRONLY, "this thread writes (current, O_WRONLY)"),
    ] {
        let writing = hold(target, name, flags)?;
        matrix(target, note, held, State::Writing);
        let count = target.open(COUNT, OFlags::RDONLY);
        note.expect(format!("{held}: {COUNT} O_RDONLY"), "ok", told(&count));
        drop(writing);
        let got = target.try_open(CURRENT, OFlags::RDONLY, Opener::OtherThread);
        note.expect(format!("{held}, then closed: O_RDONLY"), "ok", told(&got));
    }
    while_a_thread_has(target, CURRENT, OFlags::RDONLY, || {
        matrix(target, note, "another thread reads", State::Readers);
    })?;
    while_a_thread_has(target, STAGED, OFlags::RDWR, || {
        matrix(target, note, "another thread writes", State::Written);
    })?;
    let mut reader = Holder::start(target, CURRENT, "<")?;
    matrix(target, note, "another process reads", State::Readers);
    reader.kill();
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect("a reading process was killed: O_RDWR", "ok", told(&got));
    let mut writer = Holder::start(target, STAGED, "<>")?;
    matrix(target, note, "another process writes", State::Written);
    writer.kill();
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect("a writing process was killed: O_RDWR", "ok", told(&got));

    several(target, note)
}

/// One descriptor of several closed.
fn several(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let reads = |opener| told(&target.try_open(CURRENT, OFlags::RDONLY, opener));
    let first = hold(target, STAGED, OFlags::RDWR)?;
    let second = target.open(CURRENT, OFlags::WRONLY);
    note.expect("a writer opens a second file", "ok", told(&second));
    drop(first);
    note.expect(
        "a writer closed one of two files: O_RDONLY by another process",
        "EBUSY",
        reads(Opener::OtherProcess),
    );
    let third = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect("a writer closed one of two files: O_RDWR by itself", "ok", told(&third));
    drop(second);
    note.expect("a writer closed both files: O_RDONLY", "ok", reads(Opener::OtherThread));

    let first = hold(target, STAGED, OFlags::RDWR)?;
    let copy = first.try_clone().map_err(|error| Trouble(format!("dup: {error}")))?;
    drop(first);
    note.expect(
        "a writer's file was duplicated, one closed: O_RDONLY",
        "EBUSY",
        reads(Opener::OtherThread),
    );
    drop(copy);
    note.expect(
        "a writer's file was duplicated, both closed: O_RDONLY",
        "ok",
        reads(Opener::OtherThread),
    );
    Ok(())
}

fn matrix(target: &Target<'_>, note: &mut Recorder, held: &str, state: State) {
    let flags = FLAGS.iter().flat_map(|access| [(CURRENT, access), (STAGED, access)]);
    let all = FILES.iter().flat_map(|file| ACCESS.iter().map(move |access| (*file, access)));
    for (file, (flags, access)) in all.chain(flags) {
        for (opener, by) in OPENERS {
            // A shell chooses its flags itself.
            if opener == Opener::OtherProcess && !ACCESS.iter().any(|(of, _)| of == flags) {
                continue;
            }
            let expected = told(&expected(state, *flags, opener));
            let got = told(&target.try_open(file, *flags, opener));
            note.expect(format!("{held}: {file} {access} by {by}"), expected, got);
        }
    }
}

fn expected(state: State, flags: OFlags, opener: Opener) -> Answer<()> {
    let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
    let granted = match state {
        State::Idle => true,
        State::Readers => reads,
        State::Writing => !reads && opener == Opener::SameThread,
        State::Written => false,
    };
    if granted { Ok(()) } else { Err(Errno::EBUSY) }
}

fn hold(target: &Target<'_>, name: &str, flags: OFlags) -> Result<File, Trouble> {
    target
        .open(name, flags)
        .map_err(|errno| Trouble(format!("{name} cannot be held open: {errno}")))
}

/// Does something while another thread has a file open.
fn while_a_thread_has(
    target: &Target<'_>,
    name: &str,
    flags: OFlags,
    act: impl FnOnce(),
) -> Result<(), Trouble> {
    thread::scope(|scope| {
        let (opened, when_opened) = mpsc::channel();
        let (finish, when_finished) = mpsc::channel::<()>();
        scope.spawn(move || {
            let file = hold(target, name, flags);
            // If nobody listens there is nothing to do either.
            let _ = opened.send(file.as_ref().map(drop).map_err(|trouble| trouble.0.clone()));
            let _ = when_finished.recv();
            drop(file);
        });
        let held = when_opened.recv().map_err(|_| Trouble("a thread ended".into()));
        let held = held.and_then(|held| held.map_err(Trouble));
        if held.is_ok() {
            act();
        }
        drop(finish);
        held
    })
}

/// Another process that has a file open.
struct Holder(Child);

impl Holder {
    fn start(target: &Target<'_>, name: &str, operator: &str) -> Result<Holder, Trouble> {
        let trouble = |why: &str| Trouble(format!("a process that has {name} open: {why}"));
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("exec 3{operator}\"$1\" && echo open && read nothing"))
            .arg("sh")
            .arg(target.path(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| trouble(&error.to_string()))?;
        let said = child.stdout.take().and_then(|out| BufReader::new(out).lines().next());
        let holder = Holder(child);
        match said {
            Some(Ok(_)) => Ok(holder),
            _ => Err(trouble("it could not open it")),
        }
    }

    /// SIGKILL, so that the system closes its files.
    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}
