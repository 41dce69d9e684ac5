//! The interface compared with the observed behaviour of Linux 7.2 (`observed-7.2.tsv`) and of
//! kernels with the patches of the other dialects (`observed-v4.tsv`, `observed-trim.tsv`).
#![allow(clippy::panic, clippy::unwrap_used)]

use ima_securityfs::{
    Access, Bank, Caller, Dialect, Errno, FileClass, FileName, Form, Grammar, Kind, Open, OpenLock,
    Part, Request,
};

const BANKS: [Bank; 2] = [Bank(0x0004), Bank(0x000b)];

/// The rows whose case begins with `group` and a slash: (rest of the case, observed).
fn rows(dialect: Dialect, group: &str) -> Vec<(&'static str, &'static str)> {
    let rows = match dialect {
        Dialect::Linux72 => include_str!("observed-7.2.tsv"),
        Dialect::V4 => include_str!("observed-v4.tsv"),
        Dialect::Trim => include_str!("observed-trim.tsv"),
    };
    let rows: Vec<_> = rows
        .lines()
        .filter_map(|line| {
            let (case, observed) = line.split_once('\t')?.1.split_once('\t')?;
            Some((case.strip_prefix(group)?.strip_prefix('/')?, observed))
        })
        .collect();
    assert!(!rows.is_empty(), "{group}");
    rows
}

fn caller(thread: u64) -> Caller {
    Caller { thread, admin: true }
}

/// Of several flags, only the access mode matters.
fn access(flags: &str) -> Option<Access> {
    match flags.split('|').next().unwrap() {
        "RDONLY" => Some(Access::Read),
        "WRONLY" | "RDWR" => Some(Access::Write),
        // O_PATH does not open the file.
        "PATH" => None,
        other => panic!("unknown flags {other}"),
    }
}

fn outcome(result: Result<Open, Errno>) -> String {
    match result {
        Ok(_) => "ok:0".into(),
        Err(errno) => errno.to_string(),
    }
}

fn file(dialect: Dialect, name: &str) -> FileName {
    let file = FileName::parse(name.as_bytes(), dialect, &BANKS).unwrap();
    match file.kind() {
        Kind::Symlink(target) => target,
        Kind::File => file,
    }
}

const CURRENT: &str = "binary_runtime_measurements_sha1";
const STAGED: &str = "binary_runtime_measurements_sha1_staged";
const SELF: u64 = 1;
const OTHER: u64 = 2;

#[test]
fn files() {
    for (dialect, files) in [(Dialect::V4, 15), (Dialect::Trim, 10)] {
        let mut seen = 1;
        for (name, observed) in rows(dialect, "file").into_iter().take(files) {
            // `policy` is not a file of the list.
            if name == "policy" {
                continue;
            }
            let file = FileName::parse(name.as_bytes(), dialect, &BANKS).unwrap();
            let shown = match file.kind() {
                Kind::File => format!("f {:04o} 0:0 size=0", file.mode(dialect)),
                Kind::Symlink(target) => format!("l 0444 0:0 size=0 -> {target}"),
            };
            assert_eq!(shown, observed, "{dialect}: {name}");
            seen += 1;
        }
        assert_eq!(ima_securityfs::directory(dialect, &BANKS).count() + 1, seen, "{dialect}");
    }
}

