//! Kernels that the lab builds from Debian's source packages.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    debian::{BOOKWORM, Debian, Suite, once},
    error::{Doing, LabError},
    process::{find, run},
};

/// How to build a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The series, as in the source package's name: `7.2` of `linux-source-7.2`.
    series: &'static str,
    /// The suites to search for the source package, in this order.
    suites: &'static [Suite],
    /// Configurations in addition to [`BASE`]; everything is built in.
    configs: &'static [&'static str],
}

/// Linux 6.12 with CONFIG_IMA_KEXEC, which Debian's kernels lack.
pub const LINUX_6_12: Recipe = Recipe { series: "6.12", suites: BOOKWORM, configs: &[] };
/// Linux 7.2 with CONFIG_IMA_STAGING.
pub const LINUX_7_2: Recipe = staging("7.2", &[STAGING]);
/// The same without the hash table of measured files: every measurement adds a record.
pub const LINUX_7_2_NO_HTABLE: Recipe = staging("7.2", &[STAGING, NO_HTABLE]);
/// The same with 40 KiB of extra memory for records that are added between load and kexec.
pub const LINUX_7_2_KEXEC_40K: Recipe = staging("7.2", &[STAGING, KEXEC_40K]);
/// The same with KASAN and lockdep.
pub const LINUX_7_2_DEBUG: Recipe = staging("7.2", &[STAGING, DEBUG]);
/// Linux 7.3 with CONFIG_IMA_STAGING.
pub const LINUX_7_3: Recipe = staging("7.3", &[STAGING]);
/// The same; records extend PCR 11, and IMA starts late (`boot_aggregate_late`).
pub const LINUX_7_3_PCR_11: Recipe = staging("7.3", &[STAGING, PCR_11]);

/// The options that every kernel of the lab needs in addition to tinyconfig.
const BASE: &str = include_str!("config/base.config");
const STAGING: &str = include_str!("config/staging.config");
const NO_HTABLE: &str = include_str!("config/no-htable.config");
const KEXEC_40K: &str = include_str!("config/kexec-40k.config");
const PCR_11: &str = include_str!("config/pcr-11.config");
const DEBUG: &str = include_str!("config/debug.config");

/// The suites that can have a kernel with staging: a package enters experimental or sid first, and
/// stays in testing when sid has the next series.
const NEW: &[Suite] = &[Suite::Main("sid"), Suite::Main("experimental"), Suite::Main("testing")];

const fn staging(series: &'static str, configs: &'static [&'static str]) -> Recipe {
    Recipe { series, suites: NEW, configs }
}

/// Builds a kernel, unless `dir` exists. The first kernel of a series takes about 10 minutes of
/// processor time, a further one with another configuration a fraction of that. Source and objects
/// stay in the cache (2 GiB).
///
/// # Errors
/// [`LabError`].
pub fn build(recipe: Recipe, cache: &Path, dir: &Path) -> Result<(), LabError> {
    for (program, package) in
        [("make", "make"), ("gcc", "gcc"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc")]
    {
        find(program, package)?;
    }
    once(dir, |kept| {
        let source = Source::find(recipe, &cache.join("apt"))?;
        let tree = source.unpacked(cache)?;
        configure(recipe, &tree)?;
        progress(&format!("building {} {}", source.package, source.version));
        run(&mut make(&tree, "bzImage"))?;
        for (built, name) in [("arch/x86/boot/bzImage", "vmlinuz"), (".config", "config")] {
            fs::copy(tree.join(built), kept.join(name)).at(&tree)?;
        }
        let modules = kept.join("modules");
        fs::create_dir(&modules).at(&modules)?;
        let package = format!("{} {}", source.package, source.version);
        fs::write(kept.join("package"), package).at(kept)
    })
    .map(drop)
}

/// A source package of a kernel.
struct Source {
    debian: Debian,
    package: String,
    version: String,
}

impl Source {
    /// Finds the recipe's series, or, if the suites no longer have it, the oldest later series.
    fn find(recipe: Recipe, apt: &Path) -> Result<Source, LabError> {
        const START: &str = "linux-source-";
        let wanted = format!("{START}{}", recipe.series);
        let mut later = Vec::new();
        for suite in recipe.suites {
            progress(&format!("searching {} for {wanted}", suite.name()));
            let debian = Debian::update(apt, &[*suite])?;
            let names = debian.names(START)?;
            if names.contains(&wanted) {
                let version = debian.version(&wanted)?;
                return Ok(Source { debian, package: wanted, version });
            }
            let newer = names.into_iter().filter_map(|name| {
                let series = series(name.strip_prefix(START)?)?;
                (Some(series) > self::series(recipe.series)).then_some((series, name, *suite))
            });
            later.extend(newer);
        }
        let Some((_, package, suite)) = later.into_iter().min_by_key(|(series, ..)| *series) else {
            let suites: Vec<&str> = recipe.suites.iter().map(|suite| suite.name()).collect();
            return Err(LabError::Missing {
                what: wanted,
                how: format!("neither it nor a later series is in {}", suites.join(", ")),
            });
        };
        // Not only for terminals: results of another series must not be taken for this one's.
        let said = format!("{wanted} is no longer in the archive: using {package}");
        let _ = writeln!(io::stderr(), "imastage-lab: {said}");
        let debian = Debian::update(apt, &[suite])?;
        let version = debian.version(&package)?;
        Ok(Source { debian, package, version })
    }

    /// The source tree in the cache.
    fn unpacked(&self, cache: &Path) -> Result<PathBuf, LabError> {
        // A colon (epoch) or a tilde in the version would need quoting in make.
        let name = format!("{}_{}", self.package, self.version).replace([':', '~'], "-");
        once(&cache.join("trees").join(name), |tree| {
            progress(&format!("downloading {} {}", self.package, self.version));
            let work = tempfile::tempdir_in(cache).at(cache)?;
            self.debian.unpack(&self.package, work.path())?;
            let packed = work.path().join(format!("usr/src/{}.tar.xz", self.package));
            run(Command::new("tar").arg("-xf").arg(packed).arg("-C").arg(tree).arg("--strip=1"))
                .map(drop)
        })
    }
}

/// `7.2` as numbers, to compare series; `None` for packages such as `linux-source-7.2-rt`.
fn series(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Configures a tree: tinyconfig and the recipe's options. An option that this kernel lacks or
/// refuses is an error: the kernel would not be what its name says.
fn configure(recipe: Recipe, tree: &Path) -> Result<(), LabError> {
    let wanted = [BASE, &recipe.configs.concat()].concat();
    let added = tree.join("lab.config");
    fs::write(&added, &wanted).at(&added)?;
    run(&mut make(tree, "tinyconfig"))?;
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    run(merge.args(["-m", ".config", "lab.config"]).current_dir(tree))?;
    run(&mut make(tree, "olddefconfig"))?;
    let path = tree.join(".config");
    let config = fs::read_to_string(&path).at(&path)?;
    let lost = recipe.configs.iter().flat_map(|config| config.lines());
    let lost: Vec<&str> =
        lost.filter(|option| !config.lines().any(|line| line == *option)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    Err(LabError::Missing {
        what: lost.join(", "),
        how: format!("linux-source-{} does not have or accept it", recipe.series),
    })
}

fn make(tree: &Path, target: &str) -> Command {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.args(["--silent", &format!("--jobs={jobs}"), target]).current_dir(tree);
    make
}

/// Reports a step that takes minutes, on a terminal.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "imastage-lab: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_compared_as_numbers() {
        assert!(series("7.10") > series("7.9"));
        assert_eq!(series("7.2-rt"), None);
        assert_eq!(series("all"), None);
    }
}
