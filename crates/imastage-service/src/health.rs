//! How a service is: what is wrong, the worst first. The first line of `imastage status`, its exit
//! code, the log, the alert command and the metrics all say what is decided here.

use std::{fmt, time::SystemTime};

use ima_log::IMA_PCR;
use serde::{Deserialize, Serialize};

use crate::{
    banks::names,
    wire::{Cause, Divergence, ExtendedWith, PcrStatus, Status, Verdict},
};

/// What can be wrong, the worst first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The store cannot be read, or does not hold what was stored.
    Damaged,
    /// A record in the kernel's list is not as it was measured.
    Altered,
    /// Store and list do not lead to the TPM's PCRs.
    Diverged,
    /// The kernel does not extend this TPM.
    NotExtended,
    /// The TPM was reset under the running service.
    TpmReset,
    /// The list's first records are in another store.
    ForeignList,
    /// The list cannot be drained.
    CannotDrain,
    /// Records are stored and cannot be deleted, since others use the list.
    Busy,
    /// The TPM does not answer.
    CannotCompare,
    /// The view is gone, or does not answer.
    ViewFailing,
    /// A service runs, or holds the state directory, and does not answer.
    NoAnswer,
    /// A service starts.
    Starting,
    /// No service runs.
    NotRunning,
    /// Nothing is wrong.
    #[default]
    Ok,
}

/// How bad it is, and so the exit code of `imastage status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is wrong: 0.
    Fine,
    /// Something about the machine or the service: 3.
    Environment,
    /// The evidence does not hold: 1.
    Evidence,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What.
    pub state: State,
    /// In words: what, why, what to do.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// Everything that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The worst of it; [`State::Ok`] if nothing is wrong.
    pub state: State,
    /// That in words; if nothing is wrong, what was proven.
    pub reason: String,
    /// All of it, the worst first.
    pub conditions: Vec<Condition>,
}

impl State {
    /// All there are, the worst first.
    pub const ALL: [State; 14] = [
        State::Damaged,
        State::Altered,
        State::Diverged,
        State::NotExtended,
        State::TpmReset,
        State::ForeignList,
        State::CannotDrain,
        State::Busy,
        State::CannotCompare,
        State::ViewFailing,
        State::NoAnswer,
        State::Starting,
        State::NotRunning,
        State::Ok,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Damaged => "damaged",
            State::Altered => "altered",
            State::Diverged => "diverged",
            State::NotExtended => "not-extended",
            State::TpmReset => "tpm-reset",
            State::ForeignList => "foreign-list",
            State::CannotDrain => "cannot-drain",
            State::Busy => "busy",
            State::CannotCompare => "cannot-compare",
            State::ViewFailing => "view-failing",
            State::NoAnswer => "no-answer",
            State::Starting => "starting",
            State::NotRunning => "not-running",
            State::Ok => "ok",
        }
    }

    /// How bad it is.
    pub fn level(self) -> Level {
        match self {
            State::Damaged | State::Altered | State::Diverged | State::NotExtended => {
                Level::Evidence
            }
            State::Ok => Level::Fine,
            _ => Level::Environment,
        }
    }
}

