//! Kernels that the lab can boot: downloaded from Debian's archive, or built by the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    built::{self, Recipe},
    debian::{BOOKWORM, Debian, once},
    error::{Doing, LabError},
    process::{find, run_for_bytes},
};

/// The name of a kernel that the lab can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelName {
    /// Its name in the lab.
    pub name: &'static str,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Downloaded: the Debian meta package of its newest version.
    Debian(&'static str),
    /// Built by the lab.
    Built(Recipe),
}

/// All kernels: Debian's, with those used in tests first, then those that the lab builds.
pub const KERNELS: [KernelName; 11] = [
    debian("6.1-cloud", "linux-image-cloud-amd64"),
    debian("6.12-cloud", "linux-image-6.12-cloud-amd64"),
    debian("6.1", "linux-image-amd64"),
    debian("6.12", "linux-image-6.12-amd64"),
    built("6.12-lab", built::LINUX_6_12),
    built("7.2-staging", built::LINUX_7_2),
    built("7.2-no-htable", built::LINUX_7_2_NO_HTABLE),
    built("7.2-kexec-40k", built::LINUX_7_2_KEXEC_40K),
    built("7.2-debug", built::LINUX_7_2_DEBUG),
    built("7.3-staging", built::LINUX_7_3),
    built("7.3-pcr-11", built::LINUX_7_3_PCR_11),
];

const fn debian(name: &'static str, meta: &'static str) -> KernelName {
    KernelName { name, origin: Origin::Debian(meta) }
}

const fn built(name: &'static str, recipe: Recipe) -> KernelName {
    KernelName { name, origin: Origin::Built(recipe) }
}

/// Modules that the guest needs unless they are built in, in any order.
const MODULES: [&str; 6] =
    ["virtio_pci", "virtio_console", "virtio_blk", "crc32c_generic", "ext4", "fuse"];

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name in the lab.
    pub name: String,
    /// The package it is from, with the version if the lab built it.
    pub package: String,
    /// Whether kexec passes the list to the next kernel (CONFIG_IMA_KEXEC).
    pub carries_list: bool,
    /// Whether records can be staged and deleted (CONFIG_IMA_STAGING).
    pub stages: bool,
    /// Whether the kernel recognises files measured before (CONFIG_IMA_DISABLE_HTABLE is not set).
    pub hash_table: bool,
    /// The PCR that records extend (CONFIG_IMA_MEASURE_PCR_IDX).
    pub pcr: u32,
    /// The kernel image.
    pub image: PathBuf,
    /// Modules, in load order.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// Finds a kernel by name; downloads it into the cache if needed.
    ///
    /// # Errors
    /// [`LabError`]; [`LabError::Missing`] if the lab has to build it first.
    pub fn get(cache: &Path, name: &str) -> Result<Kernel, LabError> {
        let known = KernelName::find(name)?;
        let dir = cache.join("kernels").join(name);
        match known.origin {
            Origin::Debian(meta) => once(&dir, |filled| download(cache, meta, filled)).map(drop)?,
            Origin::Built(_) if dir.exists() => {}
            Origin::Built(_) => {
                return Err(LabError::Missing {
                    what: format!("kernel {name}"),
                    how: format!("run make lab-kernel KERNEL={name} (5 to 10 minutes)"),
                });
            }
        }
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).at(&path)
        };
        let config = read("config")?;
        let is_set = |option: &str| config.lines().any(|line| line == format!("{option}=y"));
        let value = |option: &str| {
            config.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='))
        };
        Ok(Kernel {
            name: name.to_owned(),
            package: read("package")?.trim().to_owned(),
            carries_list: is_set("CONFIG_IMA_KEXEC"),
            stages: is_set("CONFIG_IMA_STAGING"),
            hash_table: !is_set("CONFIG_IMA_DISABLE_HTABLE"),
            pcr: value("CONFIG_IMA_MEASURE_PCR_IDX").and_then(|pcr| pcr.parse().ok()).unwrap_or(10),
            image: dir.join("vmlinuz"),
            modules: sorted_files(&dir.join("modules"))?,
        })
    }

    /// Builds a kernel, unless it is in the cache.
    ///
    /// # Errors
    /// [`LabError`]; [`LabError::Missing`] if the lab does not build this kernel.
    pub fn build(cache: &Path, name: &str) -> Result<Kernel, LabError> {
        match KernelName::find(name)?.origin {
            Origin::Built(recipe) => {
                built::build(recipe, cache, &cache.join("kernels").join(name))?;
                Kernel::get(cache, name)
            }
            Origin::Debian(_) => Err(LabError::Missing {
                what: format!("a recipe for kernel {name}"),
                how: "Debian's own kernels are downloaded when they are needed".to_owned(),
            }),
        }
    }
}

