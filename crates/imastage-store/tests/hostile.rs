//! State directories that somebody else made: findings 4 and 12 of the security review.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{BANKS, bytes_of, id, record, stored, three_commits};
use ima_log::RecordBuf;
use imastage_store::{
    Note, Reader, Remedy, Retention, SideFile, Store, StoreError, all_notes, check,
    check_directory, check_epoch, epochs, notes, pack, prune, repair,
};
use tempfile::{TempDir, tempdir};

/// A closed epoch and an open one, both with records and remarks.
fn two_epochs(dir: &TempDir) -> (PathBuf, Vec<RecordBuf>) {
    let (state, records) = three_commits(dir);
    let mut store = Store::open_with(&state, 500).unwrap();
    store.begin_epoch(id(2), &BANKS).unwrap();
    for record in &records {
        store.append(&record.record()).unwrap();
    }
    store.commit().unwrap();
    let (kind, text) = (String::new(), "a remark".to_owned());
    store.note(&Note { index: 0, after: None, time: 1, kind, text }).unwrap();
    (state, records)
}

/// Every file below a directory, with what it holds.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(snapshot(&entry.path())),
            kind if kind.is_file() => {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
            _ => {}
        }
    }
    files
}

/// What an attacker wants to have altered.
fn victim(dir: &TempDir) -> PathBuf {
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    for (name, bytes) in
        [("file", &b"precious"[..]), ("commits", b"also"), ("0000.ima", b"and this")]
    {
        fs::write(victim.join(name), bytes).unwrap();
    }
    victim
}

const NOTHING_IS_KEPT: Retention = Retention { epochs: Some(0), bytes: None, age: None };

#[test]
fn finding_04_symlinked_lock_is_not_followed() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let victim = victim(&dir);
    let before = snapshot(&victim);
    for target in [victim.join("file"), victim.join("not there")] {
        fs::remove_file(state.join("lock")).unwrap();
        symlink(&target, state.join("lock")).unwrap();
        for refused in [
            repair(&state, true).unwrap_err(),
            repair(&state, false).unwrap_err(),
            Store::open(&state).unwrap_err(),
        ] {
            let words = refused.to_string();
            assert!(matches!(refused, StoreError::Damaged { .. }), "{words}");
            assert!(words.contains("lock") && words.contains("symbolic link"), "{words}");
        }
        assert_eq!(snapshot(&victim), before);
        let found = check(&state).unwrap().damage;
        assert!(found.iter().any(|found| found.path == state.join("lock")), "{found:?}");
    }
}

#[test]
fn finding_04_a_file_with_two_names_is_not_written_to() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let victim = victim(&dir);
    let before = snapshot(&victim);
    for name in ["lock", "epochs/0002/checkpoints", "epochs/0002/commits"] {
        let (path, aside) = (state.join(name), dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        fs::hard_link(victim.join("file"), &path).unwrap();
        let _ = Store::open(&state);
        let _ = repair(&state, false);
        assert_eq!(snapshot(&victim), before, "{name}");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    // But it is read: a backup may be made of hard links.
    let segment = state.join("epochs/0002/00000000000000000000.ima");
    fs::hard_link(&segment, dir.path().join("backup")).unwrap();
    assert_eq!(stored(&state, 0), bytes_of(&records));
    assert_eq!(check(&state).unwrap().damage, []);
    let words = Store::open(&state).unwrap_err().to_string();
    assert!(words.contains("several names"), "{words}");
}

#[test]
fn finding_04_symlinked_epoch_is_not_pruned() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let victim = victim(&dir);
    let before = snapshot(&victim);
    let epoch = state.join("epochs/0001");
    fs::remove_dir_all(&epoch).unwrap();
    symlink(&victim, &epoch).unwrap();
    for dry_run in [true, false] {
        let words = prune(&state, &NOTHING_IS_KEPT, dry_run).unwrap_err().to_string();
        assert!(words.contains("epochs/0001") && words.contains("symbolic link"), "{words}");
    }
    assert_eq!(snapshot(&victim), before);
    assert!(fs::symlink_metadata(&epoch).unwrap().is_symlink());
    let found = check(&state).unwrap().damage;
    assert!(matches!(&found[..], [found] if found.path == epoch), "{found:?}");
}

