//! Critical data that a kernel measures, given a policy rule: trims of the list, and load and
//! execution of a kernel (kexec). No other request adds a record.

use ima_log::{Bank, Event, Format, KexecSizes, Records};
use ima_securityfs::Dialect;

use crate::{
    options::Step,
    report::Recorder,
    target::{CURRENT, List, STAGED, TRIM_LOG, Target, Trouble, told_deleted},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if target.dialect() == Dialect::Trim {
        trims(target, note)?;
    } else {
        stages(target, note)?;
    }
    if !target.goes_down() {
        note.skip("kexec", "shutdown steps are not available here");
        return Ok(());
    }
    let done = kexec(target, note);
    // The machine must be restarted after a failure, too.
    done.and(target.step(Step::Restart))
}

/// A, D and N are not measured.
fn stages(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let numbered = target.numbered();
    for (name, request) in [(numbered, "1\n"), (STAGED, "A\n"), (STAGED, "D\n")] {
        let case = format!("{request:?} adds no record");
        note.quiet(case, "none", || {
            target.empty()?;
            target.add(3)?;
            if request == "D\n" {
                target.must(STAGED, "A\n")?;
            }
            let before = target.list(CURRENT)?;
            // Another case checks the answer.
            let _ = target.write(name, request.as_bytes());
            let after = target.list(CURRENT)?;
            let added = after.iter().filter(|record| !before.contains(record)).count();
            Ok(if added == 0 { "none".into() } else { added.to_string() })
        })?;
    }
    Ok(())
}

/// Each trim is measured after it is done, with the total before it.
fn trims(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.at_least(8)?;
    let before = target.list(CURRENT)?;
    for (case, n, left) in [("T:4", 4, "del=4"), ("T:2", 2, "del=6")] {
        let trimmed = target.number(TRIM_LOG)?;
        target.must_delete(n)?;
        let after = target.list(CURRENT)?;
        let got = told(&after);
        note.expect(format!("{case} is measured last"), format!("after {trimmed}"), got);
        note.expect(format!("{case}: deleted records"), left, told_deleted(&before, &after));
    }
    for (case, request) in [("T:0", "0"), ("a refused N", "99999999"), ("an invalid N", "x")] {
        let before = events(&target.list(CURRENT)?);
        // Another case checks the answer.
        let _ = target.delete(request)?;
        let after = events(&target.list(CURRENT)?);
        note.expect(format!("{case} is not measured: number of trim records"), before, after);
    }
    note.quiet("T:N with N = all leaves its own record", "1 record", || {
        target.add(3)?;
        let trimmed = target.number(TRIM_LOG)?;
        target.must_delete(target.list(CURRENT)?.len())?;
        let list = target.list(CURRENT)?;
        Ok(match (list.len(), told(&list) == format!("after {trimmed}")) {
            (1, true) => "1 record".into(),
            (len, _) => format!("{len} records, the last {}", told(&list)),
        })
    })?;
    note.quiet("T:1 of this record leaves a new one", "1 record", || {
        target.must_delete(target.list(CURRENT)?.len())?;
        let before = target.list(CURRENT)?;
        target.must_delete(1)?;
        let after = target.list(CURRENT)?;
        Ok(match (before.len(), after.len(), before == after) {
            (1, 1, false) => "1 record".into(),
            (_, len, _) => format!("{len} records, or an unchanged list"),
        })
    })
}

/// Both records of a kexec count all records since boot, deleted ones included.
fn kexec(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.step(Step::Restart)?;
    target.at_least(6)?;
    let mut deleted = target.list(CURRENT)?;
    if target.dialect().stages() {
        target.must(STAGED, "A\n")?;
        deleted = target.list(STAGED)?;
        target.must(STAGED, "D\n")?;
    } else {
        target.must_delete(deleted.len())?;
    }
    target.add(4)?;
    target.step(Step::Kexec)?;
    let list = target.list(CURRENT)?;
    for name in ["kexec_load", "kexec_execute"] {
        let found = list.iter().enumerate().find_map(|(at, bytes)| Some((at, sizes(name, bytes)?)));
        let Some((at, sizes)) = found else {
            note.expect(format!("{name} is measured"), "a record", "none");
            continue;
        };
        note.expect(format!("{name} counts all records"), deleted.len() + at, sizes.measurements);
        let so_far = deleted.iter().chain(list.iter().take(at));
        /// Bytes before the records in the buffer for the next kernel.
        const HEADER: usize = 24;
        let size = so_far.map(Vec::len).sum::<usize>() + HEADER;
        note.expect(format!("{name} has the size of all records"), size, sizes.runtime_size);
        let held: usize = list.iter().take(at).map(Vec::len).sum();
        note.holds(
            format!("{name} has the size of the buffer"),
            sizes.segment_size >= held as u64,
            format!("at least {held} bytes"),
            sizes.segment_size,
        );
    }
    Ok(())
}

fn sizes(name: &str, bytes: &[u8]) -> Option<KexecSizes> {
    let record = Records::new(bytes, Format::native(Bank::Sha1)).next()?.ok()?;
    match (name, record.event()?) {
        ("kexec_load", Event::KexecLoad(sizes)) => Some(sizes),
        ("kexec_execute", Event::KexecExecute(sizes)) => Some(sizes),
        _ => None,
    }
}

/// `after` and the total before the trim, as the last trim record has it.
fn told(list: &List) -> String {
    let text = list.iter().rev().find_map(|bytes| trim_text(bytes));
    let number = text.as_deref().and_then(|text| {
        let (time, number) = text.strip_prefix("time= ")?.split_once("; number= ")?;
        time.parse::<u64>().ok()?;
        number.strip_suffix(';').map(str::to_owned)
    });
    number.map_or(format!("no total: {text:?}"), |number| format!("after {number}"))
}

/// The number of trim records.
fn events(list: &List) -> usize {
    list.iter().filter_map(|bytes| trim_text(bytes)).count()
}

fn trim_text(bytes: &[u8]) -> Option<String> {
    let record = Records::new(bytes, Format::native(Bank::Sha1)).next()?.ok()?;
    match record.event()? {
        Event::Data(data) if record.event_name() == Some(b"trim_ima_event_logs") => {
            Some(String::from_utf8_lossy(data).into_owned())
        }
        _ => None,
    }
}
