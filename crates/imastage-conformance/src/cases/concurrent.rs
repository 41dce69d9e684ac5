//! Records that are added while others are staged and deleted: none lost, none twice, in order.

use std::{
    fs::File,
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::fs::OFlags;

use crate::{
    errno::{Errno, told},
    report::Recorder,
    target::{CURRENT, List, STAGED, Target, Trouble, parse, read_anew},
};

const THREADS: usize = 4;
/// Records that each thread adds, some at a time.
const EACH: usize = 100;
const AT_ONCE: usize = 5;

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    during(target, note, "A, read, D", stage_and_delete)?;
    during(target, note, "read, N", delete_what_was_read)
}

/// Collects what rounds of `take` give while records are added.
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
            .map(|thread| thread.join().unwrap_or(Err(Trouble("a thread ended".into()))))
            .collect();
        removing.and(added)
    })?;
    take(target, &mut taken)?;
    taken.extend(target.list(STAGED)?);
    taken.extend(target.list(CURRENT)?);

    let all = format!("{:?}", (0..EACH).collect::<Vec<_>>());
    let wrong = added.iter().map(|paths| Target::find(paths, &taken)).find_map(|found| {
        let found_all = format!("{found:?}");
        (found_all != all).then_some(found.len())
    });
    note.holds(
        format!("{title}, while {THREADS} threads add: every record once, each thread's in order"),
        wrong.is_none(),
        format!("{EACH} records of each thread"),
        format!("{} records of one in {rounds} rounds", wrong.unwrap_or_default()),
    );
    Ok(())
}

fn stage_and_delete(target: &Target<'_>, taken: &mut List) -> Result<(), Trouble> {
    let mut file = open(target, STAGED)?;
    match file.write(b"A\n").map_err(Errno::from) {
        Ok(_) => {}
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Trouble(format!("\"A\\n\": {errno}"))),
    }
    taken.extend(records(&mut file)?);
    finish(&mut file, "D\n")
}

fn delete_what_was_read(target: &Target<'_>, taken: &mut List) -> Result<(), Trouble> {
    let mut file = open(target, CURRENT)?;
    let some = records(&mut file)?;
    if some.is_empty() {
        return Ok(());
    }
    let request = format!("{}\n", some.len());
    taken.extend(some);
    finish(&mut file, &request)
}

fn open(target: &Target<'_>, name: &str) -> Result<File, Trouble> {
    /// A program that another thread starts has our files open until it is executed.
    const ATTEMPTS: usize = 1000;
    let mut answer = target.open(name, OFlags::RDWR);
    for _ in 1..ATTEMPTS {
        if answer.as_ref().err() != Some(&Errno::EBUSY) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
        answer = target.open(name, OFlags::RDWR);
    }
    answer.map_err(|errno| Trouble(format!("opening {name}: {errno}")))
}

fn records(file: &mut File) -> Result<List, Trouble> {
    parse(&read_anew(file)?).map_err(|why| Trouble(format!("what was read: {why}")))
}

fn finish(file: &mut File, request: &str) -> Result<(), Trouble> {
    match file.write(request.as_bytes()).map_err(Errno::from) {
        Ok(len) if len == request.len() => Ok(()),
        answer => Err(Trouble(format!("{request:?}: {}", told(&answer)))),
    }
}