#[test]
fn open_matrix() {
    for (dialect, count) in [(Dialect::Linux72, 486), (Dialect::V4, 486), (Dialect::Trim, 98)] {
        let mut seen = 0;
        for (case, observed) in rows(dialect, "open") {
            let parts: Vec<_> = case.split('/').collect();
            let (state, name, who) = match parts[..] {
                [state, name, flags, who] => (state, format!("{name} {flags}"), who),
                [state, name, who] => (state, name.to_owned(), who),
                _ => continue,
            };
            let lock = &mut OpenLock::new(dialect);
            let held: &[_] = match state {
                "idle" | "idle again" => &[],
                "1reader-self(orig)" | "reader of original (self)" => {
                    &[(CURRENT, Access::Read, SELF)]
                }
                "2readers-self(staged-ascii+orig)" => {
                    &[(CURRENT, Access::Read, SELF), (STAGED, Access::Read, SELF)]
                }
                "1reader-otherproc" => &[(CURRENT, Access::Read, 9)],
                "writer-self(staged RDWR)" => &[(STAGED, Access::Write, SELF)],
                "writer-self(orig WRONLY)"
                | "writer-self(orig WRONLY by DAC override)"
                | "original WRONLY by DAC override (self)" => &[(CURRENT, Access::Write, SELF)],
                "trim RDONLY (self)" => &[("ima_trim_log", Access::Read, SELF)],
                "trim WRONLY (self)" | "trim RDWR (self)" => {
                    &[("ima_trim_log", Access::Write, SELF)]
                }
                _ => continue,
            };
            let held: Vec<_> = held
                .iter()
                .map(|(name, access, thread)| {
                    let class = file(dialect, name).class().unwrap();
                    lock.open(class, *access, caller(*thread)).unwrap()
                })
                .collect();
            let (name, flags) = name.rsplit_once(' ').unwrap();
            let name = match name {
                "orig-bin" | "orig" => CURRENT,
                "orig-ascii" | "ascii orig" => "ascii_runtime_measurements_sha1",
                "staged-bin" => STAGED,
                "staged-ascii-sha256" => "ascii_runtime_measurements_sha256_staged",
                "symlink-staged" => "binary_runtime_measurements_staged",
                "trim" => "ima_trim_log",
                "count" => "runtime_measurements_count",
                other => panic!("unknown file {other}"),
            };
            let thread = match who {
                "same-thread" => SELF,
                "other-thread" => 2,
                "other-proc" => 3,
                other => panic!("unknown caller {other}"),
            };
            let result = match (access(flags), file(dialect, name).class()) {
                (Some(access), Some(class)) => outcome(lock.open(class, access, caller(thread))),
                // O_PATH, or a file without a lock class.
                _ => "ok:0".into(),
            };
            assert_eq!(result, observed, "{dialect}: {case}");
            held.into_iter().for_each(|file| lock.release(file, SELF));
            seen += 1;
        }
        assert_eq!(seen, count, "{dialect}");
    }
}

#[test]
fn opens_after_closes_match_the_kernel() {
    let read = Access::Read;
    let write = Access::Write;
    for (dialect, count) in [(Dialect::Linux72, 18), (Dialect::V4, 12), (Dialect::Trim, 3)] {
        let mut seen = 0;
        for (case, observed) in rows(dialect, "open") {
            let lock = &mut OpenLock::new(dialect);
            // The open files, how many of them are closed, and the open that is attempted.
            let (held, closed, (access, thread)) = match case {
                "after closing 1 of 2 readers/RDWR" => (vec![(read, SELF); 2], 1, (write, OTHER)),
                "after closing last reader/RDWR" => (vec![(read, SELF); 2], 2, (write, OTHER)),
                "after writer close/RDONLY other-proc" => (vec![(write, SELF)], 1, (read, OTHER)),
                "after reader process exit/RDWR" => (vec![(read, OTHER)], 1, (write, SELF)),
                "writer in other proc/RDONLY" | "writer in other process/orig RDONLY" => {
                    (vec![(write, OTHER)], 0, (read, SELF))
                }
                "writer in other proc/RDWR" | "writer in other process/trim WRONLY" => {
                    (vec![(write, OTHER)], 0, (write, SELF))
                }
                "after SIGKILL of single-threaded writer (1 fd)/RDWR"
                | "after SIGKILL of writer (1 fd)/RDWR"
                | "writer SIGKILLed/trim WRONLY" => (vec![(write, OTHER)], 1, (write, SELF)),
                "child of writer opens WRONLY" => (vec![(write, SELF)], 0, (write, OTHER)),
                "child of writer opens RDONLY" => (vec![(write, SELF)], 0, (read, OTHER)),
                // A duplicated descriptor is the same open file, released with its last copy.
                "parent still writer after child closed its copy: other-proc RDONLY"
                | "dup kept, original closed: other-proc RDONLY" => {
                    (vec![(write, SELF)], 0, (read, OTHER))
                }
                "dup closed: other-proc RDONLY" => (vec![(write, SELF)], 1, (read, OTHER)),
                "writer 2 fds, first closed: other-proc RDONLY" => {
                    (vec![(write, SELF); 2], 1, (read, OTHER))
                }
                "writer 2 fds, first closed: self RDWR" => {
                    (vec![(write, SELF); 2], 1, (write, SELF))
                }
                "writer 2 fds, both closed: other-proc RDWR" => {
                    (vec![(write, SELF); 2], 2, (write, OTHER))
                }
                "writer reopens /proc/self/fd/N RDWR"
                | "after execve in writer (same task), new WRONLY open" => {
                    (vec![(write, SELF)], 0, (write, SELF))
                }
                "writer reopens /proc/self/fd/N RDONLY" => (vec![(write, SELF)], 0, (read, SELF)),
                _ => continue,
            };
            let class = FileClass::Measurements;
            let mut files: Vec<_> = held
                .into_iter()
                .map(|(access, thread)| lock.open(class, access, caller(thread)).unwrap())
                .collect();
            files.drain(..closed).for_each(|file| lock.release(file, SELF));
            let result = outcome(lock.open(class, access, caller(thread)));
            assert_eq!(result, observed, "{dialect}: {case}");
            seen += 1;
        }
        assert_eq!(seen, count, "{dialect}");
    }
}

