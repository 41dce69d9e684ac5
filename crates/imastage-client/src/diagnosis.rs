//! The conditions of a service, with their texts, from its status.

use ima_log::{Extend, IMA_PCR};

use crate::{
    health::{Condition, Health, State},
    text::{names, utc},
    wire::{Cause, Checking, Divergence, PcrStatus, Status, Verdict},
};

impl Health {
    /// The conditions in `status`. Those that exist already, by `status.health`, keep their time;
    /// new ones start at `now`, in seconds since 1970.
    pub fn of(status: &Status, now: u64) -> Health {
        let activity = &status.since_start;
        let mut found: Vec<(State, String)> = Vec::new();
        match &status.verdict {
            Verdict::Unchecked | Verdict::Consistent { .. } | Verdict::Lagging { .. } => {}
            Verdict::Diverged(divergence) => found.push((State::Diverged, diverged(divergence))),
            Verdict::Altered { index, why } => {
                let text = format!("altered record: index {index}: {why}; it stays in the list");
                found.push((State::Altered, text));
            }
            Verdict::Damaged { why } => found.push((State::Damaged, damaged(why))),
            Verdict::NotExtended { why } => found.push((State::NotExtended, why.clone())),
        }
        if let (Some(problem), false) =
            (status.problems.first(), matches!(status.verdict, Verdict::Damaged { .. }))
        {
            found.push((State::Damaged, damaged(problem)));
        }
        if let Some(error) = &activity.last_error {
            let state = activity.last_error_state.unwrap_or(State::CannotDrain);
            found.push((state, cannot_drain(state, error, &status.verdict)));
        }
        if let Some(error) = &activity.tpm_error {
            let since = activity.compared.map_or(String::new(), |at| format!(" since {}", utc(at)));
            found.push((State::CannotCompare, format!("not compared{since}: TPM: {error}")));
        }
        if let Some(error) = &activity.view_error {
            found.push((State::ViewFailing, format!("the view does not work: {error}")));
        }
        if let Some(Checking { read, of }) = activity.checking {
            let text = format!(
                "stored records are being read again: {read} of {of}; records are drained meanwhile"
            );
            found.push((State::Checking, text));
        }
        let is_new = activity.drained.is_none() && activity.last_error.is_none();
        match status.pid {
            None => found.push((State::NotRunning, "no service is running".to_owned())),
            Some(pid) if is_new => {
                let text = format!("the service (pid {pid}) starts: it did not drain the list yet");
                found.push((State::Starting, text));
            }
            Some(_) => {}
        }
        found.sort_by_key(|(state, _)| *state);
        let since = |state| {
            let known = status.health.conditions.iter().find(|known| known.state == state);
            known.map_or(now, |known| known.since)
        };
        let conditions: Vec<Condition> = found
            .into_iter()
            .map(|(state, reason)| Condition { state, reason, since: since(state) })
            .collect();
        match conditions.first() {
            Some(Condition { state, reason, .. }) => {
                Health { state: *state, reason: reason.clone(), conditions }
            }
            None => Health { state: State::Ok, reason: proven(status), conditions },
        }
    }
}

fn diverged(divergence: &Divergence) -> String {
    let Divergence { after, before, cause, time, text } = divergence;
    let what = match cause {
        Cause::Missing | Cause::LostAtKexec => "records are missing",
        Cause::UnloggedExtend => "a PCR was extended without a record",
        Cause::MissingOrUnloggedExtend => {
            "records are missing, or a PCR was extended without a record"
        }
    };
    let after = after.map_or("the beginning".to_owned(), |index| format!("index {index}"));
    format!(
        "{what} ({cause}), between {after} and index {before}, found at {}: {text}; nothing from \
         there on can be verified before the next TPM reset",
        utc(*time)
    )
}

fn damaged(why: &str) -> String {
    format!(
        "the store is damaged: {why}; until it is repaired no conclusion about missing \
         records is drawn, and records stay in the kernel's list"
    )
}

const LOCK_LOST: &str = "the kernel has lost the list's lock (a bug of Linux 7.2): it refuses to open \
     the list for writing (EBUSY), although no process has a file of the list open; no record can be \
     staged or deleted until reboot; records are read and stored as before, and none is lost; plan a \
     reboot";

fn cannot_drain(state: State, error: &str, verdict: &Verdict) -> String {
    match (state, verdict) {
        (State::CannotDrain, Verdict::Lagging { waiting, .. }) => {
            format!("the list cannot be drained, {waiting} records wait in it: {error}")
        }
        (State::CannotDrain, _) => format!("the list cannot be drained: {error}"),
        (State::LockLost, _) => LOCK_LOST.to_owned(),
        (State::Busy, _) => {
            format!("records are stored and cannot be deleted from the list: {error}")
        }
        _ => error.to_owned(),
    }
}

