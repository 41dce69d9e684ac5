//! Services that die at random points, and what they leave to the next: a list in this process, a
//! TPM's PCRs as numbers, and a source that fails for good at any of its steps, before or after
//! doing it. What is stored is compared with what was measured, record by record.
//!
//! `IMASTAGE_TEST_SEED` repeats a run.

use std::{
    num::NonZeroU64,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use ima_list::{Duplicates, Options, Part, SharedList};
use ima_log::{Bank, Extend, PcrSet, PcrTarget, RecordBuf, Replay};
use imastage_client::wire::Verdict;
use imastage_source::{
    Batch, DeleteMode, Dialect, Holders, InProcess, Look, Sink, Source, SourceError,
};
use imastage_store::{EpochId, Reader, Store};

use crate::drain::{
    banks::Banks,
    compare::Comparison,
    drainer::Drainer,
    round::{AskTpm, DrainError},
};

const BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

/// A machine: what is measured, and by what chance things happen.
struct Machine {
    list: Arc<SharedList>,
    measured: Vec<Vec<u8>>,
    pcrs: Vec<Replay>,
    random: u64,
    /// Steps left to the service that runs.
    steps: u64,
    /// The service holds the list: nobody else stages.
    is_held: bool,
}

/// The list, held until this is dropped.
struct Held(World);

#[derive(Clone)]
struct World(Arc<Mutex<Machine>>);

impl World {
    fn new(seed: u64) -> World {
        // Equal records are legal: a kernel without a hash table has as many as it is given.
        let options = Options { duplicates: Duplicates::Off, ..Options::default() };
        World(Arc::new(Mutex::new(Machine {
            list: Arc::new(SharedList::new(options)),
            measured: Vec::new(),
            pcrs: BANKS.map(|bank| Replay::new(bank, Extend::Own)).to_vec(),
            random: seed | 1,
            steps: u64::MAX,
            is_held: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    /// One step of the service: something is measured or staged meanwhile, and it may be the last.
    fn step(&self) -> Result<(), SourceError> {
        let mut machine = self.lock();
        machine.happen();
        match machine.steps.checked_sub(1) {
            Some(left) => machine.steps = left,
            None => {
                let error = std::io::Error::other("killed");
                return Err(SourceError::Io { path: "/".into(), doing: "live", error });
            }
        }
        Ok(())
    }

    fn hold(&self) -> Held {
        self.lock().is_held = true;
        Held(self.clone())
    }
}

impl AskTpm for World {
    fn pcrs(&mut self, _: PcrSet) -> Result<Vec<PcrTarget>, String> {
        self.lock().happen();
        let target = |pcr: &Replay| PcrTarget { pcr: 10, value: pcr.value() };
        let pcrs: Vec<PcrTarget> = self.lock().pcrs.iter().map(target).collect();
        self.lock().happen();
        Ok(pcrs)
    }

    fn reset_count(&mut self) -> Result<Option<u32>, String> {
        Ok(None)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().is_held = false;
    }
}

impl Machine {
    fn chance(&mut self, of: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % of
    }

    fn happen(&mut self) {
        for _ in 0..self.chance(8).saturating_sub(4) {
            // Many are equal.
            let kind = self.chance(6);
            let record =
                RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("/file/{kind}").as_bytes());
            let key = record.record().template_digest(Bank::Sha256);
            let pcrs = &mut self.pcrs;
            let extend = || pcrs.iter_mut().for_each(|pcr| pcr.extend(&record.record()));
            self.list.append(&record, &key, extend).unwrap();
            self.measured.push(record.into_bytes());
        }
        if self.chance(16) == 0 && !self.is_held {
            // Somebody stages and does nothing more; or cannot.
            let _ = self.list.stage();
        }
    }
}

struct Mortal {
    source: InProcess,
    world: World,
}

impl Source for Mortal {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.world.step()?;
        let held = self.world.hold();
        Ok(Box::new(MortalLook { look: self.source.look()?, held }))
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        self.world.step()?;
        let held = self.world.hold();
        let batch = self.source.take(sink)?;
        self.world.step()?;
        Ok(batch.map(|batch| Box::new(MortalBatch { batch, held }) as Box<dyn Batch>))
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        self.source.count()
    }

    fn dialect(&self) -> Dialect {
        self.source.dialect()
    }

    fn holders(&self) -> Holders {
        Holders::default()
    }

    fn is_private(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        "a mortal list".to_owned()
    }
}

struct MortalLook<'a> {
    look: Box<dyn Look + 'a>,
    held: Held,
}

impl Look for MortalLook<'_> {
    fn read(&mut self, sink: &mut Sink<'_>) -> Result<(), SourceError> {
        self.look.read(sink)?;
        self.held.0.step()
    }
}

struct MortalBatch<'a> {
    batch: Box<dyn Batch + 'a>,
    held: Held,
}

impl Batch for MortalBatch<'_> {
    fn was_pending(&self) -> bool {
        self.batch.was_pending()
    }

    fn delete(self: Box<Self>, records: NonZeroU64) -> Result<(), SourceError> {
        // Stored, and not deleted; deleted, and nobody was told.
        self.held.0.step()?;
        self.batch.delete(records)?;
        self.held.0.step()
    }
}

