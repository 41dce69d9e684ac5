//! One TPM for many processes.

use std::{
    io::{self, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tpm2_protocol::{basic::TpmHandle, data::TpmCc};

use crate::{
    Tpm,
    transport::{HEADER, read_frame},
};

/// A TPM connection that others use too, over a Unix socket, as they use the kernel's
/// `/dev/tpmrm0`: commands come one after the other, and what a client left loaded when it went, or
/// was killed, is flushed, so that nobody can fill the TPM's few slots for ever. Unlike the kernel's
/// resource manager it does not swap: at most three objects are loaded at a time.
///
/// Cheap to clone; all clones share the connection.
#[derive(Clone)]
pub struct SharedTpm {
    tpm: Arc<Mutex<Tpm>>,
}

impl SharedTpm {
    /// Shares a connection.
    pub fn new(tpm: Tpm) -> SharedTpm {
        SharedTpm { tpm: Arc::new(Mutex::new(tpm)) }
    }

    /// The TPM, for as long as the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, Tpm> {
        // A command that panicked halfway leaves a connection whose next answer is refused or
        // malformed, which is an error like others.
        self.tpm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves whoever connects, until the process ends.
    ///
    /// # Errors
    /// [`io::Error`] if no thread can be made.
    pub fn serve(&self, listener: UnixListener) -> io::Result<()> {
        let shared = self.clone();
        let accept = move || {
            for client in listener.incoming().flatten() {
                let shared = shared.clone();
                let serve = move || {
                    if let Err(error) = shared.serve_client(client) {
                        tracing::debug!(%error, "a TPM client left");
                    }
                };
                let spawned = thread::Builder::new().name("tpm-client".into()).spawn(serve);
                if let Err(error) = spawned {
                    tracing::error!(%error, "no thread for a TPM client");
                }
            }
        };
        thread::Builder::new().name("tpm-share".into()).spawn(accept).map(drop)
    }

    fn serve_client(&self, mut client: UnixStream) -> io::Result<()> {
        let mut loaded = Loaded { tpm: self, handles: Vec::new() };
        let mut command = Vec::new();
        while read_frame(&mut client, &mut command)? {
            let mut tpm = self.lock();
            let response = tpm.pass(&command)?;
            loaded.note(&command, response);
            // The response is copied out before others may use the TPM.
            let response = response.to_vec();
            drop(tpm);
            client.write_all(&response)?;
        }
        Ok(())
    }
}

/// What a client has in the TPM's memory. Flushed when dropped.
struct Loaded<'a> {
    tpm: &'a SharedTpm,
    handles: Vec<u32>,
}

impl Loaded<'_> {
    /// Commands whose response begins with a handle of something now loaded.
    const LOADING: [TpmCc; 7] = [
        TpmCc::CreatePrimary,
        TpmCc::Load,
        TpmCc::LoadExternal,
        TpmCc::CreateLoaded,
        TpmCc::ContextLoad,
        TpmCc::StartAuthSession,
        TpmCc::HashSequenceStart,
    ];

    fn note(&mut self, command: &[u8], response: &[u8]) {
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_be_bytes(*b))
        };
        if word(response, 6) != Some(0) {
            return;
        }
        let (Some(code), handle) = (word(command, 6), word(response, HEADER)) else { return };
        if code == TpmCc::FlushContext as u32 {
            let flushed = word(command, HEADER);
            self.handles.retain(|handle| Some(*handle) != flushed);
        } else if Self::LOADING.iter().any(|loading| *loading as u32 == code) {
            self.handles.extend(handle);
        }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        for handle in &self.handles {
            if let Err(error) = self.tpm.lock().flush_handle(TpmHandle::from(*handle)) {
                tracing::debug!(%error, "handle {handle:#x} was gone already");
            }
        }
    }
}
