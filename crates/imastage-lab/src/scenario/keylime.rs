//! Keylime's own reader of a list, in a guest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Doing, LabError},
    lab::{Lab, workspace},
    machine::Machine,
    process::run_for_bytes,
};

/// Collects the reader's modules on the host.
const COLLECT: &str = include_str!("keylime/collect.py");
/// Reads a list in the guest.
const FOLLOW: &str = include_str!("keylime/follow.py");
/// The place of that program in the guest.
const PROGRAM: &str = "follow.py";

/// The reader of the last Keylime agent in Python, and the Python that it needs.
pub struct Reader {
    /// Files by their paths in the guest, which are those of the host.
    files: Vec<(String, PathBuf)>,
    python: String,
    search: String,
    /// Holds the files.
    _dir: tempfile::TempDir,
}

impl Reader {
    /// Collects the reader from what scripts/install-keylime has installed; `None` without it.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn collect() -> Result<Option<Reader>, LabError> {
        let peers = workspace().join("target/peers");
        let python = peers.join("bin/python");
        let Ok(peers) = peers.canonicalize() else { return Ok(None) };
        let agent = peers.join("keylime-6.8");
        // Installed last: without it, an installation was interrupted.
        if !python.exists() || !agent.exists() {
            return Ok(None);
        }
        let dir = tempfile::tempdir().doing("temporary directory")?;
        let mut collect = Command::new(&python);
        collect.args(["-c", COLLECT]).arg(dir.path()).env("PYTHONPATH", &agent);
        let said = String::from_utf8_lossy(&run_for_bytes(&mut collect)?).into_owned();
        let [python, packages] = said.lines().collect::<Vec<_>>()[..] else {
            let said = format!("expected two lines, found {said:?}");
            return Err(LabError::Guest { asked: "collect Keylime's reader".to_owned(), said });
        };
        let program = dir.path().join(PROGRAM);
        fs::write(&program, FOLLOW).at(&program)?;
        let mut files = Vec::new();
        walk(dir.path(), dir.path(), &mut files)?;
        files.push((python.trim_start_matches('/').to_owned(), python.into()));
        let search = format!("{}:{packages}", agent.display());
        Ok(Some(Reader { files, python: python.to_owned(), search, _dir: dir }))
    }

    /// A lab whose guests have the reader.
    pub fn installed(&self, lab: Lab) -> Lab {
        self.files.iter().fold(lab, |lab, (path, file)| lab.with_program(path, file.clone()))
    }

    /// Starts the reader on `list`; it appends each entry to the file `seen`, and ends when it is
    /// killed. Returns its process ID.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn start(&self, machine: &mut Machine, list: &str, seen: &str) -> Result<u32, LabError> {
        let Reader { python, search, .. } = self;
        let script = format!("PYTHONPATH={search} exec {python} /{PROGRAM} {list} {seen}");
        machine.start("/bin/busybox", &["sh", "-c", &script])
    }
}

/// The files below `dir`, by their paths relative to `root`.
fn walk(root: &Path, dir: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<(), LabError> {
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        if path.is_dir() {
            walk(root, &path, files)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            files.push((relative.display().to_string(), path));
        }
    }
    Ok(())
}
