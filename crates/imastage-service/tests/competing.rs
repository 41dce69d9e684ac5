//! Others stage, read, hold and delete at random while the service drains a mounted sandbox. They
//! remember what they took: what the service says is compared with that.
//!
//! `IMASTAGE_TEST_SEED` repeats the actors' choices (not the moments at which they come).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ima_log::{Bank, Format, Records};
use ima_securityfs::Dialect;
use imastage_client::wire::{Cause, Verdict};
use imastage_sandbox::{
    Config as Kernel, Sandbox, TpmChoice,
    control::{Command as Ask, ask},
};
use imastage_service::{Config, Service};

#[allow(dead_code)]
mod common;

use common::{record, stored};

const STAGED: &str = "binary_runtime_measurements_staged";
const CURRENT: &str = "binary_runtime_measurements";

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn nap(&mut self) {
        thread::sleep(Duration::from_micros(self.below(3000)));
    }
}

fn numbers(bytes: &[u8]) -> Vec<usize> {
    Records::new(bytes, Format::native(Bank::Sha1))
        .filter_map(|record| {
            let name = record.unwrap().event_name()?.to_vec();
            String::from_utf8(name).unwrap().strip_prefix("/file/")?.parse().ok()
        })
        .collect()
}

/// Measures `count` records, in their order, a few at a time.
fn measure(ima: &Path, dir: &Path, count: usize, random: &mut Random) {
    let path = dir.join("replayed");
    let mut next = 0;
    while next < count {
        let end = count.min(next + 1 + random.below(5) as usize);
        fs::write(&path, (next..end).flat_map(|n| record(n).into_bytes()).collect::<Vec<u8>>())
            .unwrap();
        let replay = Ask::Replay { path: path.clone(), rate: None };
        ask(ima, &replay, &mut |_| {}).unwrap();
        next = end;
        random.nap();
    }
}

/// Reads now and then, holds files now and then, stages and leaves it there.
fn meddle(ima: &Path, rounds: usize, random: &mut Random) {
    for _ in 0..rounds {
        random.nap();
        match random.below(4) {
            // Whatever is refused, is refused.
            0 => drop(fs::read(ima.join(CURRENT))),
            1 => {
                let held = File::open(ima.join(STAGED));
                random.nap();
                drop(held);
            }
            2 => {
                let held = File::options().read(true).write(true).open(ima.join(STAGED));
                random.nap();
                drop(held);
            }
            _ => {
                if let Ok(mut staged) = File::options().write(true).open(ima.join(STAGED)) {
                    let _ = staged.write(b"A\n");
                }
            }
        }
    }
}

/// Deletes what there is, once, unless that does not succeed before all is measured; gives the
/// numbers of the records. The list is held meanwhile, so nobody else took any of them.
fn steal(ima: &Path, dialect: Dialect, random: &mut Random, over: &AtomicBool) -> Vec<usize> {
    // Not always before anything was stored.
    for _ in 0..random.below(40) {
        random.nap();
    }
    while !over.load(Ordering::Relaxed) {
        random.nap();
        let taken = match dialect {
            Dialect::Trim => steal_by_trimming(ima),
            _ => steal_by_staging(ima),
        };
        match taken {
            Ok(numbers) if !numbers.is_empty() => return numbers,
            _ => {}
        }
    }
    Vec::new()
}

fn steal_by_staging(ima: &Path) -> std::io::Result<Vec<usize>> {
    let mut staged = File::options().read(true).write(true).open(ima.join(STAGED))?;
    staged.write_all(b"A\n")?;
    let mut bytes = Vec::new();
    staged.read_to_end(&mut bytes)?;
    staged.rewind()?;
    staged.write_all(b"D\n")?;
    Ok(numbers(&bytes))
}

fn steal_by_trimming(ima: &Path) -> std::io::Result<Vec<usize>> {
    let mut list = File::open(ima.join(CURRENT))?;
    let total = fs::read_to_string(ima.join("ima_trim_log"))?;
    let mut bytes = Vec::new();
    list.read_to_end(&mut bytes)?;
    drop(list);
    let count = Records::new(&bytes, Format::native(Bank::Sha1)).count();
    let numbers = numbers(&bytes);
    let mut trim = File::options().write(true).open(ima.join("ima_trim_log"))?;
    trim.write_all(format!("{}:{count}\n", total.trim()).as_bytes())?;
    Ok(numbers)
}

