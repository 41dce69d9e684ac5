//! What Linux 7.2 was seen to do (`observed-7.2.tsv`), these doors do.
#![allow(clippy::panic, clippy::unwrap_used)]

use ima_securityfs::{Access, Bank, Caller, Doors, Errno, FileName, Kind, Open, Part, Request};

const BANKS: [Bank; 2] = [Bank(0x0004), Bank(0x000b)];

/// The rows whose case begins with `group` and a slash: the rest of the case, observed.
fn rows(group: &str) -> Vec<(&'static str, &'static str)> {
    let rows: Vec<_> = include_str!("observed-7.2.tsv")
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

/// Several flags; beside the access mode none matters.
fn access(flags: &str) -> Option<Access> {
    match flags.split('|').next().unwrap() {
        "RDONLY" => Some(Access::Read),
        "WRONLY" | "RDWR" => Some(Access::Write),
        // Does not open the file.
        "PATH" => None,
        other => panic!("unknown flags {other}"),
    }
}

fn told(result: Result<Open, Errno>) -> String {
    match result {
        Ok(_) => "ok:0".into(),
        Err(errno) => errno.to_string(),
    }
}

fn file(name: &str) -> FileName {
    let file = FileName::parse(name.as_bytes(), &BANKS).unwrap();
    match file.kind() {
        Kind::Symlink(target) => target,
        Kind::File { .. } => file,
    }
}

#[test]
fn open_matrix() {
    const SELF: u64 = 1;
    let mut seen = 0;
    for (case, observed) in rows("open") {
        let parts: Vec<_> = case.split('/').collect();
        let [state, name, flags, who] = parts[..] else { continue };
        let doors = &mut Doors::new();
        let opened = match state {
            "idle" => vec![],
            "1reader-self(orig)" => vec![(Access::Read, SELF)],
            "2readers-self(staged-ascii+orig)" => vec![(Access::Read, SELF); 2],
            "1reader-otherproc" => vec![(Access::Read, 9)],
            "writer-self(staged RDWR)" | "writer-self(orig WRONLY)" => vec![(Access::Write, SELF)],
            "writer reopens " => continue,
            other => panic!("unknown state {other}"),
        };
        let opened: Vec<_> = opened
            .into_iter()
            .map(|(access, thread)| doors.open(access, caller(thread)).unwrap())
            .collect();
        let name = match name {
            "orig-bin" => "binary_runtime_measurements_sha1",
            "orig-ascii" => "ascii_runtime_measurements_sha1",
            "staged-bin" => "binary_runtime_measurements_sha1_staged",
            "staged-ascii-sha256" => "ascii_runtime_measurements_sha256_staged",
            "symlink-staged" => "binary_runtime_measurements_staged",
            other => panic!("unknown file {other}"),
        };
        assert!(file(name).part().is_some(), "{name} is behind the doors");
        let thread = match who {
            "same-thread" => SELF,
            "other-thread" => 2,
            "other-proc" => 3,
            other => panic!("unknown caller {other}"),
        };
        let result = match access(flags) {
            Some(access) => told(doors.open(access, caller(thread))),
            None => "ok:0".into(),
        };
        assert_eq!(result, observed, "{case}");
        opened.into_iter().for_each(|file| doors.release(file));
        seen += 1;
    }
    assert_eq!(seen, 486);
}

#[test]
fn who_closes_what_and_opens_then() {
    const SELF: u64 = 1;
    const OTHER: u64 = 2;
    let read = Access::Read;
    let write = Access::Write;
    let mut seen = 0;
    for (case, observed) in rows("open") {
        let doors = &mut Doors::new();
        // Who holds what, what is closed of it, who opens then how.
        let (held, closed, (access, thread)) = match case {
            "after closing 1 of 2 readers/RDWR" => (vec![(read, SELF); 2], 1, (write, OTHER)),
            "after closing last reader/RDWR" => (vec![(read, SELF); 2], 2, (write, OTHER)),
            "after writer close/RDONLY other-proc" => (vec![(write, SELF)], 1, (read, OTHER)),
            "after reader process exit/RDWR" => (vec![(read, OTHER)], 1, (write, SELF)),
            "writer in other proc/RDONLY" => (vec![(write, OTHER)], 0, (read, SELF)),
            "writer in other proc/RDWR" => (vec![(write, OTHER)], 0, (write, SELF)),
            "after SIGKILL of single-threaded writer (1 fd)/RDWR" => {
                (vec![(write, OTHER)], 1, (write, SELF))
            }
            "child of writer opens WRONLY" => (vec![(write, SELF)], 0, (write, OTHER)),
            "child of writer opens RDONLY" => (vec![(write, SELF)], 0, (read, OTHER)),
            // A copy of a descriptor is the same open file, closed when the last copy is.
            "parent still writer after child closed its copy: other-proc RDONLY"
            | "dup kept, original closed: other-proc RDONLY" => {
                (vec![(write, SELF)], 0, (read, OTHER))
            }
            "dup closed: other-proc RDONLY" => (vec![(write, SELF)], 1, (read, OTHER)),
            "writer 2 fds, first closed: other-proc RDONLY" => {
                (vec![(write, SELF); 2], 1, (read, OTHER))
            }
            "writer 2 fds, first closed: self RDWR" => (vec![(write, SELF); 2], 1, (write, SELF)),
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
        let mut files: Vec<_> = held
            .into_iter()
            .map(|(access, thread)| doors.open(access, caller(thread)).unwrap())
            .collect();
        files.drain(..closed).for_each(|file| doors.release(file));
        assert_eq!(told(doors.open(access, caller(thread))), observed, "{case}");
        seen += 1;
    }
    assert_eq!(seen, 18);
}

#[test]
fn the_capability_is_asked_for_first() {
    let nobody = |thread| Caller { thread, admin: false };
    for (group, writer) in [
        ("cred/root-without-SYS_ADMIN", false),
        ("cred/root-without-SYS_ADMIN while writer active", true),
        ("cred/uid1000:gid0", false),
    ] {
        for (case, observed) in rows(group) {
            let doors = &mut Doors::new();
            let _held = writer.then(|| doors.open(Access::Write, caller(1)).unwrap());
            let access = access(case.rsplit(' ').next().unwrap()).unwrap();
            let result = told(doors.open(access, nobody(2)));
            assert_eq!(result, observed, "{group}: {case}");
        }
    }
}

#[test]
fn requests() {
    for (group, part) in [("write/orig", Part::Current), ("write/staged", Part::Staged)] {
        for (case, observed) in rows(group) {
            // The kernel's own affair: a pointer to nowhere.
            if case.starts_with("bad pointer") {
                continue;
            }
            check(group, part, false, &unescaped(case), observed);
        }
    }
    for (case, observed) in rows("flush") {
        let number = match case {
            "N while staged" => "1",
            case => case.strip_prefix("N ").unwrap().strip_suffix(" on original").unwrap(),
        };
        check(case, Part::Current, true, format!("{number}\n").as_bytes(), observed);
    }
}

#[test]
fn every_file_takes_its_parts_requests() {
    let mut seen = 0;
    for (case, observed) in rows("write") {
        if let Some((name, text)) = case.split_once('/') {
            if let Some(text) = text.strip_suffix(" on other original file") {
                let write = text.replace("\\n", "\n");
                check(case, file(name).part().unwrap(), false, write.as_bytes(), observed);
                seen += 1;
            }
        } else if let Some((name, request @ ("A" | "D"))) = case.split_once(' ') {
            let write = format!("{request}\n");
            check(case, file(name).part().unwrap(), false, write.as_bytes(), observed);
            seen += 1;
        }
    }
    assert_eq!(seen, 20);
}

/// Compares with what a list said that had a few records, where a request got as far as that.
fn check(case: &str, part: Part, flush: bool, write: &[u8], observed: &str) {
    let (errno, deleted) = observed.split_once(" del=").unwrap_or((observed, ""));
    let parsed = Request::parse(write, part, flush);
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
}

/// What stands between the quotes: C's escapes.
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
