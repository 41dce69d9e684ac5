//! Defects of Linux 7.2 if a writer has two descriptors, forks, or exits before its file is closed.
//! The cases expect correct behaviour: a failed case shows that the defect exists. The list can then
//! stay locked against writers until the next boot.

use std::{
    fs,
    fs::File,
    path::Path,
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use rustix::fs::OFlags;

use super::open::hold;
use crate::{
    errno::{Errno, told},
    options::Step,
    report::Recorder,
    target::{CURRENT, Opener, STAGED, Target, Trouble},
};

/// Threads that exist at the same time, so that one gets the address of the writer's task_struct.
const THREADS: usize = 200;

/// Polls for the exit of a thread or process: one minute, for a busy machine.
const CLOSING: usize = 12_000;
/// The interval between two polls.
const LOOK: Duration = Duration::from_millis(5);

/// A child inherits a descriptor, and the opener exits: correct in Linux 7.2, too.
pub(crate) fn inherited(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let script = "exec 3<>\"$1\" 5<&0; cat <&5 & echo \"$! $$\"";
    let child = Child::start(target, script)?;
    let got = told(&target.try_open(CURRENT, OFlags::RDONLY, Opener::SameThread));
    note.expect("a file of a shell, open in its child: O_RDONLY", "EBUSY", got);
    child.finish()?;
    for (flags, access) in [(OFlags::RDONLY, "O_RDONLY"), (OFlags::RDWR, "O_RDWR")] {
        let got = told(&target.try_open(STAGED, flags, Opener::SameThread));
        note.expect(format!("the child has exited: {access}"), "ok", got);
    }
    Ok(())
}

pub(crate) fn one_elsewhere(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let first = hold(target, STAGED, OFlags::RDWR)?;
    let second = hold(target, CURRENT, OFlags::WRONLY)?;
    closed_elsewhere(second)?;
    for (flags, access) in [(OFlags::RDONLY, "O_RDONLY"), (OFlags::WRONLY, "O_WRONLY")] {
        let got = target.try_open(CURRENT, flags, Opener::OtherProcess);
        let case = format!("one of two files closed by another thread: {access}");
        note.expect(case, "EBUSY", told(&got));
    }
    drop(first);
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::OtherProcess);
    note.expect("the other then closed by the writer: O_RDWR", "ok", told(&got));
    target.step(Step::Restart)
}

pub(crate) fn both_elsewhere(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let first = hold(target, STAGED, OFlags::RDWR)?;
    let second = hold(target, CURRENT, OFlags::WRONLY)?;
    closed_elsewhere(first)?;
    closed_elsewhere(second)?;
    for (flags, access) in
        [(OFlags::RDONLY, "O_RDONLY"), (OFlags::WRONLY, "O_WRONLY"), (OFlags::RDWR, "O_RDWR")]
    {
        let got = target.try_open(STAGED, flags, Opener::OtherProcess);
        let case = format!("two files closed by another thread: {access}");
        note.expect(case, "ok", told(&got));
    }
    target.step(Step::Restart)
}

/// A child of the writer closes the files last, such as a background program of a shell.
pub(crate) fn both_by_a_child(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let script = "exec 3<>\"$1\" 4>\"$2\" 5<&0; cat <&5 & echo \"$! $$\"";
    let child = Child::start(target, script)?;
    let got = told(&target.try_open(CURRENT, OFlags::RDONLY, Opener::SameThread));
    note.expect("two files of a shell, open in its child: O_RDONLY", "EBUSY", got);
    child.finish()?;
    let got = told(&target.try_open(STAGED, OFlags::RDWR, Opener::SameThread));
    note.expect("two files of a shell, closed last by its child: O_RDWR", "ok", got);
    target.step(Step::Restart)
}

/// The child of the writer has a copy of the first descriptor when the writer opens the second.
pub(crate) fn reopened_after_fork(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let script = "exec 5<&0; exec 3<>\"$1\"; cat <&5 & exec 3>&-; exec 3<>\"$1\"; \
                  kill $!; wait $!; exec 3>&-; echo closed";
    let helpers = target.helpers();
    helpers.start_script(script, &[target.path(STAGED)]).map_err(child_trouble)?;
    helpers.finish_script().map_err(child_trouble)?;
    let got = told(&target.try_open(STAGED, OFlags::RDWR, Opener::SameThread));
    let case = "a file closed and reopened by a shell, its child exited in between: O_RDWR";
    note.expect(case, "ok", got);
    target.step(Step::Restart)
}

/// The kernel identifies the writer by the address of its thread.
pub(crate) fn writer_gone(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // The receiver is gone only if this test has failed.
            let _ = send.send((target.open(STAGED, OFlags::RDWR), rustix::thread::gettid()));
        });
    });
    let Ok((held, writer)) = receive.recv() else {
        return Err(Trouble("the writing thread panicked".into()));
    };
    // A joined thread may still exist in the kernel for a moment.
    let writer = format!("/proc/self/task/{}", writer.as_raw_nonzero());
    for _ in 0..CLOSING {
        if !Path::new(&writer).exists() {
            break;
        }
        thread::sleep(LOOK);
    }
    let held = held.map_err(|errno| Trouble(format!("opening {STAGED}: {errno}")))?;
    let all = Barrier::new(THREADS);
    let attempt = || {
        let answer = target.try_open(CURRENT, OFlags::WRONLY, Opener::SameThread);
        all.wait();
        answer
    };
    let granted = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(attempt)).collect();
        let answers = threads.into_iter().filter_map(|thread| thread.join().ok());
        answers.filter(|answer| *answer != Err(Errno::EBUSY)).count()
    });
    note.holds(
        "the writing thread has exited, its file is open: O_WRONLY by another thread",
        granted == 0,
        "EBUSY",
        format!("ok for {granted} of {THREADS} threads"),
    );
    drop(held);
    target.step(Step::Restart)
}

fn closed_elsewhere(file: File) -> Result<(), Trouble> {
    thread::scope(|scope| scope.spawn(move || drop(file)).join())
        .map_err(|_| Trouble("the closing thread panicked".into()))
}

/// The child of a shell that has exited.
struct Child<'a, 'b> {
    target: &'a Target<'b>,
    pid: String,
}

impl<'a, 'b> Child<'a, 'b> {
    /// Runs a script that opens STAGED (`$1`) and CURRENT (`$2`), starts a child that exits at the
    /// end of its input, prints the PIDs of both, and exits.
    fn start(target: &'a Target<'b>, script: &str) -> Result<Child<'a, 'b>, Trouble> {
        let paths = [STAGED, CURRENT].map(|name| target.path(name));
        let pids = target.helpers().start_script(script, &paths).map_err(child_trouble)?;
        let (pid, shell) = pids.split_once(' ').unwrap_or_default();
        wait_for_exit(shell);
        Ok(Child { target, pid: pid.to_owned() })
    }

    fn finish(self) -> Result<(), Trouble> {
        self.target.helpers().finish_script().map_err(child_trouble)?;
        wait_for_exit(&self.pid);
        Ok(())
    }
}

fn child_trouble(error: std::io::Error) -> Trouble {
    Trouble(format!("running a shell with a child: {error}"))
}

fn wait_for_exit(pid: &str) {
    for _ in 0..CLOSING {
        // A zombie has already closed its files.
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => thread::sleep(LOOK),
            _ => break,
        }
    }
}
