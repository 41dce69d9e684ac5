//! Records added while others are staged and deleted: none is lost or duplicated, order is kept.

use std::{
    fs::File,
    io::{Seek, Write},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use ima_securityfs::Dialect;
use rustix::fs::OFlags;

use crate::{
    errno::{Errno, told},
    helper::HELPERS,
    report::Recorder,
    target::{CURRENT, List, STAGED, Target, Trouble, parse, read_anew},
};

/// As many as there are helper processes to execute files.
const THREADS: usize = HELPERS;
/// Records that each thread adds.
const EACH: usize = 100;
/// Records added by one call.
const AT_ONCE: usize = 5;

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if target.dialect().stages() {
        during(target, note, "A, read, D", stage_and_delete)?;
    }
    if target.deletes_by_number() {
        let title = if target.dialect() == Dialect::Trim { "read, T:N" } else { "read, N" };
        during(target, note, title, delete_what_was_read)?;
    }
    Ok(())
}

/// Collects the records that rounds of `take` return while threads add records.
fn during(
    target: &Target<'_>,
    note: &mut Recorder,
    title: &str,
    take: fn(&Target<'_>, &mut List) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    target.empty()?;
    let (mut taken, mut rounds) = (List::new(), 0);
    let running = AtomicUsize::new(THREADS);
    let added = thread::scope(|scope| {
        let adding: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let some = (0..EACH / AT_ONCE).map(|_| target.add(AT_ONCE));
                    let all = some.collect::<Result<Vec<_>, _>>();
                    running.fetch_sub(1, Ordering::Release);
                    all.map(|all| all.concat())
                })
            })
            .collect();
        let mut removing = Ok(());
        while running.load(Ordering::Acquire) > 0 && removing.is_ok() {
            removing = take(target, &mut taken);
            rounds += 1;
        }
        let added: Result<Vec<_>, _> = adding
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(Trouble("an adding thread panicked".into()))))
            .collect();
        removing.and(added)
    })?;
    take(target, &mut taken)?;
    for part in target.parts().iter().rev() {
        taken.extend(target.list(part)?);
    }

    let all = format!("{:?}", (0..EACH).collect::<Vec<_>>());
    let wrong = added.iter().map(|paths| Target::find(paths, &taken)).find_map(|found| {
        let found_all = format!("{found:?}");
        (found_all != all).then_some(found.len())
    });
    note.holds(
        format!("{title}, while {THREADS} threads add: every record once, in order per thread"),
        wrong.is_none(),
        format!("{EACH} records of each thread"),
        format!("{} records of one thread in {rounds} rounds", wrong.unwrap_or_default()),
    );
    Ok(())
}

fn stage_and_delete(target: &Target<'_>, taken: &mut List) -> Result<(), Trouble> {
    let mut file = open(target, STAGED, OFlags::RDWR)?;
    match file.write(b"A\n").map_err(Errno::from) {
        Ok(_) => {}
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Trouble(format!("\"A\\n\": {errno}"))),
    }
    taken.extend(records(&mut file)?);
    // Dialect v4 accepts requests at offset 0 only; the others ignore the offset.
    file.rewind().map_err(|error| Trouble(format!("lseek to 0: {error}")))?;
    finish(&mut file, "D\n")
}

/// In the dialects v4 and trim the list is closed between the read and the request: only this thread
/// deletes records meanwhile.
fn delete_what_was_read(target: &Target<'_>, taken: &mut List) -> Result<(), Trouble> {
    let linux = target.dialect() == Dialect::Linux72;
    let flags = if linux { OFlags::RDWR } else { OFlags::RDONLY };
    let mut file = open(target, CURRENT, flags)?;
    let some = records(&mut file)?;
    if some.is_empty() {
        return Ok(());
    }
    let n = some.len();
    taken.extend(some);
    if !linux {
        drop(file);
        file = open(target, target.numbered(), OFlags::WRONLY)?;
    }
    finish(&mut file, &target.number_request(n)?)
}

fn open(target: &Target<'_>, name: &str, flags: OFlags) -> Result<File, Trouble> {
    /// Another program may have a file open. At 1 ms each: one minute.
    const ATTEMPTS: usize = 60_000;
    let mut answer = target.open(name, flags);
    for _ in 1..ATTEMPTS {
        if answer.as_ref().err() != Some(&Errno::EBUSY) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
        answer = target.open(name, flags);
    }
    answer.map_err(|errno| Trouble(format!("opening {name}: {errno}")))
}

fn records(file: &mut File) -> Result<List, Trouble> {
    parse(&read_anew(file)?).map_err(|why| Trouble(format!("records read: {why}")))
}

fn finish(file: &mut File, request: &str) -> Result<(), Trouble> {
    match file.write(request.as_bytes()).map_err(Errno::from) {
        Ok(len) if len == request.len() => Ok(()),
        answer => Err(Trouble(format!("{request:?}: {}", told(&answer)))),
    }
}
