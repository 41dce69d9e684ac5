//! The conformance cases, run against the sandbox and its faults.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
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

/// Sandboxes run one at a time: a child process inherits all open files until execve(2).
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
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
fn hazard_cases_fail_only_with_the_hazard() {
    let of = Run { rule: Some("1.9"), try_hazards: true, ..Run::of(Dialect::Linux72) };
    passes(&of, 5);
    let of = Run { hazards: vec![Hazard::LockBooks], ..of };
    let Some(result) = conform(&of) else { return };
    let failures = failures(&result.unwrap().1);
    for case in [
        "1.9.2 one of two files closed by another thread: O_RDONLY: expected EBUSY, got ok",
        "1.9.3 the writing thread has exited, its file is open: O_WRONLY by another thread",
        "1.9.4 two files closed by another thread: O_RDWR: expected ok, got EBUSY",
        "1.9.5 two files of a shell, closed last by its child: O_RDWR: expected ok, got EBUSY",
    ] {
        assert!(failures.iter().any(|failure| failure.starts_with(case)), "{case}: {failures:#?}");
    }
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
fn locked_list_is_reported_once_and_the_rest_is_skipped() {
    let hazards = vec![Hazard::LockBooks];
    let of = Run { hazards, try_hazards: true, restarts: false, ..Run::of(Dialect::Linux72) };
    let Some(result) = conform(&of) else { return };
    let (counts, groups) = result.unwrap();
    // Ordinary cases do not fork with an open file, so they pass.
    let ordinary = groups.iter().filter(|group| !group.rule.starts_with("1.9"));
    assert_eq!(failures(&ordinary.cloned().collect::<Vec<_>>()), [""; 0]);
    let at = groups.iter().position(|group| group.rule == "1.9.4").unwrap();
    let locked = &groups[at];
    assert_eq!(locked.kernel_bug, Some("two descriptors of one writer"));
    let failures = failures(std::slice::from_ref(locked));
    let [busy, report] = &*failures else { panic!("{failures:#?}") };
    assert!(busy.ends_with("expected ok, got EBUSY"), "{busy}");
    let bug = "no visible process has a file of the list open: kernel bug: writer lock lost";
    assert!(report.contains(bug), "{report}");
    for group in &groups[at + 1..] {
        let [case] = &*group.cases else { panic!("{group:?}") };
        let skipped = Verdict::Skipped { why: "the list is locked against writers".into() };
        assert_eq!(case.verdict, skipped, "{group:?}");
    }
    assert!(counts.passed > 800 && groups.len() > at + 1, "{counts:?}");
}

#[test]
fn list_in_use_before_the_first_case_is_no_failed_case() {
    for (held, bug) in [(true, false), (false, true)] {
        let hazards = if bug { vec![Hazard::LockBooks] } else { vec![] };
        let of = Run { hazards, rule: Some("1.7"), ..Run::of(Dialect::Linux72) };
        let before = |mount: &Path| {
            let open = || {
                let path = mount.join("binary_runtime_measurements_sha1_staged");
                fs::File::options().read(true).write(true).open(path).unwrap()
            };
            // Two files of one writer, closed by another thread: the kernel bug.
            let files = [open(), open()];
            if held {
                files.into()
            } else {
                std::thread::spawn(|| drop(files)).join().unwrap();
                vec![]
            }
        };
        let Some(result) = conform_after(&of, before) else { return };
        let error = result.unwrap_err();
        assert!(matches!(error, RunError::Locked(_)) && !error.is_usage(), "{error}");
        let text = error.to_string();
        let holder = format!(": process {} (", std::process::id());
        assert_eq!((text.contains(&holder), text.contains("kernel bug")), (held, bug), "{text}");
    }
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

#[test]
fn every_fault_fails_the_case_of_its_rule() {
    let root = rustix::process::geteuid().is_root();
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        // Only root can switch users and capabilities, or override a mode.
        let rights = [
            Fault::BusyBeforePermission,
            Fault::CapabilityIgnored,
            Fault::CapabilityToRead,
            Fault::CapabilityToAsk,
            Fault::GroupKept,
            Fault::TrimLogForAll,
            Fault::OriginalTakesN,
        ];
        if !root && rights.contains(fault) {
            eprintln!("SKIPPED: {fault}: needs root");
            continue;
        }
        let case = case_of(*fault);
        // Cases of other rules take long and are not needed.
        let rule = case.split(' ').next();
        let duplicates = match fault {
            Fault::FlushTakesN => Duplicates::Flush,
            _ => Duplicates::Detect,
        };
        let critical_data = *fault == Fault::TrimToldLate;
        let of = Run {
            fault: Some(*fault),
            rule,
            duplicates,
            critical_data,
            ..Run::of(fault.dialect())
        };
        let Some(result) = conform(&of) else { return };
        let (counts, groups) = result.unwrap();
        let failures = failures(&groups);
        // A fault must not fail every case.
        if !failures.iter().any(|failure| failure.starts_with(case)) || counts.passed == 0 {
            missed.push((fault, case, failures));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The start of the failure that the fault must cause.
fn case_of(fault: Fault) -> &'static str {
    match fault {
        Fault::ModeReadOnly => {
            r#"1.1 binary_runtime_measurements_sha1_staged: kind, mode, size: expected file 660 0, got file 440 0"#
        }
        Fault::ModeForAll => {
            r#"1.1 binary_runtime_measurements_sha1: kind, mode, size: expected file 660 0, got file 664 0"#
        }
        Fault::SizeTold => {
            r#"1.1 violations: kind, mode, size: expected file 440 0, got file 440 4096"#
        }
        Fault::LinkToCurrent => r#"1.1 ascii_runtime_measurements_staged is a symbolic link"#,
        Fault::ReaderLetsWriterIn => {
            r#"1.2 this thread reads: binary_runtime_measurements_sha1_staged O_RDWR by another thread: expected EBUSY, got ok"#
        }
        Fault::WriterLetsReaderIn => {
            r#"1.2 another thread writes: binary_runtime_measurements_sha1 O_RDONLY by the same thread: expected EBUSY, got ok"#
        }
        Fault::OwnReaderLetIn => {
            r#"1.2 this thread has binary_runtime_measurements_sha1_staged open O_RDWR: binary_runtime_measurements_sha1_staged O_RDONLY by the same thread: expected EBUSY"#
        }
        Fault::SecondWriterLetIn => {
            r#"1.2 another process writes: binary_runtime_measurements_sha1_staged O_RDWR by the same thread: expected EBUSY, got ok"#
        }
        Fault::OwnWriterRefused => r#"1.2 a writer opens a second file: expected ok, got EBUSY"#,
        Fault::StagedNotLocked => {
            r#"1.2 this thread reads: binary_runtime_measurements_sha1_staged O_RDWR by another thread: expected EBUSY, got ok"#
        }
        Fault::AsciiNotLocked => {
            r#"1.2 this thread has binary_runtime_measurements_sha1_staged open O_RDWR: ascii_runtime_measurements_sha1 O_RDONLY by another"#
        }
        Fault::OneReader => {
            r#"1.2 this thread reads: binary_runtime_measurements_sha1_staged O_RDONLY by another thread: expected ok, got EBUSY"#
        }
        Fault::CountLocked => {
            r#"1.2 this thread has binary_runtime_measurements_sha1_staged open O_RDWR: runtime_measurements_count O_RDONLY: expected ok"#
        }
        Fault::LockStuck => {
            r#"1.2 idle: binary_runtime_measurements_sha1 O_RDONLY by the same thread: expected ok, got EBUSY"#
        }
        Fault::LockFreedEarly => {
            r#"1.2 a writer closed one of two files: O_RDONLY by another process: expected EBUSY, got ok"#
        }
        Fault::BusyBeforePermission => {
            r#"1.2 root without CAP_SYS_ADMIN while another writes: binary_runtime_measurements_sha1_staged O_RDWR: expected EPERM, got EBUSY"#
        }
        Fault::CapabilityIgnored => {
            r#"1.2 root without CAP_SYS_ADMIN: binary_runtime_measurements_sha1_staged O_RDWR: expected EPERM, got ok"#
        }
        Fault::CapabilityToRead => {
            r#"1.2 root without CAP_SYS_ADMIN: binary_runtime_measurements_sha1 O_RDONLY: expected ok, got EPERM"#
        }
        Fault::PlusRefused => {
            r#"1.3 "+5\n" to binary_runtime_measurements_sha1: expected ok:3 del=5, got EINVAL del=0"#
        }
        Fault::LowerCaseTaken => {
            r#"1.3 "a\n" to binary_runtime_measurements_sha1_staged: expected EINVAL del=0, got ok:2"#
        }
        Fault::NoNewlineTaken => {
            r#"1.3 "5" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:1 del=5"#
        }
        Fault::BlanksSkipped => {
            r#"1.3 " 5\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:3 del=5"#
        }
        Fault::HexTaken => {
            r#"1.3 "0x5\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:4 del=5"#
        }
        Fault::ZeroTaken => {
            r#"1.3 "0\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:2 del=0"#
        }
        Fault::RangeInvalid => {
            r#"1.3 "18446744073709551616\n" to binary_runtime_measurements_sha1: expected ERANGE del=0, got EINVAL del=0"#
        }
        Fault::LongTaken => {
            r#"1.3 "000000000000000000005\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:22 del=5"#
        }
        Fault::NulRefused => {
            r#"1.3 "5\x00junk\n" to binary_runtime_measurements_sha1: expected ok:7 del=5, got EINVAL del=0"#
        }
        Fault::StagedTakesN => {
            r#"1.3 "5\n" to binary_runtime_measurements_sha1_staged: expected EINVAL del=0, got ok:2 del=5"#
        }
        Fault::CurrentTakesStage => {
            r#"1.3 "A\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:2"#
        }
        Fault::BinaryRequestsOnly => {
            r#"1.3 "2\n" to ascii_runtime_measurements_sha1: expected ok:2 del=2, got EINVAL"#
        }
        Fault::ShortWrite => {
            r#"1.3 "5\n" to binary_runtime_measurements_sha1: expected ok:2 del=5, got ok:1 del=5"#
        }
        Fault::StageNothing => r#"1.4 empty list: "A\n": expected ENOENT, got ok:2"#,
        Fault::StageTwice => r#"1.4 staged records: "A\n": expected EEXIST del=0, got ok:2 del=0"#,
        Fault::StageTwiceBusy => {
            r#"1.4 staged records: "A\n": expected EEXIST del=0, got EBUSY del=0"#
        }
        Fault::StageLosesOne => r#"1.4 current records: "A\n" stages all of them, in order"#,
        Fault::DeleteNothing => r#"1.4 empty list: "D\n": expected ENOENT, got ok:2"#,
        Fault::DeleteTakesCurrent => {
            r#"1.4 staged and current records: "D\n": expected ok:2 del=0, 0 staged, got ok:2 del="#
        }
        Fault::DeleteForgotten => {
            r#"1.4 staged records: "D\n": expected ok:2, 0 staged, got ok:2,"#
        }
        Fault::TooManyClamped => r#"1.4 current records: N = all + 1: expected ENOENT del=0, got "#,
        Fault::TooManyDeleted => {
            r#"1.4 current records: N = all + 1: expected ENOENT del=0, got ENOENT del="#
        }
        Fault::OneMore => {
            r#"1.4 current records: N = 3 leaves the rest: expected ok:2 del=3, got ok:2 del=4"#
        }
        Fault::OneFewer => {
            r#"1.4 current records: N = 3 leaves the rest: expected ok:2 del=3, got ok:2 del=2"#
        }
        Fault::NoNWhileStaged => {
            r#"1.4 staged and current records: "2\n": expected ok:2 del=2, staged unmoved, got EEXIST"#
        }
        Fault::NTakesStaged => {
            r#"1.4 staged and current records: "2\n": expected ok:2 del=2, staged unmoved, got ok:2 del=2, staged changed"#
        }
        Fault::StagedShowsCurrent => r#"1.5 staged records in measurement order"#,
        Fault::FormsMixed => {
            r#"1.5 ascii_runtime_measurements_sha1 shows the records of binary_runtime_measurements_sha1"#
        }
        Fault::RequestRewinds => {
            r#"1.5 second batch on a descriptor, without lseek: expected [], got [0, 1]"#
        }
        Fault::EndForEver => r#"1.5 an open file read to its end shows records added since"#,
        Fault::RecordsCut => r#"1.5 reads of 1 MiB return whole records"#,
        Fault::CountWithStaged => r#"1.6 the count of 3 records, 6 others being staged"#,
        Fault::CountNeverFalls => r#"1.6 the count after N = 2 of 6"#,
        Fault::StageIsViolation => r#"1.6 violations after "A\n" are unchanged: expected 0, got 1"#,
        Fault::UnlinkTaken => "1.1 unlink: expected EPERM, got ok",
        Fault::ModeKept => "1.1 the mode after chmod 0600: expected 600, got 660",
        Fault::GroupKept => {
            "1.2 a member of the file's group: binary_runtime_measurements_sha1_staged O_RDONLY: \
             expected ok, got EACCES"
        }
        Fault::CapabilityToAsk => {
            "1.2 root without CAP_SYS_ADMIN writes to an open file: the first request: expected ok, \
             got EPERM"
        }
        Fault::SyncTaken => "1.1 fsync: expected EINVAL, got ok",
        Fault::ProcessWrites => {
            "1.2 this thread has binary_runtime_measurements_sha1_staged open O_RDWR: \
             binary_runtime_measurements_sha1 O_WRONLY by another thread: expected EBUSY, got ok"
        }
        Fault::CopyFrees => {
            "1.2 a writer's descriptor was duplicated, one closed: O_RDONLY: expected EBUSY, got ok"
        }
        Fault::OtherCloses => {
            "1.2 a writer's one file was closed by another thread: O_RDWR: expected ok, got EBUSY"
        }
        Fault::ReadsAhead => r#"1.5 a record read in part, then "D\n": the next read: expected"#,
        Fault::DuplicatesTaken => "1.7 an equal file replaces another: records: expected 1, got 2",
        Fault::DigestsForgotten => {
            r#"1.7 measured again after "D\n": current records: expected 0, got 1"#
        }
        Fault::FlushTakesN => {
            r#"1.3 "5\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:2 del=5"#
        }
        Fault::DownGranted => "1.8 current records, suspended, measure: A: expected EACCES, got ok",
        Fault::DownStale => {
            "1.8 current records, suspended, measure: A: expected EACCES, got ESTALE"
        }
        Fault::DownFirst => "1.8 empty list, suspended: A: expected ENOENT, got ESTALE",
        Fault::ViolationsLost => "1.6 the count of violations after one more: expected ",
        Fault::DumpedDeleted => {
            "1.8 staged and current records, suspended, dump, A, N=1, N=0: D: expected ESTALE, got ok"
        }
        Fault::DownRefuses => {
            "1.8 staged and current records, suspended, measure, A, N=1, N=0: D: expected ok, got ESTALE"
        }
        Fault::MissingFirst => {
            "1.4 T one too large: N beyond all: expected ESTALE del=0, got ENOENT del=0"
        }
        Fault::DownTrims => "1.8 current records, suspended, measure: N=2: expected ESTALE, got ok",
        Fault::TrimToldLate => "1.10 T:4 is measured last: expected after ",
        Fault::PositionIgnored => r#"1.3 "D\n" after a read: expected EINVAL, got ok:2"#,
        Fault::WriteMoves => r#"1.3 "D\n" right after A: expected ok:2, got EINVAL"#,
        Fault::OriginalTakesN => {
            r#"1.3 "5\n" to binary_runtime_measurements_sha1: expected EINVAL del=0, got ok:2 del=5"#
        }
        Fault::OwnWriterLetIn => r#"1.2 a writer opens a second file: expected EBUSY, got ok"#,
        Fault::PendingMissing => {
            r#"1.4 staged records: "1\n": expected EEXIST del=0, got ENOENT del=0"#
        }
        Fault::TooManyStaged => "1.4 after a refused N nothing is staged: expected 0, got ",
        Fault::WrongTotalInvalid => {
            "1.4 T one too large: N = 5: expected ESTALE del=0, got EINVAL del=0"
        }
        Fault::AnyTotalTaken => "1.4 T one too large: N = 5: expected ESTALE del=0, got ok del=5",
        Fault::EmptyTotalTaken => r#"1.3 ":5": expected EINVAL del=0 T+0, got ESTALE"#,
        Fault::TrimDecimal => r#"1.3 "T:010": expected ok del=8 T+8, got ok del=10 T+10"#,
        Fault::TrimNewlineRefused => r#"1.3 "T:5\n": expected ok del=5 T+5, got EINVAL del=0 T+0"#,
        Fault::TotalStuck => "1.5 T after T:4: expected 4, got 0",
        Fault::TrimLogLocks => {
            "1.2 this thread reads T: ima_trim_log O_RDWR by another process: expected ok, got EBUSY"
        }
        Fault::TrimLogForAll => {
            "1.2 root without CAP_SYS_ADMIN: ima_trim_log O_RDONLY: expected EPERM, got ok"
        }
        Fault::TrimNothingRefused => "1.4 records: T:0: expected ok del=0 T+0, got ENOENT",
        Fault::TrimLogStages => r#"1.3 "A\n": expected EINVAL del=0 T+0, got ok del=0 T+0"#,
    }
}
