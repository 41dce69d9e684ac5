//! How long each deletion design holds the list's lock, and the effect on appends; see
//! docs/lock-study.md. `cargo bench -p ima-list --bench lock_study`; `-- --write` writes the
//! figures and charts to docs; `-- held`, `beside`, `read`, `add` and `memory` select tables.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod allocator;
mod clock;
mod designs;
mod ours;
mod plot;

use std::{
    collections::HashSet,
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

use allocator::allocated;
use clock::{Clock, ticks};
use designs::{Design, Kind, record};
use foldhash::quality::RandomState;
use ima_list::Part;
use ima_log::{Digest, RecordBuf};
use nix::{
    sys::resource::{UsageWho, getrusage},
    time::ClockId,
};
use plot::{Line, chart};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// The length measured for some designs only, if enough memory is available.
const HUGE: usize = 10_000_000;
const MEMORY_FOR_HUGE: u64 = 8 << 30;

/// The number of records available to append while others are deleted.
const MORE: usize = 200_000;

/// The kernel's files return one page per read.
const PAGE: usize = 4096;

/// The longest list that a design with quadratic read time is measured on.
const MOST_QUADRATIC: usize = 100_000;

/// Arguments of the processes that measure memory and appends, followed by a design and a size.
const MEMORY: &str = "--memory-of";
const ADDING: &str = "--adding-to";

/// Replaces a design: a set of digests without a list.
const BARE_SET: &str = "a bare HashSet of digests";

const KERNELS: &str = "all the kernel's";

/// Arguments that select tables.
const TABLES: [&str; 5] = ["held", "beside", "read", "add", "memory"];

type Records = [(RecordBuf, Digest)];

fn main() {
    let args: Vec<_> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == MEMORY || arg == ADDING) {
        let kind = args[at + 1].parse().ok().map(|kind: usize| Kind::ALL[kind]);
        let size = args[at + 2].parse().unwrap();
        return match args[at].as_str() {
            MEMORY => memory(kind.unwrap(), size),
            _ => adding(kind, size as usize),
        };
    }
    let most = SIZES[SIZES.len() - 1];
    let records: Vec<_> = (0..(most + MORE) as u64).map(record).collect();
    let mut report = Report::default();
    let clock = Clock::get();
    report.say(&format!(
        "The clock ticks every {:.2} ns. An empty critical section measures {:.0} ns, which is subtracted\n\
         from each hold time below.\n",
        clock.tick,
        clock.nanoseconds(clock.nothing)
    ));
    let named = |table: &&str| args.iter().any(|arg| arg == table);
    let chosen = |table: &str| !TABLES.iter().any(named) || named(&table);
    if chosen(TABLES[0]) {
        held_table(&mut report, &records);
    }
    if chosen(TABLES[1]) {
        append_table(&mut report, &records);
    }
    if chosen(TABLES[2]) {
        read_table(&mut report, &records);
    }
    drop(records);
    if chosen(TABLES[3]) {
        adding_table(&mut report);
    }
    if chosen(TABLES[4]) {
        memory_table(&mut report);
    }
    if args.iter().any(|arg| arg == "--write") {
        report.write();
    }
}

