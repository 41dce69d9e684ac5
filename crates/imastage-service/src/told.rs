//! What was last reported of a service's health.

use imastage_client::health::{Condition, Health, State};

/// What was last reported of a service's health, to the log and to the alert command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Vec<(State, String)>);

impl Told {
    /// Logs what is new and what is over, once. Tells whether other states hold than before.
    pub(crate) fn tell(&mut self, health: &Health, now: u64) -> bool {
        let due = health.due(now);
        for Condition { state, reason, .. } in &due {
            let cause = without_numbers(reason);
            let known = self.0.iter().find(|(known, _)| known == state);
            if known.is_none_or(|(_, told)| *told != cause) {
                tracing::error!("{state}: {reason}");
            }
        }
        for (state, _) in &self.0 {
            if due.iter().all(|condition| condition.state != *state) {
                tracing::info!("{state}: resolved");
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

/// A cause that only counts on is no other cause.
fn without_numbers(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use imastage_client::wire::{Activity, Status, Verdict};

    use super::*;

    #[test]
    fn a_condition_is_reported_once_and_brief_readers_are_not() {
        let mut told = Told::default();
        let mut status = Status {
            verdict: Verdict::Consistent { records: 7 },
            pid: Some(42),
            since_start: Activity { drained: Some(9), ..Activity::default() },
            ..Status::default()
        };
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
}
