//! What Linux 7.2 was seen to do (`observed-7.2.tsv`), this list does.
#![allow(clippy::unwrap_used)]

use ima_list::{DeleteError, Duplicates, List, Options, Part, StageError};
use ima_log::{Bank, RecordBuf, Records};
use ima_securityfs::{Errno, Request};

/// The rows of a configuration whose case begins with one of `groups`: case, observed.
fn rows(configuration: &str, groups: &[&str]) -> Vec<(&'static str, &'static str)> {
    let rows: Vec<_> = include_str!("observed-7.2.tsv")
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|row| row[0] == configuration && groups.iter().any(|g| row[1].starts_with(g)))
        .map(|row| (row[1], row[2]))
        .collect();
    assert!(!rows.is_empty());
    rows
}

fn add(list: &mut List, name: &str) {
    let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), name.as_bytes());
    let key = record.record().template_digest(Bank::Sha256);
    // Whether it is a duplicate is seen by counting.
    let _ = list.append(&record, &key);
}

/// Records called `name` in the current part.
fn named(list: &List, name: &str) -> usize {
    let chunk = list.snapshot(Part::Current, 0, usize::MAX);
    let format = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"").format();
    chunk
        .slices()
        .flat_map(|slice| Records::new(slice, format))
        .filter(|record| record.as_ref().unwrap().event_name() == Some(name.as_bytes()))
        .count()
}

/// Writes a request as it would be written to the file of its part.
fn write(list: &mut List, text: &str) -> String {
    let part = if text == "A" || text == "D" {
        ima_securityfs::Part::Staged
    } else {
        ima_securityfs::Part::Current
    };
    let line = format!("{text}\n");
    let done = Request::parse(line.as_bytes(), part, false).and_then(|request| match request {
        Request::Stage => list.stage().map(drop).map_err(|error| match error {
            StageError::Pending => Errno::EEXIST,
            StageError::Empty => Errno::ENOENT,
            StageError::Suspended => Errno::EACCES,
        }),
        Request::DeleteStaged => list.delete_staged().map(drop).map_err(delete_errno),
        Request::DeleteFirst(n) => list.delete_first(n.get()).map(drop).map_err(delete_errno),
    });
    match done {
        Ok(()) => format!("ok:{}", line.len()),
        Err(errno) => errno.to_string(),
    }
}

fn delete_errno(error: DeleteError) -> Errno {
    match error {
        DeleteError::Empty | DeleteError::TooMany { .. } => Errno::ENOENT,
        DeleteError::Suspended => Errno::ESTALE,
    }
}

#[test]
fn requests_by_state() {
    for (configuration, duplicates) in
        [("default", Duplicates::Detect), ("CONFIG_IMA_DISABLE_HTABLE", Duplicates::Off)]
    {
        let mut list = List::new(Options { duplicates });
        let mut measured = 0;
        for (case, observed) in rows(configuration, &["state/", "req/"]) {
            let (group, name) = case.split_once('/').unwrap();
            // What was measured before the case.
            let new = match case {
                "state/current only: base+10" => 13,
                "state/staged + 5 new" => 5,
                "req/A once more" => 1,
                _ => 0,
            };
            for _ in 0..new {
                measured += 1;
                add(&mut list, &format!("file {measured}"));
            }
            let seen = if group == "state" {
                let current = list.count(Part::Current);
                let staged = list.count(Part::Staged);
                format!("staged={staged} cur={current} count={current}")
            } else {
                let request = name.rsplit('/').next().unwrap();
                let len_and_1 = (list.count(Part::Current) + 1).to_string();
                let max = u64::MAX.to_string();
                let request = match request.split([' ', '(']).next().unwrap() {
                    "N=ULONG_MAX" => &max,
                    "N=len+1" => &len_and_1,
                    "N==len" => "3",
                    word => word.trim_start_matches("N="),
                };
                write(&mut list, request)
            };
            assert_eq!(seen, observed, "{configuration}: {case}");
        }
    }
}

#[test]
fn duplicates_before_and_after_deleting() {
    for (configuration, duplicates) in [
        ("default", Duplicates::Detect),
        ("ima_flush_htable", Duplicates::Flush),
        ("CONFIG_IMA_DISABLE_HTABLE", Duplicates::Off),
    ] {
        let mut list = List::new(Options { duplicates });
        for (case, observed) in rows(configuration, &["dup/"]) {
            let seen = match case.trim_start_matches("dup/") {
                "recreated identical file before A: records" => {
                    add(&mut list, "dupA");
                    add(&mut list, "dupA");
                    named(&list, "dupA").to_string()
                }
                "while staged (hash table kept): records in current" => {
                    list.stage().unwrap();
                    add(&mut list, "dupA");
                    named(&list, "dupA").to_string()
                }
                "dupB measured between A and D: records in current" => {
                    add(&mut list, "dupB");
                    named(&list, "dupB").to_string()
                }
                "D" => write(&mut list, "D"),
                "dupA re-measured after D: records in current" => {
                    add(&mut list, "dupA");
                    named(&list, "dupA").to_string()
                }
                "[I] dupB (added between A and D) re-measured after D: records in current" => {
                    add(&mut list, "dupB");
                    named(&list, "dupB").to_string()
                }
                // Decided by IMA's memory of files, before a list is asked.
                "dupA merely reopened (inode already measured): records" => continue,
                "N==len" => {
                    add(&mut list, "dupC");
                    let len = list.count(Part::Current).to_string();
                    write(&mut list, &len)
                }
                "dupC re-measured after N: records" => {
                    add(&mut list, "dupC");
                    named(&list, "dupC").to_string()
                }
                other => panic!("unknown case {other}"),
            };
            assert_eq!(seen, observed, "{configuration}: {case}");
        }
    }
}
