//! Who is refused whatever is open.

use std::{os::unix::process::CommandExt, process::Command, thread};

use rustix::{
    fs::OFlags,
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use crate::{
    errno::{Answer, Errno, told, written},
    report::Recorder,
    target::{COUNT, CURRENT, STAGED, Target, Trouble},
};

/// A user and group who own nothing.
const NOBODY: u32 = 65534;

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if !rustix::process::geteuid().is_root() {
        note.skip("other users and missing capabilities", "needs root");
        return Ok(());
    }
    others(target, note);
    without_the_capability(target, note)
}

fn others(target: &Target<'_>, note: &mut Recorder) {
    let (read, write, both) = (OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR);
    for (group, who, name, flags, access, expected) in [
        (NOBODY, "another user", CURRENT, read, "O_RDONLY", "EACCES"),
        (NOBODY, "another user", STAGED, read, "O_RDONLY", "EACCES"),
        (NOBODY, "another user", CURRENT, write, "O_WRONLY", "EACCES"),
        (NOBODY, "another user", STAGED, both, "O_RDWR", "EACCES"),
        (NOBODY, "another user", COUNT, read, "O_RDONLY", "EACCES"),
        (0, "another user in group root", CURRENT, read, "O_RDONLY", "ok"),
        (0, "another user in group root", STAGED, read, "O_RDONLY", "ok"),
        (0, "another user in group root", COUNT, read, "O_RDONLY", "ok"),
        (0, "another user in group root", CURRENT, write, "O_WRONLY", "EPERM"),
        (0, "another user in group root", STAGED, both, "O_RDWR", "EPERM"),
    ] {
        let case = format!("{who}: {name} {access}");
        // What hides the whole directory says nothing about the file.
        let reached = Command::new("/bin/sh")
            .args(["-c", "cd \"$1\"", "sh"])
            .arg(target.dir())
            .uid(NOBODY)
            .gid(group)
            .output();
        if !reached.is_ok_and(|output| output.status.success()) {
            note.skip(case, "other users do not reach the directory");
            continue;
        }
        let got = target.shell_open(name, flags, |command| command.uid(NOBODY).gid(group));
        note.expect(case, expected, told(&got));
    }
}

fn without_the_capability(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let why = "root without CAP_SYS_ADMIN";
    for (name, flags, access, expected) in [
        (CURRENT, OFlags::RDONLY, "O_RDONLY", "ok"),
        (STAGED, OFlags::RDONLY, "O_RDONLY", "ok"),
        (CURRENT, OFlags::WRONLY, "O_WRONLY", "EPERM"),
        (STAGED, OFlags::RDWR, "O_RDWR", "EPERM"),
    ] {
        let got = powerless(|| target.open(name, flags).map(drop))?;
        note.expect(format!("{why}: {name} {access}"), expected, told(&got));
    }
    let held = target
        .open(STAGED, OFlags::RDWR)
        .map_err(|errno| Trouble(format!("{STAGED} cannot be held open: {errno}")))?;
    for (flags, access, expected) in
        [(OFlags::RDWR, "O_RDWR", "EPERM"), (OFlags::RDONLY, "O_RDONLY", "EBUSY")]
    {
        let got = powerless(|| target.open(STAGED, flags).map(drop))?;
        note.expect(format!("{why} while another writes: {access}"), expected, told(&got));
    }
    target.add(1)?;
    for request in ["A\n", "D\n"] {
        let got = powerless(|| Ok(std::io::Write::write(&mut &held, request.as_bytes())?))?;
        note.expect(format!("{why} writes {request:?} to an open file"), "ok:2", written(&got));
    }
    Ok(())
}

/// Does something in a thread of its own that has not the capability CAP_SYS_ADMIN.
fn powerless<T: Send>(act: impl FnOnce() -> Answer<T> + Send) -> Result<Answer<T>, Trouble> {
    let act = || {
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets)?;
        Ok::<_, rustix::io::Errno>(act())
    };
    let done = thread::scope(|scope| scope.spawn(act).join());
    let done = done.map_err(|_| Trouble("a thread ended".into()))?;
    done.map_err(|errno| Trouble(format!("giving a capability up: {}", Errno::from(errno))))
}
