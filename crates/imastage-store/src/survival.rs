//! Tests: power cuts, kills and failing disks at every single operation of a store's life.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use ima_log::{Bank, Extend, RecordBuf, Replay};

use crate::{
    Damage, EpochId, Note, Reader, Retention, Store, StoreError,
    check::check_epoch_on,
    closed::{pack_on, prune_on},
    disk::Disk,
    files, notes,
    sim::{Fault, SimDisk, Trouble},
    store::Layout,
};

const STATE: &str = "/var/lib/state";
/// Small, so that there are many ends of segments and checkpoints.
const LAYOUT: Layout = Layout { segment_size: 400, distance: 2 };
const BANKS: [Bank; 2] = [Bank::Sha1, Bank::Sha256];

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Epoch,
    Batch(usize),
    Abandon,
    Note,
    /// Packs closed epochs.
    Pack,
    /// Leaves one closed epoch.
    Prune,
}

/// What a store holds: for each epoch its records and notes.
type Held = BTreeMap<u64, (Vec<Vec<u8>>, Vec<Note>)>;

/// A life.
struct Life {
    store: Option<Store>,
    /// What was acknowledged.
    held: Held,
    /// What each step that was tried since would make of that, the last one last.
    tried: Vec<Held>,
    made: u32,
}

fn steps() -> Vec<Step> {
    use Step::{Abandon, Batch, Epoch, Note, Open, Pack, Prune};
    vec![
        Open,
        Epoch,
        Batch(3),
        Batch(1),
        Note,
        Batch(0),
        Batch(5),
        Abandon,
        Batch(2),
        Open,
        Note,
        Batch(4),
        Epoch,
        Pack,
        Batch(2),
        Open,
        Batch(6),
        Note,
        Epoch,
        Batch(1),
        Prune,
        Pack,
    ]
}

impl Life {
    fn new() -> Life {
        Life { store: None, held: Held::new(), tried: Vec::new(), made: 0 }
    }

    /// Takes one step. After an error it may be taken again.
    fn step(&mut self, disk: &SimDisk, step: &Step) -> Result<(), StoreError> {
        self.tried.push(self.held.clone());
        if let Step::Open = step {
            self.store = None;
            self.store = Some(open(disk)?);
        }
        // Whoever fails to open a store tries that first.
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(open(disk)?),
        };
        let Some(tried) = self.tried.last_mut() else { unreachable!() };
        match step {
            Step::Open => {}
            Step::Epoch => {
                // One that could not be begun to the end may be there and empty.
                for number in files::epochs(disk, Path::new(STATE))? {
                    tried.entry(number).or_default();
                }
                let number = tried.keys().last().unwrap_or(&0) + 1;
                tried.insert(number, Default::default());
                let id = EpochId { boot_id: number.to_string(), ..id() };
                store.begin_epoch_with(id, &BANKS, &[Bank::Sha384])?;
            }
            Step::Batch(n) => {
                let (records, _) = tried.values_mut().last().unwrap();
                for _ in 0..*n {
                    let record = record(self.made);
                    self.made += 1;
                    assert_eq!(store.append(&record.record())?, records.len() as u64);
                    records.push(record.into_bytes());
                }
                store.commit()?;
            }
            Step::Abandon => {
                store.append(&record(1_000_000).record())?;
                store.rollback();
            }
            Step::Note => {
                let (records, notes) = tried.values_mut().last().unwrap();
                let (index, time) = (records.len() as u64, notes.len() as u64);
                let note =
                    Note { index, after: None, time, kind: "remark".into(), text: "remark".into() };
                notes.push(note.clone());
                store.note(&note)?;
            }
            Step::Pack => {
                let packings = pack_on(&shared(disk), Path::new(STATE))?;
                // What cannot be read at the moment is not told from what is damaged.
                if let Some(why) = packings.into_iter().find_map(|packing| packing.damage) {
                    return Err(StoreError::Damaged { path: STATE.into(), offset: 0, why });
                }
            }
            Step::Prune => {
                while tried.len() > 2 {
                    tried.pop_first();
                }
                let retention = Retention { epochs: Some(1), ..Retention::default() };
                prune_on(&shared(disk), Path::new(STATE), &retention, 0, false)?;
            }
        }
        self.held.clone_from(tried);
        self.tried.clear();
        Ok(())
    }

    /// Takes all steps, or as many as the disk lets us.
    fn run(&mut self, disk: &SimDisk) -> Result<(), StoreError> {
        steps().iter().try_for_each(|step| self.step(disk, step))
    }
}

