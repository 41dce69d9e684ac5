//! The caller of a FUSE request.

use std::fs;

/// `CAP_SYS_ADMIN` (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// Whether a thread has the capability CAP_SYS_ADMIN. The thread waits for the FUSE answer, so it
/// still exists. False if its status cannot be read.
pub(crate) fn is_admin(thread: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{thread}/status")) else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_SYS_ADMIN) != 0)
}

/// The process id (thread group id) of a thread.
pub(crate) fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|process| process.trim().parse().ok()).unwrap_or(thread)
}

/// Whether a thread still exists.
pub(crate) fn exists(thread: u32) -> bool {
    fs::exists(format!("/proc/{thread}")).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_is_admin() {
        let root = rustix::process::geteuid().is_root();
        let own = std::process::id();
        // Root can lack the capability; another user is unlikely to have it.
        assert!(root || !is_admin(own));
        assert!(!is_admin(u32::MAX));
    }
}
