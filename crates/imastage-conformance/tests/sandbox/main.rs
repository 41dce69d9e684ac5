//! The conformance cases, run against the sandbox and its faults.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod faults;
mod locked;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use imastage_conformance::{
    Counts, Dialect, Duplicates, Group, Listed, Measure, Options, RunError, Step, Verdict, detect,
    list, run,
};
use imastage_sandbox::{
    Config, Fault, Hazard, Kexec, Sandbox, TpmChoice,
    control::{Command as Ask, ask},
};

/// A program that can be a helper process.
const HELPER: &str = env!("CARGO_BIN_EXE_imastage-conformance");

/// Waits until no other test runs cases. A run starts helper processes, and each inherits all open
/// files of this program until execve(2): those of another run would stay open.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sandbox, and the cases to run on it.
struct Run {
    dialect: Dialect,
    duplicates: Duplicates,
    tpm: TpmChoice,
    fault: Option<Fault>,
    rule: Option<&'static str>,
    destructive: bool,
    hazards: Vec<Hazard>,
    try_hazards: bool,
    critical_data: bool,
    /// Whether the machine can be restarted, which unlocks its list.
    restarts: bool,
}

impl Run {
    fn of(dialect: Dialect) -> Run {
        Run {
            dialect,
            duplicates: Duplicates::Detect,
            tpm: TpmChoice::None,
            fault: None,
            rule: None,
            destructive: true,
            hazards: Vec::new(),
            try_hazards: false,
            critical_data: false,
            restarts: true,
        }
    }
}

/// Runs the cases; `None`, with a message, if /dev/fuse cannot be opened.
fn conform(of: &Run) -> Option<Result<(Counts, Vec<Group>), RunError>> {
    conform_after(of, |_| Vec::new())
}

/// As [`conform`], with the files open that `before` returns.
fn conform_after(
    of: &Run,
    before: impl FnOnce(&Path) -> Vec<fs::File>,
) -> Option<Result<(Counts, Vec<Group>), RunError>> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // Other users must reach the files, so that the file modes refuse them.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = dir.path().join("ima");
    let config = Config {
        dialect: of.dialect,
        duplicates: of.duplicates,
        hazards: of.hazards.clone(),
        critical_data: of.critical_data,
        // Without a fault, other programs add records meanwhile, as on any machine.
        watch: of.fault.is_none(),
        ..Config::new(&mount, of.tpm.clone())
    };
    let sandbox = Sandbox::start_with(&config, of.fault).unwrap();
    if of.fault.is_none() {
        assert_eq!(detect(&mount).unwrap(), of.dialect);
    }
    let tell = |command: &Ask| ask(&mount, command, &mut |_| {}).map(drop);
    let measure = |paths: &[PathBuf]| tell(&Ask::Measure { paths: paths.to_vec() });
    let violate = |paths: &[PathBuf]| tell(&Ask::Violation { paths: paths.to_vec() });
    let machine = |step| {
        tell(&match step {
            Step::Suspend => Ask::Suspend { dump: false },
            Step::Dump => Ask::Suspend { dump: true },
            Step::Kexec => Ask::Kexec(Kexec::default()),
            Step::Restart => Ask::Kexec(Kexec { forget: true, ..Kexec::default() }),
        })
    };
    let mut groups = Vec::new();
    let options = Options {
        dir: &mount,
        dialect: of.dialect,
        duplicates: of.duplicates,
        helper: Path::new(HELPER),
        measure: Measure::Call(&measure),
        violate: Some(&violate),
        machine: of.restarts.then_some(&machine),
        destructive: of.destructive,
        critical_data: of.critical_data,
        hazards: of.try_hazards,
        rule: of.rule,
    };
    let files = before(&mount);
    let counts = run(&options, &mut |group| groups.push(group.clone()));
    drop(files);
    sandbox.stop();
    Some(counts.map(|counts| (counts, groups)))
}

/// The failed cases: rule, name, expected, got.
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
fn the_sandbox_passes_in_every_dialect() {
    for (dialect, least) in [(Dialect::Linux72, 800), (Dialect::V4, 800), (Dialect::Trim, 400)] {
        // With a TPM, every bank has its own files.
        let of = Run { tpm: TpmChoice::Swtpm, ..Run::of(dialect) };
        passes(&of, least);
    }
}

#[test]
fn the_sandbox_passes_with_every_duplicate_mode() {
    for (dialect, flushed, kept) in
        [(Dialect::Linux72, 800, 800), (Dialect::V4, 800, 800), (Dialect::Trim, 400, 600)]
    {
        for (duplicates, least) in [(Duplicates::Flush, flushed), (Duplicates::Off, kept)] {
            passes(&Run { duplicates, ..Run::of(dialect) }, least);
        }
    }
}

#[test]
fn the_sandbox_passes_with_critical_data() {
    for (dialect, least) in [(Dialect::Linux72, 9), (Dialect::V4, 9), (Dialect::Trim, 15)] {
        passes(&Run { critical_data: true, ..Run::of(dialect) }, least);
    }
}