impl KernelName {
    /// Whether the lab builds this kernel.
    pub fn is_built(&self) -> bool {
        matches!(self.origin, Origin::Built(_))
    }

    fn find(name: &str) -> Result<&'static KernelName, LabError> {
        const ALL: &[KernelName] = &KERNELS;
        ALL.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
            let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
            LabError::Missing {
                what: format!("kernel {name}"),
                how: format!("known kernels: {}", names.join(", ")),
            }
        })
    }
}

fn sorted_files(dir: &Path) -> Result<Vec<PathBuf>, LabError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        files.push(entry.at(dir)?.path());
    }
    files.sort();
    Ok(files)
}

fn download(cache: &Path, meta: &str, kept: &Path) -> Result<(), LabError> {
    let debian = Debian::update(&cache.join("apt"), BOOKWORM)?;
    let package = debian.image_of(meta)?;
    let unpacked = tempfile::tempdir_in(cache).at(cache)?;
    debian.unpack(&package, unpacked.path())?;

    let modules = kept.join("modules");
    fs::create_dir_all(&modules).at(&modules)?;
    for file in sorted_files(&unpacked.path().join("boot"))? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        for wanted in ["vmlinuz", "config"] {
            if name.starts_with(wanted) {
                fs::copy(&file, kept.join(wanted)).at(&file)?;
            }
        }
    }
    fs::write(kept.join("package"), &package).at(kept)?;
    let mut available = Vec::new();
    module_files(&unpacked.path().join("lib/modules"), &mut available)?;
    let mut order = Vec::new();
    for name in MODULES {
        with_dependencies(name, &available, &mut order)?;
    }
    for (place, (name, content)) in order.iter().enumerate() {
        let path = modules.join(format!("{place:02}-{name}.ko"));
        fs::write(&path, content).at(&path)?;
    }
    Ok(())
}

fn module_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), LabError> {
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        if entry.file_type().at(dir)?.is_dir() {
            module_files(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Appends a module after its dependencies, except for those already listed or built in.
fn with_dependencies(
    name: &str,
    available: &[PathBuf],
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), LabError> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let Some(path) = available.iter().find(|path| module_name(path).as_deref() == Some(name))
    else {
        return Ok(());
    };
    let content = if path.extension().is_some_and(|extension| extension == "xz") {
        run_for_bytes(Command::new(find("xz", "xz-utils")?).arg("-dc").arg(path))?
    } else {
        fs::read(path).at(path)?
    };
    for dependency in dependencies(&content) {
        with_dependencies(&dependency, available, order)?;
    }
    order.push((name.to_owned(), content));
    Ok(())
}

/// The name of a module file; file names may have dashes for the underscores of module names.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// The dependencies of a module: `depends=a,b` in its NUL-terminated strings (`.modinfo`).
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let text = String::from_utf8_lossy(&rest[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"..\0license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["virtio", "virtio_ring"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"none").is_empty());
        assert_eq!(module_name(Path::new("a/virtio-rng.ko.xz")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
