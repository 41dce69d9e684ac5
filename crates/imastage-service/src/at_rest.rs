//! What a state directory tells by itself: when a service starts, and when none runs.

use std::{collections::BTreeMap, io::Read, path::Path};

use ima_log::{Bank, BankPcrs, Extend};
use imastage_store::{Note, Reader, Recovery, Store, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::{
    banks::Banks,
    health::{Condition, Health, State, now},
    pulse::Pulse,
    wire::{BankStatus, Cause, Divergence, Status, Verdict},
};

/// Which process has the state directory: a service that runs or starts, or `imastage store repair`.
/// `None` if none has, or the directory cannot be entered.
pub fn holder(state: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = rustix::fs::open(state.join("lock"), flags, Mode::empty()).ok()?;
    let shared = FlockOperation::NonBlockingLockShared;
    match rustix::fs::flock(&lock, shared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        // Closing it lets go of it.
        _ => return None,
    }
    let mut pid = String::new();
    std::fs::File::from(lock).take(20).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}

/// The state that a state directory tells while a service holds it that gives no answer: nothing is
/// checked.
pub fn status_unanswered(state: &Path, pid: u32, condition: State, reason: String) -> Status {
    let condition = Condition { state: condition, reason: reason.clone(), since: now() };
    let health = Health { state: condition.state, reason, conditions: vec![condition] };
    let status = Status { health, pid: Some(pid), ..Status::default() };
    match Reader::open(state) {
        Ok(reader) => Status {
            epoch: reader.epoch().number,
            records: reader.len(),
            bytes: reader.bytes(),
            banks: replayed_to(&reader),
            ..status
        },
        // There may be no epoch yet.
        Err(_) => status,
    }
}

/// The state that a state directory tells when no service runs.
///
/// # Errors
/// [`StoreError`] if it is not a state directory or cannot be read.
pub fn status_at_rest(state: &Path) -> Result<Status, StoreError> {
    let mut status = match Reader::open(state) {
        Ok(reader) => Status {
            verdict: diverged(state)?.0,
            problems: damage(state)?,
            epoch: reader.epoch().number,
            records: reader.len(),
            bytes: reader.bytes(),
            banks: replayed_to(&reader),
            ..Status::default()
        },
        // That is what there is to tell.
        Err(error @ (StoreError::Damaged { .. } | StoreError::Unreadable { .. })) => {
            Status { problems: vec![error.to_string()], ..Status::default() }
        }
        Err(error) => return Err(error),
    };
    if let Some(why) = status.problems.first() {
        status.verdict = Verdict::Damaged { why: why.clone() };
    }
    status.health = Health::of(&status, now());
    Ok(status)
}

fn replayed_to(reader: &Reader) -> BTreeMap<String, BankStatus> {
    let status = |value: &ima_log::Digest| {
        let replayed = value.to_string();
        (
            value.bank().to_string(),
            BankStatus { pcr: reader.pcr(), replayed, ..BankStatus::default() },
        )
    };
    reader.running().iter().map(status).collect()
}

/// Says what an interrupted commit had left.
pub(crate) fn report(recovery: &Recovery) {
    let Recovery { commit_bytes, record_bytes, kept } = recovery;
    if *commit_bytes + *record_bytes > 0 {
        tracing::info!("cut off what a crash interrupted: {record_bytes} bytes of records");
    }
    if let Some(kept) = kept {
        tracing::warn!(
            "the last commit was torn or damaged; what it may have covered is kept in {}",
            kept.display()
        );
    }
}

/// Replays what is stored in every bank of the TPM. Linear in the records.
///
/// # Errors
/// [`StoreError`] if they cannot be read any more.
pub(crate) fn replayed(state: &Path, banks: &[Bank], pulse: &Pulse) -> Result<Banks, StoreError> {
    const BEAT: u64 = 4096;
    let mut replays = Banks::new(banks);
    if banks.is_empty() {
        let reader = Reader::open(state)?;
        return Ok(Banks::resume(Vec::new(), reader.len(), reader.pcr()));
    }
    let mut cursor = Reader::open(state)?.records(0)?;
    while let Some(record) = cursor.next_record()? {
        replays.push(&[record]);
        if replays.records().is_multiple_of(BEAT) {
            pulse.beat();
        }
    }
    Ok(replays)
}

/// The PCRs that were written down with the last commit, of as many banks of the TPM as the store
/// keeps: where records cannot be read any more.
pub(crate) fn committed(store: &Store, banks: &[Bank]) -> Banks {
    let kept = banks.iter().filter_map(|bank| {
        let value = store.running(*bank)?;
        Some(BankPcrs::resume(*bank, Extend::Own, [(store.pcr()?, value)]))
    });
    Banks::resume(kept.collect(), store.len(), store.pcr())
}

/// Reads everything that is stored again, and says in words what is damaged.
pub(crate) fn damage(state: &Path) -> Result<Vec<String>, StoreError> {
    let damage = imastage_store::check(state)?.damage;
    Ok(damage.iter().map(ToString::to_string).collect())
}

/// Whether TPM and store diverged before, as was noted then: no later PCR of the epoch is reached,
/// unless the evidence refutes the note. Gives the notes that say so, too.
pub(crate) fn diverged(state: &Path) -> Result<(Verdict, Vec<Note>), StoreError> {
    let mut notes = imastage_store::notes(state)?;
    notes.retain(|note| cause(&note.kind).is_some());
    let verdict = notes.first().and_then(|note| {
        Some(Verdict::Diverged(Divergence {
            after: note.after,
            before: note.index,
            cause: cause(&note.kind)?,
            time: note.time,
            text: note.text.clone(),
        }))
    });
    Ok((verdict.unwrap_or_default(), notes))
}

/// The cause that a note tells, if it tells of a divergence.
fn cause(kind: &str) -> Option<Cause> {
    serde_json::from_value(kind.into()).ok()
}