#[test]
fn finding_04_symlinked_remains_of_an_epoch_are_not_entered() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let victim = victim(&dir);
    let before = snapshot(&victim);
    let keep_all = Retention::default();
    symlink(&victim, state.join("epochs/x.gone")).unwrap();
    // Not a name that pruning gives.
    assert_eq!(prune(&state, &keep_all, false).unwrap(), []);
    symlink(&victim, state.join("epochs/0000.gone")).unwrap();
    assert_eq!(prune(&state, &keep_all, false).unwrap(), []);
    symlink(&victim, state.join("epochs/0007.gone")).unwrap();
    let words = prune(&state, &keep_all, false).unwrap_err().to_string();
    assert!(words.contains("0007.gone"), "{words}");
    assert_eq!(snapshot(&victim), before);
    assert_eq!(check_directory(&state).unwrap().damage.len(), 3);
}

#[test]
fn finding_04_pruning_removes_only_the_store_s_own_files() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let victim = victim(&dir);
    let epoch = state.join("epochs/0001");
    fs::write(epoch.join("00000000000000000003-0.cut"), b"kept by a recovery").unwrap();
    for foreign in ["photo.jpg", "5.ima", "+0000000000000000001.ima", "x.cut", "commits-1.cut.old"]
    {
        fs::write(epoch.join(foreign), b"mine").unwrap();
        let before = snapshot(&state);
        let words = prune(&state, &NOTHING_IS_KEPT, false).unwrap_err().to_string();
        assert!(words.contains(foreign), "{words}");
        assert_eq!(snapshot(&state), before);
        fs::remove_file(epoch.join(foreign)).unwrap();
    }
    symlink(victim.join("file"), epoch.join("commits.new")).unwrap();
    assert!(prune(&state, &NOTHING_IS_KEPT, false).is_err());
    fs::remove_file(epoch.join("commits.new")).unwrap();
    assert_eq!(prune(&state, &NOTHING_IS_KEPT, false).unwrap().len(), 1);
    assert!(!epoch.exists());
}

/// What stands where a file or directory of the store should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    LinkToFile,
    LinkToDirectory,
    LinkToNothing,
    Fifo,
    Socket,
    Directory,
    File,
    /// Reads as zeros without end.
    Device,
}

impl Instead {
    const ALL: [Instead; 8] = [
        Instead::LinkToFile,
        Instead::LinkToDirectory,
        Instead::LinkToNothing,
        Instead::Fifo,
        Instead::Socket,
        Instead::Directory,
        Instead::File,
        Instead::Device,
    ];

    /// `false` where one may not make it.
    fn make(self, path: &Path, victim: &Path) -> bool {
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            let status = command.args(&args[..1]).arg(path).args(&args[1..]).output();
            status.is_ok_and(|output| output.status.success())
        };
        match self {
            Instead::LinkToFile => symlink(victim.join("file"), path).is_ok(),
            Instead::LinkToDirectory => symlink(victim, path).is_ok(),
            Instead::LinkToNothing => symlink(victim.join("new"), path).is_ok(),
            Instead::Fifo => run("mkfifo", &["--"]),
            // Longer paths than a socket's address has room for are rare.
            Instead::Socket => UnixListener::bind(path).is_ok(),
            Instead::Directory => fs::create_dir(path).is_ok(),
            Instead::File => fs::write(path, b"a file").is_ok(),
            Instead::Device => run("mknod", &["--", "c", "1", "5"]),
        }
    }
}

/// Everything that can be done with a state directory.
fn do_everything(state: &Path) {
    let read = || {
        for reader in [Reader::open(state), Reader::open_number(state, 1)].into_iter().flatten() {
            let _ = reader.running_at(reader.len() / 2);
            let Ok(mut cursor) = reader.records(0) else { continue };
            while let Ok(Some(_)) = cursor.next_record() {}
        }
        let _ = (notes(state), all_notes(state), epochs(state));
        let _ = (check(state), check_directory(state), check_epoch(state, 1), repair(state, true));
        let _ = prune(state, &NOTHING_IS_KEPT, true);
    };
    read();
    if let Ok(mut store) = Store::open_with(state, 500) {
        for kind in 0..30 {
            let _ = store.append(&record(kind).record()).and_then(|_| store.commit());
        }
        let (kind, text) = (String::new(), "a remark".to_owned());
        let note = Note { index: 0, after: None, time: 2, kind, text };
        let _ = (store.note(&note), store.withdraw(&note, 3, "it was wrong"), store.tail(5));
        let _ = store.begin_epoch(id(9), &BANKS);
    }
    let _ = repair(state, false);
    let _ = SideFile::new(state, "compared.json").replace(b"{}");
    let _ = SideFile::new(state, "compared.json").read(100);
    let _ = pack(state);
    read();
    let _ = prune(state, &NOTHING_IS_KEPT, false);
    read();
}