fn id() -> EpochId {
    EpochId { tpm: None, reset_count: None, boot_id: String::new() }
}

/// Each differs from all others.
fn record(n: u32) -> RecordBuf {
    match n % 7 {
        3 => RecordBuf::ima_ng_violation(10, Bank::Sha256, format!("/violation/{n}").as_bytes()),
        5 => RecordBuf::ima_ng(11, &Bank::Sha256.hash(&[]), format!("/other/{n}").as_bytes()),
        _ => RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), format!("/file/{n}").as_bytes()),
    }
}

fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn open(disk: &SimDisk) -> Result<Store, StoreError> {
    Store::open_on(shared(disk), Path::new(STATE), LAYOUT)
}

/// Everything that readers find, of every epoch, with its running PCRs seen to be right.
fn read(disk: &SimDisk) -> Held {
    let mut held = Held::new();
    for number in files::epochs(disk, Path::new(STATE)).unwrap() {
        let dir = files::epoch_dir(Path::new(STATE), number);
        let reader = Reader::open_epoch(shared(disk), &dir).unwrap();
        let mut replays = BANKS.map(|bank| Replay::new(bank, Extend::Own));
        let mut cursor = reader.records(0).unwrap();
        let mut records: Vec<Vec<u8>> = Vec::new();
        while let Some(record) = cursor.next_record().unwrap() {
            if records.is_empty() {
                assert_eq!(reader.pcr(), Some(record.pcr()));
            }
            if Some(record.pcr()) == reader.pcr() {
                replays.iter_mut().for_each(|replay| replay.extend(&record));
            }
            records.push(record.as_bytes().to_vec());
        }
        assert_eq!(reader.running(), replays.map(|replay| replay.value()));
        held.insert(number, (records, notes::read(disk, &dir).unwrap().in_force()));
    }
    held
}

/// What is wrong in any epoch.
fn damage(disk: &SimDisk) -> Vec<Damage> {
    let mut damage = Vec::new();
    for number in files::epochs(disk, Path::new(STATE)).unwrap() {
        damage.extend(check_epoch_on(disk, Path::new(STATE), number).unwrap().damage);
    }
    damage
}

/// What is wrong with the checkpoints of the latest epoch; those of others nobody makes whole.
fn stale(disk: &SimDisk) -> Vec<Damage> {
    let latest = files::latest_epoch(disk, Path::new(STATE)).unwrap().unwrap();
    check_epoch_on(disk, Path::new(STATE), latest).unwrap().checkpoints
}

/// What is held, as one can read it; each record has a name of its own, and a digest of that.
fn names(held: &Held) -> String {
    let name = |record: &Vec<u8>| {
        String::from_utf8_lossy(record.rsplit(|b| *b == b'/').next().unwrap_or_default())
            .trim_matches('\0')
            .to_owned()
    };
    held.iter()
        .map(|(number, (records, notes))| {
            let records: Vec<String> = records.iter().map(name).collect();
            format!("{number}: [{} and {} notes] ", records.join(" "), notes.len())
        })
        .collect()
}

/// Opens what a crash left, sees that it is what was acknowledged or one step that was tried more, that this
/// now outlives another power cut, and that the store continues from there.
fn survives(disk: &SimDisk, life: &mut Life, what: &str) {
    life.store = None;
    let store = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = read(disk);
    assert!(
        found == life.held || life.tried.contains(&found),
        "{what}:\nfound        {}\nacknowledged {}\ntried        {:#?}",
        names(&found),
        names(&life.held),
        life.tried.iter().map(names).collect::<Vec<_>>()
    );
    let len = found.values().last().map_or(0, |(records, _)| records.len() as u64);
    assert_eq!(store.len(), len, "{what}");
    drop(store);
    // A torn remark is there until the next one takes its place.
    let mut damage = damage(disk);
    damage.retain(|found| !found.what.contains("the last remark is torn"));
    assert_eq!(damage, [], "{what}");

    // What a store says it holds may be deleted elsewhere: it has to be durable.
    disk.restart();
    life.store = Some(open(disk).unwrap_or_else(|error| panic!("{what}, again: {error}")));
    let again = read(disk);
    for ((records, _), (before, _)) in again.values().zip(found.values()) {
        assert_eq!(records, before, "{what}, again");
    }
    assert!(again.keys().eq(found.keys()), "{what}, again");

    life.held.clone_from(&again);
    if life.held.is_empty() {
        life.step(disk, &Step::Epoch).unwrap();
    }
    for step in [
        Step::Batch(2),
        Step::Note,
        Step::Prune,
        Step::Batch(9),
        Step::Pack,
        Step::Open,
        Step::Batch(1),
    ] {
        life.step(disk, &step).unwrap_or_else(|error| panic!("{what}, going on: {error}"));
    }
    assert_eq!(names(&read(disk)), names(&life.held), "{what}, going on");
    assert_eq!(self::damage(disk), [], "{what}, going on");
    assert_eq!(stale(disk), [], "{what}, going on");
}

