//! What a service hears while it runs.

/// What a service hears while it runs.
pub enum Event {
    /// SIGHUP, SIGINT or SIGTERM.
    Signal(i32),
    /// The process that has the list open is gone, and how it ended.
    ListLost(String),
}
