//! The files of a machine.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use imastage_source::DEFAULT_DIR;
use imastage_tpm::Endpoint;

use crate::finding::Examination;

/// The examined files, below one root.
pub(crate) struct Machine {
    root: PathBuf,
    /// The directory with the list's files.
    pub(crate) source: PathBuf,
    /// Whether that is the kernel's own directory and not a sandbox's, so that the kernel's
    /// configuration and command line matter.
    pub(crate) is_kernel: bool,
    pub(crate) tpm: Option<Endpoint>,
}

/// The kernel's command line.
pub(crate) struct Options(String);

/// The kernel's configuration (`/boot/config-RELEASE` or `/proc/config.gz`).
pub(crate) struct Config {
    text: String,
    pub(crate) path: PathBuf,
}

/// A mount (proc(5), `/proc/PID/mountinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) is_read_only: bool,
}

/// The maximum size of a file that is read here.
const LONGEST: u64 = 4 << 20;

const SECURITYFS_MAGIC: u64 = 0x7363_6673;

impl Machine {
    pub(crate) fn new(examination: &Examination) -> Machine {
        let root = examination.root.clone();
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let (source, is_kernel) = match &examination.source {
            None => (below(DEFAULT_DIR), true),
            Some(source) => {
                let kind = rustix::fs::statfs(source).map(|found| found.f_type);
                // Signed or not, as wide or wider: that differs between architectures.
                #[allow(clippy::unnecessary_cast)]
                let is_kernel = kind.is_ok_and(|kind| kind as u64 == SECURITYFS_MAGIC);
                (source.clone(), is_kernel)
            }
        };
        Machine { root, source, is_kernel, tpm: examination.tpm.clone() }
    }

    /// The place of an absolute path of the machine.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The path on the machine itself.
    pub(crate) fn name(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.root) {
            Ok(rest) => Path::new("/").join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// A small text file; bytes that are not UTF-8 are replaced.
    pub(crate) fn text(&self, absolute: &str) -> io::Result<String> {
        read_text(&self.path(absolute))
    }

    /// The first word of a file of one value, such as those of sysfs.
    pub(crate) fn value(&self, absolute: &str) -> Option<String> {
        let text = self.text(absolute).ok()?;
        text.split_whitespace().next().map(ToOwned::to_owned)
    }

    /// The files of a directory by name; none if it cannot be read.
    pub(crate) fn files(&self, absolute: &str) -> Vec<PathBuf> {
        entries(&self.path(absolute))
    }

    pub(crate) fn release(&self) -> Option<String> {
        self.value("/proc/sys/kernel/osrelease")
    }

    pub(crate) fn options(&self) -> io::Result<Options> {
        self.text("/proc/cmdline").map(Options)
    }

    pub(crate) fn config(&self) -> Option<Config> {
        if let Some(release) = self.release() {
            for dir in ["/boot/config-", "/usr/lib/modules/", "/lib/modules/"] {
                let tail = if dir == "/boot/config-" { "" } else { "/config" };
                let path = self.path(&format!("{dir}{release}{tail}"));
                if let Ok(text) = read_text(&path) {
                    return Some(Config { text, path: self.name(&path) });
                }
            }
        }
        let path = self.path("/proc/config.gz");
        let mut text = String::new();
        GzDecoder::new(File::open(&path).ok()?).take(LONGEST).read_to_string(&mut text).ok()?;
        Some(Config { text, path: self.name(&path) })
    }

    /// The mounts, as far as they can be read.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let text = self.text("/proc/self/mountinfo").unwrap_or_default();
        text.lines().filter_map(mount).collect()
    }

    /// All process IDs.
    pub(crate) fn processes(&self) -> Vec<(u32, PathBuf)> {
        let number = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
        self.files("/proc").into_iter().filter_map(number).collect()
    }
}

impl Options {
    /// The value of the last `name=value`, without quotes.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let values = self.words().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.last().map(|value| value.trim_matches('"'))
    }

    /// Whether the word `name` exists.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.words().any(|word| word == name)
    }

    /// Blanks between quotes do not separate words; words after `--` are for the first process.
    fn words(&self) -> impl Iterator<Item = &str> {
        let mut quoted = false;
        let words = self.0.split(move |c: char| {
            quoted ^= c == '"';
            c.is_whitespace() && !quoted
        });
        words.filter(|word| !word.is_empty()).take_while(|word| *word != "--")
    }
}

impl Config {
    /// Whether `CONFIG_<name>` is built in.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        let setting = |line: &str| {
            line.strip_prefix("CONFIG_").and_then(|line| line.strip_prefix(name)) == Some("=y")
        };
        self.text.lines().any(setting)
    }
}

/// A small text file; bytes that are not UTF-8 are replaced.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The files of a directory by name; none if it cannot be read.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn mount(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(4);
    let (point, options) = (place.next()?, place.next()?);
    let mut what = what.split(' ');
    let (kind, super_options) = (what.next()?, what.nth(1).unwrap_or_default());
    let mut options = options.split(',').chain(super_options.split(','));
    Some(Mount {
        point: point.replace("\\040", " ").into(),
        kind: kind.to_owned(),
        is_read_only: options.any(|option| option == "ro"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_quotes_hold_words_together() {
        let line = "quiet ima_hash=sha1 ima_policy=\"tcb|critical_data x\" ima_hash=sha256 \
                    ima_flush_htable -- ima_canonical_fmt\n";
        let options = Options(line.into());
        assert_eq!(options.value("ima_hash"), Some("sha256"));
        assert_eq!(options.value("ima_policy"), Some("tcb|critical_data x"));
        assert_eq!(options.value("ima"), None);
        assert!(options.has("ima_flush_htable") && options.has("quiet"));
        assert!(!options.has("ima_canonical_fmt") && !options.has("ima_hash"));
    }

    #[test]
    fn mounts_are_read() {
        let line = "27 23 0:7 / /sys/kernel/security ro,nosuid shared:9 - securityfs securityfs rw";
        let expected = Mount {
            point: "/sys/kernel/security".into(),
            kind: "securityfs".into(),
            is_read_only: true,
        };
        assert_eq!(mount(line), Some(expected));
        assert_eq!(mount("27 23 0:7 / /sys - securityfs"), None);
        assert_eq!(mount(""), None);
    }

    #[test]
    fn settings_are_whole_words() {
        let text = "CONFIG_IMA=y\n# CONFIG_IMA_KEXEC is not set\nCONFIG_IMA_X=m\n".to_owned();
        let config = Config { text, path: PathBuf::new() };
        assert!(config.is_set("IMA"));
        assert!(!config.is_set("IMA_KEXEC") && !config.is_set("IMA_X") && !config.is_set("I"));
    }
}
