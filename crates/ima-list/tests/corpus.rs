//! The list of a real kernel, and the list of the kernel it booted by kexec.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use ima_list::{List, Options, Part};
use ima_log::{Bank, Endian, Format, KexecBuffer, RecordBuf, Records};

/// The second list begins with the records carried over.
#[test]
fn dump_matches_what_a_real_kernel_carries_over_a_kexec() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/kexec");
    let [before, after] =
        ["1-before", "2-after"].map(|boot| fs::read(corpus.join(boot).join("binary")).unwrap());
    let mut list = List::new(Options::default());
    for record in Records::new(&before, Format::native(Bank::Sha1)) {
        let record = RecordBuf::from_record(&record.unwrap()).unwrap();
        let key = record.record().template_digest(Bank::Sha256);
        list.append(&record, &key).unwrap();
    }
    let (buffer, whole) = list.dump(Endian::native(), usize::MAX);
    assert_eq!(whole, Ok(()));
    let buffer = KexecBuffer::parse(&buffer).unwrap();
    let (next, complete) = List::restore(Options::default(), &buffer);
    assert_eq!(complete, Ok(()));
    assert!(next.count(Part::Current) > 10);
    let carried = next.snapshot(Part::Current, 0, usize::MAX).slices().collect::<Vec<_>>().concat();
    assert!(after.starts_with(&carried));
}
