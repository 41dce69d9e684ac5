//! The cases, run on the sandbox.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use imastage_conformance::{Counts, Group, Options, RunError, Verdict, run};
use imastage_sandbox::{
    Config, Sandbox, TpmChoice,
    control::{Command as Ask, ask},
};

/// `None`, loudly, where FUSE cannot be had.
fn conform(destructive: bool) -> Option<Result<(Counts, Vec<Group>), RunError>> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    // Others must reach the files, to be refused there.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = dir.path().join("ima");
    let config = Config { mount: mount.clone(), tpm: TpmChoice::None };
    let sandbox = Sandbox::start(&config).unwrap();
    let measure = |paths: &[PathBuf]| {
        ask(&mount, &Ask::Measure { paths: paths.to_vec() }, &mut |_| {}).map(drop)
    };
    let mut groups = Vec::new();
    let options = Options { dir: &mount, measure: &measure, destructive };
    let counts = run(&options, &mut |group| groups.push(group.clone()));
    sandbox.stop();
    Some(counts.map(|counts| (counts, groups)))
}

/// The names of the cases that failed, with expected and got.
fn failures(groups: &[Group]) -> Vec<String> {
    let cases = groups.iter().flat_map(|group| group.cases.iter().map(move |case| (group, case)));
    cases
        .filter_map(|(group, case)| match &case.verdict {
            Verdict::Failed { expected, got } => {
                Some(format!("{} {}: expected {expected}, got {got}", group.rule, case.name))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn the_sandbox_passes() {
    let Some(result) = conform(true) else { return };
    let (counts, groups) = result.unwrap();
    assert_eq!(failures(&groups), [""; 0]);
    assert_eq!(counts.failed, 0);
    assert!(counts.passed > 400, "{counts:?}");
}

#[test]
fn records_are_not_deleted_unless_that_is_wanted() {
    let Some(result) = conform(false) else { return };
    let error = result.unwrap_err();
    // The boot_aggregate is there at least.
    assert!(matches!(error, RunError::WouldDelete { records: 1.., .. }), "{error}");
}
