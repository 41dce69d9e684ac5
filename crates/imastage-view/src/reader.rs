//! The sender of a request, and its permission to read the view.

use std::{fs::File, io::Read};

/// Whether the sender of a request may read files of root, the service and a group. If that cannot
/// be determined, the answer is no. The kernel grants no access because of this answer.
pub(crate) fn may_read(request: &fuser::Request, group: u32) -> bool {
    let own = rustix::process::geteuid().as_raw();
    [0, own].contains(&request.uid()) || request.gid() == group || is_in_group(request.pid(), group)
}

/// Whether a process has a supplementary group, which a request does not contain.
fn is_in_group(pid: u32, group: u32) -> bool {
    /// Space for the maximum of 65,536 groups of a process (NGROUPS_MAX).
    const LONGEST: u64 = 1 << 20;
    let mut status = Vec::new();
    let read = File::open(format!("/proc/{pid}/status"))
        .and_then(|file| file.take(LONGEST).read_to_end(&mut status));
    read.is_ok() && has_group(&status, group)
}

/// Whether `/proc/PID/status` names a group (proc_pid_status(5): `Groups:`). The name of a
/// process cannot add a line: the kernel escapes line breaks in it.
fn has_group(status: &[u8], group: u32) -> bool {
    let group = group.to_string();
    status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Groups:")).is_some_and(
        |groups| groups.split(u8::is_ascii_whitespace).any(|one| one == group.as_bytes()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_read() {
        let status = b"Name:\tx\\nGroups:\t7\nGid:\t5\t5\t5\t5\nGroups:\t4 24 12345 \nPid:\t9\n";
        for group in [4, 24, 12345] {
            assert!(has_group(status, group), "{group}");
        }
        for group in [5, 7, 9, 123, 2, 45] {
            assert!(!has_group(status, group), "{group}");
        }
        assert!(!has_group(b"Groups:\t\n", 0));
        assert!(!has_group(b"", 0));
        assert!(!is_in_group(0, 0));
    }
}
