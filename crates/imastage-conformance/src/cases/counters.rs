//! What `runtime_measurements_count` and `violations` say.

use crate::{
    report::Recorder,
    target::{COUNT, CURRENT, STAGED, Target, Trouble, VIOLATIONS},
};

pub(crate) fn cases(target: &Target<'_>, note: &mut Recorder) -> Result<(), Trouble> {
    let violations = target.number(VIOLATIONS)?;
    let counted = |expected: usize| -> Result<String, Trouble> {
        let (counts, listed) = (target.number(COUNT)?, target.list(CURRENT)?.len());
        Ok(match (counts, listed) {
            (counts, listed) if counts == listed as u64 && listed == expected => "agreed".into(),
            (counts, listed) => {
                format!("counts {counts}, lists {listed}, where {expected} were left")
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
    note.quiet("the count after N = 2 of 6", "agreed", || {
        start(6)?;
        target.must(CURRENT, "2\n")?;
        counted(4)
    })?;
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
    note.quiet("the count after \"D\\n\" is what it was", "agreed", || {
        start(6)?;
        target.must(STAGED, "A\n")?;
        target.add(3)?;
        target.must(STAGED, "D\n")?;
        counted(3)
    })?;
    note.quiet("the count after a refused N is what it was", "agreed", || {
        start(6)?;
        // Whether it is refused is another case's matter.
        let _ = target.write(CURRENT, b"99999999\n");
        counted(6)
    })?;
    start(6)?;
    for (name, request) in [(CURRENT, "2\n"), (STAGED, "A\n"), (STAGED, "D\n")] {
        target.must(name, request)?;
        let got = target.number(VIOLATIONS)?;
        note.expect(format!("violations after {request:?} are what they were"), violations, got);
    }
    Ok(())
}
