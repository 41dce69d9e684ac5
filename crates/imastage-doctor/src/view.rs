//! The view: whether it can be read.

use std::{fs, path::Path};

use crate::{
    finding::{
        Finding,
        Severity::{Ok as Fine, Problem, Unknown},
    },
    machine::Machine,
};

pub(crate) fn examine(machine: &Machine, view: &Path, findings: &mut Vec<Finding>) {
    let check = "view.mount";
    let Ok(view) = std::path::absolute(view) else { return };
    let place = machine.path(&view.to_string_lossy());
    let shown = view.display();
    let unusable = "agents that read the view get an error, and their verifiers fail";
    if imastage_mount::is_dead(&place) {
        let found = format!("{shown} is a FUSE mount whose server is gone");
        let finding = Finding::new(check, Problem, found)
            .why(unusable)
            .fix("start the service, which takes it over (imastage run --view), or unmount it:")
            .lines([format!("umount -l {shown}")]);
        findings.push(finding);
        return;
    }
    let mut entries = match fs::read_dir(&place) {
        Ok(entries) => entries,
        // The view does not exist yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let finding = Finding::new(check, Unknown, format!("{shown}: cannot look: {error}"))
                .why("whether agents that read the view are answered is not known")
                .fix("run as root, or as a member of the view's group");
            findings.push(finding);
            return;
        }
        Err(error) => {
            let finding = Finding::new(check, Problem, format!("{shown}: {error}"))
                .why("the view is mounted on a directory")
                .fix("give an empty directory with --view");
            findings.push(finding);
            return;
        }
    };
    let is_view = place.join("binary_runtime_measurements").exists();
    if is_view {
        findings.push(Finding::new(check, Fine, format!("{shown} shows a list")));
    } else if entries.next().is_some() {
        let finding = Finding::new(check, Problem, format!("{shown}: there are files in it"))
            .why("the service does not start: the view would hide them")
            .fix("give an empty directory with --view");
        findings.push(finding);
    }
}
