//! The interface of a view to its service.

use std::{path::Path, time::Duration};

use ima_log::Bank;

/// The service behind a view.
pub trait Origin: Send + Sync {
    /// The state directory, from which records are read.
    fn state(&self) -> &Path;

    /// The banks that have files of their own.
    fn banks(&self) -> Vec<Bank>;

    /// Stores the records of the kernel's list; waits at most `patience`.
    ///
    /// # Errors
    /// The reason that the list was not drained, as text.
    fn drain_within(&self, patience: Duration) -> Result<(), String>;

    /// Reports that the view ended unexpectedly (`true`), or was mounted (`false`).
    fn set_view_failed(&self, failed: bool);
}