/// The printed text and the charts.
#[derive(Default)]
struct Report {
    text: String,
    charts: Vec<(&'static str, String)>,
}

impl Report {
    fn say(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Writes the figures between their marks in docs/lock-study.md, and the charts next to it.
    fn write(&self) {
        const BEGIN: &str = "<!-- figures -->\n";
        const END: &str = "<!-- end of figures -->";
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let page = docs.join("lock-study.md");
        let text = fs::read_to_string(&page).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        fs::write(&page, format!("{before}{BEGIN}{}{END}{after}", self.text)).unwrap();
        fs::create_dir_all(docs.join("lock-study")).unwrap();
        for (name, svg) in &self.charts {
            fs::write(docs.join("lock-study").join(name), svg).unwrap();
        }
    }
}

fn held_table(report: &mut Report, records: &Records) {
    report.say(
        "Lock hold time of N or T:N deleting half of the list, then of A and D for the rest: median, and\n\
         the maximum for N or T:N; and the duration of the whole N or T:N request, freeing included.\n\n\
         | design | records | A | D | N or T:N | longest | whole request |\n|---|--:|--:|--:|--:|--:|--:|",
    );
    let mut lines = Vec::new();
    for kind in Kind::ALL {
        let mut line = Line { name: kind.name().to_owned(), points: Vec::new() };
        let huge = matches!(kind, Kind::V4 | Kind::Ours).then(huge).flatten().map(|size| (size, 3));
        for (size, rounds) in SIZES.into_iter().zip([101, 51, 25, 9]).chain(huge) {
            let [a, d, n, longest, request] = held(kind, records, size, rounds);
            let staged = |time| if kind.stages() { short(time) } else { "–".to_owned() };
            let (a, d, name) = (staged(a), staged(d), kind.name());
            let [short_n, longest, request] = [n, longest, request].map(short);
            report.say(&format!(
                "| {name} | {size} | {a} | {d} | {short_n} | {longest} | {request} |"
            ));
            line.points.push((size as f64, n.max(1.0)));
        }
        lines.push(line);
    }
    let svg = chart("Time the list's lock is held to delete half of the list", &lines);
    report.charts.push(("held.svg", svg));
}

fn append_table(report: &mut Report, records: &Records) {
    report.say(
        "\nTime to append a record, on an idle list and while all other records are deleted in 100\n\
         requests. One append every 5 µs. No duplicate detection. Appends during which the thread was\n\
         preempted without waiting are excluded.\n\n\
         | design | records | idle p50 | p99 | p99.9 | deleting p50 | p99 | p99.9 | p99.9 to idle |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|",
    );
    let mut lines = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::OursTrim) {
        let mut line = Line { name: kind.name().to_owned(), points: Vec::new() };
        for size in SIZES {
            let [idle, deleting] = beside(kind, records, size)
                .map(|mut times| [0.5, 0.99, 0.999].map(|q| quantile(&mut times, q)));
            let figures = [idle, deleting].concat().into_iter().map(short).collect::<Vec<_>>();
            report.say(&format!(
                "| {} | {size} | {} | {:.2} |",
                kind.name(),
                figures.join(" | "),
                deleting[2] / idle[2]
            ));
            line.points.push((size as f64, deleting[2].max(1.0)));
        }
        lines.push(line);
    }
    let svg = chart("p99.9 time to append a record while others are deleted", &lines);
    report.charts.push(("append.svg", svg));
}

fn read_table(report: &mut Report, records: &Records) {
    report.say(
        "\nProcessor time to read the whole list in pages of 4,096 bytes.\n\n\
         | design | records | time | a record |\n|---|--:|--:|--:|",
    );
    let mut lines = Vec::new();
    for (kind, most) in [(Kind::Linux72, MOST_QUADRATIC), (Kind::Ours, HUGE)] {
        let name = if kind == Kind::Ours { kind.name() } else { KERNELS };
        let mut line = Line { name: name.to_owned(), points: Vec::new() };
        for size in SIZES.into_iter().chain(huge()).filter(|size| *size <= most) {
            let time = reading(kind, records, size);
            let (whole, each) = (short(time), short(time / size as f64));
            report.say(&format!("| {name} | {size} | {whole} | {each} |"));
            line.points.push((size as f64, time));
        }
        lines.push(line);
    }
    report.charts.push(("read.svg", chart("Time to read the whole list in pages", &lines)));
}

fn adding_table(report: &mut Report) {
    report.say(
        "\nProcessor time to append a record to a list of that length, with duplicate detection: mean over\n\
         the last tenth (at most 20,000), and maximum over the appends before; each the minimum of three\n\
         runs, or one run for the kernel designs and the longest list.\n\n\
         | what | records | add | longest |\n|---|--:|--:|--:|",
    );
    let mut lines = Vec::new();
    let linux = (Some(Kind::Linux72), KERNELS, SIZES[SIZES.len() - 1]);
    for (kind, name, most) in
        [linux, (None, BARE_SET, HUGE), (Some(Kind::Ours), Kind::Ours.name(), HUGE)]
    {
        let mut line = Line { name: name.to_owned(), points: Vec::new() };
        for size in SIZES.into_iter().chain(huge()).filter(|size| *size <= most) {
            // These take long to fill, and their differences exceed the variance.
            let runs = if kind == Some(Kind::Linux72) || size == HUGE { 1 } else { 3 };
            let [mut each, mut longest] = [f64::MAX; 2];
            for _ in 0..runs {
                let figures = of_its_own(ADDING, kind, size);
                let (mean, most) = figures.split_once(' ').unwrap();
                each = each.min(mean.parse().unwrap());
                longest = longest.min(most.parse().unwrap());
            }
            report.say(&format!("| {name} | {size} | {} | {} |", short(each), short(longest)));
            line.points.push((size as f64, each));
        }
        lines.push(line);
    }
    report
        .charts
        .push(("add.svg", chart("Time to append a record to a list of that length", &lines)));
}

fn memory_table(report: &mut Report) {
    report.say(
        "\nBytes per record, as the allocator rounds them, with duplicate detection; and the bytes that\n\
         remain after all records are deleted.\n\n\
         | design | records | serialized | held | after delete |\n|---|--:|--:|--:|--:|",
    );
    for kind in [Kind::Linux72, Kind::Ours] {
        let name = if kind == Kind::Ours { kind.name() } else { KERNELS };
        // Appends to the kernel's list slow down with its length; its memory per record is
        // constant.
        let most = if kind == Kind::Ours { HUGE } else { MOST_QUADRATIC };
        for size in SIZES.into_iter().chain(huge()).filter(|size| *size <= most) {
            let figures = of_its_own(MEMORY, Some(kind), size);
            report.say(&format!("| {name} | {size} | {figures} |"));
        }
    }
}

/// The output of a separate process.
fn of_its_own(what: &str, kind: Option<Kind>, size: usize) -> String {
    let index = Kind::ALL.iter().position(|other| Some(*other) == kind);
    let index = index.map_or("set".to_owned(), |index| index.to_string());
    let args = [what, &index, &size.to_string()];
    let output = Command::new(env::current_exe().unwrap()).args(args).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Nanoseconds in a readable unit.
fn short(time: f64) -> String {
    match time {
        ..1e3 => format!("{time:.0} ns"),
        ..1e6 => format!("{:.1} µs", time / 1e3),
        ..1e9 => format!("{:.1} ms", time / 1e6),
        _ => format!("{:.1} s", time / 1e9),
    }
}

/// [`HUGE`], if enough memory is available.
fn huge() -> Option<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = available.trim().split(' ').next()?.parse().ok()?;
    (kilobytes << 10 >= MEMORY_FOR_HUGE).then_some(HUGE)
}

fn filled(kind: Kind, records: &Records, size: usize) -> Box<dyn Design> {
    let list = kind.new_list(false);
    for (record, key) in records.iter().take(size) {
        list.append(record, key).unwrap();
    }
    for (record, key) in (records.len() as u64..size as u64).map(record) {
        list.append(&record, &key).unwrap();
    }
    list
}

/// The duration of `work` in nanoseconds, and its result.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let clock = Clock::get();
    let start = ticks();
    let done = work();
    (clock.nanoseconds(ticks() - start), done)
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    if times.is_empty() {
        return 0.0;
    }
    times.sort_unstable_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * q) as usize]
}

