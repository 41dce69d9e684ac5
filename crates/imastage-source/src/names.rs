//! The names of the list's files in securityfs.

pub(crate) const CURRENT: &str = "binary_runtime_measurements";
pub(crate) const STAGED: &str = "binary_runtime_measurements_staged";
pub(crate) const TRIM: &str = "ima_trim_log";
pub(crate) const COUNT: &str = "runtime_measurements_count";
