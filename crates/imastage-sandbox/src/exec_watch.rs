//! Measurement of executed programs, through fanotify(7).

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, SyncSender, TrySendError},
    },
    thread,
};

use nix::{
    fcntl::AT_FDCWD,
    sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
};

use crate::{Ima, Machine, Outcome};

/// Starts measuring every program executed from the file systems of `/` and `/usr`, until the
/// process ends.
///
/// # Errors
/// A message with the cause, usually a missing CAP_SYS_ADMIN.
pub(crate) fn start(machine: Arc<Machine>) -> Result<(), String> {
    let fanotify = Fanotify::init(
        // The event queue stays limited (no FAN_UNLIMITED_QUEUE): executions can outrun
        // measurement.
        InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC,
        EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
    )
    .map_err(|error| format!("fanotify: {error}; watching needs root (CAP_SYS_ADMIN)"))?;

    let mut devices = Vec::new();
    for path in ["/", "/usr"] {
        let Ok(meta) = fs::metadata(path) else { continue };
        if devices.contains(&meta.dev()) {
            continue;
        }
        fanotify
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_OPEN_EXEC,
                AT_FDCWD,
                Some(path),
            )
            .map_err(|error| format!("fanotify on {path}: {error}"))?;
        devices.push(meta.dev());
    }

    let large = large_programs(Arc::clone(&machine)).map_err(|error| format!("thread: {error}"))?;
    let watch = move || {
        loop {
            let events = match fanotify.read_events() {
                Ok(events) => events,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "fanotify failed; executed programs are not measured");
                    return;
                }
            };
            for event in events {
                if event.mask().contains(MaskFlags::FAN_Q_OVERFLOW) {
                    tracing::error!("fanotify queue overflow; a violation is recorded");
                    machine.ima().violate(Path::new("exec-watch-overflow"));
                }
                let Some(fd) = event.fd() else { continue };
                let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
                    continue;
                };
                let result = fd
                    .try_clone_to_owned()
                    .and_then(|fd| measure(machine.ima(), File::from(fd), path.clone(), &large));
                if let Err(error) = result {
                    tracing::warn!(%error, path = %path.display(), "executed but not measured");
                }
            }
        }
    };
    thread::Builder::new()
        .name("exec-watch".into())
        .spawn(watch)
        .map(drop)
        .map_err(|error| format!("thread: {error}"))
}

/// A program in the queue for measurement.
type Program = (File, PathBuf);

/// Programs up to this size, in bytes, are measured immediately, which takes some 10 ms.
const SMALL: u64 = 16 << 20;

/// Programs above this size, in bytes, are recorded as violations instead of measured: any user can
/// create and execute a sparse file of terabytes.
const LARGEST: u64 = 1 << 30;

/// Starts a thread that measures large programs in sequence, so that they do not delay small ones.
fn large_programs(machine: Arc<Machine>) -> io::Result<SyncSender<Program>> {
    const WAITING: usize = 64;
    let (sender, programs) = mpsc::sync_channel::<Program>(WAITING);
    let measure_all = move || {
        for (file, path) in programs {
            if let Err(error) = machine.ima().measure_file(file, &path) {
                tracing::warn!(%error, path = %path.display(), "executed but not measured");
            }
        }
    };
    thread::Builder::new().name("exec-large".into()).spawn(measure_all)?;
    Ok(sender)
}

fn measure(
    ima: &Ima,
    file: File,
    path: PathBuf,
    large: &SyncSender<Program>,
) -> io::Result<Outcome> {
    let size = file.metadata()?.len();
    if size <= SMALL {
        return ima.measure_file(file, &path);
    }
    let (file, path, why) = match size {
        ..=LARGEST => match large.try_send((file, path)) {
            Ok(()) => return Ok(Outcome::Known),
            Err(TrySendError::Full((file, path)) | TrySendError::Disconnected((file, path))) => {
                (file, path, "too many large programs are waiting")
            }
        },
        _ => (file, path, "the program is larger than 1 GiB"),
    };
    tracing::warn!(path = %path.display(), "executed and recorded as a violation: {why}");
    ima.violate_file(&file, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;
    use std::sync::mpsc::Receiver;

    fn sparse(dir: &Path, name: &str, size: u64) -> (File, PathBuf) {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        (File::open(&path).unwrap(), path)
    }

    fn lane(waiting: usize) -> (SyncSender<Program>, Receiver<Program>) {
        mpsc::sync_channel(waiting)
    }

    #[test]
    fn finding_15_program_of_300_gb_is_a_violation_and_others_are_measured() {
        let ima = Ima::boot(Policy::default(), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (large, waiting) = lane(1);
        let take = |(file, path): (File, PathBuf)| measure(&ima, file, path, &large).unwrap();
        let violations = || ima.list().counts().violations;

        assert_eq!(take(sparse(dir.path(), "huge", 300_000_000_000)), Outcome::Added);
        assert_eq!(violations(), 1);
        // Another execution adds no second violation.
        let again = (File::open(dir.path().join("huge")).unwrap(), dir.path().join("huge"));
        assert_eq!(take(again), Outcome::Known);
        assert_eq!(take(sparse(dir.path(), "small", 100)), Outcome::Added);
        // The queue holds one large program; the next one is a violation.
        assert_eq!(take(sparse(dir.path(), "large", SMALL + 1)), Outcome::Known);
        assert_eq!(waiting.try_recv().unwrap().1, dir.path().join("large"));
        take(sparse(dir.path(), "first", LARGEST));
        assert_eq!(violations(), 1);
        assert_eq!(take(sparse(dir.path(), "second", LARGEST)), Outcome::Added);
        assert_eq!(violations(), 2);
    }
}
