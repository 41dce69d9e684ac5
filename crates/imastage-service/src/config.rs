//! How a service runs, and why it could not start.

use std::{io, path::PathBuf, time::Duration};

use imastage_store::StoreError;
use imastage_tpm::{Endpoint, TpmError};

use crate::{closed::ClosedEpochs, drain::round::DrainError};

/// How a service is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory: the store, and the API's socket.
    pub state: PathBuf,
    /// The longest time between two drains.
    pub every: Duration,
    /// How many records may gather in the list before it is drained.
    pub drain_at: u64,
    /// A command for `sh -c` that is run on each change of verdict.
    pub alert: Option<String>,
    /// What becomes of earlier epochs.
    pub closed: ClosedEpochs,
    /// The TPM whose PCR 10 the list extends. Without one nothing can be compared or quoted.
    pub tpm: Option<Endpoint>,
    /// A group that may use the API besides the owner: it gets the socket, and may enter the state
    /// directory to reach it.
    pub group: Option<u32>,
    /// Delete from a list whose beginning is neither in this store nor the epoch's first record.
    pub adopt: bool,
    /// The most stored records that are read before the service is ready. Of a longer epoch, what
    /// earlier services proved is resumed, and all records are read while the service runs.
    pub read_first: u64,
}

impl Config {
    /// For a state directory, with the defaults.
    pub fn new(state: PathBuf) -> Config {
        Config {
            state,
            every: Duration::from_millis(Config::EVERY_MS),
            drain_at: Config::DRAIN_AT,
            alert: None,
            closed: ClosedEpochs::default(),
            tpm: None,
            group: None,
            adopt: false,
            read_first: Config::READ_FIRST,
        }
    }

    /// The default of [`Config::every`], in milliseconds.
    pub const EVERY_MS: u64 = 500;

    /// The default of [`Config::read_first`]: as many are read in a tenth of a second.
    pub const READ_FIRST: u64 = 1 << 16;

    /// The default of [`Config::drain_at`].
    pub const DRAIN_AT: u64 = 1000;
}

/// Why a service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The list cannot be looked at, and only that would tell to which epoch it belongs.
    #[error("{0}")]
    List(#[from] DrainError),
    /// The TPM cannot be used.
    #[error("{0}")]
    Tpm(#[from] TpmError),
    /// The API's socket cannot be made.
    #[error("{}: {error}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A thread cannot be made.
    #[error("thread: {0}")]
    Thread(io::Error),
}