fn passes(of: &Run, least: usize) {
    let Some(result) = conform(of) else { return };
    let (counts, groups) = result.unwrap();
    let what = format!("{} {:?} {:?}", of.dialect, of.duplicates, of.rule);
    assert_eq!(failures(&groups), [""; 0], "{what}");
    eprintln!("{what}: {} passed, {} skipped", counts.passed, counts.skipped);
    assert!(counts.passed >= least, "{what}: {counts:?}");
}

#[test]
fn delete_that_fails_after_deleting_is_reported() {
    let hazards = vec![Hazard::NoMemory];
    let of = Run { hazards, rule: Some("1.4"), ..Run::of(Dialect::Linux72) };
    let Some(result) = conform(&of) else { return };
    let failures = failures(&result.unwrap().1);
    let case = r#"1.4 staged records: "D\n": expected ok:2, 0 staged, got ENOMEM, 0 staged"#;
    assert!(failures.iter().any(|failure| failure == case), "{failures:#?}");
}

#[test]
fn machine_records_are_kept_without_destructive() {
    let _alone = alone();
    // A directory on another file system than FUSE is no sandbox.
    let dir = tempfile::tempdir().unwrap();
    let files = |records: &[&[u8]]| {
        for (name, bytes) in ["", "_staged"].into_iter().zip(records) {
            let name = format!("binary_runtime_measurements_sha1{name}");
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    };
    let measure = |_: &[PathBuf]| Ok(());
    let options = Options {
        dir: dir.path(),
        dialect: Dialect::Linux72,
        duplicates: Duplicates::Detect,
        helper: Path::new(HELPER),
        measure: Measure::Call(&measure),
        violate: None,
        machine: None,
        destructive: false,
        critical_data: false,
        hazards: false,
        rule: Some("1.7"),
    };
    let ran = |options: &Options<'_>| run(options, &mut |_| {});
    let records = |error| match error {
        Err(RunError::WouldDelete { records, .. }) => records,
        other => panic!("{other:?}"),
    };
    let (aggregate, late) = (record("boot_aggregate"), record("boot_aggregate_late"));
    let file = record("/usr/bin/true");
    for (current, staged) in [(&aggregate, &vec![]), (&vec![], &late), (&vec![], &vec![])] {
        files(&[current, staged]);
        assert!(ran(&options).is_ok());
    }
    files(&[&aggregate, &file]);
    assert_eq!(records(ran(&options)), 2);
    files(&[&[&*aggregate, &*late].concat(), b""]);
    assert_eq!(records(ran(&options)), 2);
    files(&[&file, b""]);
    assert_eq!(records(ran(&options)), 1);
    files(&[b"not a list", b""]);
    assert_eq!(records(ran(&options)), 1);
    assert_eq!(
        fs::read(dir.path().join("binary_runtime_measurements_sha1")).unwrap(),
        b"not a list"
    );
}

/// A record in the sha1 form of template ima-ng.
fn record(name: &str) -> Vec<u8> {
    let field = |data: &[u8]| [&(data.len() as u32).to_ne_bytes()[..], data].concat();
    let digest = [&b"sha256:\0"[..], &[7; 32]].concat();
    let data = [field(&digest), field(format!("{name}\0").as_bytes())].concat();
    [&10u32.to_ne_bytes()[..], &[9; 20], &field(b"ima-ng"), &field(&data)].concat()
}

#[test]
fn rule_that_needs_an_option_names_it() {
    for (rule, option) in
        [("1.9", "--hazards"), ("1.9.6", "--hazards"), ("1.10", "--critical-data")]
    {
        let Some(result) = conform(&Run { rule: Some(rule), ..Run::of(Dialect::Linux72) }) else {
            return;
        };
        let error = result.unwrap_err();
        assert!(error.is_usage(), "{error}");
        assert!(error.to_string().starts_with(&format!("rule {rule} needs {option}: ")), "{error}");
    }
    // Other dialects do not have these bugs.
    let of = Run { rule: Some("1.9"), try_hazards: true, ..Run::of(Dialect::V4) };
    let Some(result) = conform(&of) else { return };
    assert!(matches!(result, Err(RunError::Rule { .. })));
}

#[test]
fn every_group_is_listed_with_the_option_it_needs() {
    let rules = |listed: Vec<Listed>| listed.iter().map(|group| group.rule).collect::<Vec<_>>();
    let all = list(None, None).unwrap();
    let of_rule = |rule| rules(list(Some(Dialect::Linux72), Some(rule)).unwrap());
    assert_eq!(of_rule("1.1"), ["1.1"; 2]);
    assert_eq!(of_rule("1.9").len(), 6);
    assert_eq!(of_rule("1.9.6"), ["1.9.6"]);
    for group in &all {
        let option = match group.rule {
            "1.10" => Some("--critical-data"),
            rule if rule.starts_with("1.9") => Some("--hazards"),
            _ => None,
        };
        assert_eq!(group.option, option, "{group:?}");
    }
    let error = list(Some(Dialect::V4), Some("1.9")).unwrap_err().to_string();
    assert!(error.contains("1.1, 1.2, 1.3") && !error.contains("1.9."), "{error}");
    assert_eq!(all[0].line(), "1.1    files");
    let last = all.last().unwrap().line();
    assert_eq!(last, "1.9.6  a descriptor reopened after fork (only 7.2, with --hazards)");
}
