//! Every list of the corpus, read, replayed against the PCRs captured with it, and written again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, io::Read, path::PathBuf};

use ima_log::{Bank, Decoder, Digest, Endian, Extend, Format, ListReplay, PcrTarget, Prefix};

fn corpus(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path)
}

fn read(path: &str) -> Vec<u8> {
    let path = corpus(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `None` if the file has no such bank.
fn pcr10(path: &str, bank: Bank) -> Option<Digest> {
    let text = String::from_utf8(read(path)).unwrap();
    let start = format!("{bank} 10 ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(Digest::from_hex(bank, line.trim()).unwrap())
}

/// Replays `list` against all banks of the PCR file.
fn search(list: &[u8], pcrs: &str) -> ListReplay {
    let targets: Vec<PcrTarget> = Bank::ALL
        .into_iter()
        .filter_map(|bank| Some(PcrTarget { pcr: 10, value: pcr10(pcrs, bank)? }))
        .collect();
    let mut search = ListReplay::new(targets.iter().map(|target| target.value.bank()));
    search.look_for(&targets);
    let mut decoder = Decoder::new(Format::native(Bank::Sha1));
    for chunk in list.chunks(4096) {
        decoder.feed(chunk);
        while let Some(record) = decoder.next_record().unwrap() {
            assert!(record.digest_is_right(), "record {}", search.records());
            search.push(&record);
        }
    }
    decoder.finish().unwrap();
    search
}

fn agreed(search: &ListReplay) -> Option<u64> {
    search.agreement().map(|prefix| prefix.from)
}

/// The banks whose PCR 10 the whole list leads to in this way alone.
fn found(search: &ListReplay, extend: Extend) -> Vec<Bank> {
    let whole = Prefix { from: search.records(), to: search.records() };
    let is_found = |bank: &Bank| search.found(*bank, 10) == Some((whole, extend));
    Bank::ALL.into_iter().filter(is_found).collect()
}

fn count(path: &str) -> u64 {
    String::from_utf8(read(path)).unwrap().trim().parse().unwrap()
}

#[test]
fn lists_replay_to_their_pcrs() {
    for folder in [
        "debian-6.1",
        "debian-6.12-violations",
        "lab-6.1-awkward",
        "lab-6.12-awkward",
        "violations",
        "signed",
        "legacy-ima",
        "kexec/1-before",
        "kexec/2-after",
        "big-20k",
    ] {
        let list = match folder {
            "big-20k" => {
                let mut list = Vec::new();
                let packed = read("big-20k/binary.gz");
                flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut list).unwrap();
                list
            }
            _ => read(&format!("{folder}/binary")),
        };
        assert_eq!(Endian::detect(&list), Some(Endian::Little));
        let search = search(&list, &format!("{folder}/pcrs"));
        assert_eq!(search.records(), count(&format!("{folder}/count")), "{folder}");
        assert_eq!(agreed(&search), Some(search.records()), "{folder}");
        let padded = found(&search, Extend::Sha1Padded);
        match folder {
            // Kernels that had no SHA-384 and SHA-512 when IMA started.
            "debian-6.1" | "lab-6.1-awkward" => assert_eq!(padded, [Bank::Sha384, Bank::Sha512]),
            _ => assert_eq!(found(&search, Extend::Own).len() + padded.len(), 4, "{folder}"),
        }
        if !folder.starts_with("kexec/2") {
            let violations = count(&format!("{folder}/violations"));
            assert_eq!(search.violations(), violations, "{folder}");
        }
    }
}

#[test]
fn lists_are_written_as_the_kernel_writes_them() {
    let check = |binary: &str, from: Bank, ascii: &str, to: Bank, rebuilt: Option<&str>| {
        let list = read(binary);
        let mut decoder = Decoder::new(Format { bank: from, endian: Endian::Little });
        decoder.feed(&list);
        let (mut text, mut bytes) = (Vec::new(), Vec::new());
        while let Some(record) = decoder.next_record().unwrap() {
            record.write_ascii(to, &mut text);
            record.write_binary(to, &mut bytes);
        }
        decoder.finish().unwrap();
        assert!(text == read(ascii), "{binary} as {ascii}");
        if let Some(rebuilt) = rebuilt {
            assert!(bytes == read(rebuilt), "{binary} as {rebuilt}");
        }
    };
    for folder in
        ["debian-6.1", "lab-6.1-awkward", "violations", "signed", "legacy-ima", "kexec/1-before"]
    {
        check(
            &format!("{folder}/binary"),
            Bank::Sha1,
            &format!("{folder}/ascii"),
            Bank::Sha1,
            Some(&format!("{folder}/binary")),
        );
    }
    // The kernel has a file for each bank here: from any to any.
    let banks = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];
    for folder in ["debian-6.12-violations", "lab-6.12-awkward"] {
        for from in banks {
            for to in banks {
                check(
                    &format!("{folder}/binary_{from}"),
                    from,
                    &format!("{folder}/ascii_{to}"),
                    to,
                    Some(&format!("{folder}/binary_{to}")),
                );
            }
        }
    }
}

#[test]
fn staged_batches_join_to_one_list() {
    let dir = "staging/batches-n-pending";
    let part = |name: &str| read(&format!("{dir}/{name}"));
    let first = |list: &[u8], n: usize| -> usize {
        let mut decoder = Decoder::new(Format::native(Bank::Sha1));
        decoder.feed(list);
        for _ in 0..n {
            decoder.next_record().unwrap().unwrap();
        }
        decoder.offset() as usize
    };
    let mut names: Vec<String> = fs::read_dir(corpus(dir))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let find = |prefix: &str, suffix: &str| {
        let name = names.iter().find(|n| n.starts_with(prefix) && n.ends_with(suffix));
        part(name.unwrap_or_else(|| panic!("{prefix}…{suffix}")))
    };
    let batch1 = find("t1", "binary_sha1_staged");
    let batch2 = find("t2", "binary_sha1_staged");
    let deleted = find("t3", "binary_sha1_current");
    let after_n = find("t4", "binary_sha1_current");
    let pending = find("t5", "binary_sha1_staged");
    let current = find("t5", "binary_sha1_current");
    assert_eq!(first(&batch1, 6), batch1.len());
    assert_eq!(first(&batch2, 43), batch2.len());

    let pcrs = |step: &str| {
        let name = names.iter().find(|n| n.starts_with(step) && n.ends_with("_pcrs")).unwrap();
        format!("{dir}/{name}")
    };
    let mut list = [batch1, batch2, deleted[..first(&deleted, 5)].to_vec()].concat();
    let after_delete = [list.clone(), after_n].concat();
    let whole = search(&after_delete, &pcrs("t4"));
    assert_eq!(agreed(&whole), Some(whole.records()));

    list.extend(pending);
    list.extend(current);
    let whole = search(&list, &pcrs("t5"));
    assert_eq!(agreed(&whole), Some(whole.records()));
}

#[test]
fn a_tail_lost_at_kexec_matches_nothing() {
    let list = read("staging/kexec-tail-lost/stage2/s2_boot_binary_sha1_current");
    let search = search(&list, "staging/kexec-tail-lost/stage2/s2_boot_pcrs");
    for bank in Bank::ALL {
        assert_eq!(search.found(bank, 10), None);
    }
    let list = read("staging/kexec-staged-pending/stage2/s2_boot_binary_sha1_current");
    let carried = self::search(&list, "staging/kexec-staged-pending/stage2/s2_boot_pcrs");
    assert_eq!(agreed(&carried), Some(56));
}

#[test]
fn equal_records_are_told_apart_by_nothing_but_their_place() {
    let part = |step: &str| read(&format!("staging/flush-duplicates/{step}"));
    let list = [
        part("f1_batch1_binary_sha1_staged"),
        part("f2_batch2_binary_sha1_staged"),
        part("f3_current_binary_sha1_current"),
    ]
    .concat();
    let whole = search(&list, "staging/flush-duplicates/f3_current_pcrs");
    assert_eq!(agreed(&whole), Some(16));

    let stress = read("staging/stress-508-batches/stress_concat_sha1.bin");
    let whole = search(&stress, "staging/stress-508-batches/stress_pcrs");
    assert_eq!(agreed(&whole), Some(whole.records()));
}
