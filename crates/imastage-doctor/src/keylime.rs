//! The list that keylime's agent reads.
//!
//! Source: rust-keylime's configuration: files in the order below, the later ones with higher
//! precedence, and an environment variable, which has the highest.

use std::path::{Path, PathBuf};

use crate::{
    finding::{
        Finding,
        Severity::{self, Note, Ok as Fine},
        pointing,
    },
    machine::{Machine, entries, read_text},
};

/// The environment variable with precedence over the files.
pub(crate) const VARIABLE: &str = "KEYLIME_AGENT_IMA_ML_PATH=";
const KEY: &str = "ima_ml_path";
const SECTION: &str = "[agent]";
const DROP_IN: &str = "/etc/keylime/agent.conf.d/imastage.conf";

/// A setting and its file.
struct Setting {
    value: String,
    path: PathBuf,
    is_variable: bool,
}

pub(crate) fn examine(
    machine: &Machine,
    severity: Severity,
    view: &Path,
    findings: &mut Vec<Finding>,
) {
    let check = "agents.keylime";
    let files = files(machine);
    let units = units(machine);
    if files.is_empty() && units.is_empty() {
        return;
    }
    let mut setting = None;
    for path in files {
        if let Some(value) = read_text(&path).ok().and_then(|text| in_file(&text)) {
            setting = Some(Setting { value, path, is_variable: false });
        }
    }
    for path in units {
        if let Some(value) = read_text(&path).ok().and_then(|text| in_unit(&text)) {
            setting = Some(Setting { value, path, is_variable: true });
        }
    }
    let list = view.join("ascii_runtime_measurements");
    let value = setting.as_ref().map_or("default", |setting| setting.value.as_str());
    let is_kernels = matches!(value, "default" | "")
        || Path::new("/").join(value).starts_with("/sys/kernel/security");
    if !is_kernels {
        let found = format!("keylime's agent reads {value}");
        findings.push(if Path::new(value).starts_with(view) {
            Finding::new(check, Fine, found)
        } else {
            Finding::new(check, Note, found)
                .why("that is neither the kernel's list nor the view")
                .fix(format!("if it should be the view: {}", list.display()))
        });
        return;
    }
    let finding = pointing(check, severity, "keylime's agent reads the kernel's list".to_owned());
    let value_line = format!("{KEY} = \"{}\"", list.display());
    findings.push(match setting {
        Some(Setting { path, is_variable: true, .. }) => finding
            .fix(format!("have {} say this, and restart it:", machine.name(&path).display()))
            .lines([format!("Environment={VARIABLE}{}", list.display())]),
        Some(Setting { path, .. }) => finding
            .fix(format!(
                "in section {SECTION} of {}, have it say this, and restart it:",
                machine.name(&path).display()
            ))
            .lines([value_line]),
        None => finding
            .fix(format!("write {DROP_IN}, and restart it:"))
            .lines([SECTION.to_owned(), value_line]),
    });
}

fn files(machine: &Machine) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in ["/usr/etc/keylime", "/etc/keylime"] {
        files.push(machine.path(&format!("{dir}/agent.conf")));
        files.extend(machine.files(&format!("{dir}/agent.conf.d")));
    }
    // Of older versions of the agent in Rust.
    files.push(machine.path("/etc/keylime-agent.conf"));
    files.retain(|path| path.is_file());
    files
}

/// The agent's units and their drop-ins; later directories have precedence.
fn units(machine: &Machine) -> Vec<PathBuf> {
    const DIRS: [&str; 4] = [
        "/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/run/systemd/system",
        "/etc/systemd/system",
    ];
    let is_agent = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("keylime") && name.contains("agent")
    };
    let found = DIRS.iter().flat_map(|dir| machine.files(dir)).filter(is_agent);
    found.flat_map(|path| if path.is_dir() { entries(&path) } else { vec![path] }).collect()
}

/// The last value of the key in any section; the key exists in one only.
fn in_file(text: &str) -> Option<String> {
    let value = |line: &str| {
        let value = line.trim_start().strip_prefix(KEY)?.trim_start().strip_prefix('=')?.trim();
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            // Older versions write it without quotes.
            None => value.split('#').next()?.trim(),
        };
        Some(value.to_owned())
    };
    text.lines().filter_map(value).next_back()
}

fn in_unit(text: &str) -> Option<String> {
    let value = |line: &str| {
        let rest = line.trim_start().strip_prefix("Environment=")?;
        let (_, value) = rest.split_once(VARIABLE)?;
        let end = value.find(|c: char| c.is_whitespace() || c == '"' || c == '\'');
        Some(value[..end.unwrap_or(value.len())].to_owned())
    };
    text.lines().filter_map(value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found() {
        let text =
            "[agent]\n# ima_ml_path = \"/no\"\nima_ml_path = \"/a b\" # why\nima_ml_paths = 1\n";
        assert_eq!(in_file(text).as_deref(), Some("/a b"));
        assert_eq!(in_file("ima_ml_path=default").as_deref(), Some("default"));
        assert_eq!(in_file("[agent]\n"), None);
        let unit = "[Service]\nEnvironment=\"RUST_LOG=info\" \"KEYLIME_AGENT_IMA_ML_PATH=/x/y\"\n";
        assert_eq!(in_unit(unit).as_deref(), Some("/x/y"));
        assert_eq!(in_unit("#Environment=KEYLIME_AGENT_IMA_ML_PATH=/x\n"), None);
    }
}
