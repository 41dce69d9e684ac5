//! The initramfs of a guest.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Read},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cpio::Archive,
    error::{Doing, LabError},
    guest::MODULES,
    kernel::Kernel,
    process::{find, libraries, run},
};

/// Programs and other files of the host to copy into a guest, with the libraries that programs load.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This crate's program: the guest's init.
    pub lab: PathBuf,
    /// Further programs and files, by their path in the guest.
    pub others: Vec<(String, PathBuf)>,
}

/// Writes the initramfs of a guest.
///
/// # Errors
/// [`LabError`].
pub fn write(path: &Path, kernel: &Kernel, programs: &Programs) -> Result<(), LabError> {
    let scratch = tempfile::tempdir().doing("temporary directory")?;
    let mut tree = Tree { files: Vec::new(), dirs: BTreeSet::new() };
    for dir in
        ["dev", "proc", "sys", "sys/kernel/security", "tmp", "run", "var/lib", "lab", MODULES]
    {
        tree.dir(dir);
    }
    let init = ("init".to_owned(), programs.lab.clone());
    for (name, program) in std::iter::once(&init).chain(&programs.others) {
        if !is_elf(program)? {
            tree.add(name, 0o755, program.clone());
            continue;
        }
        // Numbered: programs in different directories can have one name.
        let slim = stripped(program, &scratch.path().join(tree.files.len().to_string()))?;
        tree.add(name, 0o755, slim);
        for (wanted, library) in libraries(program)? {
            // The loader has a fixed path; libraries go into a directory that the loader searches.
            let wanted =
                wanted.strip_prefix('/').map_or_else(|| format!("lib/{wanted}"), str::to_owned);
            tree.add(&wanted, 0o755, library);
        }
    }
    let busybox = find("busybox", "busybox-static")?;
    if !libraries(&busybox)?.is_empty() {
        return Err(LabError::Missing {
            what: "a static busybox".to_owned(),
            how: "apt-get install busybox-static".to_owned(),
        });
    }
    tree.add("bin/busybox", 0o755, busybox);
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        tree.add(&format!("{MODULES}/{name}"), 0o644, module.clone());
    }
    tree.write(path)
}

/// Whether a file is a program or library with sections that can be stripped, not a script or data.
fn is_elf(path: &Path) -> Result<bool, LabError> {
    let mut magic = [0; 4];
    let read = File::open(path).at(path)?.read(&mut magic).at(path)?;
    Ok(magic[..read] == *b"\x7fELF")
}

/// Strips debug information into the file `slim`: the guest hashes every program it executes, under
/// emulation.
fn stripped(program: &Path, slim: &Path) -> Result<PathBuf, LabError> {
    let Ok(strip) = find("strip", "binutils") else { return Ok(program.to_owned()) };
    run(Command::new(strip).arg("-o").arg(slim).arg(program))?;
    Ok(slim.to_owned())
}

struct Tree {
    files: Vec<(String, u32, PathBuf)>,
    dirs: BTreeSet<String>,
}

impl Tree {
    /// Adds a directory and its parents.
    fn dir(&mut self, name: &str) {
        let ancestors = Path::new(name).ancestors().filter(|dir| !dir.as_os_str().is_empty());
        self.dirs.extend(ancestors.map(|dir| dir.display().to_string()));
    }

    /// Adds a file, unless the name exists.
    fn add(&mut self, name: &str, permissions: u32, content: PathBuf) {
        if self.files.iter().all(|(known, ..)| known != name) {
            if let Some(dir) = Path::new(name).parent() {
                self.dir(&dir.display().to_string());
            }
            self.files.push((name.to_owned(), permissions, content));
        }
    }

    fn write(self, path: &Path) -> Result<(), LabError> {
        let mut archive = Archive::new(BufWriter::new(File::create(path).at(path)?));
        // Sorted: parents come first.
        for dir in &self.dirs {
            archive.dir(dir).at(path)?;
        }
        archive.device("dev/console", 5, 1).at(path)?;
        for applet in ["sh", "ls", "cat", "dmesg", "ps", "mount", "cp", "mv", "rm", "stat", "head"]
        {
            archive.link(&format!("bin/{applet}"), "busybox").at(path)?;
        }
        for (name, permissions, content) in &self.files {
            let content = fs::read(content).at(content)?;
            archive.file(name, *permissions, &content).at(path)?;
        }
        archive.finish().at(path)
    }
}