/// The text without a condition.
fn proven(status: &Status) -> String {
    match &status.verdict {
        Verdict::Consistent { records } | Verdict::Lagging { records, .. } => {
            let own = status.pcr().unwrap_or(IMA_PCR);
            let is_compared = |pcr: &&PcrStatus| pcr.tpm.is_some() && pcr.pcr != own;
            let pcrs = status.banks.values().flat_map(|bank| &bank.pcrs).filter(is_compared);
            let pcrs = [own].into_iter().chain(pcrs.map(|pcr| pcr.pcr));
            let banks = status.banks.iter().filter(|(_, bank)| bank.tpm.is_some());
            let banks = banks.map(|(name, bank)| match bank.extended_with {
                Some(Extend::Sha1Padded | Extend::Sha1PaddedViolations) => {
                    format!("{name} (padded SHA-1)")
                }
                _ => name.clone(),
            });
            let (pcrs, banks) = (names(pcrs), names(banks));
            format!("consistent with the TPM: {records} records replay to PCR {pcrs} in {banks}")
        }
        _ => "not compared with a TPM: the service has none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::Level, wire::Activity};

    fn status() -> Status {
        Status {
            verdict: Verdict::Consistent { records: 7 },
            pid: Some(42),
            since_start: Activity { drained: Some(9), ..Activity::default() },
            ..Status::default()
        }
    }

    #[test]
    fn what_is_wrong_is_never_ok() {
        assert_eq!(Health::of(&status(), 1).level(), Level::Fine);
        type Harm = fn(&mut Status);
        let cases: [(State, Level, Harm); 11] = [
            (State::Damaged, Level::Evidence, |s| s.problems = vec!["x".into()]),
            (State::Damaged, Level::Evidence, |s| s.verdict = Verdict::Damaged { why: "x".into() }),
            (State::Altered, Level::Evidence, |s| {
                s.verdict = Verdict::Altered { index: 1, why: "x".into() }
            }),
            (State::NotExtended, Level::Evidence, |s| {
                s.verdict = Verdict::NotExtended { why: "x".into() }
            }),
            (State::CannotDrain, Level::Environment, |s| {
                s.since_start.last_error = Some("x".into())
            }),
            (State::LockLost, Level::Environment, |s| {
                s.since_start.last_error = Some("x".into());
                s.since_start.last_error_state = Some(State::LockLost);
            }),
            (State::CannotCompare, Level::Environment, |s| {
                s.since_start.tpm_error = Some("x".into())
            }),
            (State::ViewFailing, Level::Environment, |s| {
                s.since_start.view_error = Some("x".into())
            }),
            (State::Checking, Level::Environment, |s| {
                s.since_start.checking = Some(Checking { read: 1, of: 2 })
            }),
            (State::Starting, Level::Environment, |s| s.since_start.drained = None),
            (State::NotRunning, Level::Environment, |s| s.pid = None),
        ];
        for (state, level, harm) in cases {
            let mut status = status();
            harm(&mut status);
            let health = Health::of(&status, 1);
            assert_eq!((health.state, health.level()), (state, level), "{health:?}");
            assert!(!health.reason.contains("consistent"), "{health:?}");
        }
    }

    #[test]
    fn lost_lock_says_what_is_impossible_what_works_and_what_to_do() {
        let mut status = status();
        status.since_start.last_error = Some("x".into());
        status.since_start.last_error_state = Some(State::LockLost);
        let health = Health::of(&status, 1);
        assert_eq!(health.due(1).len(), 1);
        for part in ["lost the list's lock", "until reboot", "stored as before", "plan a reboot"] {
            assert!(health.reason.contains(part), "{}", health.reason);
        }
    }

    #[test]
    fn the_worst_comes_first_and_keeps_its_time() {
        let mut status = status();
        status.since_start.tpm_error = Some("gone".into());
        status.since_start.compared = Some(1_795_627_434);
        status.health = Health::of(&status, 100);
        assert_eq!(status.health.reason, "not compared since 2026-11-25T17:23:54Z: TPM: gone");
        status.problems = vec!["a byte".into()];
        let health = Health::of(&status, 200);
        let found: Vec<_> = health.conditions.iter().map(|c| (c.state, c.since)).collect();
        assert_eq!(found, [(State::Damaged, 200), (State::CannotCompare, 100)]);
        assert_eq!(health.level(), Level::Evidence);
    }

    #[test]
    fn all_states_have_their_json_name_and_their_order() {
        assert!(State::ALL.is_sorted());
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
