//! The status of a state directory without an answer from a service: while one starts, or without
//! one.

use std::{collections::BTreeMap, io::Read, path::Path};

use imastage_client::{
    health::{Condition, Health, State},
    wire::{BankStatus, Status, Verdict},
};
use imastage_store::{Reader, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::{
    clock::now,
    opening::{damage, diverged},
};

/// The process that has locked the state directory: a service that runs or starts, or `imastage
/// store repair`. `None` without one, or if the directory cannot be entered.
pub fn holder(state: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = rustix::fs::open(state.join("lock"), flags, Mode::empty()).ok()?;
    let shared = FlockOperation::NonBlockingLockShared;
    match rustix::fs::flock(&lock, shared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        // Closing the file releases the lock.
        _ => return None,
    }
    let mut pid = String::new();
    std::fs::File::from(lock).take(20).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}

/// The status from a state directory while a service has it locked and does not answer: nothing is
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

/// The status from a state directory if no service runs.
///
/// # Errors
/// [`StoreError`] if it is not a state directory or cannot be read.
pub fn status_at_rest(state: &Path) -> Result<Status, StoreError> {
    let mut status = match Reader::open(state) {
        Ok(reader) => Status {
            verdict: diverged(state)?.0,
            problems: damage(state, &mut |_| {})?,
            epoch: reader.epoch().number,
            records: reader.len(),
            bytes: reader.bytes(),
            banks: replayed_to(&reader),
            ..Status::default()
        },
        // This is the status.
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