#[test]
fn missing_capability_takes_precedence_over_busy() {
    let nobody = |thread| Caller { thread, admin: false };
    for (dialect, group, writer) in [
        (Dialect::Linux72, "cred/root-without-SYS_ADMIN", false),
        (Dialect::Linux72, "cred/root-without-SYS_ADMIN while writer active", true),
        (Dialect::Linux72, "cred/uid1000:gid0", false),
        (Dialect::V4, "cred/root-without-SYS_ADMIN", false),
        (Dialect::V4, "cred/root-without-SYS_ADMIN while writer active", true),
        (Dialect::Trim, "cred/root without SYS_ADMIN", false),
        (Dialect::Trim, "cred/root without SYS_ADMIN while a writer is active", true),
        (Dialect::Trim, "cred/uid1000 gid0", false),
    ] {
        for (case, observed) in rows(dialect, group) {
            let lock = &mut OpenLock::new(dialect);
            let _held = writer
                .then(|| lock.open(FileClass::Measurements, Access::Write, caller(1)).unwrap());
            let (name, flags) = case.rsplit_once(' ').unwrap_or((case, case));
            let class = if name == "trim" { FileClass::TrimLog } else { FileClass::Measurements };
            let result = outcome(lock.open(class, access(flags).unwrap(), nobody(2)));
            assert_eq!(result, observed, "{dialect}: {group}: {case}");
        }
    }
}

#[test]
fn requests() {
    for (dialect, group, part) in [
        (Dialect::Linux72, "write/orig", Part::Current),
        (Dialect::Linux72, "write/staged", Part::Staged),
        (Dialect::V4, "write/orig", Part::Current),
        (Dialect::V4, "write/staged", Part::Staged),
    ] {
        let grammar = Grammar { dialect, flush: false };
        for (case, observed) in rows(dialect, group) {
            // Not part of this interface: EFAULT for an invalid pointer.
            if case.starts_with("bad pointer") {
                continue;
            }
            check(group, measurements(part), grammar, &unescaped(case), observed);
        }
    }
    for dialect in [Dialect::Linux72, Dialect::V4] {
        let grammar = Grammar { dialect, flush: true };
        let part = if dialect == Dialect::V4 { Part::Staged } else { Part::Current };
        for (case, observed) in rows(dialect, "flush") {
            let number = match case {
                "N while staged" => "1",
                case => case.strip_prefix("N ").unwrap().split(' ').next().unwrap(),
            };
            check(case, measurements(part), grammar, format!("{number}\n").as_bytes(), observed);
        }
    }
}

#[test]
fn every_file_accepts_the_requests_of_its_part() {
    for (dialect, count) in [(Dialect::Linux72, 20), (Dialect::V4, 15)] {
        let grammar = Grammar { dialect, flush: false };
        let mut seen = 0;
        for (case, observed) in rows(dialect, "write") {
            if let Some((name, text)) = case.split_once('/') {
                let text = text
                    .strip_suffix(" on other original file")
                    .or_else(|| text.strip_suffix(" on other staged file"));
                let Some(text) = text else { continue };
                let write = text.replace("\\n", "\n");
                check(case, file(dialect, name), grammar, write.as_bytes(), observed);
                seen += 1;
            } else if let Some((name, request @ ("A" | "D"))) = case.split_once(' ') {
                let write = format!("{request}\n");
                check(case, file(dialect, name), grammar, write.as_bytes(), observed);
                seen += 1;
            }
        }
        assert_eq!(seen, count, "{dialect}");
    }
}

