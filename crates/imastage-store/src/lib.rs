//! The durable record of an epoch.