/// Hold times of A, D and N, the maximum for N, and the duration of N. Caches are cold, except for
/// the lines that ten appends touch.
fn held(kind: Kind, records: &Records, size: usize, rounds: usize) -> [f64; 5] {
    let last = &records[records.len() - 10..];
    let half = size as u64 / 2;
    let [mut a, mut d, mut n, mut whole] = [const { Vec::new() }; 4];
    let mut other = vec![0u8; 64 << 20];
    let mut cold = |list: &dyn Design| {
        other.iter_mut().step_by(64).for_each(|byte| *byte = black_box(*byte) + 1);
        for (record, key) in last {
            list.append(record, key).unwrap();
        }
    };
    for _ in 0..rounds {
        let list = filled(kind, records, size);
        cold(&*list);
        let (request, deleted) = timed(|| list.delete_first(0, half).unwrap());
        n.push(list.held());
        whole.push(request);
        assert_eq!(deleted, half);
        if kind.stages() {
            cold(&*list);
            let before = list.held();
            list.stage().unwrap();
            a.push(list.held() - before);
            cold(&*list);
            let before = list.held();
            list.delete_staged().unwrap();
            d.push(list.held() - before);
        }
    }
    let longest = quantile(&mut n, 1.0);
    let [a, d, n, whole] = [a, d, n, whole].map(|mut times| quantile(&mut times, 0.5));
    [a, d, n, longest, whole]
}

