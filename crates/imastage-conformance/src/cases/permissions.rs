//! Permission checks, which precede the check whether the list is open.

use std::{fs::File, io::Write, os::unix::fs::chown, thread};

use ima_securityfs::Dialect;
use rustix::{
    fs::OFlags,
    process::{Gid, Uid},
    thread::{
        CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use super::open::hold;
use crate::{
    errno::{Answer, Errno, told, wrote},
    report::Recorder,
    target::{COUNT, CURRENT, Target, Trouble},
};

/// A user and group without files.
const NOBODY: u32 = 65534;

const READ: (OFlags, &str) = (OFlags::RDONLY, "O_RDONLY");
const WRITE: (OFlags, &str) = (OFlags::WRONLY, "O_WRONLY");
const BOTH: (OFlags, &str) = (OFlags::RDWR, "O_RDWR");

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if !rustix::process::geteuid().is_root() {
        note.skip("other users and missing capabilities", "needs root");
        return Ok(());
    }
    // If the directory is not searchable for others, the file modes cannot be tested.
    let file = target.path(CURRENT);
    let reached =
        as_nobody(NOBODY, CapabilitySet::empty(), || Ok(rustix::fs::stat(&file).map(drop)?))?;
    if reached.is_ok() {
        others(target, note)?;
        with_the_capability(target, note)?;
    } else {
        note.skip("other users", "the directory is not searchable for other users");
    }
    without_the_capability(target, note)?;
    without_override(target, note)?;
    open_already(target, note)
}

/// Users without capabilities, in and outside the files' group.
fn others(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    let trims = target.dialect() == Dialect::Trim;
    // Reading T needs CAP_SYS_ADMIN.
    let reads = if trims { "EPERM" } else { "ok" };
    let original = if target.dialect() == Dialect::Linux72 { "EPERM" } else { "EACCES" };
    for (group, who, name, (flags, access), expected) in [
        (NOBODY, "another user", CURRENT, READ, "EACCES"),
        (NOBODY, "another user", writable, READ, "EACCES"),
        (NOBODY, "another user", CURRENT, WRITE, "EACCES"),
        (NOBODY, "another user", writable, BOTH, "EACCES"),
        (NOBODY, "another user", COUNT, READ, "EACCES"),
        (0, "another user in group root", CURRENT, READ, "ok"),
        (0, "another user in group root", writable, READ, reads),
        (0, "another user in group root", COUNT, READ, "ok"),
        (0, "another user in group root", CURRENT, WRITE, original),
        (0, "another user in group root", writable, WRITE, "EPERM"),
        (0, "another user in group root", writable, BOTH, "EPERM"),
    ] {
        let open = || target.open(name, flags).map(drop);
        let got = as_nobody(group, CapabilitySet::empty(), open)?;
        note.expect(format!("{who}: {name} {access}"), expected, told(&got));
    }
    Ok(())
}

/// Users other than root with CAP_SYS_ADMIN only.
fn with_the_capability(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    let capable = CapabilitySet::SYS_ADMIN;
    let open = |flags| move || target.open(writable, flags).map(drop);
    let got = as_nobody(0, capable, open(OFlags::RDWR))?;
    let who = "another user in group root with CAP_SYS_ADMIN";
    note.expect(format!("{who}: {writable} O_RDWR"), "ok", told(&got));
    let got = as_nobody(NOBODY, capable, open(OFlags::RDWR))?;
    let who = "another user with CAP_SYS_ADMIN";
    note.expect(format!("{who}: {writable} O_RDWR"), "EACCES", told(&got));

    let given = |group| chown(target.path(writable), None, Some(group)).map_err(Errno::from);
    note.expect(format!("chgrp of {writable}"), "ok", told(&given(NOBODY)));
    let who = "a member of the file's group";
    let reads = if target.dialect() == Dialect::Trim { "EPERM" } else { "ok" };
    for (capabilities, (flags, access), expected) in [
        (CapabilitySet::empty(), READ, reads),
        (CapabilitySet::empty(), BOTH, "EPERM"),
        (capable, READ, "ok"),
        (capable, BOTH, "ok"),
    ] {
        let got = as_nobody(NOBODY, capabilities, open(flags))?;
        let with = if capabilities.is_empty() { "" } else { " with CAP_SYS_ADMIN" };
        note.expect(format!("{who}{with}: {writable} {access}"), expected, told(&got));
    }
    note.expect(format!("chgrp of {writable} back to root"), "ok", told(&given(0)));
    Ok(())
}

fn without_the_capability(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let writable = target.writable();
    let trims = target.dialect() == Dialect::Trim;
    let reads = if trims { "EPERM" } else { "ok" };
    let why = "root without CAP_SYS_ADMIN";
    let mut all = vec![
        (CURRENT, READ, "ok"),
        (writable, READ, reads),
        (writable, WRITE, "EPERM"),
        (writable, BOTH, "EPERM"),
    ];
    if target.overrides_modes() {
        all.push((CURRENT, WRITE, "EPERM"));
    }
    for (name, (flags, access), expected) in all {
        let got = without(CapabilitySet::SYS_ADMIN, || target.open(name, flags).map(drop))?;
        note.expect(format!("{why}: {name} {access}"), expected, told(&got));
    }
    let held = hold(target, writable, OFlags::RDWR)?;
    for (name, (flags, access), expected) in [
        (writable, BOTH, "EPERM"),
        (writable, WRITE, "EPERM"),
        (writable, READ, if trims { "EPERM" } else { "EBUSY" }),
        (CURRENT, READ, "EBUSY"),
    ] {
        let got = without(CapabilitySet::SYS_ADMIN, || target.open(name, flags).map(drop))?;
        let case = format!("{why} while another writes: {name} {access}");
        note.expect(case, expected, told(&got));
    }
    drop(held);
    Ok(())
}

/// Without CAP_DAC_OVERRIDE, file modes apply to root.
fn without_override(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if !target.overrides_modes() {
        return Ok(());
    }
    let why = "root without CAP_DAC_OVERRIDE";
    let original = if target.dialect() == Dialect::Linux72 { "ok" } else { "EACCES" };
    for (name, (flags, access), expected) in [
        (CURRENT, READ, "ok"),
        (CURRENT, WRITE, original),
        (CURRENT, BOTH, original),
        (target.writable(), BOTH, "ok"),
    ] {
        let got = without(CapabilitySet::DAC_OVERRIDE, || target.open(name, flags).map(drop))?;
        note.expect(format!("{why}: {name} {access}"), expected, told(&got));
    }
    Ok(())
}

/// The capability is checked at open(2) only.
fn open_already(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.at_least(3)?;
    let trims = target.dialect() == Dialect::Trim;
    if trims && !target.deletes_by_number() {
        return Ok(());
    }
    let first = if trims { target.number_request(1)? } else { "A\n".into() };
    let second = if trims { target.number_request(0)? } else { "D\n".into() };
    let held = hold(target, target.writable(), OFlags::RDWR)?;
    let ask = |request: &str| Ok((&held).write(request.as_bytes())?);
    let why = "root without CAP_SYS_ADMIN writes to an open file";
    let got = without(CapabilitySet::SYS_ADMIN, || ask(&first))?;
    note.expect(format!("{why}: the first request"), "ok", wrote(&got, first.len()));
    if !trims {
        let got = without(CapabilitySet::SYS_ADMIN, || ask(&second))?;
        note.expect(format!("{why}: the second"), "ok", wrote(&got, second.len()));
    }
    let why = "another user writes to an open file";
    let got = as_nobody(NOBODY, CapabilitySet::empty(), || ask("x\n"))?;
    note.expect(format!("{why}: an invalid request"), "EINVAL", told(&got));
    if !trims {
        target.add(1)?;
        let got = as_nobody(NOBODY, CapabilitySet::empty(), || ask("A\n"))?;
        note.expect(format!("{why}: a request"), "ok", told(&got));
    }
    // close(2) needs no capability.
    without(CapabilitySet::SYS_ADMIN, move || {
        drop::<File>(held);
        Ok(())
    })
    .and_then(|answer| answer.map_err(|errno| Trouble(format!("close: {errno}"))))?;
    let got = target.open(target.writable(), OFlags::RDWR);
    note.expect("root without CAP_SYS_ADMIN closed a file: O_RDWR", "ok", told(&got));
    Ok(())
}

/// Runs `act` in a new thread without the capabilities `less`.
fn without<T: Send>(
    less: CapabilitySet,
    act: impl FnOnce() -> Answer<T> + Send,
) -> Result<Answer<T>, Trouble> {
    in_a_thread(|| {
        let mut sets = capabilities(None)?;
        sets.effective.remove(less);
        set_capabilities(None, sets)?;
        Ok(act())
    })
}

/// Runs `act` in a new thread as another user with the capabilities `capable`.
fn as_nobody<T: Send>(
    group: u32,
    capable: CapabilitySet,
    act: impl FnOnce() -> Answer<T> + Send,
) -> Result<Answer<T>, Trouble> {
    in_a_thread(|| {
        let mut sets = capabilities(None)?;
        let group = Gid::from_raw(group);
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        // One of the UIDs must remain 0: otherwise the kernel drops all capabilities.
        set_thread_res_uid(Uid::ROOT, Uid::from_raw(NOBODY), Uid::ROOT)?;
        sets.effective = capable;
        set_capabilities(None, sets)?;
        Ok(act())
    })
}

fn in_a_thread<T: Send>(
    act: impl FnOnce() -> rustix::io::Result<Answer<T>> + Send,
) -> Result<Answer<T>, Trouble> {
    let done = thread::scope(|scope| scope.spawn(act).join());
    let done = done.map_err(|_| Trouble("a thread panicked".into()))?;
    done.map_err(|errno| Trouble(format!("dropping privileges: {}", Errno::from(errno))))
}
