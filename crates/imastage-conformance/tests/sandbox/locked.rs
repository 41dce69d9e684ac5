//! Lists that a kernel bug or another process has locked.

use std::{fs, path::Path, thread};

use imastage_conformance::{Dialect, RunError, Verdict};
use imastage_sandbox::Hazard;

use super::{Run, conform, conform_after, failures, passes};

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
        "1.9.6 a file closed and reopened by a shell, its child exited in between: O_RDWR: expected ok",
    ] {
        assert!(failures.iter().any(|failure| failure.starts_with(case)), "{case}: {failures:#?}");
    }
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
                thread::spawn(|| drop(files)).join().unwrap();
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
