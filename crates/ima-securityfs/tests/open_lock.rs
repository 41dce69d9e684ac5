//! The lock compared with a model that records every open file.
#![allow(clippy::unwrap_used)]

use ima_securityfs::{Access, Caller, Dialect, Errno, FileClass, Open, OpenLock};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(FileClass, Access, Caller),
    /// Closes one of the open files from this thread.
    Close(prop::sample::Index, u64),
}

/// An open file in the model.
struct Held {
    class: FileClass,
    access: Access,
    thread: u64,
    open: Open,
}

fn expected(
    dialect: Dialect,
    held: &[Held],
    class: FileClass,
    access: Access,
    who: Caller,
) -> Result<(), Errno> {
    let reads_log = class == FileClass::TrimLog && access == Access::Read;
    if !who.admin && (access == Access::Write || reads_log) {
        return Err(Errno::EPERM);
    }
    if reads_log {
        return Ok(());
    }
    // Reading the trim log takes no lock.
    let mut locking =
        held.iter().filter(|h| h.class == FileClass::Measurements || h.access == Access::Write);
    let granted = match access {
        Access::Read => locking.all(|held| held.access == Access::Read),
        Access::Write => locking.all(|held| {
            held.access == Access::Write && held.thread == who.thread && dialect == Dialect::Linux72
        }),
    };
    if granted { Ok(()) } else { Err(Errno::EBUSY) }
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![4 => Just(FileClass::Measurements), 1 => Just(FileClass::TrimLog)];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let caller =
        (0..3u64, prop::bool::weighted(0.9)).prop_map(|(thread, admin)| Caller { thread, admin });
    prop_oneof![
        (class, access, caller)
            .prop_map(|(class, access, caller)| Step::Open(class, access, caller)),
        (any::<prop::sample::Index>(), 0..3u64).prop_map(|(which, by)| Step::Close(which, by)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn lock_matches_the_model(
        dialect in prop::sample::select(&Dialect::ALL[..]),
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut lock = OpenLock::new(dialect);
        let mut held: Vec<Held> = Vec::new();
        for step in steps {
            match step {
                Step::Open(class, access, caller) => {
                    let expected = expected(dialect, &held, class, access, caller);
                    let found = lock.open(class, access, caller);
                    prop_assert_eq!(found.as_ref().map(drop), expected.as_ref().copied());
                    if let Ok(open) = found {
                        held.push(Held { class, access, thread: caller.thread, open });
                    }
                }
                Step::Close(which, by) if !held.is_empty() => {
                    let file = held.remove(which.index(held.len()));
                    lock.release(file.open, by);
                }
                Step::Close(..) => {}
            }
        }
        // All files are closed, so the lock must be free.
        for file in held {
            lock.release(file.open, file.thread);
        }
        let writer = Caller { thread: 9, admin: true };
        prop_assert!(lock.open(FileClass::Measurements, Access::Write, writer).is_ok());
    }

    #[test]
    fn kernel_accounting_is_correct_if_the_opening_thread_closes(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let (mut honest, mut kernel) =
            (OpenLock::new(Dialect::Linux72), OpenLock::with_hazards(Dialect::Linux72));
        let mut held: Vec<(Open, Open, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Open(class, access, caller) => {
                    let found = (honest.open(class, access, caller), kernel.open(class, access, caller));
                    match found {
                        (Ok(open), Ok(other)) => held.push((open, other, caller.thread)),
                        (honest, kernel) => prop_assert_eq!(honest.unwrap_err(), kernel.unwrap_err()),
                    }
                }
                Step::Close(which, _) if !held.is_empty() => {
                    let (open, other, thread) = held.remove(which.index(held.len()));
                    honest.release(open, thread);
                    kernel.release(other, thread);
                }
                Step::Close(..) => {}
            }
        }
    }
}
