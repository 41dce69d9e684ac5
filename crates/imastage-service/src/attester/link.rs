//! The connection to the TPM, and what happens when it breaks.

use std::time::{Duration, Instant};

use imastage_tpm::{AttestationKey, Endpoint, KeyKind, Tpm, TpmError};

/// A connection, and the attestation key in the TPM's memory.
pub(super) struct Connection {
    pub(super) tpm: Tpm,
    pub(super) key: AttestationKey,
}

/// A connection that is rebuilt when it breaks.
pub(super) struct Link {
    endpoint: Endpoint,
    connection: Option<Connection>,
    /// The reason that there is no connection, and the time of the next attempt.
    outage: Option<Outage>,
}

struct Outage {
    why: String,
    pause: Duration,
    again: Instant,
}

/// The pause before the next attempt to connect: initially, and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Connection {
    pub(super) fn make(endpoint: &Endpoint) -> Result<Connection, TpmError> {
        let mut tpm = Tpm::connect(endpoint)?;
        let key = tpm.attestation_key(KeyKind::EccP256)?;
        Ok(Connection { tpm, key })
    }
}

impl Link {
    pub(super) fn new(endpoint: Endpoint, connection: Connection) -> Link {
        Link { endpoint, connection: Some(connection), outage: None }
    }

    /// Sends a request to the TPM, whose attestation key is `public_pem`. If the connection breaks,
    /// the request is repeated once over a new one: these commands change nothing.
    pub(super) fn act<T>(
        &mut self,
        public_pem: &str,
        mut act: impl FnMut(&mut Connection) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let mut is_again = false;
        loop {
            let connection = self.connected(public_pem)?;
            let error = match act(connection) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match &error {
                TpmError::Io { .. } => self.connection = None,
                // The key is gone: the TPM was reset, and the connection was not.
                TpmError::Refused { code, .. } if code.is_lost_handle() && !is_again => {
                    match connection.tpm.attestation_key(KeyKind::EccP256) {
                        Ok(key) if key.public_pem() == public_pem => connection.key = key,
                        _ => self.connection = None,
                    }
                }
                _ => return Err(error),
            }
            if is_again {
                return Err(self.is_out(&error.to_string()));
            }
            is_again = true;
        }
    }

    fn connected(&mut self, public_pem: &str) -> Result<&mut Connection, TpmError> {
        if self.connection.is_none() {
            if let Some(outage) = &self.outage
                && Instant::now() < outage.again
            {
                return Err(self.lost(&outage.why));
            }
            let made = match Connection::make(&self.endpoint) {
                Ok(made) if made.key.public_pem() == public_pem => made,
                Ok(_) => {
                    let why = "it has another attestation key than before (it is another TPM, or \
                               was cleared); restart the service to go on with it";
                    return Err(self.is_out(why));
                }
                // Without the endpoint, which is named in any case.
                Err(TpmError::Connect { error, .. }) => return Err(self.is_out(&error.to_string())),
                Err(error) => return Err(self.is_out(&error.to_string())),
            };
            if self.outage.take().is_some() {
                tracing::info!("{}: the TPM answers again", self.endpoint);
            }
            self.connection = Some(made);
        }
        self.connection.as_mut().ok_or_else(|| TpmError::Lost {
            endpoint: self.endpoint.clone(),
            why: "there is no connection".to_owned(),
        })
    }

    /// Records an outage.
    fn is_out(&mut self, why: &str) -> TpmError {
        let pause = self.outage.as_ref().map_or(SHORTEST_PAUSE, |outage| outage.pause * 2);
        let pause = pause.min(LONGEST_PAUSE);
        if self.outage.is_none() {
            tracing::warn!("{}: connection to the TPM lost: {why}", self.endpoint);
        }
        self.connection = None;
        self.outage = Some(Outage { why: why.to_owned(), pause, again: Instant::now() + pause });
        self.lost(why)
    }

    fn lost(&self, why: &str) -> TpmError {
        TpmError::Lost { endpoint: self.endpoint.clone(), why: why.to_owned() }
    }
}