/// Operations of a whole life on a disk that works.
fn operations() -> u64 {
    let disk = SimDisk::new(0);
    let mut life = Life::new();
    life.run(&disk).unwrap();
    assert_eq!(read(&disk), life.held);
    let operations = disk.operations();
    survives(&disk, &mut life, "nothing went wrong");
    operations
}

#[test]
fn a_power_cut_at_any_operation_loses_and_doubles_nothing() {
    let mut cuts = 0;
    for at in 0..operations() {
        for seed in 1..=4 {
            let disk = SimDisk::new(seed * 1_000_003 + at);
            let mut life = Life::new();
            disk.set_faults(&[Fault::PowerCut { at }]);
            let _ = life.run(&disk);
            disk.restart();
            survives(&disk, &mut life, &format!("power cut at operation {at}, seed {seed}"));
            cuts += 1;
        }
    }
    eprintln!("{cuts} power cuts, each followed by another");
    assert!(cuts >= 1_000, "{cuts}");
}

#[test]
fn a_power_cut_during_recovery_changes_nothing() {
    let mut cuts = 0;
    for at in (0..operations()).step_by(11) {
        for second in 0..40 {
            let disk = SimDisk::new(at * 101 + second);
            let mut life = Life::new();
            disk.set_faults(&[Fault::PowerCut { at }]);
            let _ = life.run(&disk);
            life.store = None;
            disk.restart();
            disk.set_faults(&[Fault::PowerCut { at: disk.operations() + second }]);
            let _ = open(&disk);
            disk.restart();
            survives(&disk, &mut life, &format!("power cuts at {at} and {second} later"));
            cuts += 2;
        }
    }
    eprintln!("{cuts} power cuts, every other one during recovery");
}

#[test]
fn a_kill_at_any_operation_and_a_power_cut_later_lose_nothing() {
    // The process is gone, what it wrote is not: the power stays on.
    let mut kills = 0;
    for at in 0..operations() {
        for seed in 1..=2 {
            let disk = SimDisk::new(seed * 7_001 + at);
            let mut life = Life::new();
            disk.set_faults(&[Fault::PowerCut { at }]);
            let _ = life.run(&disk);
            disk.set_faults(&[]);
            survives(&disk, &mut life, &format!("killed at operation {at}, seed {seed}"));
            kills += 1;
        }
    }
    eprintln!("{kills} kills, each followed by a power cut");
}

#[test]
fn an_error_that_ends_the_process_and_a_power_cut_later_lose_nothing() {
    for at in 0..operations() {
        for count in [1, 3, 9] {
            let disk = SimDisk::new(at * 131 + count);
            let mut life = Life::new();
            disk.set_faults(&[Fault::Trouble { at, count, trouble: Trouble::Broken }]);
            let _ = life.run(&disk);
            disk.set_faults(&[]);
            survives(&disk, &mut life, &format!("{count} errors at operation {at}, then an end"));
        }
    }
}

#[test]
fn errors_then_other_records_then_a_power_cut_lose_nothing() {
    for at in (0..operations()).step_by(5) {
        for (count, later) in
            [1, 2, 4].into_iter().flat_map(|count| (0..14).map(move |later| (count, later)))
        {
            let disk = SimDisk::new(at * 131 + count * 17 + later);
            let mut life = Life::new();
            let errors = Fault::Trouble { at, count, trouble: Trouble::Broken };
            disk.set_faults(&[errors, Fault::PowerCut { at: at + count + later }]);
            // What a step that is taken again appends differs from what it did before.
            let mut tries = 0;
            for step in &steps() {
                while life.step(&disk, step).is_err() && tries < 8 {
                    tries += 1;
                }
                if tries == 8 {
                    break;
                }
            }
            disk.restart();
            let what = format!("{count} errors at operation {at}, power cut {later} later");
            survives(&disk, &mut life, &what);
        }
    }
}

