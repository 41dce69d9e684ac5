//! What a view asks of the service whose records it shows.

use std::{path::Path, time::Duration};

use ima_log::Bank;

/// The service behind a view.
pub trait Origin: Send + Sync {
    /// The state directory, from which records are read.
    fn state(&self) -> &Path;

    /// The banks that have files of their own.
    fn banks(&self) -> Vec<Bank>;

    /// Stores what is in the kernel's list now; waits at most `patience`.
    ///
    /// # Errors
    /// Why the list was not drained, in words.
    fn drain_within(&self, patience: Duration) -> Result<(), String>;

    /// The view ended without being told to (`true`), or was mounted (`false`).
    fn set_view_failed(&self, failed: bool);
}
