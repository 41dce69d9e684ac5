//! Retention and compression of closed epochs.

use std::{io, path::PathBuf, thread};

use imastage_store::{Retention, StoreError, pack, prune};

/// The treatment of closed epochs when a service starts, which is when one is closed. Nothing by
/// default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClosedEpochs {
    /// Whether they are compressed.
    pub pack: bool,
    /// The epochs that are kept.
    pub kept: Retention,
}

/// Runs in a thread of its own: nothing waits for it, and it can be interrupted at any moment.
///
/// # Errors
/// [`io::Error`] if the thread cannot be started.
pub(crate) fn tend(state: PathBuf, closed: ClosedEpochs) -> io::Result<()> {
    if closed == ClosedEpochs::default() {
        return Ok(());
    }
    let tend = move || {
        if let Err(error) = closed.apply(&state) {
            tracing::error!("closed epochs were not packed or pruned: {error}");
        }
    };
    thread::Builder::new().name("closed-epochs".into()).spawn(tend).map(drop)
}

impl ClosedEpochs {
    fn apply(&self, state: &std::path::Path) -> Result<(), StoreError> {
        if self.kept != Retention::default() {
            for epoch in prune(state, &self.kept, false)? {
                tracing::info!("removed epoch {}: {} records", epoch.number, epoch.records);
            }
        }
        if self.pack {
            for packed in pack(state)? {
                match packed.damage {
                    None => tracing::info!(
                        "packed epoch {}: {} bytes, before {}",
                        packed.number,
                        packed.after,
                        packed.before
                    ),
                    Some(damage) => {
                        tracing::error!("epoch {} was not packed: {damage}", packed.number);
                    }
                }
            }
        }
        Ok(())
    }
}