/// Each row with `T` was observed with T equal to the number of records trimmed.
#[test]
fn trims() {
    const T: u64 = 21;
    let grammar = Grammar { dialect: Dialect::Trim, flush: false };
    let parse = |write: &[u8]| Request::parse(write, FileName::TrimLog, 0, grammar);
    // Deliberate differences from the posted patches.
    assert_eq!(parse(b":1"), Err(Errno::EINVAL));
    for beyond in ["18446744073709551615", "9223372036854775808", "18446744073709546616"] {
        assert_eq!(parse(format!("{T}:{beyond}").as_bytes()), Err(Errno::ERANGE), "{beyond}");
    }
    // Rows that describe the write in words.
    for (len, ok) in [(30, true), (31, true), (32, false), (33, false)] {
        let zeros = "0".repeat(len - 5);
        let found = parse(format!("{T}:{zeros}5\n").as_bytes());
        assert_eq!(
            found,
            if ok { Ok(Request::Trim { trimmed: T, n: 5 }) } else { Err(Errno::EINVAL) }
        );
    }
    assert_eq!(parse(format!("{T:027}:5\n").as_bytes()), Ok(Request::Trim { trimmed: T, n: 5 }));
    assert_eq!(parse(b"12345678901234567890123:1"), Err(Errno::ERANGE));
    assert_eq!(parse(b"9223372036854775808:1"), Err(Errno::ERANGE));
    assert!(parse(b"9223372036854775807:9223372036854775807").is_err(), "too long");
    assert!(parse(b"21:9223372036854775807").is_ok());
    let mut seen = 0;
    for (case, observed) in rows(Dialect::Trim, "write") {
        let text = match case {
            "T+1:5" | "T-1:5" | "0:5 with T>0" => continue,
            case => case.split(" (").next().unwrap().strip_suffix(" with T>0").unwrap_or(case),
        };
        // Rows that only describe the request are covered by the grammar tests.
        let plain = text.chars().all(|c| "T0123456789:+-xXbaer \\n;junk".contains(c));
        if !plain || text.contains("length") || text.contains("len") || text == "length 1" {
            continue;
        }
        let text = text.replace("\\n", "\n").replace("\\r", "\r").replace("\\0", "\0");
        let write = text.replace('T', &T.to_string()).into_bytes();
        match (parse(&write), observed.split_once(" deleted=")) {
            (Ok(Request::Trim { trimmed, n }), Some((ok, rest))) => {
                assert_eq!(trimmed, T, "{case}");
                assert!(ok.starts_with("ok:"), "{case}: {observed}");
                assert_eq!(rest.split(' ').next(), Some(&*n.to_string()), "{case}");
            }
            (Err(errno), Some((expected, _))) => {
                assert_eq!(errno.to_string(), expected, "{case}");
            }
            (parsed, _) => panic!("{case}: {parsed:?}, observed {observed}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 33);
}

/// Compares a request with the answer of a kernel whose list had a few records.
fn check(case: &str, file: FileName, grammar: Grammar, write: &[u8], observed: &str) {
    let (errno, deleted) = observed.split_once(" del=").unwrap_or((observed, ""));
    let parsed = Request::parse(write, file, 0, grammar);
    match (parsed, errno) {
        (Ok(Request::DeleteFirst(n)), "ENOENT") => assert!(n.get() >= 999_999, "{case}"),
        (Ok(request), ok) => {
            assert_eq!(ok, format!("ok:{}", write.len()), "{case}");
            if let Request::DeleteFirst(n) = request {
                assert_eq!(n.to_string(), deleted, "{case}");
            }
        }
        (Err(found), expected) => assert_eq!(found.to_string(), expected, "{case}"),
    }
    if grammar.dialect == Dialect::V4 {
        // At any other file position every request is refused.
        assert_eq!(Request::parse(write, file, 1, grammar), Err(Errno::EINVAL), "{case}");
    }
}

fn measurements(part: Part) -> FileName {
    FileName::Measurements { form: Form::Binary, bank: Some(Bank::SHA1), part }
}

/// Decodes a quoted string with C escapes.
fn unescaped(quoted: &str) -> Vec<u8> {
    let text = quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap().as_bytes();
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at).copied() {
        let (value, len) = match (byte, text.get(at + 1)) {
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'x')) => (radix(&text[at + 2..at + 4], 16), 4),
            (b'\\', Some(b'0'..=b'7')) => {
                let digits = &text[at + 1..];
                let len = digits.iter().take(3).take_while(|d| (b'0'..=b'7').contains(d)).count();
                (radix(&digits[..len], 8), 1 + len)
            }
            (b'\\', other) => panic!("unknown escape {other:?}"),
            _ => (byte, 1),
        };
        bytes.push(value);
        at += len;
    }
    bytes
}

fn radix(digits: &[u8], radix: u32) -> u8 {
    u8::from_str_radix(std::str::from_utf8(digits).unwrap(), radix).unwrap()
}
