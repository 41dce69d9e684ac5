//! How long each design of deleting records holds the list's lock, and what that does to those who
//! add. docs/lock-study.md says how this is to be read. `cargo bench -p ima-list --bench lock_study`;
//! with `-- --write` the figures and charts go into docs.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod designs;
mod plot;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    env, fs,
    hint::{self, black_box},
    path::Path,
    process::Command,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use designs::{Design, Kind, record};
use ima_list::Part;
use ima_log::{Digest, RecordBuf};
use plot::{Line, chart};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// How many records are there to be added while others are deleted.
const MORE: usize = 200_000;

/// The kernel's files give a page at a time.
const PAGE: usize = 4096;

/// The largest list that is read in a time that grows with its square.
const MOST_QUADRATIC: usize = 100_000;

/// Argument of the process that measures memory, before a design and a size.
const MEMORY: &str = "--memory-of";

type Records = [(RecordBuf, Digest)];

fn main() {
    let mut args = env::args().skip_while(|arg| arg != MEMORY).skip(1);
    if let (Some(kind), Some(size)) = (args.next(), args.next()) {
        return memory(Kind::ALL[kind.parse::<usize>().unwrap()], size.parse().unwrap());
    }
    let most = SIZES[SIZES.len() - 1];
    let records: Vec<_> = (0..(most + MORE) as u64).map(record).collect();
    let mut report = String::new();
    let mut say = |line: String| {
        println!("{line}");
        report.push_str(&line);
        report.push('\n');
    };

    let mut charts = Vec::new();
    let mut lines = Vec::new();
    say("Time the lock is held by A, and by N or T:N deleting half of the list (median); and how long that\n\
         request takes as a whole, freeing included.\n\n\
         | design | records | A | N or T:N | whole request |\n|---|--:|--:|--:|--:|"
        .to_owned());
    for kind in Kind::ALL {
        let mut line = Line { name: kind.name().to_owned(), points: Vec::new() };
        for (size, rounds) in SIZES.into_iter().zip([51, 21, 11, 5]) {
            let [a, n, request] = held(kind, &records[..size], rounds);
            let a = if kind.stages() { format!("{a:.1?}") } else { "–".to_owned() };
            say(format!("| {} | {size} | {a} | {n:.1?} | {request:.1?} |", kind.name()));
            line.points.push((size as f64, n.as_nanos().max(1) as f64));
        }
        lines.push(line);
    }
    charts.push((
        "held.svg",
        chart("Time the list's lock is held to delete half of the list", &lines),
    ));

    say("\nTime to add a record, while nothing else happens and while all other records are deleted in\n\
         100 requests. One is added every 5 µs. No duplicate detection.\n\n\
         | design | records | idle p50 | p99.9 | deleting p50 | p99 | p99.9 |\n\
         |---|--:|--:|--:|--:|--:|--:|"
        .to_owned());
    lines = Vec::new();
    for kind in Kind::ALL {
        let mut line = Line { name: kind.name().to_owned(), points: Vec::new() };
        for size in SIZES {
            let mut idle = beside(kind, &records, size, false);
            let mut deleting = beside(kind, &records, size, true);
            let [p50, p999] = [0.5, 0.999].map(|q| quantile(&mut idle, q));
            let beside = [0.5, 0.99, 0.999].map(|q| quantile(&mut deleting, q));
            say(format!(
                "| {} | {size} | {p50:.1?} | {p999:.1?} | {:.1?} | {:.1?} | {:.1?} |",
                kind.name(),
                beside[0],
                beside[1],
                beside[2]
            ));
            line.points.push((size as f64, beside[2].as_nanos().max(1) as f64));
        }
        lines.push(line);
    }
    charts.push((
        "append.svg",
        chart("99.9 % of records are added within, while others are deleted", &lines),
    ));

    say("\nTime to read the whole list by pages of 4,096 bytes.\n\n\
         | design | records | time |\n|---|--:|--:|"
        .to_owned());
    lines = Vec::new();
    for (kind, most) in [(Kind::Linux72, MOST_QUADRATIC), (Kind::Segments, most)] {
        let name = if kind == Kind::Segments { kind.name() } else { "all the kernel's" };
        let mut line = Line { name: name.to_owned(), points: Vec::new() };
        for size in SIZES.into_iter().filter(|size| *size <= most) {
            let time = reading(kind, &records[..size]);
            say(format!("| {name} | {size} | {time:.1?} |"));
            line.points.push((size as f64, time.as_nanos() as f64));
        }
        lines.push(line);
    }
    charts.push(("read.svg", chart("Time to read the whole list by pages", &lines)));
    drop(records);

    say("\nBytes a record takes, as the allocator rounds them, with duplicate detection; what stays of them\n\
         when all were deleted; and the time to add one at that length.\n\n\
         | design | records | serialized | held | after delete | add |\n|---|--:|--:|--:|--:|--:|"
        .to_owned());
    for kind in [Kind::Linux72, Kind::Segments] {
        for size in SIZES {
            let index = Kind::ALL.iter().position(|other| *other == kind).unwrap().to_string();
            let args = [MEMORY, &index, &size.to_string()];
            let output = Command::new(env::current_exe().unwrap()).args(args).output().unwrap();
            assert!(output.status.success());
            let name = if kind == Kind::Segments { kind.name() } else { "all the kernel's" };
            let figures = String::from_utf8(output.stdout).unwrap();
            say(format!("| {name} | {size} | {} |", figures.trim()));
        }
    }

    if env::args().any(|arg| arg == "--write") {
        write(&report, &charts);
    }
}

