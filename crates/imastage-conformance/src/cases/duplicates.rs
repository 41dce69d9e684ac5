//! Repeated measurements: a file is recorded once per boot, unless digests are flushed or duplicate
//! detection is off.

use std::path::Path;

use ima_list::Duplicates;

use crate::{
    report::Recorder,
    target::{CURRENT, STAGED, Target, Trouble},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    if target.dialect().stages() {
        staging(target, note)?;
    }
    if target.deletes_by_number() {
        numbers(target, note)?;
    }
    Ok(())
}

/// The expected number of records: with duplicate detection, with flushed digests, with detection
/// off.
fn of(target: &Target<'_>, [detect, flush, off]: [usize; 3]) -> usize {
    match target.duplicates() {
        Duplicates::Detect => detect,
        Duplicates::Flush => flush,
        Duplicates::Off => off,
    }
}

fn staging(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let paths = target.add(2)?;
    let [first, second] = &*paths else { return Ok(()) };
    let again = |path: &Path| {
        target.recreate(path)?;
        target.measure(path)
    };
    again(first)?;
    let got = records(target, CURRENT, first)?;
    note.expect("an equal file replaces another: records", of(target, [1, 1, 2]), got);
    target.must(STAGED, "A\n")?;
    again(first)?;
    let got = records(target, CURRENT, first)?;
    note.expect(
        "measured again while the first is staged: current records",
        of(target, [0, 0, 1]),
        got,
    );
    let paths = target.add(1)?;
    let [between] = &*paths else { return Ok(()) };
    let got = records(target, CURRENT, between)?;
    note.expect("a new file while others are staged: current records", 1, got);
    target.must(STAGED, "D\n")?;
    again(first)?;
    let got = records(target, CURRENT, first)?;
    note.expect("measured again after \"D\\n\": current records", of(target, [0, 1, 2]), got);
    again(between)?;
    let got = records(target, CURRENT, between)?;
    let case = "measured again after \"D\\n\", first between A and D: current records";
    note.expect(case, of(target, [1, 2, 2]), got);
    again(second)?;
    let got = records(target, CURRENT, second)?;
    note.expect(
        "another file measured again after \"D\\n\": current records",
        of(target, [0, 1, 1]),
        got,
    );
    // An unchanged file is not hashed again.
    let before = records(target, CURRENT, first)?;
    target.measure(first)?;
    let got = records(target, CURRENT, first)?;
    note.expect("the same file once more: current records", before, got);
    Ok(())
}

fn numbers(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    let paths = target.add(1)?;
    let [path] = &*paths else { return Ok(()) };
    target.recreate(path)?;
    target.measure(path)?;
    let got = records(target, CURRENT, path)?;
    note.expect("an equal file before N: records", of(target, [1, 1, 2]), got);
    target.must_delete(target.list(CURRENT)?.len())?;
    let got = records(target, CURRENT, path)?;
    note.expect("after N = all: records", 0, got);
    target.recreate(path)?;
    target.measure(path)?;
    let got = records(target, CURRENT, path)?;
    note.expect("an equal file after N = all: records", of(target, [0, 0, 1]), got);
    target.add(1)?;
    note.holds("a new file after N = all is recorded", !target.list(CURRENT)?.is_empty(), "1", "0");
    Ok(())
}

/// The number of records of a file in a part.
fn records(target: &Target<'_>, part: &str, path: &Path) -> Result<usize, Trouble> {
    Ok(Target::find(&[path.to_owned()], &target.list(part)?).len())
}
