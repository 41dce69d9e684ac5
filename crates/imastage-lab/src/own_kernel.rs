//! The lab's own kernel, built from Debian's source.

use std::{fs, path::Path, process::Command};

use crate::{
    debian::{Debian, once},
    error::{Doing, LabError},
    process::{find, run},
};

/// The Debian package with the source.
const SOURCE: &str = "linux-source-6.12";
/// Options that the lab needs in addition to tinyconfig; everything is built in.
const CONFIG: &str = include_str!("own_kernel.config");

/// Builds a kernel with CONFIG_IMA_KEXEC, which Debian's kernels lack, unless `dir` exists. Takes
/// about 5 minutes.
///
/// # Errors
/// [`LabError`].
pub fn build(cache: &Path, dir: &Path) -> Result<(), LabError> {
    for (program, package) in
        [("make", "make"), ("gcc", "gcc"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc")]
    {
        find(program, package)?;
    }
    once(dir, |kept| {
        let work = tempfile::tempdir_in(cache).at(cache)?;
        Debian::update(&cache.join("apt"))?.unpack(SOURCE, work.path())?;
        let packed = work.path().join(format!("usr/src/{SOURCE}.tar.xz"));
        let tree = work.path().join("tree");
        fs::create_dir(&tree).at(&tree)?;
        run(Command::new("tar").arg("-xf").arg(packed).arg("-C").arg(&tree).arg("--strip=1"))?;
        let added = tree.join("lab.config");
        fs::write(&added, CONFIG).at(&added)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let make = |target: &str| {
            let mut make = Command::new("make");
            make.args(["--silent", &format!("--jobs={jobs}"), target]).current_dir(&tree);
            make
        };
        run(&mut make("tinyconfig"))?;
        let mut merge = Command::new("scripts/kconfig/merge_config.sh");
        run(merge.args(["-m", ".config", "lab.config"]).current_dir(&tree))?;
        run(&mut make("olddefconfig"))?;
        run(&mut make("bzImage"))?;
        for (built, name) in [("arch/x86/boot/bzImage", "vmlinuz"), (".config", "config")] {
            fs::copy(tree.join(built), kept.join(name)).at(&tree)?;
        }
        let modules = kept.join("modules");
        fs::create_dir(&modules).at(&modules)?;
        fs::write(kept.join("package"), SOURCE).at(kept)
    })
    .map(drop)
}