#[test]
fn finding_04_nothing_outside_is_touched_whatever_stands_in_place_of_what() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let epochs = ["0001", "0002"].map(|number| state.join("epochs").join(number));
    let mut names: Vec<PathBuf> = [
        "format",
        "lock",
        "epochs",
        "format.new",
        "compared.json",
        "compared.new",
        "epochs/0001",
        "epochs/0002",
        "epochs/0009",
        "epochs/0003.new",
        "epochs/0003",
        "epochs/0001.gone",
    ]
    .map(PathBuf::from)
    .to_vec();
    for epoch in &epochs {
        let here = fs::read_dir(epoch).unwrap().map(|entry| entry.unwrap().path());
        names.extend(here.map(|path| path.strip_prefix(&state).unwrap().to_owned()));
        let epoch = epoch.strip_prefix(&state).unwrap();
        let more = [
            "commits.new",
            "epoch.new",
            "notes.new",
            "00000000000000000000.ima.gz.new",
            "00000000000000000000.ima.gz",
            "00000000000000000019.ima",
            "commits-0.cut",
        ];
        names.extend(more.map(|name| epoch.join(name)));
    }
    let (mut tried, mut skipped) = (0, 0);
    for name in &names {
        for instead in Instead::ALL {
            let copied = tempdir().unwrap();
            let hostile = copied.path().join("state");
            let copy = Command::new("cp").arg("-a").arg(&state).arg(&hostile).status();
            assert!(copy.unwrap().success());
            let victim = victim(&copied);
            let before = snapshot(&victim);
            let path = hostile.join(name);
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
            if !instead.make(&path, &victim) {
                skipped += 1;
                continue;
            }
            let (done, wait) = mpsc::channel();
            let hostile_state = hostile.clone();
            thread::spawn(move || {
                // Before anything is mended, it is named.
                let found = check(&hostile_state).map(|report| {
                    let epoch = check_epoch(&hostile_state, 1).map(|report| report.damage);
                    [report.damage, epoch.unwrap_or_default()].concat()
                });
                do_everything(&hostile_state);
                done.send(found)
            });
            let found = wait.recv_timeout(Duration::from_secs(120));
            let found = found.unwrap_or_else(|_| panic!("{} hangs: {instead:?}", name.display()));
            assert_eq!(snapshot(&victim), before, "{}: {instead:?}", name.display());
            let is_directory = name.starts_with("epochs") && name.components().count() < 3;
            let right = if is_directory { Instead::Directory } else { Instead::File };
            if instead != right {
                let named = match &found {
                    Err(error) => {
                        let words = error.to_string();
                        words.contains(name.to_str().unwrap()) || words.contains("not a state")
                    }
                    Ok(found) => found.iter().any(|found| found.path == path),
                };
                assert!(named, "{}: {instead:?}: {found:?}", name.display());
            }
            tried += 1;
        }
    }
    eprintln!("{tried} tried, {skipped} could not be made here");
    assert!(tried > 200);
}

#[test]
fn finding_12_a_fifo_for_remarks_is_damage_and_nobody_waits() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let path = state.join("epochs/0002/notes");
    fs::remove_file(&path).unwrap();
    assert!(Instead::Fifo.make(&path, dir.path()));
    let found = check(&state).unwrap();
    assert_eq!(found.records, records.len() as u64);
    let [found] = &found.damage[..] else { panic!("{found:?}") };
    assert_eq!((&found.path, found.remedy), (&path, Remedy::MoveAway));
    assert!(found.to_string().contains("a FIFO"), "{found}");
    assert!(matches!(notes(&state), Err(StoreError::Damaged { .. })));
    assert!(repair(&state, false).unwrap()[1].left.iter().any(|left| left.path == path));
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
    assert_eq!(stored(&state, 0), bytes_of(&records));
}