/// A service as it comes up.
fn drainer(world: &World, state: &Path, mode: DeleteMode) -> Drainer {
    let mut store = Store::open(state).unwrap();
    if store.epoch().is_none() {
        store.begin_epoch(EpochId::default(), &BANKS).unwrap();
    }
    let mut banks = Banks::of(ima_log::ListReplay::new(BANKS));
    let mut cursor = Reader::open(state).unwrap().records(0).unwrap();
    while let Some(record) = cursor.next_record().unwrap() {
        banks.push(&[record]);
    }
    let comparison = Comparison::new(banks, Verdict::Unchecked, 0);
    let source = InProcess::new(Arc::clone(&world.lock().list), mode);
    let source = Mortal { source, world: world.clone() };
    Drainer::new(Box::new(source), store, Some(Box::new(world.clone())), comparison, Vec::new())
}

fn die_and_compare(mode: DeleteMode, kills: u64) {
    let seed = std::env::var("IMASTAGE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | kills);
    eprintln!("IMASTAGE_TEST_SEED={seed} ({kills} kills)");
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.unwrap();
    let world = World::new(seed);
    let mut killed = 0;
    while killed < kills {
        let steps = world.lock().chance(14);
        world.lock().steps = steps;
        let mut service = drainer(&world, dir.path(), mode);
        loop {
            let before = world.lock().measured.len() as u64;
            match service.drain() {
                Ok(_) => {
                    // All that there was when it was asked is stored, and the TPM agrees.
                    assert!(service.store().len() >= before, "kill {killed}");
                    let verdict = service.comparison().verdict();
                    let Verdict::Consistent { records } = *verdict else {
                        panic!("kill {killed}: {verdict:?}");
                    };
                    assert!(records >= before, "kill {killed}: {records} of {before}");
                }
                // Equal records came all the time; there is another day.
                Err(DrainError::NoPlace) => {}
                Err(DrainError::Source(SourceError::Io { .. })) => break,
                Err(error) => panic!("kill {killed}: {error}"),
            }
        }
        killed += 1;
        drop(service);
    }
    // Nothing happens any more; all of it is stored once.
    world.lock().steps = u64::MAX;
    let mut service = drainer(&world, dir.path(), mode);
    while service.drain().is_err() {}
    let machine = world.lock();
    let stored = service.store().len() as usize;
    let mut cursor = Reader::open(dir.path()).unwrap().records(0).unwrap();
    for (index, record) in machine.measured[..stored].iter().enumerate() {
        assert_eq!(cursor.next_record().unwrap().unwrap().as_bytes(), record, "record {index}");
    }
    // What came during the last drain is in the list.
    let left = machine.list.count(Part::Current) + machine.list.count(Part::Staged);
    assert_eq!(stored as u64 + left, machine.measured.len() as u64);
    assert!(matches!(service.comparison().verdict(), Verdict::Consistent { .. }));
}

#[test]
fn six_hundred_deaths_while_staging() {
    die_and_compare(DeleteMode::Stage, 600);
}

#[test]
fn four_hundred_deaths_while_deleting_n() {
    die_and_compare(DeleteMode::FirstN, 400);
}
