//! One TPM for many processes.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tpm2_protocol::basic::TpmHandle;

use crate::{ResponseCode, Tpm, transport::Frames};

/// A TPM connection that other processes use, too, over a Unix socket, like the kernel's
/// `/dev/tpmrm0`:
/// - commands are executed one at a time, including those of the process itself;
/// - a client sees, uses and flushes only objects that it loaded itself;
/// - objects of a client are flushed when it disconnects or is killed, so that clients cannot occupy the
///   TPM's few slots permanently.
///
/// Unlike the kernel's resource manager, it does not swap objects, so all clients together can load
/// as many as the TPM has slots, usually three. Commands that `tpm2-protocol` does not know are
/// refused.
///
/// Cheap to clone; all clones share the connection.
#[derive(Clone)]
pub struct SharedTpm {
    tpm: Arc<Mutex<Tpm>>,
}

/// A socket on which a [`SharedTpm`] is served, until the process ends; dropping this does not end
/// it.
pub struct Serving {
    listener: Arc<UnixListener>,
    clients: Arc<Clients>,
    accepting: JoinHandle<()>,
}

impl SharedTpm {
    /// The maximum number of concurrent clients of a socket; further ones are disconnected.
    pub const MAX_CLIENTS: usize = 64;

    /// Shares a connection.
    pub fn new(tpm: Tpm) -> SharedTpm {
        SharedTpm { tpm: Arc::new(Mutex::new(tpm)) }
    }

    /// The TPM, while the guard lives; all others wait.
    pub fn lock(&self) -> MutexGuard<'_, Tpm> {
        // A panic can leave a command without its response; the connection refuses further use
        // then.
        ignore_poison(self.tpm.lock())
    }

    /// Replaces the connection to the TPM, for example after a reset. Clients stay connected;
    /// objects that they had loaded are gone.
    pub fn replace(&self, tpm: Tpm) {
        let mut guard = self.lock();
        let claims = guard.claims.after_reset();
        *guard = tpm;
        guard.claims = claims;
    }

    /// Serves clients in threads of its own, one per client.
    ///
    /// # Errors
    /// [`io::Error`] if the thread cannot be started.
    pub fn serve(&self, listener: UnixListener) -> io::Result<Serving> {
        let listener = Arc::new(listener);
        let clients = Arc::new(Clients::default());
        let accept = {
            let (shared, listener, clients) =
                (self.clone(), Arc::clone(&listener), Arc::clone(&clients));
            move || clients.accept(&shared, &listener)
        };
        let accepting = thread::Builder::new().name("tpm-share".into()).spawn(accept)?;
        Ok(Serving { listener, clients, accepting })
    }

    fn serve_client(&self, mut stream: UnixStream) -> io::Result<()> {
        let client = Client { tpm: self, id: self.lock().claims.client() };
        let mut commands = Frames::new();
        let mut response = Vec::new();
        while commands.receive(&mut stream)? {
            client.pass(commands.frame(), &mut response)?;
            stream.write_all(&response)?;
        }
        Ok(())
    }
}

impl Serving {
    /// Disconnects all clients, flushes their objects, and accepts no more. Waits for commands that
    /// the TPM is executing.
    pub fn stop(self) {
        let clients = self.clients.stop();
        // Wakes the thread that accepts: accept(2) fails with EINVAL.
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::error!(%error, "a TPM's socket cannot be shut down");
            return;
        }
        for (stream, thread) in clients {
            // The client may have disconnected already.
            let _ = stream.shutdown(Shutdown::Both);
            // The response contains the error.
            let _ = thread.join();
        }
        let _ = self.accepting.join();
    }
}

/// A client's access to the TPM. Its objects are flushed when this is dropped.
struct Client<'a> {
    tpm: &'a SharedTpm,
    id: u64,
}

impl Client<'_> {
    /// Passes a command to the TPM; returns the response.
    fn pass(&self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let mut guard = self.tpm.lock();
        let Tpm { transport, claims, .. } = &mut *guard;
        response.clear();
        if let Some(code) = claims.refusal(self.id, command) {
            tracing::debug!("a TPM client is refused: {code}");
            response.extend(refusal(code));
            return Ok(());
        }
        let answer = transport.exchange(command)?;
        claims.note(self.id, command, answer);
        // Copied, so that others need not wait until the client has read it.
        response.extend(answer);
        claims.hide(self.id, command, response);
        Ok(())
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let mut tpm = self.tpm.lock();
        for handle in tpm.claims.take(self.id) {
            if let Err(error) = tpm.flush_handle(TpmHandle::from(handle)) {
                tracing::debug!(%error, "handle {handle:#x} was gone already");
            }
        }
    }
}

#[derive(Default)]
struct Clients {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    next: u64,
    connected: HashMap<u64, (UnixStream, JoinHandle<()>)>,
}

impl Clients {
    fn accept(self: &Arc<Self>, shared: &SharedTpm, listener: &UnixListener) {
        loop {
            let accepted = listener.accept();
            if self.lock().stopped {
                return;
            }
            let started = accepted.and_then(|(stream, _)| self.start(shared, stream));
            if let Err(error) = started {
                tracing::warn!(%error, "a TPM client cannot be served");
                // No descriptors or threads are left; retry later.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn start(self: &Arc<Self>, shared: &SharedTpm, stream: UnixStream) -> io::Result<()> {
        let mut state = self.lock();
        if state.stopped {
            return Ok(());
        }
        if state.connected.len() >= SharedTpm::MAX_CLIENTS {
            return Err(io::Error::other(format!("{} are connected", SharedTpm::MAX_CLIENTS)));
        }
        let id = state.next;
        state.next += 1;
        let ours = stream.try_clone()?;
        let (clients, shared) = (Arc::clone(self), shared.clone());
        let serve = move || {
            if let Err(error) = shared.serve_client(stream) {
                tracing::debug!(%error, "a TPM client left");
            }
            clients.lock().connected.remove(&id);
        };
        let thread = thread::Builder::new().name("tpm-client".into()).spawn(serve)?;
        // The lock is held: a client that is served already is removed after this.
        state.connected.insert(id, (ours, thread));
        Ok(())
    }

    fn stop(&self) -> Vec<(UnixStream, JoinHandle<()>)> {
        let mut state = self.lock();
        state.stopped = true;
        state.connected.drain().map(|(_, client)| client).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        ignore_poison(self.state.lock())
    }
}

/// A response with only a code. It has no sessions, even if the command has.
fn refusal(ResponseCode(code): ResponseCode) -> impl Iterator<Item = u8> {
    let header = [0x80, 0x01, 0, 0, 0, 10];
    header.into_iter().chain(code.to_be_bytes())
}

fn ignore_poison<T>(locked: Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}
