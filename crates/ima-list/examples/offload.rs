//! Threads append records to a list while another thread offloads them to a file: stage, write,
//! sync, delete. The file then replays to the PCR that was extended as records were appended.
//!
//! ```text
//! cargo run --example offload -- FILE
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::Write,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use ima_list::{Options, Part, SharedList, StageError};
use ima_log::{Bank, Extend, Format, IMA_PCR, RecordBuf, Records, Replay};

const THREADS: u32 = 4;
const EACH: u32 = 1000;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: offload FILE")?;
    let mut file = File::create(&path)?;
    let list = SharedList::new(Options::default());
    // Emulates the TPM's PCR: the list extends it in record order.
    let pcr = Mutex::new(Replay::new(Bank::Sha256, Extend::Own));

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let (list, pcr) = (&list, &pcr);
        let adding: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || add(list, pcr, thread))).collect();
        while !adding.iter().all(|thread| thread.is_finished()) {
            offload(list, &mut file)?;
        }
        Ok(())
    })?;
    offload(&list, &mut file)?;

    let mut replay = Replay::new(Bank::Sha256, Extend::Own);
    let bytes = fs::read(&path)?;
    for record in Records::new(&bytes, Format::native(Bank::Sha1)) {
        replay.extend(&record?);
    }
    let expected = pcr.into_inner().unwrap_or_else(PoisonError::into_inner).value();
    if replay.value() != expected {
        return Err(format!("{path} replays to {}, expected {expected}", replay.value()).into());
    }
    println!("{} records in {path} replay to PCR {IMA_PCR} {expected}", list.counts().total);
    Ok(ExitCode::SUCCESS)
}

fn add(list: &SharedList, pcr: &Mutex<Replay>, thread: u32) {
    for i in 0..EACH {
        let digest = Bank::Sha256.hash(&[&thread.to_le_bytes(), &i.to_le_bytes()]);
        let record = RecordBuf::ima_ng(IMA_PCR, &digest, format!("/file/{thread}/{i}").as_bytes());
        let key = record.record().template_digest(Bank::Sha256);
        let extend = || pcr.lock().unwrap_or_else(PoisonError::into_inner).extend(&record.record());
        // A duplicate is not appended; this is not a failure.
        let _ = list.append(&record, &key, extend);
    }
}

/// One round. Records are deleted only after the file is synced.
fn offload(list: &SharedList, file: &mut File) -> Result<(), Box<dyn Error>> {
    match list.stage() {
        Ok(_) => {}
        Err(StageError::Empty) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for slice in list.snapshot(Part::Staged, 0, usize::MAX).slices() {
        file.write_all(slice)?;
    }
    file.sync_data()?;
    // Dropping the removed records frees their memory, with the list unlocked.
    drop(list.delete_staged()?);
    Ok(())
}
