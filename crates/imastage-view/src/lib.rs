//! The view: stored records as files, in a directory like the kernel's in which nothing was
//! deleted.
//!
//! The files have the kernel's names and contents, for programs that do not know of staging. They
//! only grow, an offset means the same bytes for the whole epoch, and an open file shows later
//! records.
//!
//! An attestation agent requests a quote first and reads the list second, so a read must return
//! every record that was in the list when the read began. The files have their true size, and the
//! kernel asks for the size before it reports the end of a file. That question is answered after a
//! drain, and only there does a reader wait (`growth`). Everything else comes from the kernel's
//! page cache or is rendered from the stored records (`listing`) with an index that finds any
//! offset of any file (`index`).
#![forbid(unsafe_code)]

mod directory;
mod growth;
mod index;
mod listing;
mod origin;
mod reader;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use fuser::{BackgroundSession, MountOption, Session, SessionACL};

use directory::{Directory, Tree};
use growth::Growth;
use listing::Listing;
pub use origin::Origin;

/// A view that is mounted. Dropping it unmounts it.
pub struct View {
    session: Option<BackgroundSession>,
    growth: Option<JoinHandle<()>>,
    is_ending: Arc<AtomicBool>,
    /// The mount point, unless another process unmounts it.
    mount: Option<PathBuf>,
}

/// Why a view cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The directory cannot be used.
    #[error("{}: {error}", path.display())]
    Path {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// FUSE cannot be used.
    #[error(
        "{}: cannot mount through FUSE: {error}; it needs /dev/fuse, and without root fusermount3 \
         (apt-get install fuse3)",
        path.display()
    )]
    Fuse {
        /// The mount point.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
}

impl View {
    /// Mounts the view of a service's records over `mount`, which is created if it does not exist,
    /// readable for root and `group`. A view of a killed service is replaced.
    pub fn mount(
        origin: Arc<dyn Origin>,
        mount: &Path,
        group: Option<u32>,
    ) -> Result<View, ViewError> {
        imastage_mount::prepare(mount, None)
            .map_err(|error| ViewError::Path { path: mount.to_owned(), error })?;
        let open = |directory| fuser::spawn_mount(directory, mount, &options());
        let mut view = View::start(origin, mount, group, open)?;
        view.mount = Some(mount.to_owned());
        Ok(view)
    }

    /// The same through a device that another process has mounted over `mount`, and will unmount.
    pub fn serve(
        origin: Arc<dyn Origin>,
        device: OwnedFd,
        mount: &Path,
        group: Option<u32>,
    ) -> Result<View, ViewError> {
        let options = options();
        let open = |directory| Session::from_fd(directory, device, options.acl, options)?.spawn();
        View::start(origin, mount, group, open)
    }

    fn start(
        origin: Arc<dyn Origin>,
        mount: &Path,
        group: Option<u32>,
        session: impl FnOnce(Directory) -> io::Result<BackgroundSession>,
    ) -> Result<View, ViewError> {
        let group = group.unwrap_or_else(|| rustix::process::getegid().as_raw());
        let tree = Arc::new(Tree::new(&origin.banks(), group));
        let listing = Arc::new(Listing::new(origin.state().to_owned()));
        let (waiting, inbox) = mpsc::channel();
        let directory = Directory::new(Arc::clone(&tree), Arc::clone(&listing), waiting);

        let open = directory.open_files();
        let failed = |error| ViewError::Fuse { path: mount.to_owned(), error };
        let session = session(directory).map_err(failed)?;
        let notifier = session.notifier();
        origin.set_view_failed(false);
        let is_ending = Arc::<AtomicBool>::default();
        let mut view = View {
            session: Some(session),
            growth: None,
            mount: None,
            is_ending: Arc::clone(&is_ending),
        };
        let growth = Growth {
            tree,
            listing,
            open,
            origin,
            mount: mount.to_owned(),
            notifier,
            is_ending,
            said: None,
        };
        let spawned = thread::Builder::new().name("view".into()).spawn(move || growth.run(&inbox));
        view.growth = Some(spawned.map_err(failed)?);
        Ok(view)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
        let (Some(session), Some(mount)) = (self.session.take(), &self.mount) else { return };
        if self.growth.as_ref().is_some_and(JoinHandle::is_finished) {
            // Another process unmounted it: a present mount there belongs to others.
            return;
        }
        match session.umount_and_join() {
            Ok(()) => {
                // The session had the other end of the queue.
                if let Some(growth) = self.growth.take() {
                    let _ = growth.join();
                }
            }
            Err(error) => {
                // Agents keep files open until they end: these are served while this process runs.
                tracing::info!(%error, "the view is in use: detached instead of unmounted");
                imastage_mount::detach(mount);
            }
        }
    }
}

fn options() -> fuser::Config {
    let mut options = fuser::Config::default();
    options.mount_options = vec![
        MountOption::FSName("imastage".into()),
        MountOption::Subtype("imastage".into()),
        MountOption::DefaultPermissions,
        MountOption::RO,
        MountOption::NoExec,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if rustix::process::geteuid().is_root() {
        // Others are kept out by the modes of the files.
        options.acl = SessionACL::All;
    }
    options
}