/// Duration of each append to a list of `size` records, on an idle list and while those records are
/// deleted. The two alternate, so that other load on the machine affects both.
fn beside(kind: Kind, records: &Records, size: usize) -> [Vec<f64>; 2] {
    const ROUNDS: usize = 8;
    const REQUESTS: u64 = 100;
    const PACE: Duration = Duration::from_micros(300);
    // Without a pause most appends would fall between two requests.
    const BETWEEN: Duration = Duration::from_micros(5);
    let more = &records[records.len() - MORE..];
    let mut all = [const { Vec::new() }; 2];
    for (deleting, times) in (0..2 * ROUNDS).map(|round| round % 2).map(|round| (round == 1, round))
    {
        let times = &mut all[times];
        let list = filled(kind, records, size);
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
                let before = left_processor();
                let (time, added) = timed(|| list.append(record, key));
                added.unwrap();
                let after = left_processor();
                // An append that waits for the lock counts even if it is preempted.
                if after.0 != before.0 || after.1 == before.1 {
                    times.push(time);
                }
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

/// Voluntary and involuntary context switches of this thread.
fn left_processor() -> (i64, i64) {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    (usage.voluntary_context_switches(), usage.involuntary_context_switches())
}

/// The processor time of this thread in nanoseconds; excludes time while it was preempted.
fn used() -> f64 {
    Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap()).as_nanos() as f64
}

fn reading(kind: Kind, records: &Records, size: usize) -> f64 {
    let list = filled(kind, records, size);
    let mut read = 0;
    let before = used();
    list.read(Part::Current, PAGE, &mut |slice| read += black_box(slice.to_vec()).len());
    let time = used() - before;
    assert!(read > size * 100);
    time
}

/// Prints the mean processor time of the last appends, and the maximum of the earlier ones.
fn adding(kind: Option<Kind>, size: usize) {
    let list = kind.map(|kind| kind.new_list(true));
    let mut set = HashSet::with_hasher(RandomState::default());
    let mut add = |record: &RecordBuf, key: &Digest| match &list {
        Some(list) => list.append(record, key).unwrap(),
        None => assert!(set.insert(<[u8; 32]>::try_from(key.as_bytes()).unwrap())),
    };
    let window = (size / 10).min(20_000);
    let mut longest = 0.0f64;
    for (record, key) in (0..(size - window) as u64).map(record) {
        let before = used();
        add(&record, &key);
        longest = longest.max(used() - before);
    }
    let last: Vec<_> = ((size - window) as u64..size as u64).map(record).collect();
    let before = used();
    last.iter().for_each(|(record, key)| add(record, key));
    println!("{} {longest}", (used() - before) / window as f64);
}

fn memory(kind: Kind, size: u64) {
    let before = allocated();
    let list = kind.new_list(true);
    let mut bytes = 0;
    for (record, key) in (0..size).map(record) {
        bytes += record.as_bytes().len();
        list.append(&record, &key).unwrap();
    }
    let held = allocated() - before;
    list.stage().unwrap();
    list.delete_staged().unwrap();
    let kept = allocated() - before;
    let each = |bytes: i64| bytes as f64 / size as f64;
    println!("{:.0} | {:.0} | {:.0}", each(bytes as i64), each(held), each(kept));
}
