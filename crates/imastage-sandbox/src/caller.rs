//! Who is behind a FUSE request.

use std::fs;

/// `CAP_SYS_ADMIN` (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// Whether a thread has the capability CAP_SYS_ADMIN. It waits for our answer, so it is still there.
/// What cannot be read counts as no.
pub(crate) fn is_admin(thread: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{thread}/status")) else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_SYS_ADMIN) != 0)
}

/// The process of a thread: its first thread.
pub(crate) fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|process| process.trim().parse().ok()).unwrap_or(thread)
}

/// Whether a thread is still there.
pub(crate) fn exists(thread: u32) -> bool {
    fs::exists(format!("/proc/{thread}")).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_capability_is_what_the_system_says() {
        let root = rustix::process::geteuid().is_root();
        let own = std::process::id();
        // A root without capabilities is possible, a user with this one hardly.
        assert!(root || !is_admin(own));
        assert!(!is_admin(u32::MAX));
    }
}