#[test]
fn finding_12_holes_are_not_copied() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let epoch = state.join("epochs/0001");
    // One that was left, the last one, and one that no commit names.
    for (n, name) in ["00000000000000000000.ima", "00000000000000000012.ima"].iter().enumerate() {
        let path = epoch.join(name);
        let before = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        let [report, _] = &repair(&state, false).unwrap()[..] else { panic!("two epochs") };
        assert_eq!(report.left, [], "{name}");
        let [done] = &report.done[..] else { panic!("{report:?}") };
        assert_eq!(fs::metadata(&path).unwrap().len(), before);
        let kept = fs::metadata(done.kept.as_ref().unwrap()).unwrap();
        assert_eq!(kept.len(), (1 << 30) - before, "{n}");
        assert!(kept.blocks() * 512 < 1 << 20, "{} blocks for a hole", kept.blocks());
    }
}

/// Bytes of a generator that has nothing to do with the format.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn finding_12_garbage_behind_the_commits_costs_the_garbage_only() {
    for garbage in [vec![0xff; 200], noise(1_500), noise(1 << 20), vec![0; 250]] {
        let dir = tempdir().unwrap();
        let (state, records) = three_commits(&dir);
        let path = state.join("epochs/0001/commits");
        let whole = fs::read(&path).unwrap();
        let damaged = [&whole[..], &garbage].concat();
        fs::write(&path, &damaged).unwrap();

        assert_eq!(stored(&state, 0), bytes_of(&records));
        let report = check(&state).unwrap();
        assert_eq!(report.records, records.len() as u64);
        let [found] = &report.damage[..] else { panic!("{:?}", report.damage) };
        let expected = (&path, whole.len() as u64, Remedy::PutAside);
        assert_eq!((&found.path, found.offset, found.remedy), expected);
        let [dry] = &repair(&state, true).unwrap()[..] else { panic!("one epoch") };
        assert_eq!(dry.done.len(), 1);
        assert_eq!(fs::read(&path).unwrap(), damaged);

        let [report] = &repair(&state, false).unwrap()[..] else { panic!("one epoch") };
        assert_eq!(report.left, []);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read(report.done[0].kept.as_ref().unwrap()).unwrap(), garbage);

        // And so does a service that is started.
        fs::write(&path, &damaged).unwrap();
        let store = Store::open(&state).unwrap();
        assert_eq!(store.len(), records.len() as u64);
        assert_eq!(fs::read(store.recovery().kept.as_ref().unwrap()).unwrap(), garbage);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn finding_12_garbage_behind_a_store_without_commits() {
    let dir = tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("state")).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    drop(store);
    let state = dir.path().join("state");
    let path = state.join("epochs/0001/commits");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole, noise(1_500)].concat()).unwrap();
    assert_eq!(Store::open(&state).unwrap().len(), 0);
    assert_eq!(check(&state).unwrap().damage, []);
}

#[test]
fn finding_12_commits_that_may_have_been_whole_are_cut_by_repair_only_and_kept() {
    let dir = tempdir().unwrap();
    let (state, records) = three_commits(&dir);
    let path = state.join("epochs/0001/commits");
    let mut damaged = fs::read(&path).unwrap();
    let len = damaged.len();
    damaged[len - 150..].fill(0xff);
    fs::write(&path, &damaged).unwrap();
    let words = Store::open(&state).unwrap_err().to_string();
    assert!(words.contains("store repair") && words.contains("backup"), "{words}");
    let found = check(&state).unwrap();
    assert_eq!(found.records, 6);
    let [report] = &repair(&state, false).unwrap()[..] else { panic!("one epoch") };
    assert_eq!(report.left, []);
    assert_eq!(stored(&state, 0), bytes_of(&records[..6]));
    let kept = |name: &str| fs::read(state.join("epochs/0001").join(name)).unwrap();
    assert_eq!(kept("00000000000000000006-0.cut"), bytes_of(&records[6..]).concat());
    assert_eq!(kept("commits-1.cut"), damaged[len - 200..]);
}