#[test]
fn errors_at_any_operation_leave_what_was_acknowledged() {
    for at in 0..operations() {
        for (trouble, count) in [(Trouble::Broken, 1), (Trouble::Broken, 7), (Trouble::Short, 2)] {
            outlives(trouble, at, count);
        }
    }
}

/// The same store continues when there is room again, or when it may write again.
#[test]
fn a_disk_that_is_full_or_read_only_for_a_while_costs_nothing_but_time() {
    let mut times = 0;
    for at in (0..operations()).step_by(2) {
        for trouble in [Trouble::Full, Trouble::ReadOnly] {
            outlives(trouble, at, 400);
            times += 1;
        }
    }
    eprintln!("full or read-only {times} times");
}

/// Lives a life in which so many operations meet trouble, each step taken again until it succeeds.
fn outlives(trouble: Trouble, at: u64, count: u64) {
    // An epoch whose beginning failed at the very end is begun again.
    let kept = |held: &Held| {
        let mut held = held.clone();
        held.retain(|_, held| *held != Default::default());
        names(&held)
    };
    let what = format!("{trouble:?} at operation {at} and {count} in all");
    let disk = SimDisk::new(at * 31 + count);
    let mut life = Life::new();
    disk.set_faults(&[Fault::Trouble { at, count, trouble }]);
    for step in &steps() {
        let mut tries = 0;
        while let Err(error) = life.step(&disk, step) {
            assert!(trouble != Trouble::Short, "{what}: {error}");
            if let (Some(store), Some((records, _))) = (&life.store, life.held.values().last())
                && store.epoch().is_some()
            {
                assert_eq!(store.len(), records.len() as u64, "{what}");
            }
            if trouble != Trouble::Broken && life.store.is_some() {
                // What failed left nothing behind that a reader could see.
                let found = kept(&read(&disk));
                let pruned = life.tried.iter().map(kept).any(|tried| tried == found);
                let may_be = matches!(step, Step::Prune) && pruned;
                assert!(may_be || found == kept(&life.held), "{what}: {found}");
            }
            tries += 1;
            assert!(tries <= count, "{what}: {error}");
        }
    }
    disk.set_faults(&[]);
    assert_eq!(kept(&read(&disk)), kept(&life.held), "{what}");
    disk.restart();
    drop(open(&disk).unwrap());
    assert_eq!(kept(&read(&disk)), kept(&life.held), "{what}, and a power cut");
    assert_eq!(stale(&disk), [], "{what}, and a power cut");
}

#[test]
fn readers_do_not_see_what_a_failed_commit_left() {
    let disk = SimDisk::new(1);
    let mut life = Life::new();
    for step in [Step::Open, Step::Epoch, Step::Batch(2)] {
        life.step(&disk, &step).unwrap();
    }
    let begin = disk.operations();
    life.step(&disk, &Step::Batch(1)).unwrap();
    for at in 0..disk.operations() - begin {
        let at = disk.operations() + at;
        disk.set_faults(&[Fault::Trouble { at, count: 1, trouble: Trouble::Broken }]);
        assert!(life.step(&disk, &Step::Batch(1)).is_err());
        disk.set_faults(&[]);
        assert_eq!(read(&disk), life.held);
        // And the next commit is as if nothing had been.
        life.step(&disk, &Step::Batch(1)).unwrap();
        assert_eq!(read(&disk), life.held);
    }
}

#[test]
fn a_checkpoint_that_could_not_be_written_is_written_with_the_next_commit() {
    let mut passed_over = 0;
    for at in 0.. {
        let disk = SimDisk::new(at);
        let mut life = Life::new();
        for step in [Step::Open, Step::Epoch, Step::Batch(2)] {
            life.step(&disk, &step).unwrap();
        }
        let begin = disk.operations();
        let trouble = Trouble::Broken;
        disk.set_faults(&[Fault::Trouble { at: begin + at, count: 1, trouble }]);
        let committed = life.step(&disk, &Step::Batch(4));
        if begin + at >= disk.operations() {
            break;
        }
        disk.set_faults(&[]);
        if committed.is_ok() {
            passed_over += 1;
            life.step(&disk, &Step::Batch(1)).unwrap();
            assert_eq!(stale(&disk), [], "operation {at}");
        }
    }
    assert!(passed_over >= 2);
}
