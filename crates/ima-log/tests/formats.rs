//! What the lists of the corpus tell besides their digests: the PCRs a kernel booted with, kexec,
//! signatures; and their ASCII form read back.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::PathBuf};

use ima_log::{
    AggregateError, AsciiDecoder, Bank, Digest, Event, Format, Records, check_boot_aggregate,
};

fn read(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A value of a `pcrs` file, whose lines are `BANK INDEX HEX`.
fn value(path: &str, bank: Bank, pcr: u32) -> Option<Digest> {
    let text = String::from_utf8(read(path)).unwrap();
    let start = format!("{bank} {pcr} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(Digest::from_hex(bank, line.trim()).unwrap())
}

#[test]
fn boot_aggregates_are_the_digests_of_their_pcrs() {
    for (folder, pcrs, bank, boots) in [
        ("debian-6.1", "debian-6.1", Bank::Sha256, 1),
        ("debian-6.12-violations", "debian-6.12-violations", Bank::Sha256, 1),
        ("legacy-ima", "legacy-ima", Bank::Sha1, 1),
        ("kexec/1-before", "kexec/1-before", Bank::Sha256, 1),
        // A kernel that kexec booted measures the same PCRs again.
        ("kexec/2-after", "kexec/2-after", Bank::Sha256, 2),
    ] {
        let list = read(&format!("{folder}/binary"));
        let found = Records::new(&list, Format::native(Bank::Sha1))
            .map(|record| record.unwrap())
            .filter(|record| record.event() == Some(Event::BootAggregate))
            .map(|record| {
                let pcr = |bank, pcr| value(&format!("{pcrs}/pcrs"), bank, pcr);
                check_boot_aggregate(&record, pcr).map(|found| found.bank)
            })
            .collect::<Vec<_>>();
        assert_eq!(found, vec![Ok(bank); boots], "{folder}");
    }
    let list = read("debian-6.1/binary");
    let record = Records::new(&list, Format::native(Bank::Sha1)).next().unwrap().unwrap();
    let other = |bank, pcr| value("kexec/1-before/pcrs", bank, pcr ^ 1);
    assert!(matches!(
        check_boot_aggregate(&record, other),
        Err(AggregateError::Different { bank: Bank::Sha256, .. })
    ));
}

#[test]
fn critical_data_about_kexec_counts_what_is_before_it() {
    let list = read("staging/kexec-staged-pending/stage2/s2_boot_binary_sha1_current");
    let (mut bytes, mut seen) = (24, Vec::new());
    for (index, record) in Records::new(&list, Format::native(Bank::Sha1)).enumerate() {
        let record = record.unwrap();
        if let Some(Event::KexecLoad(sizes) | Event::KexecExecute(sizes)) = record.event() {
            assert_eq!((sizes.measurements, sizes.runtime_size), (index as u64, bytes));
            assert_eq!(sizes.segment_size, 8192);
            seen.push(record.event_name().unwrap());
        }
        bytes += record.as_bytes().len() as u64;
    }
    assert_eq!(seen, [&b"kexec_load"[..], b"kexec_execute"]);
}

#[test]
fn ascii_lists_are_read_back_to_the_binary_ones() {
    let check = |ascii: &str, binary: &str| {
        let (mut decoder, mut list) = (AsciiDecoder::new(), Vec::new());
        let bytes = read(ascii);
        for chunk in bytes.chunks(1000).map(Some).chain([None]) {
            match chunk {
                Some(chunk) => decoder.feed(chunk),
                None => decoder.end(),
            }
            while let Some(record) =
                decoder.next_record().unwrap_or_else(|error| panic!("{ascii}: {error}"))
            {
                list.extend_from_slice(record.as_bytes());
            }
        }
        assert!(list == read(binary), "{ascii}");
    };
    for folder in
        ["debian-6.1", "violations", "signed", "legacy-ima", "kexec/1-before", "kexec/2-after"]
    {
        check(&format!("{folder}/ascii"), &format!("{folder}/binary"));
    }
    for bank in ["sha1", "sha256", "sha384", "sha512"] {
        check(
            &format!("debian-6.12-violations/ascii_{bank}"),
            "debian-6.12-violations/binary_sha1",
        );
    }
    check(
        "staging/kexec-staged-pending/stage2/s2_boot_ascii_sha1_current",
        "staging/kexec-staged-pending/stage2/s2_boot_binary_sha1_current",
    );
}
