use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
    thread,
};

use nix::{
    fcntl::AT_FDCWD,
    sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
};

use crate::{Ima, Machine};

/// Measures every program as it is executed, from the file systems of `/` and `/usr` on. Ends with
/// the process.
///
/// # Errors
/// What is missing, in words: mostly the capability CAP_SYS_ADMIN.
pub(crate) fn start(machine: Arc<Machine>) -> Result<(), String> {
    let fanotify = Fanotify::init(
        InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_UNLIMITED_QUEUE,
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

    let watch = move || {
        loop {
            let events = match fanotify.read_events() {
                Ok(events) => events,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "programs are no longer watched");
                    return;
                }
            };
            for event in events {
                let Some(fd) = event.fd() else { continue };
                let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) else {
                    continue;
                };
                measure(machine.ima(), fd, &path);
            }
        }
    };
    thread::Builder::new()
        .name("exec-watch".into())
        .spawn(watch)
        .map(drop)
        .map_err(|error| format!("thread: {error}"))
}

fn measure(ima: &Ima, fd: std::os::fd::BorrowedFd<'_>, path: &Path) {
    let result = fd.try_clone_to_owned().and_then(|fd| ima.measure_file(fd.into(), path));
    if let Err(error) = result {
        tracing::warn!(%error, path = %path.display(), "executed but not measured");
    }
}