impl State {
    /// Whether a service does nothing more once it is so: it ends, and the service manager decides what
    /// comes next.
    pub fn is_final(self) -> bool {
        matches!(self, State::TpmReset | State::ForeignList)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Health {
    /// What `status` tells. What was wrong already, by `status.health`, keeps its time; all else
    /// begins at `now`, in seconds since 1970.
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

    /// How bad the worst of it is.
    pub fn level(&self) -> Level {
        let levels = self.conditions.iter().map(|condition| condition.state.level());
        levels.max().unwrap_or(Level::Fine)
    }

    /// Without what need not be told yet: others who use the list mostly go soon.
    fn told(&self, now: u64) -> Vec<&Condition> {
        const PATIENCE_WITH_READERS: u64 = 5;
        let is_due = |condition: &&Condition| match condition.state {
            State::Busy => now.saturating_sub(condition.since) >= PATIENCE_WITH_READERS,
            // The start of a service is not alerted.
            State::Starting => false,
            _ => true,
        };
        self.conditions.iter().filter(is_due).collect()
    }
}

/// What was last reported of a service's health, to the log and to the alert command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Vec<(State, String)>);

impl Told {
    /// Logs what is new and what is over, once. Tells whether other states hold than before.
    pub(crate) fn tell(&mut self, health: &Health, now: u64) -> bool {
        let due = health.told(now);
        for Condition { state, reason, .. } in &due {
            let cause = without_numbers(reason);
            let known = self.0.iter().find(|(known, _)| known == state);
            if known.is_none_or(|(_, told)| *told != cause) {
                tracing::error!("{state}: {reason}");
            }
        }
        for (state, _) in &self.0 {
            if due.iter().all(|condition| condition.state != *state) {
                tracing::info!("{state}: this is over");
            }
        }
        let new: Vec<_> = due
            .iter()
            .map(|condition| (condition.state, without_numbers(&condition.reason)))
            .collect();
        let is_other =
            !new.iter().map(|(state, _)| state).eq(self.0.iter().map(|(state, _)| state));
        self.0 = new;
        is_other
    }

    /// The worst of it.
    pub(crate) fn worst(&self) -> State {
        self.0.first().map_or(State::Ok, |(state, _)| *state)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// A time for people: `2026-11-25 17:23:54 UTC`.
pub fn utc(seconds: u64) -> String {
    const DAY: u64 = 86_400;
    // Days are counted from the first of March of a year 0 whose leap day is its last, so that
    // months have the same length each year; 400 years have 146,097 days.
    let days = seconds / DAY + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
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
        "the store is damaged: {why}; until that is mended nothing is concluded about missing \
         records, and records stay in the kernel's list"
    )
}

fn cannot_drain(state: State, error: &str, verdict: &Verdict) -> String {
    match (state, verdict) {
        (State::CannotDrain, Verdict::Lagging { waiting, .. }) => {
            format!("the list cannot be drained, {waiting} records wait in it: {error}")
        }
        (State::CannotDrain, _) => format!("the list cannot be drained: {error}"),
        (State::Busy, _) => {
            format!("records are stored and cannot be deleted from the list: {error}")
        }
        _ => error.to_owned(),
    }
}

/// What there is to say if nothing is wrong.
fn proven(status: &Status) -> String {
    match &status.verdict {
        Verdict::Consistent { records } | Verdict::Lagging { records, .. } => {
            let own = status.pcr().unwrap_or(IMA_PCR);
            let is_compared = |pcr: &&PcrStatus| pcr.tpm.is_some() && pcr.pcr != own;
            let pcrs = status.banks.values().flat_map(|bank| &bank.pcrs).filter(is_compared);
            let pcrs = [own].into_iter().chain(pcrs.map(|pcr| pcr.pcr));
            let banks = status.banks.iter().filter(|(_, bank)| bank.tpm.is_some());
            let banks = banks.map(|(name, bank)| match bank.extended_with {
                Some(ExtendedWith::Padded | ExtendedWith::PaddedViolations) => {
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

/// A cause that only counts on is no other cause.
fn without_numbers(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Activity;

    #[test]
    fn times_are_those_of_the_calendar() {
        // date -u -d @N '+%F %T UTC'
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_795_627_434, "2026-11-25 17:23:54 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

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
        let cases: [(State, Level, Harm); 9] = [
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
            (State::CannotCompare, Level::Environment, |s| {
                s.since_start.tpm_error = Some("x".into())
            }),
            (State::ViewFailing, Level::Environment, |s| {
                s.since_start.view_error = Some("x".into())
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
    fn the_worst_comes_first_and_keeps_its_time() {
        let mut status = status();
        status.since_start.tpm_error = Some("gone".into());
        status.since_start.compared = Some(1_795_627_434);
        status.health = Health::of(&status, 100);
        assert_eq!(status.health.reason, "not compared since 2026-11-25 17:23:54 UTC: TPM: gone");
        status.problems = vec!["a byte".into()];
        let health = Health::of(&status, 200);
        let found: Vec<_> = health.conditions.iter().map(|c| (c.state, c.since)).collect();
        assert_eq!(found, [(State::Damaged, 200), (State::CannotCompare, 100)]);
        assert_eq!(health.level(), Level::Evidence);
    }

    #[test]
    fn what_holds_is_told_once_and_readers_that_go_are_not() {
        let mut told = Told::default();
        let mut status = status();
        assert!(!told.tell(&Health::of(&status, 1), 1));
        status.since_start.last_error = Some("held by cat, pid 17".into());
        status.since_start.last_error_state = Some(State::Busy);
        status.health = Health::of(&status, 10);
        assert!(!told.tell(&status.health, 10));
        assert!(told.tell(&status.health, 15));
        assert_eq!(told.worst(), State::Busy);
        status.since_start.last_error = Some("held by cat, pid 18".into());
        assert!(!told.tell(&Health::of(&status, 16), 16));
        status.since_start.last_error = None;
        assert!(told.tell(&Health::of(&status, 17), 17));
        assert_eq!(told.worst(), State::Ok);
    }

    #[test]
    fn all_states_have_their_json_name_and_their_order() {
        assert!(State::ALL.is_sorted());
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
