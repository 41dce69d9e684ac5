//! The processes whose descriptors this process can see in `/proc`.

use std::{fmt, fs, io};

use rustix::thread::CapabilitySet;

/// The part of the machine's processes that a search for open files covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// All processes of the machine.
    #[default]
    Complete,
    /// None: `/proc` cannot be read.
    NoProc,
    /// The processes of a PID namespace that is not the initial one.
    Namespace,
    /// Without CAP_SYS_PTRACE in the initial user namespace, `/proc` hides the descriptors of other
    /// users' processes, and with the mount option `hidepid` the processes themselves (proc(5)).
    NoPtrace,
    /// `/proc` denied access to the descriptors of a process in spite of CAP_SYS_PTRACE.
    Denied {
        /// The first such process.
        pid: u32,
    },
}

impl Sight {
    /// The sight of this thread. `denied` is the first process to whose descriptors `/proc` denied
    /// access.
    pub(crate) fn of_this_thread(denied: Option<u32>) -> Sight {
        let pid = is_initial("pid", "pid:[4026531836]");
        let user = is_initial("user", "user:[4026531837]");
        let (Ok(pid), Ok(user)) = (pid, user) else { return Sight::NoProc };
        let sets = rustix::thread::capabilities(None);
        let has_ptrace =
            user && sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
        Sight::of(pid, has_ptrace, denied)
    }

    fn of(is_initial: bool, has_ptrace: bool, denied: Option<u32>) -> Sight {
        match (is_initial, has_ptrace, denied) {
            (false, ..) => Sight::Namespace,
            (true, false, _) => Sight::NoPtrace,
            (true, true, Some(pid)) => Sight::Denied { pid },
            (true, true, None) => Sight::Complete,
        }
    }
}

impl fmt::Display for Sight {
    /// The processes that are hidden, and how to see them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Sight::Complete => "all processes are visible",
            Sight::NoProc => "/proc cannot be read; mount it",
            Sight::Namespace => {
                "processes outside this PID namespace are hidden; search on the host, outside \
                 containers"
            }
            Sight::NoPtrace => {
                "other users' processes are hidden without CAP_SYS_PTRACE; run as root, or grant it"
            }
            Sight::Denied { pid } => {
                return write!(
                    f,
                    "/proc denies access to the descriptors of process {pid} in spite of \
                     CAP_SYS_PTRACE; check the security module's log"
                );
            }
        };
        f.write_str(text)
    }
}

/// Whether this process is in the initial namespace of a kind, whose inode number is fixed
/// (PROC_PID_INIT_INO, PROC_USER_INIT_INO in the kernel).
fn is_initial(kind: &str, initial: &str) -> io::Result<bool> {
    match fs::read_link(format!("/proc/self/ns/{kind}")) {
        Ok(link) => Ok(link.as_os_str() == initial),
        // The kernel was built without this kind of namespaces.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::metadata("/proc/self/status").map(|_| true)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sight_is_complete_only_with_ptrace_in_the_initial_namespace() {
        assert_eq!(Sight::of(true, true, None), Sight::Complete);
        assert_eq!(Sight::of(true, true, Some(1)), Sight::Denied { pid: 1 });
        assert_eq!(Sight::of(true, false, None), Sight::NoPtrace);
        assert_eq!(Sight::of(false, true, None), Sight::Namespace);
        assert_eq!(Sight::of(false, false, Some(1)), Sight::Namespace);
    }

    #[test]
    fn hidden_processes_are_explained_by_the_missing_permission() {
        assert!(Sight::NoPtrace.to_string().contains("CAP_SYS_PTRACE"));
        assert!(Sight::Namespace.to_string().contains("PID namespace"));
        assert!(Sight::Denied { pid: 42 }.to_string().contains("process 42 "));
    }
}
