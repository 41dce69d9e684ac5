//! Debian 12's archive, and the cache of what is downloaded from it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Doing, LabError},
    process::run,
};

/// Debian 12's archive, accessed by apt with its own directories: the system's apt state is neither
/// read nor changed, and root is not needed.
pub struct Debian {
    dir: PathBuf,
}

const SOURCES: &str = "\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

impl Debian {
    /// Downloads the package lists.
    ///
    /// # Errors
    /// [`LabError`] without apt or a network.
    pub fn update(dir: &Path) -> Result<Debian, LabError> {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub)).at(dir)?;
        }
        let dir = dir.canonicalize().at(dir)?;
        fs::write(dir.join("debian.sources"), SOURCES).at(&dir)?;
        File::create(dir.join("status")).at(&dir)?;
        let debian = Debian { dir };
        run(debian.apt("apt-get").args(["-qq", "update"]))?;
        Ok(debian)
    }

    /// The kernel package that a meta package depends on.
    ///
    /// # Errors
    /// [`LabError`] if the meta package does not exist.
    pub fn image_of(&self, meta: &str) -> Result<String, LabError> {
        let said = run(self.apt("apt-cache").args(["depends", meta]))?;
        let image = said.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        image.map(|rest| format!("linux-image-{rest}")).ok_or_else(|| LabError::Missing {
            what: meta.to_owned(),
            how: "Debian's archive has no kernel under that name".to_owned(),
        })
    }

    /// Downloads a package and unpacks it into a directory.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn unpack(&self, package: &str, into: &Path) -> Result<(), LabError> {
        let download = tempfile::tempdir_in(&self.dir).at(&self.dir)?;
        run(self.apt("apt-get").args(["-qq", "download", package]).current_dir(&download))?;
        for entry in fs::read_dir(&download).at(download.path())? {
            let package = entry.at(download.path())?.path();
            run(Command::new("dpkg-deb").arg("-x").arg(package).arg(into))?;
        }
        Ok(())
    }

    /// An apt command with its own directories.
    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let at = |name: &str| self.dir.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::sourcelist", at("debian.sources")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State", at("")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("")),
            ("APT::Architecture", "amd64".to_owned()),
            // The user _apt has no access to these directories.
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            apt.arg("-o").arg(format!("{option}={value}"));
        }
        apt.env("LC_ALL", "C");
        apt
    }
}

/// A directory of the cache. If missing, `fill` creates its content, and a rename publishes it. A
/// lock serialises concurrent callers.
///
/// # Errors
/// [`LabError`].
pub fn once(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), LabError>,
) -> Result<PathBuf, LabError> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).at(parent)?;
    let lock = File::create(parent.join(".lock")).at(parent)?;
    lock.lock().at(parent)?;
    if !dir.exists() {
        let work = tempfile::tempdir_in(parent).at(parent)?;
        let filled = work.path().join("filled");
        fs::create_dir(&filled).at(&filled)?;
        fill(&filled)?;
        fs::rename(&filled, dir).at(dir)?;
    }
    Ok(dir.to_owned())
}
