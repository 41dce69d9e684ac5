//! All files share one lock: many readers or one writer.

use std::{fs::File, sync::mpsc, thread};

use ima_securityfs::Dialect;
use rustix::fs::OFlags;

use crate::{
    errno::{Answer, Errno, told},
    report::Recorder,
    target::{COUNT, CURRENT, Opener, STAGED, TRIM_LOG, Target, Trouble},
};

/// Files of both parts and both forms; one is a symbolic link.
const STAGING: &[&str] = &[
    CURRENT,
    STAGED,
    "ascii_runtime_measurements_sha1",
    "ascii_runtime_measurements_sha1_staged",
    "binary_runtime_measurements_staged",
];

/// The same for dialect trim.
const TRIMMING: &[&str] =
    &[CURRENT, TRIM_LOG, "ascii_runtime_measurements_sha1", "binary_runtime_measurements"];

const OPENERS: [(Opener, &str); 3] = [
    (Opener::SameThread, "the same thread"),
    (Opener::OtherThread, "another thread"),
    (Opener::OtherProcess, "another process"),
];

const ACCESS: [(OFlags, &str); 3] =
    [(OFlags::RDONLY, "O_RDONLY"), (OFlags::WRONLY, "O_WRONLY"), (OFlags::RDWR, "O_RDWR")];

/// Flags that do not change the result.
const FLAGS: [(OFlags, &str); 6] = [
    (OFlags::RDONLY.union(OFlags::NONBLOCK), "O_RDONLY|O_NONBLOCK"),
    (OFlags::RDWR.union(OFlags::NONBLOCK), "O_RDWR|O_NONBLOCK"),
    (OFlags::WRONLY.union(OFlags::TRUNC), "O_WRONLY|O_TRUNC"),
    (OFlags::WRONLY.union(OFlags::CREATE), "O_WRONLY|O_CREAT"),
    (OFlags::RDWR.union(OFlags::APPEND), "O_RDWR|O_APPEND"),
    // Opens nothing.
    (OFlags::PATH, "O_PATH"),
];

/// How the list is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Readers,
    /// This thread has a file open for writing.
    Writing,
    /// Another thread or process has.
    Written,
}

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    matrix(target, note, "idle", State::Idle);
    let reading = hold(target, CURRENT, OFlags::RDONLY)?;
    matrix(target, note, "this thread reads", State::Readers);
    let second = hold(target, "ascii_runtime_measurements_sha1", OFlags::RDONLY)?;
    matrix(target, note, "this thread reads two files", State::Readers);
    drop(reading);
    let got = target.try_open(writable, OFlags::RDWR, Opener::SameThread);
    note.expect("one of two readers closed: O_RDWR", "EBUSY", told(&got));
    drop(second);
    let got = target.try_open(writable, OFlags::RDWR, Opener::SameThread);
    note.expect("the last reader closed: O_RDWR", "ok", told(&got));
    if target.dialect() == Dialect::Trim {
        let reading = hold(target, TRIM_LOG, OFlags::RDONLY)?;
        matrix(target, note, "this thread reads T", State::Idle);
        drop(reading);
    }

    for (name, flags, access) in
        [(writable, OFlags::RDWR, "O_RDWR"), (CURRENT, OFlags::WRONLY, "O_WRONLY")]
    {
        let held = format!("this thread has {name} open {access}");
        if !may_write(target, name) {
            note.skip(held, "needs CAP_DAC_OVERRIDE");
            continue;
        }
        let writing = hold(target, name, flags)?;
        matrix(target, note, &held, State::Writing);
        let count = target.open(COUNT, OFlags::RDONLY);
        note.expect(format!("{held}: {COUNT} O_RDONLY"), "ok", told(&count));
        drop(writing);
        let got = target.try_open(CURRENT, OFlags::RDONLY, Opener::OtherThread);
        note.expect(format!("{held}, then closed: O_RDONLY"), "ok", told(&got));
    }
    while_a_thread_has(target, CURRENT, OFlags::RDONLY, || {
        matrix(target, note, "another thread reads", State::Readers);
    })?;
    while_a_thread_has(target, writable, OFlags::RDWR, || {
        matrix(target, note, "another thread writes", State::Written);
    })?;
    let reader = Holder::start(target, CURRENT, "<")?;
    matrix(target, note, "another process reads", State::Readers);
    reader.kill();
    let got = target.try_open(writable, OFlags::RDWR, Opener::SameThread);
    note.expect("a reading process was killed: O_RDWR", "ok", told(&got));
    let writer = Holder::start(target, writable, "<>")?;
    matrix(target, note, "another process writes", State::Written);
    writer.kill();
    let got = target.try_open(writable, OFlags::RDWR, Opener::SameThread);
    note.expect("a writing process was killed: O_RDWR", "ok", told(&got));
    matrix(target, note, "idle again", State::Idle);
    Ok(())
}