#[test]
fn finding_12_a_directory_or_file_in_the_wrong_place_is_damage() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let path = state.join("epochs/0002/notes");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let found = check(&state).unwrap().damage;
    assert!(matches!(&found[..], [found] if found.path == path), "{found:?}");
    fs::remove_dir(&path).unwrap();

    let path = state.join("epochs/0009");
    fs::write(&path, b"").unwrap();
    let found = check(&state).unwrap().damage;
    assert!(matches!(&found[..], [found] if found.path == path), "{found:?}");
    assert_eq!(epochs(&state).unwrap().len(), 3);
    assert!(matches!(check_epoch(&state, 9), Ok(report) if report.damage.len() == 1));
    let error = Store::open(&state).unwrap_err();
    assert!(!error.is_environment(), "{error}");
    // The file closes nothing: the epoch before it is still the open one.
    let pruned = prune(&state, &NOTHING_IS_KEPT, true).unwrap();
    assert!(matches!(&pruned[..], [pruned] if pruned.number == 1), "{pruned:?}");
    assert!(pack(&state).unwrap().iter().all(|packing| packing.number == 1));
    fs::remove_file(&path).unwrap();
    assert_eq!(stored(&state, 0), bytes_of(&records));
}

#[test]
fn finding_12_names_are_written_in_one_way_only() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let foreign = ["epochs/1", "epochs/+2", "epochs/00009", "epochs/0000", "epochs/x"];
    for name in foreign {
        fs::create_dir(state.join(name)).unwrap();
    }
    let numbers: Vec<u64> = epochs(&state).unwrap().iter().map(|epoch| epoch.number).collect();
    assert_eq!(numbers, [1, 2]);
    let found = check(&state).unwrap().damage;
    assert_eq!(found.len(), foreign.len());
    assert!(foreign.iter().all(|name| found.iter().any(|found| found.path == state.join(name))));
    assert!(found.iter().all(|found| found.remedy == Remedy::MoveAway));
    let segment = state.join("epochs/0002/1.ima");
    fs::write(&segment, b"stray").unwrap();
    assert!(check(&state).unwrap().damage.iter().any(|found| found.path == segment));
    assert_eq!(Store::open(&state).unwrap().len(), records.len() as u64);
    assert!(segment.exists());
}

#[test]
fn finding_12_an_epoch_has_its_directory_s_number() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let (from, to) = (state.join("epochs/0001"), state.join("epochs/0003"));
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
    let found = check(&state).unwrap().damage;
    let words = found.first().map(ToString::to_string).unwrap_or_default();
    assert!(words.contains("epoch 1, expected 3"), "{words}");
    let words = Store::open(&state).unwrap_err().to_string();
    assert!(words.contains("epoch 1, expected 3"), "{words}");
}

#[test]
fn finding_12_an_epoch_of_another_machine_is_named() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut store = Store::open(&state).unwrap();
    for tpm in ["ours", "theirs", "ours", "ours"] {
        let id = imastage_store::EpochId { tpm: Some(tpm.into()), ..id(1) };
        store.begin_epoch(id, &BANKS).unwrap();
    }
    let report = check_directory(&state).unwrap();
    assert!(
        matches!(&report.damage[..], [found] if found.path == state.join("epochs/0002")),
        "{report:?}"
    );
    // One that was exchanged is no damage.
    let other = imastage_store::EpochId { tpm: Some("new".into()), ..id(1) };
    store.begin_epoch(other, &BANKS).unwrap();
    assert_eq!(check_directory(&state).unwrap().damage.len(), 1);
    assert!(check_directory(&state).unwrap().remarks.last().unwrap().contains("epoch 5"));
}

#[test]
fn finding_13_side_files_are_for_the_owner_and_replaced_not_followed() {
    let dir = tempdir().unwrap();
    let (state, _) = two_epochs(&dir);
    let victim = victim(&dir);
    let before = snapshot(&victim);
    let path = state.join("compared.json");
    fs::write(&path, "{}").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(victim.join("file"), state.join("compared.new")).unwrap();
    let file = SideFile::new(&state, "compared.json");
    file.replace(b"first").unwrap();
    assert_eq!(file.read(10).unwrap().unwrap(), b"first");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(&path).unwrap();
    symlink(victim.join("file"), &path).unwrap();
    assert!(file.read(10).is_err());
    assert!(check(&state).unwrap().damage.iter().any(|found| found.path == path));
    file.replace(b"second").unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert!(file.read(3).is_err());
    assert_eq!(snapshot(&victim), before);
}

#[test]
fn the_way_to_the_state_directory_may_lead_through_links() {
    let dir = tempdir().unwrap();
    let (state, records) = two_epochs(&dir);
    let link = dir.path().join("link");
    symlink(&state, &link).unwrap();
    assert_eq!(stored(&link, 0), bytes_of(&records));
    assert_eq!(Store::open(&link).unwrap().len(), records.len() as u64);
    assert_eq!(check(&link).unwrap().damage, []);
}
