//! One reader, and a thread for each thing that wants every record.

use std::{
    ops::ControlFlow,
    sync::{Arc, mpsc},
    thread,
};

use ima_log::{Format, Record, Records};

use crate::{
    exit::{Fail, Failure},
    input::List,
};

/// Records one behind the other.
struct Chunk {
    format: Format,
    bytes: Vec<u8>,
}

/// How many bytes of records are handed over at once.
const CHUNK: usize = 256 << 10;

/// How many chunks may wait for a thread: enough to even out, little enough to hold.
const WAITING: usize = 4;

/// Gives each record of `list` to `push` with every one of `states`, each of which has a thread of
/// its own if there are several, and to `look` here. At the end `finish` makes of each state, in
/// its thread, what is given back.
pub fn run<T: Send, U: Send>(
    list: List,
    states: Vec<T>,
    mut look: impl FnMut(u64, &Record<'_>),
    push: impl Fn(&mut T, &Record<'_>) + Sync,
    finish: impl Fn(T) -> U + Sync,
) -> Result<Vec<U>, Failure> {
    if states.len() < 2 {
        let mut states = states;
        list.each(0, |index, record| {
            look(index, record);
            states.iter_mut().for_each(|state| push(state, record));
            Ok(ControlFlow::Continue(()))
        })?;
        return Ok(states.into_iter().map(finish).collect());
    }
    thread::scope(|scope| {
        let (push, finish) = (&push, &finish);
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for mut state in states {
            let (sender, chunks) = mpsc::sync_channel::<Arc<Chunk>>(WAITING);
            senders.push(sender);
            workers.push(scope.spawn(move || {
                for chunk in chunks {
                    // They were records when they were put in.
                    for record in Records::new(&chunk.bytes, chunk.format).flatten() {
                        push(&mut state, &record);
                    }
                }
                finish(state)
            }));
        }
        let send = |chunk: Chunk| {
            let chunk = Arc::new(chunk);
            for sender in &senders {
                // Fails only if the thread panicked, which joining it tells.
                let _ = sender.send(Arc::clone(&chunk));
            }
        };
        let mut chunk: Option<Chunk> = None;
        list.each(0, |index, record| {
            look(index, record);
            let format = record.format();
            if let Some(full) =
                chunk.take_if(|chunk| chunk.format != format || chunk.bytes.len() > CHUNK)
            {
                send(full);
            }
            let chunk = chunk.get_or_insert_with(|| Chunk {
                format,
                bytes: Vec::with_capacity(CHUNK + (CHUNK >> 3)),
            });
            chunk.bytes.extend_from_slice(record.as_bytes());
            Ok(ControlFlow::Continue(()))
        })?;
        chunk.into_iter().for_each(send);
        drop(senders);
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow::anyhow!("a replay thread panicked")))
            .collect::<Result<Vec<U>, anyhow::Error>>()
            .environment("replay")
    })
}