fn filled(kind: Kind, records: &Records, detect: bool) -> Box<dyn Design> {
    let list = kind.new_list(detect);
    for (record, key) in records {
        list.append(record, key).unwrap();
    }
    list
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize]
}

/// How long A and N hold the lock, and how long N takes; caches are cold, but for what adding a few
/// records warms.
fn held(kind: Kind, records: &Records, rounds: usize) -> [Duration; 3] {
    let (records, last) = records.split_at(records.len() - 10);
    let half = records.len() as u64 / 2;
    let mut times = [const { Vec::new() }; 3];
    let mut other = vec![0u8; 64 << 20];
    let mut ready = || {
        let list = filled(kind, records, false);
        other.iter_mut().step_by(64).for_each(|byte| *byte = black_box(*byte) + 1);
        for (record, key) in last {
            list.append(record, key).unwrap();
        }
        list
    };
    for _ in 0..rounds {
        let list = ready();
        let (whole, deleted) = timed(|| list.delete_first(0, half).unwrap());
        times[1].push(list.held());
        times[2].push(whole);
        assert_eq!(deleted, half);
        drop(list);
        if kind.stages() {
            let list = ready();
            list.stage().unwrap();
            times[0].push(list.held());
        }
    }
    times.map(|mut times| if times.is_empty() { Duration::ZERO } else { quantile(&mut times, 0.5) })
}

/// How long each append takes to a list of `size` records, idle otherwise, or while those are
/// deleted.
fn beside(kind: Kind, records: &Records, size: usize, deleting: bool) -> Vec<Duration> {
    const REQUESTS: u64 = 100;
    const PACE: Duration = Duration::from_micros(300);
    // Without a pause most records would be added between requests, and few meet one.
    const BETWEEN: Duration = Duration::from_micros(5);
    let more = &records[records.len() - MORE..];
    let mut all = Vec::new();
    for _ in 0..5 {
        let list = filled(kind, &records[..size], false);
        let (start, done) = (Barrier::new(2), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let each = size as u64 / REQUESTS;
                for request in 0..REQUESTS {
                    let until = Instant::now() + PACE;
                    if deleting {
                        list.delete_first(request * each, each).unwrap();
                    }
                    while Instant::now() < until {
                        hint::spin_loop();
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
            start.wait();
            for (record, key) in more {
                all.push(timed(|| list.append(record, key).unwrap()).0);
                let until = Instant::now() + BETWEEN;
                while Instant::now() < until {
                    hint::spin_loop();
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
    }
    all
}

fn reading(kind: Kind, records: &Records) -> Duration {
    let list = filled(kind, records, false);
    let mut read = 0;
    let (time, ()) = timed(|| {
        list.read(Part::Current, PAGE, &mut |slice| read += black_box(slice.to_vec()).len());
    });
    assert_eq!(read, records.iter().map(|(record, _)| record.as_bytes().len()).sum::<usize>());
    time
}

fn memory(kind: Kind, size: u64) {
    let before = HELD.get();
    let list = kind.new_list(true);
    let (mut bytes, mut adding) = (0, Duration::ZERO);
    const LAST: u64 = 1_000;
    for i in 0..size {
        let (record, key) = record(i);
        bytes += record.as_bytes().len();
        let (time, added) = timed(|| list.append(&record, &key));
        added.unwrap();
        if i >= size - LAST {
            adding += time;
        }
    }
    let held = HELD.get() - before;
    list.stage().unwrap();
    list.delete_staged().unwrap();
    let kept = HELD.get() - before;
    let each = |bytes: i64| bytes as f64 / size as f64;
    let adding = adding / LAST as u32;
    println!("{:.0} | {:.0} | {:.0} | {adding:.1?}", each(bytes as i64), each(held), each(kept));
}

/// Puts the figures between their marks in docs/lock-study.md, and the charts beside it.
fn write(report: &str, charts: &[(&str, String)]) {
    const BEGIN: &str = "<!-- figures -->\n";
    const END: &str = "<!-- end of figures -->";
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = docs.join("lock-study.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    fs::write(&page, format!("{before}{BEGIN}{report}{END}{after}")).unwrap();
    fs::create_dir_all(docs.join("lock-study")).unwrap();
    for (name, svg) in charts {
        fs::write(docs.join("lock-study").join(name), svg).unwrap();
    }
}

/// Counts what a thread has allocated and not freed, in units of 16 bytes with 8 for the allocator.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(size: usize, sign: i64) {
    let size = (size + 8).next_multiple_of(16).max(32);
    HELD.set(HELD.get() + sign * size as i64);
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
