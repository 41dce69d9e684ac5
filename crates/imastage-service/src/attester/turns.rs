//! The order of access to the TPM.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Exclusive access to a value, with priority for drains.
pub(super) struct Turns<T> {
    thing: Mutex<T>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// The drain loop.
    Drain,
    /// The API, on behalf of a client.
    Client,
}

#[derive(Default)]
struct Queue {
    is_taken: bool,
    /// The number of drains that wait.
    drains: usize,
}

impl<T> Turns<T> {
    pub(super) fn new(thing: T) -> Turns<T> {
        Turns { thing: Mutex::new(thing), queue: Mutex::default(), changed: Condvar::new() }
    }

    /// Runs a function on the value at this caller's turn: for a drain, as soon as the current
    /// holder returns it; for a client, when no drain waits.
    pub(super) fn with<R>(&self, caller: Caller, act: impl FnOnce(&mut T) -> R) -> R {
        let must_wait = |queue: &mut Queue| match caller {
            Caller::Drain => queue.is_taken,
            Caller::Client => queue.is_taken || queue.drains > 0,
        };
        let one = usize::from(caller == Caller::Drain);
        let mut queue = self.queue();
        queue.drains += one;
        let waited = self.changed.wait_while(queue, must_wait);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        queue.drains -= one;
        queue.is_taken = true;
        drop(queue);
        // Others get their turn even after a panic.
        let _turn = Turn(self);
        // A panic elsewhere leaves a connection that answers or fails; both are handled.
        act(&mut self.thing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Turn<'a, T>(&'a Turns<T>);

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.0.queue().is_taken = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
impl<T> Turns<T> {
    /// Waits until `count` drains wait.
    pub(super) fn wait_for_drains(&self, count: usize) {
        while self.queue().drains < count {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;

    #[test]
    fn a_drain_goes_before_clients_that_came_first() {
        let turns = Arc::new(Turns::new(Vec::new()));
        let (go, gone) = mpsc::channel::<()>();
        let (taken, is_taken) = mpsc::channel();
        let first = {
            let turns = Arc::clone(&turns);
            thread::spawn(move || {
                turns.with(Caller::Client, |done| {
                    taken.send(()).unwrap();
                    gone.recv().unwrap();
                    done.push(Caller::Client);
                });
            })
        };
        is_taken.recv().unwrap();
        let spawn = |caller| {
            let turns = Arc::clone(&turns);
            thread::spawn(move || turns.with(caller, |done| done.push(caller)))
        };
        let clients: Vec<_> = (0..8).map(|_| spawn(Caller::Client)).collect();
        let drain = spawn(Caller::Drain);
        turns.wait_for_drains(1);
        go.send(()).unwrap();
        first.join().unwrap();
        drain.join().unwrap();
        clients.into_iter().for_each(|client| client.join().unwrap());
        let done = turns.with(Caller::Client, |done| done.clone());
        assert_eq!(done[..2], [Caller::Client, Caller::Drain]);
        assert_eq!(done.len(), 10);
    }

    #[test]
    fn a_panic_keeps_nobody_waiting() {
        let turns = Arc::new(Turns::new(0));
        let theirs = Arc::clone(&turns);
        let panicked = thread::spawn(move || theirs.with(Caller::Drain, |_| panic!("on purpose")));
        assert!(panicked.join().is_err());
        assert_eq!(turns.with(Caller::Client, |thing| *thing), 0);
    }
}
