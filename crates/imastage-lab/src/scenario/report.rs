//! Results of a scenario, besides its verdict.

use std::collections::BTreeMap;

/// Observations of a scenario, for people and tables.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Values by name.
    pub seen: BTreeMap<String, String>,
}

impl Report {
    pub(crate) fn saw(&mut self, what: &str, value: impl ToString) {
        self.seen.insert(what.to_owned(), value.to_string());
    }
}