/// Whoever drains: nothing may be said that is not true.
fn compete(dialect: Dialect, steals: bool) {
    const RECORDS: usize = 300;
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return eprintln!("SKIPPED: /dev/fuse: {error}");
    }
    let seed = std::env::var("IMASTAGE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("IMASTAGE_TEST_SEED={seed} ({dialect}, steals: {steals})");
    let dir = tempfile::tempdir().unwrap();
    let (ima, state) = (dir.path().join("ima"), dir.path().join("state"));
    let mut kernel = Kernel::new(&ima, TpmChoice::Swtpm);
    kernel.watch = false;
    kernel.dialect = dialect;
    let sandbox = Sandbox::start(&kernel).unwrap();
    let config = Config {
        every: Duration::from_millis(1),
        tpm: sandbox.tpm_endpoint().cloned(),
        // The first records may be stolen before any is stored.
        adopt: true,
        ..Config::new(state.clone())
    };
    let source = imastage_source::open(&ima, None).unwrap();
    let service = Service::start(config, source).unwrap();

    let mut random = (1..4).map(|n| Random(seed << 3 | n | 1 << 40));
    let [mut one, mut two, mut three] = [(); 3].map(|()| random.next().unwrap());
    let over = AtomicBool::new(false);
    let stolen = thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            measure(&ima, dir.path(), RECORDS, &mut one);
            over.store(true, Ordering::Relaxed);
        });
        let meddling = scope.spawn(|| meddle(&ima, 60, &mut two));
        let stealing = scope.spawn(|| match steals {
            true => steal(&ima, dialect, &mut three, &over),
            false => Vec::new(),
        });
        while !(measuring.is_finished() && meddling.is_finished() && stealing.is_finished()) {
            let status = service.status();
            if !steals {
                let good = matches!(
                    status.verdict,
                    Verdict::Unchecked | Verdict::Consistent { .. } | Verdict::Lagging { .. }
                );
                assert!(good, "{:?}", status.verdict);
            }
            thread::sleep(Duration::from_millis(1));
        }
        stealing.join().unwrap()
    });
    service.drain().unwrap();
    let status = service.stop();
    assert_eq!(status.since_start.last_error, None);

    let kept = numbers(&stored(&state).concat());
    assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
    // What was stolen may have been stored before, where it could not be deleted.
    let missing: Vec<usize> = (0..RECORDS).filter(|n| kept.binary_search(n).is_err()).collect();
    assert!(missing.iter().all(|n| stolen.contains(n)), "{missing:?} of {stolen:?}");
    let Some(first) = missing.first() else {
        assert_eq!(status.verdict, Verdict::Consistent { records: status.records });
        return;
    };
    let Verdict::Diverged(divergence) = status.verdict else { panic!("{:?}", status.verdict) };
    // The place where they are missing: what is stored there comes behind them. In front of all
    // stands boot_aggregate, if that was not stolen, too.
    let place = match status.records - kept.len() as u64 {
        0 => 0,
        boot_aggregate => boot_aggregate + *first as u64,
    };
    let after = divergence.after.map_or(0, |after| after + 1);
    assert!((after..=divergence.before).contains(&place), "{place}: {divergence:?}");
    let causes = match dialect {
        Dialect::Trim => [Cause::Missing, Cause::MissingOrUnloggedExtend],
        _ => [Cause::MissingOrUnloggedExtend; 2],
    };
    assert!(causes.contains(&divergence.cause), "{divergence:?}");
}

#[test]
fn others_who_take_nothing_change_nothing() {
    for dialect in Dialect::ALL {
        compete(dialect, false);
    }
}

#[test]
fn what_others_take_is_missing_where_the_service_says() {
    for dialect in Dialect::ALL {
        compete(dialect, true);
    }
}