fn matrix(target: &Target<'_>, note: &mut Recorder, held: &str, state: State) {
    let files = if target.dialect() == Dialect::Trim { TRIMMING } else { STAGING };
    let flagged = [CURRENT, target.writable()];
    let flags = FLAGS.iter().flat_map(|access| flagged.map(|file| (file, access)));
    let all = files.iter().flat_map(|file| ACCESS.iter().map(move |access| (*file, access)));
    for (file, (flags, access)) in all.chain(flags) {
        for (opener, by) in OPENERS {
            let expected = told(&expected(target, state, file, *flags, opener));
            let got = told(&target.try_open(file, *flags, opener));
            note.expect(format!("{held}: {file} {access} by {by}"), expected, got);
        }
    }
}

fn expected(
    target: &Target<'_>,
    state: State,
    file: &str,
    flags: OFlags,
    opener: Opener,
) -> Answer<()> {
    let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
    // T can be opened for reading at any time.
    if flags.contains(OFlags::PATH) || reads && file == TRIM_LOG {
        return Ok(());
    }
    if !reads && !may_write(target, file) {
        return Err(Errno::EACCES);
    }
    // Only Linux 7.2 permits a writer to open further files for writing.
    let own = opener == Opener::SameThread && target.dialect() == Dialect::Linux72;
    let granted = match state {
        State::Idle => true,
        State::Readers => reads,
        State::Writing => !reads && own,
        State::Written => false,
    };
    if granted { Ok(()) } else { Err(Errno::EBUSY) }
}

/// Whether the file mode permits a write open, or CAP_DAC_OVERRIDE does.
fn may_write(target: &Target<'_>, file: &str) -> bool {
    let numbers = file.ends_with("_staged") || file == TRIM_LOG;
    numbers || target.dialect() == Dialect::Linux72 || target.overrides_modes()
}

pub(crate) fn hold(target: &Target<'_>, name: &str, flags: OFlags) -> Result<File, Trouble> {
    target.open(name, flags).map_err(|errno| Trouble(format!("opening {name}: {errno}")))
}

/// Runs `act` while another thread has a file open.
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
            // The receiver is gone only if this test has failed.
            let _ = opened.send(file.as_ref().map(drop).map_err(|trouble| trouble.0.clone()));
            let _ = when_finished.recv();
            drop(file);
        });
        let held = when_opened.recv().map_err(|_| Trouble("the opening thread panicked".into()));
        let held = held.and_then(|held| held.map_err(Trouble));
        if held.is_ok() {
            act();
        }
        drop(finish);
        held
    })
}

/// Another process that has a file open.
pub(crate) struct Holder<'a, 'b>(&'a Target<'b>);

impl<'a, 'b> Holder<'a, 'b> {
    pub(crate) fn start(
        target: &'a Target<'b>,
        name: &str,
        operator: &str,
    ) -> Result<Holder<'a, 'b>, Trouble> {
        Holder::start_with(target, name, &format!("exec 3{operator}\"$1\""))
    }

    /// Starts a shell script that opens the file (`$1`), possibly several times.
    pub(crate) fn start_with(
        target: &'a Target<'b>,
        name: &str,
        script: &str,
    ) -> Result<Holder<'a, 'b>, Trouble> {
        let script = format!("{script} && echo open && read nothing");
        let started = target.helpers().start_script(&script, &[target.path(name)]);
        started
            .map(|_| Holder(target))
            .map_err(|error| Trouble(format!("starting a process that opens {name}: {error}")))
    }

    /// Sends SIGKILL: the kernel closes the files.
    pub(crate) fn kill(self) {}
}

impl Drop for Holder<'_, '_> {
    fn drop(&mut self) {
        // If the helper process has exited, so has the holder.
        let _ = self.0.helpers().kill_script();
    }
}
