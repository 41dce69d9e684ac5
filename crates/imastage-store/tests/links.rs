//! Links, hard links and special files in a state directory: findings 4, 12 and 13 of the security
//! review.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{BANKS, NOTHING_IS_KEPT, bytes_of, id, record, snapshot, stored, two_epochs, victim};
use imastage_store::{
    Note, Reader, Remedy, Retention, SideFile, Store, StoreError, all_notes, check,
    check_directory, check_epoch, epochs, notes, pack, prune, repair,
};
use tempfile::tempdir;

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
                // Before anything is repaired, it is named.
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
