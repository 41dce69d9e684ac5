//! Defects of Linux 7.2 if a writer has two descriptors, or exits before its file is closed. The
//! cases expect correct behaviour: a failed case shows that the defect exists. The list can then
//! stay locked against writers until the next boot.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
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

/// Threads to start until one gets the address of the writer's task_struct: 39 were observed.
const THREADS: usize = 200;

/// Polls for the exit of a thread or process: one minute, for a busy machine.
const CLOSING: usize = 12_000;
/// The interval between two polls.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let done = one_by_another_thread(target, note)
        .and_then(|()| writer_gone(target, note))
        // Cases that leave the list locked come last.
        .and_then(|()| both_by_another_thread(target, note))
        .and_then(|()| both_by_a_child(target, note));
    done.and(target.step(Step::Restart))
}

fn one_by_another_thread(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
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

fn both_by_another_thread(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
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
fn both_by_a_child(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let name = "two files of a shell, closed last by its child: O_RDWR";
    if target.try_open(STAGED, OFlags::RDWR, Opener::SameThread).is_err() {
        note.skip(name, "the list is locked already");
        return Ok(());
    }
    let trouble = |error: std::io::Error| Trouble(format!("running a shell with a child: {error}"));
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "exec 3<>\"$1\" 4>\"$2\" 5<&0; cat <&5 & echo $!", "sh"])
        .args([target.path(STAGED), target.path(CURRENT)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(trouble)?;
    let input = shell.stdin.take();
    shell.wait().map_err(trouble)?;
    let got = told(&target.try_open(CURRENT, OFlags::RDONLY, Opener::SameThread));
    note.expect("two files of a shell, open in its child: O_RDONLY", "EBUSY", got);
    drop(input);
    // The child exits at the end of its input, which closes its output.
    let mut output = Vec::new();
    if let Some(mut stdout) = shell.stdout.take() {
        stdout.read_to_end(&mut output).map_err(trouble)?;
    }
    let child = String::from_utf8_lossy(&output).trim().to_owned();
    for _ in 0..CLOSING {
        // A zombie has already closed its files.
        match fs::read_to_string(format!("/proc/{child}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => thread::sleep(LOOK),
            _ => break,
        }
    }
    let got = target.try_open(STAGED, OFlags::RDWR, Opener::SameThread);
    note.expect(name, "ok", told(&got));
    target.step(Step::Restart)
}

/// The kernel identifies the writer by the address of its thread.
fn writer_gone(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
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
    let granted = (0..THREADS).find(|_| {
        target.try_open(CURRENT, OFlags::WRONLY, Opener::OtherThread) != Err(Errno::EBUSY)
    });
    note.holds(
        "the writing thread has exited, its file is open: O_WRONLY by another thread",
        granted.is_none(),
        "EBUSY",
        format!("ok after {} threads", granted.unwrap_or_default() + 1),
    );
    drop(held);
    target.step(Step::Restart)
}

fn closed_elsewhere(file: File) -> Result<(), Trouble> {
    thread::scope(|scope| scope.spawn(move || drop(file)).join())
        .map_err(|_| Trouble("the closing thread panicked".into()))
}
