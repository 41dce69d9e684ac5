//! Connections: their number by user, and their time limits.

use std::{
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};

use super::peer::Peer;

/// The maximum number of concurrent connections.
pub(super) const MOST_CONNECTIONS: usize = 64;
/// The number of these that is reserved for root and the service's own user.
const KEPT: usize = 8;
/// The maximum number of connections that wait.
const MOST_WAITING: usize = 64;
/// The maximum number of connections that are accepted before one can be served. Others wait in the
/// kernel's queue, which has a limit, too.
const MOST_TAKEN: usize = MOST_CONNECTIONS + MOST_WAITING + 16;
/// The memory for a request's head.
const LARGEST_HEAD: usize = 16 << 10;
/// Timeout for answers that are in progress when the service stops.
const GRACE: Duration = Duration::from_secs(1);

/// Time limits, so that clients cannot keep others waiting.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The time that a connection may wait to be served.
    wait: Duration,
    /// The time that a connection may be idle, and that a request's head may take.
    head: Duration,
    /// The time for which a client may read nothing of an answer. A pager can stop for a while.
    stall: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            wait: Duration::from_secs(30),
            head: Duration::from_secs(15),
            stall: Duration::from_secs(600),
        }
    }
}

#[derive(Clone)]
struct Places {
    /// For all users.
    room: Arc<Semaphore>,
    /// For root and the service's own user.
    kept: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Serves clients until `stop` changes or its sender is dropped.
pub(super) async fn serve(
    listener: UnixListener,
    app: Router,
    limits: Limits,
    mut stop: watch::Receiver<()>,
) {
    let places = Places::default();
    let mut connections = JoinSet::new();
    let told = stop.clone();
    loop {
        let accepted = tokio::select! {
            // In this order, and so that those who were taken come first: clients that connect and
            // hang up without end cost neither descriptors nor memory.
            biased;
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MOST_TAKEN => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (places, app, told) = (places.clone(), app.clone(), told.clone());
                connections.spawn(connection(stream, places, app, limits, told));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot serve a client");
                // No descriptors are left; retry later.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    // Longer answers are cut off.
    let _ = timeout(GRACE, rest).await;
}

async fn connection(
    stream: UnixStream,
    places: Places,
    app: Router,
    limits: Limits,
    mut stop: watch::Receiver<()>,
) {
    let uid = stream.peer_cred().ok().map(|peer| peer.uid());
    let Ok(_place) = places.take(uid, limits.wait).await else {
        return refuse(&stream);
    };
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let peer = Peer { socket: Arc::new(socket) };
    let service = TowerToHyperService::new(app.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(Connection::new(stream, limits.stall)), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        _ = stop.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a client's connection ended: {error}");
    }
}

/// Refuses a connection without waiting for a request.
fn refuse(stream: &UnixStream) {
    const WHY: &str = "{\"error\":\"too many connections; try again later\"}";
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json";
    let length = WHY.len();
    let answer = format!("{head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{WHY}");
    // If it does not want to know, it need not.
    let _ = stream.try_write(answer.as_bytes());
}

impl Default for Places {
    fn default() -> Places {
        Places {
            room: Arc::new(Semaphore::new(MOST_CONNECTIONS - KEPT)),
            kept: Arc::new(Semaphore::new(KEPT)),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }
}

impl Places {
    /// A permit for a connection of this user; waits at most `patience` until others end. Root and
    /// the owner do not wait while one of their reserved permits is free.
    async fn take(&self, uid: Option<u32>, patience: Duration) -> Result<OwnedSemaphorePermit, ()> {
        if let Ok(place) = Arc::clone(&self.room).try_acquire_owned() {
            return Ok(place);
        }
        let own = rustix::process::geteuid().as_raw();
        if uid.is_some_and(|uid| uid == 0 || uid == own)
            && let Ok(place) = Arc::clone(&self.kept).try_acquire_owned()
        {
            return Ok(place);
        }
        let _waiting = self.waiting.try_acquire().map_err(drop)?;
        let place = Arc::clone(&self.room).acquire_owned();
        timeout(patience, place).await.map_err(drop)?.map_err(drop)
    }
}

/// A connection that is closed if the client reads nothing for too long.
struct Connection {
    stream: UnixStream,
    longest_stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn new(stream: UnixStream, longest_stall: Duration) -> Connection {
        Connection { stream, longest_stall, stalled: None }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let longest = self.longest_stall;
        let until = || Box::pin(tokio::time::sleep(longest));
        ready!(self.stalled.get_or_insert_with(until).as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net,
        path::Path,
        thread,
    };

    use axum::routing::get;
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    /// Nobody waits so long; a test that fails does.
    const LONG: Duration = Duration::from_secs(300);

    /// Serves until the sender is dropped. `/` is short, `/long` fills any socket.
    fn start(socket: &Path, limits: Limits) -> (watch::Sender<()>, thread::JoinHandle<()>) {
        let (stop, stopped) = watch::channel(());
        let listener = net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let app = Router::new()
            .route("/", get(|| async { "short" }))
            .route("/long", get(|| async { vec![0; 64 << 20] }));
        let serving = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                serve(UnixListener::from_std(listener).unwrap(), app, limits, stopped).await;
            });
        });
        (stop, serving)
    }

    fn connect(socket: &Path) -> net::UnixStream {
        let stream = net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn is_closed(mut stream: net::UnixStream) -> Vec<u8> {
        let mut rest = Vec::new();
        // Whether in peace or not: what counts is that it is.
        if let Err(error) = stream.read_to_end(&mut rest) {
            let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(kinds.contains(&error.kind()), "{error}");
        }
        rest
    }

    #[test]
    fn finding_10_connections_that_are_idle_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let short = Duration::from_millis(100);
        let (stop, serving) = start(&socket, Limits { head: short, stall: LONG, wait: LONG });
        is_closed(connect(&socket));
        let mut half = connect(&socket);
        // If this test is slow it is closed already.
        let _ = half.write_all(b"GET / HTTP/1.1\r\nhost:");
        is_closed(half);
        let since = std::time::Instant::now();
        let is_answered = || {
            let mut stream = connect(&socket);
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
            is_closed(stream).ends_with(b"short")
        };
        while !is_answered() {
            assert!(since.elapsed() < LONG);
        }
        drop(stop);
        serving.join().unwrap();
    }

    #[test]
    fn finding_10_who_takes_nothing_of_an_answer_is_hung_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let short = Duration::from_millis(100);
        let (stop, serving) = start(&socket, Limits { head: LONG, stall: short, wait: LONG });
        let mut deaf = connect(&socket);
        deaf.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut hung_up = [PollFd::new(&deaf, PollFlags::RDHUP)];
        let patience = Timespec { tv_sec: 300, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut hung_up, Some(&patience)), Ok(1));
        assert!(is_closed(deaf).len() < 64 << 20);
        drop(stop);
        serving.join().unwrap();
    }

    #[test]
    fn finding_02_who_finds_no_place_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let (stop, serving) = start(&socket, Limits { head: LONG, stall: LONG, wait: LONG });
        let mut clients: Vec<_> =
            (0..MOST_CONNECTIONS + MOST_WAITING + 50).map(|_| connect(&socket)).collect();
        let last = clients.pop().unwrap();
        assert!(is_closed(last).starts_with(b"HTTP/1.1 503"));
        drop(clients);
        // Those who hung up leave their places.
        let since = std::time::Instant::now();
        let is_served = || {
            let mut next = connect(&socket);
            // If it was refused already, it does not take this.
            let _ = next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            is_closed(next).ends_with(b"short")
        };
        while !is_served() {
            assert!(since.elapsed() < LONG);
        }
        drop(stop);
        serving.join().unwrap();
    }

    #[tokio::test]
    async fn finding_10_root_and_the_owner_have_places_of_their_own() {
        let places = Places::default();
        let mut taken = Vec::new();
        let other = Some(4_000_000_000);
        for _ in 0..MOST_CONNECTIONS - KEPT {
            taken.push(places.take(other, Duration::ZERO).await.unwrap());
        }
        assert!(places.take(other, Duration::ZERO).await.is_err());
        assert!(places.take(None, Duration::ZERO).await.is_err());
        let own = Some(rustix::process::geteuid().as_raw());
        for uid in [Some(0), own].into_iter().cycle().take(KEPT) {
            taken.push(places.take(uid, Duration::ZERO).await.unwrap());
        }
        assert!(places.take(Some(0), Duration::ZERO).await.is_err());
        // Who waits is given the place of one who leaves.
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take(other, LONG).await.is_ok() }
        });
        while places.waiting.available_permits() == MOST_WAITING {
            tokio::task::yield_now().await;
        }
        drop(taken.remove(0));
        assert!(waiting.await.unwrap());
    }
}
