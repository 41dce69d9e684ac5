//! Names of the files that several parts of this crate look for.

pub(crate) const CURRENT: &str = "binary_runtime_measurements";
pub(crate) const STAGED: &str = "binary_runtime_measurements_staged";
pub(crate) const TRIM: &str = "ima_trim_log";
