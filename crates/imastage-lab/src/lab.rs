//! The lab: its cache and programs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    error::{Doing, LabError},
    initramfs::Programs,
    kernel::Kernel,
    machine::{Machine, Plan, Tpm},
    process::{find, run},
};

/// The directory of IMA's files in the guest.
pub const LIST: &str = "/sys/kernel/security/ima";
/// Readable once a kernel (Linux 5.12 or later) has found its TPM.
const PCR: &str = "/sys/class/tpm/tpm0/pcr-sha256/0";

/// The cache of kernels and the programs for guests.
#[derive(Clone, Debug)]
pub struct Lab {
    cache: PathBuf,
    programs: Programs,
}

impl Lab {
    /// A lab whose guests run `lab` (this crate's program) and the `imastage` in the same
    /// directory. Downloads go into `cache`.
    ///
    /// # Errors
    /// [`LabError::Missing`] if a required program is not installed.
    pub fn new(lab: &Path, cache: Option<PathBuf>) -> Result<Lab, LabError> {
        find("qemu-system-x86_64", "qemu-system-x86")?;
        find("swtpm", "swtpm")?;
        find("busybox", "busybox-static")?;
        find("dpkg-deb", "dpkg (the lab's kernels are Debian's)")?;
        let cache = cache.unwrap_or_else(default_cache);
        let imastage = imastage(lab)?;
        let others = vec![("bin/imastage".to_owned(), imastage)];
        Ok(Lab { cache, programs: Programs { lab: lab.to_owned(), others } })
    }

    /// Adds a program of the host, with the libraries that it loads, or another file to the guests.
    pub fn with_program(mut self, path: &str, program: PathBuf) -> Lab {
        self.programs.others.push((path.to_owned(), program));
        self
    }

    /// The directory of downloads.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The programs copied into guests.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Whether a kernel is in the cache.
    pub fn is_cached(&self, kernel: &str) -> bool {
        self.cache.join("kernels").join(kernel).exists()
    }

    /// Finds a kernel by name; downloads it if needed.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn kernel(&self, name: &str) -> Result<Kernel, LabError> {
        Kernel::get(&self.cache, name)
    }

    /// Builds a kernel by name, unless it is in the cache.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn build_kernel(&self, name: &str) -> Result<Kernel, LabError> {
        Kernel::build(&self.cache, name)
    }

    /// Boots a machine. A kernel's TPM driver gives up after its own time limits, which an emulated
    /// machine on a busy host may exceed: a machine without the TPM of its plan is booted again, and
    /// so is one that does not answer in time.
    ///
    /// # Errors
    /// [`LabError`]; [`LabError::Lost`] with the end of the console if the kernel does not boot, has
    /// no IMA, does not answer or finds no TPM in three boots, or does not have the staging
    /// interface that its configuration names.
    pub fn boot(&self, kernel: &Kernel, plan: &Plan) -> Result<Machine, LabError> {
        const BOOTS: u32 = 3;
        let mut boot = 1;
        loop {
            let mut machine = match Machine::boot(kernel, &self.programs, plan) {
                Err(LabError::Lost { why, .. })
                    if why.kind() == io::ErrorKind::TimedOut && boot < BOOTS =>
                {
                    boot += 1;
                    continue;
                }
                booted => booted?,
            };
            let names = match machine.names(LIST) {
                Ok(names) => names,
                Err(LabError::Guest { said, .. }) => {
                    return Err(machine.unfit(format!("no IMA (CONFIG_IMA): {said}")));
                }
                Err(error) => return Err(error),
            };
            if kernel.stages && !names.iter().any(|name| name.ends_with("_staged")) {
                return Err(machine.unfit("no staged list (CONFIG_IMA_STAGING)".to_owned()));
            }
            if plan.tpm == Tpm::None {
                return Ok(machine);
            }
            match machine.read(PCR) {
                Ok(_) => return Ok(machine),
                Err(LabError::Guest { .. }) if boot < BOOTS => boot += 1,
                Err(LabError::Guest { .. }) => return Err(machine.unfit("no TPM".to_owned())),
                Err(error) => return Err(error),
            }
        }
    }
}

/// $IMASTAGE_LAB, or `target/lab` of the workspace that this program was built in.
fn default_cache() -> PathBuf {
    match env::var_os("IMASTAGE_LAB") {
        Some(cache) => cache.into(),
        None => workspace().join("target/lab"),
    }
}

/// The workspace that this program was built in.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The `imastage` of the same build, rebuilt if a source is newer: cargo has no dependencies on
/// programs of other crates.
fn imastage(lab: &Path) -> Result<PathBuf, LabError> {
    let dir = lab.canonicalize().at(lab)?;
    let dir = dir.parent().unwrap_or(Path::new("/"));
    let program = dir.join("imastage");
    // `cargo test --workspace` has just built it, with features that a separate build lacks.
    let built = program.metadata().and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
    if newest_source(&workspace().join("crates"))? < built {
        return Ok(program);
    }
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--locked", "--package", "imastage", "--profile", profile]);
    build.current_dir(workspace());
    if let Some(target) = dir.parent() {
        build.arg("--target-dir").arg(target);
    }
    run(&mut build)?;
    Ok(program)
}

/// The newest modification time of the sources of all crates except this one.
fn newest_source(dir: &Path) -> Result<SystemTime, LabError> {
    let mut newest = UNIX_EPOCH;
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        let extension = path.extension().unwrap_or_default();
        if path.is_dir() && !path.ends_with("imastage-lab") {
            newest = newest.max(newest_source(&path)?);
        } else if extension == "rs" || extension == "toml" {
            newest = newest.max(path.metadata().and_then(|meta| meta.modified()).at(&path)?);
        }
    }
    Ok(newest)
}
