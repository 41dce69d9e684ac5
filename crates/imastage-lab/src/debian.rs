//! Debian's archive, and the cache of what is downloaded from it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Doing, LabError},
    process::run,
};

/// Suites of Debian's archive, accessed by apt with its own directories: the system's apt state is
/// neither read nor changed, and root is not needed.
pub struct Debian {
    dir: PathBuf,
}

/// A suite of Debian's archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// A suite of the main archive, such as `sid`.
    Main(&'static str),
    /// A suite of the security archive, such as `bookworm-security`.
    Security(&'static str),
}

/// The suites of Debian 12's kernels.
pub const BOOKWORM: &[Suite] = &[Suite::Main("bookworm"), Suite::Security("bookworm-security")];

/// Verifies the signatures of all suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Debian {
    /// Downloads the package lists of the suites into a directory below `dir`. The archive's
    /// address is that in the system's apt configuration, so that its mirror is used.
    ///
    /// # Errors
    /// [`LabError`] without apt or a network.
    pub fn update(dir: &Path, suites: &[Suite]) -> Result<Debian, LabError> {
        let name: Vec<&str> = suites.iter().map(|suite| suite.name()).collect();
        let dir = dir.join(name.join("+"));
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub)).at(&dir)?;
        }
        let dir = dir.canonicalize().at(&dir)?;
        let system = system_archives();
        let sources: String = suites.iter().map(|suite| suite.source(&system)).collect();
        fs::write(dir.join("debian.sources"), sources).at(&dir)?;
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

    /// The names of all packages that begin with `start`.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn names(&self, start: &str) -> Result<Vec<String>, LabError> {
        let said = run(self.apt("apt-cache").args(["pkgnames", start]))?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn version(&self, package: &str) -> Result<String, LabError> {
        let said = run(self.apt("apt-cache").args(["--no-all-versions", "show", package]))?;
        let version = said.lines().find_map(|line| line.strip_prefix("Version: "));
        version.map(str::to_owned).ok_or_else(|| LabError::Missing {
            what: package.to_owned(),
            how: "Debian's archive has no version of it".to_owned(),
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

impl Suite {
    /// Its name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Main(name) | Suite::Security(name) => name,
        }
    }

    /// Its entry in apt's configuration; `system` is the output of [`system_archives`].
    fn source(self, system: &str) -> String {
        let is_security = matches!(self, Suite::Security(_));
        // Lines are `ORIGIN URI RELEASE`.
        let known = system.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (origin, uri, release) = (words.next()?, words.next()?, words.next()?);
            let fits = origin == "Debian" && release.ends_with("-security") == is_security;
            fits.then(|| uri.to_owned())
        });
        let uri = known.unwrap_or_else(|| match self {
            Suite::Main(_) => "http://deb.debian.org/debian".to_owned(),
            Suite::Security(_) => "http://deb.debian.org/debian-security".to_owned(),
        });
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n\n",
            self.name()
        )
    }
}

/// The archives that the system's apt uses, one `ORIGIN URI RELEASE` per line; empty if it has
/// none, as in a container without package lists.
fn system_archives() -> String {
    let format = "$(ORIGIN) $(REPO_URI) $(RELEASE)";
    let mut apt = Command::new("apt-get");
    run(apt.args(["indextargets", "--format", format, "Created-By: Packages"])).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_uses_the_mirror_of_the_system() {
        let system = "Debian http://mirror.example/debian-security/ bookworm-security\n\
                      Node http://node.example/ nodistro\n\
                      Debian http://mirror.example/debian/ bookworm\n";
        let source = Suite::Main("sid").source(system);
        assert!(source.contains("URIs: http://mirror.example/debian/\nSuites: sid\n"), "{source}");
        let source = Suite::Security("bookworm-security").source(system);
        assert!(source.contains("URIs: http://mirror.example/debian-security/\n"), "{source}");
    }

    #[test]
    fn without_an_archive_of_debian_its_own_address_is_used() {
        let system = "Ubuntu http://archive.example/ubuntu/ noble\n";
        let source = Suite::Main("sid").source(system);
        assert!(source.contains("URIs: http://deb.debian.org/debian\n"), "{source}");
    }
}
