//! Whether the drain loop lives, and what it is told while it does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use ima_list::{Options, SharedList};
use ima_log::Bank;
use imastage_service::{Config, Service};
use imastage_source::{
    Batch, DeleteMode, Dialect, Holders, InProcess, Look, Sink, Source, SourceError,
};

#[allow(dead_code)]
mod common;

use common::{record, wait_for_alerts, wait_until};

/// Never drains by itself.
fn patient(dir: &tempfile::TempDir) -> Config {
    Config {
        every: Duration::from_secs(3600),
        drain_at: u64::MAX,
        ..Config::new(dir.path().join("state"))
    }
}

fn add(list: &SharedList, n: usize) {
    let record = record(n);
    let key = record.record().template_digest(Bank::Sha256);
    list.append(&record, &key, || {}).unwrap();
}

#[test]
fn it_goes_on_as_it_is_told_last() {
    let dir = tempfile::tempdir().unwrap();
    let list = Arc::new(SharedList::new(Options::default()));
    let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
    let service = Service::start(patient(&dir), Box::new(source)).unwrap();
    service.adjust(Config { drain_at: 1, ..patient(&dir) });
    for n in 0..3 {
        add(&list, n);
        wait_until("it drains at one record", || service.status().records == n as u64 + 1);
    }
    let alerted = dir.path().join("alerted");
    let alert = Some(format!("echo $IMASTAGE_VERDICT >{}", alerted.display()));
    service.adjust(Config { alert, ..patient(&dir) });
    service.drain().unwrap();
    add(&list, 3);
    assert_eq!(service.status().records, 3);
    service.drain().unwrap();
    assert_eq!(service.stop().records, 4);
    wait_for_alerts(&alerted);
    assert!(!alerted.exists(), "a new command is no change of verdict");
}

/// A list that, once it is told to, lets nobody go who counts its records.
struct Stuck {
    source: InProcess,
    told: mpsc::Receiver<()>,
    entered: mpsc::Sender<()>,
    released: mpsc::Receiver<()>,
}

impl Source for Stuck {
    fn look(&mut self) -> Result<Box<dyn Look + '_>, SourceError> {
        self.source.look()
    }

    fn take(&mut self, sink: &mut Sink<'_>) -> Result<Option<Box<dyn Batch + '_>>, SourceError> {
        self.source.take(sink)
    }

    fn try_open(&mut self) -> Result<(), SourceError> {
        self.source.try_open()
    }

    fn count(&mut self) -> Result<u64, SourceError> {
        if self.told.try_recv().is_ok() {
            self.entered.send(()).unwrap();
            self.released.recv().unwrap();
        }
        self.source.count()
    }

    fn dialect(&self) -> Dialect {
        self.source.dialect()
    }

    fn holders(&self) -> Holders {
        self.source.holders()
    }

    fn is_private(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        self.source.name()
    }
}

#[test]
fn it_beats_as_long_as_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let list = Arc::new(SharedList::new(Options::default()));
    let source = InProcess::new(Arc::clone(&list), DeleteMode::Stage);
    let (tell, told) = mpsc::channel();
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let source = Stuck { source, told, entered, released };
    let service = Service::start(patient(&dir), Box::new(source)).unwrap();
    let (begin, since) = (service.beats(), Instant::now());
    wait_until("it beats with nothing to do", || service.beats() > begin + 2);
    let three_beats = since.elapsed();

    tell.send(()).unwrap();
    is_in.recv().unwrap();
    let stuck = service.beats();
    // All else continues. As slow as the machine is now, there would have been some.
    assert_eq!(service.status().records, 0);
    thread::sleep(2 * three_beats);
    assert_eq!(service.beats(), stuck);

    release.send(()).unwrap();
    wait_until("it beats again", || service.beats() > stuck);
    service.stop();
}
