//! A TPM behind a relay that holds commands until it is told to let them through.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use imastage_tpm::Endpoint;

/// TPM2_Quote (TPM 2.0 Library, Part 2, 6.5.2).
pub const QUOTE: u32 = 0x158;
/// TPM2_PCR_Read.
pub const PCR_READ: u32 = 0x17e;

/// How long something is waited for that must come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between a service and its TPM.
pub struct Relay {
    pub endpoint: Endpoint,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether commands with this code are held; `None` for all.
    closed: Option<Option<u32>>,
    held: usize,
    /// How many of them may go.
    let_through: usize,
    /// What went through, in its order.
    passed: Vec<Vec<u8>>,
    clients: Vec<UnixStream>,
}

impl Relay {
    pub fn start(tpm: PathBuf, socket: &Path) -> Relay {
        let listener = UnixListener::bind(socket).unwrap();
        let gate = Arc::new(Gate::default());
        let theirs = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                theirs.lock().clients.push(client.try_clone().unwrap());
                let tpm = UnixStream::connect(&tpm).unwrap();
                let gate = Arc::clone(&theirs);
                // Ends when one of both ends.
                thread::spawn(move || gate.relay(client, tpm));
            }
        });
        Relay { endpoint: Endpoint::Unix(socket.to_owned()), gate }
    }

    /// From now on commands with this code are held, or all.
    pub fn close(&self, code: Option<u32>) {
        self.gate.lock().closed = Some(code);
    }

    /// Lets what is held through, and all that comes.
    pub fn open(&self) {
        self.gate.lock().closed = None;
        self.gate.changed.notify_all();
    }

    /// Lets one that is held through, and holds what comes then; returns when it has gone.
    pub fn let_one_through(&self) {
        let mut state = self.gate.lock();
        state.let_through += 1;
        self.gate.changed.notify_all();
        let waited =
            self.gate.changed.wait_timeout_while(state, PATIENCE, |state| state.let_through > 0);
        assert!(!waited.unwrap().1.timed_out(), "no command went");
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for stream in self.gate.lock().clients.drain(..) {
            // Its client may have been first.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until a command is held.
    pub fn wait_until_one_is_held(&self) {
        let state = self.gate.lock();
        let waited = self.gate.changed.wait_timeout_while(state, PATIENCE, |state| state.held == 0);
        assert!(!waited.unwrap().1.timed_out(), "no command came");
    }

    /// The commands that went through, in their order.
    pub fn passed(&self) -> Vec<Vec<u8>> {
        self.gate.lock().passed.clone()
    }

    /// How many commands with this code went through.
    pub fn count(&self, wanted: u32) -> usize {
        self.passed().iter().filter(|command| code(command) == wanted).count()
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn relay(&self, mut client: UnixStream, mut tpm: UnixStream) {
        while let Some(command) = frame(&mut client) {
            let is_held = |state: &mut State| {
                state.closed.is_some_and(|held| held.is_none_or(|held| held == code(&command)))
            };
            let mut state = self.lock();
            if is_held(&mut state) {
                state.held += 1;
                self.changed.notify_all();
                let must_wait = |state: &mut State| is_held(state) && state.let_through == 0;
                state = self.changed.wait_while(state, must_wait).unwrap();
                state.held -= 1;
                state.let_through = state.let_through.saturating_sub(1);
                self.changed.notify_all();
            }
            state.passed.push(command.clone());
            drop(state);
            if tpm.write_all(&command).is_err() {
                return;
            }
            let Some(response) = frame(&mut tpm) else { return };
            if client.write_all(&response).is_err() {
                return;
            }
        }
    }
}

/// The code of a command.
pub fn code(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().unwrap())
}

fn frame(peer: &mut UnixStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 10];
    peer.read_exact(&mut frame).ok()?;
    let size = u32::from_be_bytes(frame[2..6].try_into().unwrap()) as usize;
    frame.resize(size, 0);
    peer.read_exact(&mut frame[10..]).ok()?;
    Some(frame)
}
