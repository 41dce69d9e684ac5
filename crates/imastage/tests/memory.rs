//! Every command that reads a list of 100 MB stays below 32 MB.
//!
//! Alone in its process, which counts the memory of all its children together, and that of itself
//! up to the moment a child runs: the list is written record by record.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    process::{Command, Stdio},
};

use ima_log::{Bank, RecordBuf};

fn run(args: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_imastage"))
        .args(args)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{args:?}");
}

#[test]
fn memory_does_not_grow_with_the_list() {
    const RECORDS: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    let digest = Bank::Sha256.hash(&[b"data"]);
    for index in 0..RECORDS {
        let data = [index as u8; 900];
        let name = format!("critical-data-{index}");
        let record = RecordBuf::ima_buf(10, &digest, name.as_bytes(), &data).unwrap();
        file.write_all(record.as_bytes()).unwrap();
    }
    file.into_inner().unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 100_000_000);

    let list = path.to_str().unwrap();
    for args in [
        &["check", list][..],
        &["replay", "--bank", "sha256", list],
        &["diff", list, list],
        &["show", "--violations", list],
        &["show", "--as", "cel-cbor", "--count", "1000", list],
    ] {
        run(args);
    }
    let exported = dir.path().join("cel");
    let show = Command::new(env!("CARGO_BIN_EXE_imastage"))
        .args(["show", "--as", "cel-json", list])
        .stdout(File::create(&exported).unwrap())
        .status();
    assert!(show.unwrap().success());
    run(&["check", exported.to_str().unwrap()]);

    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let peak = usage.unwrap().max_rss();
    assert!(peak < 32 << 10, "{peak} KiB");
}
