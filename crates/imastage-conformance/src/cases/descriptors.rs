//! Descriptors that are closed one by one, duplicated, passed on, or reopened through /proc.

use std::{
    fs,
    io::Write,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use ima_securityfs::Dialect;
use rustix::fs::OFlags;

use super::open::{Holder, hold};
use crate::{
    errno::{Answer, Errno, told},
    report::Recorder,
    target::{CURRENT, Opener, Target, Trouble},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    several(target, note)?;
    copies(target, note)?;
    lent(target, note)?;
    passed(target, note)?;
    anew(target, note)?;
    killed(target, note)
}

/// Only Linux 7.2 permits a writer to open further files.
fn several(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    let first = hold(target, writable, OFlags::RDWR)?;
    let second = target.open(writable, OFlags::WRONLY);
    if target.dialect() != Dialect::Linux72 {
        note.expect("a writer opens a second file", "EBUSY", told(&second));
        drop((first, second));
        note.expect("a writer's one file closed: O_RDONLY", "ok", reads(target));
        return Ok(());
    }
    note.expect("a writer opens a second file", "ok", told(&second));
    drop(first);
    let busy = told(&target.try_open(CURRENT, OFlags::RDONLY, Opener::OtherProcess));
    note.expect("a writer closed one of two files: O_RDONLY by another process", "EBUSY", busy);
    let third = target.try_open(writable, OFlags::RDWR, Opener::SameThread);
    note.expect("a writer closed one of two files: O_RDWR by itself", "ok", told(&third));
    drop(second);
    note.expect("a writer closed both files: O_RDONLY", "ok", reads(target));
    Ok(())
}

fn copies(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let first = hold(target, target.writable(), OFlags::RDWR)?;
    let copy = first.try_clone().map_err(|error| Trouble(format!("dup: {error}")))?;
    drop(first);
    let got = reads(target);
    note.expect("a writer's descriptor was duplicated, one closed: O_RDONLY", "EBUSY", got);
    drop(copy);
    let got = reads(target);
    note.expect("a writer's descriptor was duplicated, both closed: O_RDONLY", "ok", got);

    let file = hold(target, target.writable(), OFlags::RDWR)?;
    thread::scope(|scope| drop(scope.spawn(move || drop(file)).join()));
    let got = reads(target);
    note.expect("a writer's one file was closed by another thread: O_RDONLY", "ok", got);
    let got = told(&target.try_open(target.writable(), OFlags::RDWR, Opener::OtherProcess));
    note.expect("a writer's one file was closed by another thread: O_RDWR", "ok", got);
    Ok(())
}

/// A thread may use another thread's descriptor, but does not become a writer by that.
fn lent(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.at_least(3)?;
    let requests: &[String] = &if target.dialect().stages() {
        vec!["A\n".into(), "D\n".into()]
    } else {
        vec![target.number_request(0)?]
    };
    // Dialect trim with flushed digests refuses all requests.
    let granted = target.dialect().stages() || target.deletes_by_number();
    let file = hold(target, target.writable(), OFlags::RDWR)?;
    let (answers, opens) = thread::scope(|scope| {
        let borrower = scope.spawn(|| {
            let ask = |request: &String| Ok((&file).write(request.as_bytes())?);
            let answers: Vec<Answer<usize>> = requests.iter().map(ask).collect();
            (answers, target.open(target.writable(), OFlags::RDWR).map(drop))
        });
        borrower.join().map_err(|_| Trouble("the borrowing thread panicked".into()))
    })?;
    for (request, answer) in requests.iter().zip(answers) {
        let expected = if granted { "ok" } else { "EINVAL" };
        let case = format!("another thread writes {request:?} through a writer's descriptor");
        note.expect(case, expected, told(&answer));
    }
    note.expect("the same thread opens O_RDWR itself", "EBUSY", told(&opens));
    Ok(())
}

/// A descriptor passed to another process (SCM_RIGHTS) keeps the file open there.
fn passed(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let trouble = |what: &str, error: std::io::Error| Trouble(format!("{what}: {error}"));
    let helpers = target.helpers();
    target.add(1)?;
    let file = hold(target, target.writable(), OFlags::RDWR)?;
    let mut write = &file;
    let mut expected = Vec::new();
    if target.dialect().stages() {
        write.write_all(b"A\n").map_err(|error| trouble("\"A\\n\"", error))?;
    } else {
        expected.extend_from_slice(target.read(target.writable())?.as_slice());
    }
    let pass = || helpers.keep(file.as_fd()).map_err(|error| trouble("SCM_RIGHTS", error));
    let close = || helpers.close_kept().map_err(|error| trouble("close", error));
    pass()?;
    let copy = target.work().join("copy");
    let copied = helpers.copy_kept(&copy).and_then(|()| fs::read(&copy));
    let bytes = copied.map_err(|error| trouble("reading a passed descriptor", error))?;
    let shown = if target.dialect().stages() {
        crate::target::parse(&bytes).is_ok_and(|list| !list.is_empty())
    } else {
        bytes == expected
    };
    let case = "another process reads through a passed descriptor";
    note.holds(case, shown, "the content", "other bytes");
    close()?;
    note.expect("the other process has closed its copy: O_RDONLY", "EBUSY", reads(target));

    pass()?;
    drop(file);
    let case = "a writer's file is open only in another process: O_RDONLY";
    note.expect(case, "EBUSY", reads(target));
    close()?;
    note.expect("the other process has closed the file: O_RDONLY", "ok", reads(target));
    let got = told(&target.try_open(target.writable(), OFlags::RDWR, Opener::SameThread));
    note.expect("the other process has closed the file: O_RDWR", "ok", got);
    Ok(())
}

/// Opening /proc/self/fd/N counts as another open of the file.
fn anew(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let more = if target.dialect() == Dialect::Linux72 { "ok" } else { "EBUSY" };
    let file = hold(target, target.writable(), OFlags::RDWR)?;
    let again = |flags| -> Answer<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, 0.into()).map(drop)?)
    };
    note.expect("a writer opens /proc/self/fd/N O_RDWR", more, told(&again(OFlags::RDWR)));
    let reading = if target.dialect() == Dialect::Trim { "ok" } else { "EBUSY" };
    note.expect("a writer opens /proc/self/fd/N O_RDONLY", reading, told(&again(OFlags::RDONLY)));
    drop(file);

    // execve(2) replaces the program, not the thread.
    let script = "exec 3<>\"$1\"; exec /bin/sh -c 'exec 4>\"$1\"' sh \"$1\"";
    let path = target.path(target.writable());
    let args = ["-c".as_ref(), script.as_ref(), "sh".as_ref(), path.as_os_str()];
    let done = target.helpers().run("/bin/sh".as_ref(), &args);
    let answer =
        done.map_err(|error| Errno::printed(&error.to_string()).unwrap_or_else(|| error.into()));
    note.expect("a writer executes another program, which opens O_WRONLY", more, told(&answer));
    Ok(())
}

/// The kernel closes the files of a killed process.
fn killed(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if target.dialect() != Dialect::Linux72 {
        return Ok(());
    }
    for _ in 0..3 {
        let holder = Holder::start_with(target, CURRENT, "exec 3<>\"$1\" 4>\"$1\" 5>\"$1\"")?;
        holder.kill();
    }
    let got = told(&target.try_open(target.writable(), OFlags::RDWR, Opener::SameThread));
    note.expect(
        "single-threaded processes with 3 files open for writing were killed: O_RDWR",
        "ok",
        got,
    );
    Ok(())
}

fn reads(target: &Target<'_>) -> String {
    told(&target.try_open(CURRENT, OFlags::RDONLY, Opener::OtherThread))
}
