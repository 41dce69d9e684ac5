//! Each fault of the sandbox fails the case of its rule.

use imastage_conformance::Duplicates;
use imastage_sandbox::Fault;

use super::{Run, conform, failures};

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
