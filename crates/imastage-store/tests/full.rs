//! A file system that is really full.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{fs, io::ErrorKind, path::PathBuf, process::Command};

use common::{BANKS, bytes_of, id, record, stored};
use ima_log::RecordBuf;
use imastage_store::{Store, StoreError, check};
use tempfile::{TempDir, tempdir};

/// A file system of a megabyte, unmounted when this is dropped.
struct Small {
    dir: TempDir,
}

impl Small {
    /// `None`, loudly, where one may not mount.
    fn mount() -> Option<Small> {
        let dir = tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "none"])
            .arg(dir.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Small { dir }),
            Ok(output) => {
                eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: mount: {error}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily, as a failed test may have files open.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { error, .. } if error.kind() == ErrorKind::StorageFull)
}

#[test]
fn the_same_store_goes_on_when_there_is_room_again() {
    let Some(small) = Small::mount() else { return };
    let state = small.path("state");
    let mut store = Store::open_with(&state, 50_000).unwrap();
    store.begin_epoch(id(1), &BANKS).unwrap();
    fs::write(small.path("filler"), vec![1; 500 << 10]).unwrap();
    let batch: Vec<RecordBuf> = (0..300).map(record).collect();
    let mut kept: Vec<RecordBuf> = Vec::new();
    let mut failures = 0;
    while failures < 5 {
        for record in &batch {
            store.append(&record.record()).unwrap();
        }
        match store.commit() {
            Ok(()) => kept.extend_from_slice(&batch),
            Err(error) => {
                assert!(is_full(&error), "{error}");
                failures += 1;
            }
        }
        assert_eq!(store.len(), kept.len() as u64);
        assert_eq!(stored(&state, 0).len(), kept.len());
    }
    assert!(kept.len() > 1_000);
    assert_eq!(check(&state).unwrap().damage, []);

    fs::remove_file(small.path("filler")).unwrap();
    for record in &batch {
        store.append(&record.record()).unwrap();
    }
    store.commit().unwrap();
    kept.extend_from_slice(&batch);
    assert!(stored(&state, 0) == bytes_of(&kept));
    store.begin_epoch(id(2), &BANKS).unwrap();
    assert_eq!(stored(&state, 0).len(), 0);
}
