//! The values of `runtime_measurements_count` and `violations`.

use ima_log::{Bank, Format, Records};

use crate::{
    report::Recorder,
    target::{COUNT, CURRENT, STAGED, Target, Trouble, VIOLATIONS},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let before = target.number(VIOLATIONS)?;
    let counted = |expected: usize| -> Result<String, Trouble> {
        let (counts, listed) = (target.number(COUNT)?, target.list(CURRENT)?.len());
        Ok(match (counts, listed) {
            (counts, listed) if counts == listed as u64 && listed == expected => "agreed".into(),
            (counts, listed) => {
                format!("count {counts}, list of {listed} records, expected {expected}")
            }
        })
    };
    let start = |records: usize| {
        target.empty()?;
        target.add(records).map(drop)
    };
    note.quiet("the count of 6 new records", "agreed", || {
        start(6)?;
        counted(6)
    })?;
    if target.deletes_by_number() {
        note.quiet("the count after N = 2 of 6", "agreed", || {
            start(6)?;
            target.must_delete(2)?;
            counted(4)
        })?;
        note.quiet("the count after N = all", "agreed", || {
            start(6)?;
            target.must_delete(target.list(CURRENT)?.len())?;
            counted(0)
        })?;
    }
    note.quiet("the count after a refused N is unchanged", "agreed", || {
        start(6)?;
        // Another case checks the refusal.
        let _ = target.delete("99999999")?;
        counted(6)
    })?;
    if target.dialect().stages() {
        staged(target, note, &start, &counted)?;
    }
    start(6)?;
    let number = || target.number(VIOLATIONS);
    if target.deletes_by_number() {
        target.must_delete(2)?;
        note.expect("violations after N = 2 are unchanged", before, number()?);
    }
    if target.dialect().stages() {
        for request in ["A\n", "D\n"] {
            target.must(STAGED, request)?;
            let case = format!("violations after {request:?} are unchanged");
            note.expect(case, before, number()?);
        }
    }
    violations(target, note)
}

fn staged(
    target: &Target<'_>,
    note: &mut Recorder,
    start: &dyn Fn(usize) -> Result<(), Trouble>,
    counted: &dyn Fn(usize) -> Result<String, Trouble>,
) -> Result<(), Trouble> {
    note.quiet("the count after \"A\\n\" is 0", "agreed", || {
        start(6)?;
        target.must(STAGED, "A\n")?;
        counted(0)
    })?;
    note.quiet("the count of 3 records, 6 others being staged", "agreed", || {
        start(6)?;
        target.must(STAGED, "A\n")?;
        target.add(3)?;
        counted(3)
    })?;
    note.quiet("the count after \"D\\n\" is unchanged", "agreed", || {
        start(6)?;
        target.must(STAGED, "A\n")?;
        target.add(3)?;
        target.must(STAGED, "D\n")?;
        counted(3)
    })
}

/// A violation is a record with a digest of zeros; it is counted, staged and deleted like any other.
fn violations(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    target.empty()?;
    target.add(2)?;
    let before = target.number(VIOLATIONS)?;
    let Some(path) = target.violate()? else {
        note.skip("violations", "violations cannot be added here");
        return Ok(());
    };
    let count = target.number(VIOLATIONS)?;
    note.expect("the count of violations after one more", before + 1, count);
    let found = |part: &str| -> Result<usize, Trouble> {
        let list = target.list(part)?;
        let records = list.iter().filter_map(|bytes| {
            let record = Records::new(bytes, Format::native(Bank::Sha1)).next()?.ok()?;
            let own = record.event_name() == Some(path.as_os_str().as_encoded_bytes());
            (own && record.is_violation()).then_some(())
        });
        Ok(records.count())
    };
    note.expect("a violation's record has a digest of zeros", 1, found(CURRENT)?);
    if target.dialect().stages() {
        target.must(STAGED, "A\n")?;
        note.expect("a violation is staged like other records", 1, found(STAGED)?);
        target.must(STAGED, "D\n")?;
    } else {
        target.must_delete(target.list(CURRENT)?.len())?;
    }
    let count = target.number(VIOLATIONS)?;
    note.expect("the count of violations after their records are deleted", before + 1, count);
    Ok(())
}
