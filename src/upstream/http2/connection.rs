//! One HTTP/2 connection: how many of its streams are in use, whether it takes more, and whether
//! its other end is still there. It does not know what is said over it.

use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, Connection as Driver, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;

use super::Http2;
use crate::upstream::connect::Stream;

/// Streams of a connection at once, if its upstream allows as many.
const MOST_STREAMS: u32 = 100;
/// Bytes of a response that may come before the browser takes any.
const WINDOW: u32 = 128 * 1024;
/// As many for the connection as for all its streams: a browser that does not read holds up
/// nobody but itself.
const ALL_WINDOWS: u32 = WINDOW * MOST_STREAMS;
/// The longest head of a response, in bytes, as RFC 9113, section 6.5.2 counts them.
const HEAD_BYTES: u32 = 256 * 1024;
/// What waits in memory for the upstream to take it, in bytes of one stream.
const SEND_BUFFER: usize = 64 * 1024;

/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A connection without streams is closed after this: many servers close theirs after 60 s.
const IDLE: Duration = Duration::from_secs(55);
/// How often a connection with streams is asked whether it is still there. Servers of gRPC take more
/// than one in 5 minutes for an attack.
const PING_EVERY: Duration = Duration::from_secs(6 * 60);
/// How long the answer may take.
const PONG_TIME: Duration = Duration::from_secs(20);

/// A connection.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
}

/// Nobody looks at it but its worker: the atomics are for WebSockets, which travel in what must be
/// `Send`.
struct State {
    began: Instant,
    streams: AtomicUsize,
    /// When the last stream began or ended, in milliseconds from its own beginning.
    used: AtomicU64,
    /// It takes no more streams.
    retired: AtomicBool,
}

impl State {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            streams: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        }
    }

    /// Milliseconds since its beginning.
    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn unused_for(&self) -> Duration {
        Duration::from_millis(self.age().saturating_sub(self.used.load(Relaxed)))
    }
}

impl Connection {
    /// Ready when the upstream has said what it allows, and has shown that it speaks HTTP/2.
    pub(super) async fn open(stream: Stream, pool: Weak<Http2>) -> Result<Rc<Self>, h2::Error> {
        let (sender, mut driver) = Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(ALL_WINDOWS)
            .max_header_list_size(HEAD_BYTES)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake(stream)
            .await?;
        let pings = driver.ping_pong();
        if let Some(mut pings) = pings {
            // RFC 9113, section 3.4: its settings come before anything else that it says.
            let _pong = tokio::select! {
                ended = &mut driver => return Err(ended.err().unwrap_or_else(closed)),
                pong = pings.ping(Ping::opaque()) => pong?,
            };
            let state = Arc::new(State::new());
            tokio::task::spawn_local(drive(driver, pings, state.clone(), pool));
            return Ok(Rc::new(Self { sender, state }));
        }
        Err(closed())
    }

    /// Whether requests may still be sent over it.
    pub(super) fn is_good(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let ready = self.sender.clone().poll_ready(&mut context);
        !self.state.retired.load(Relaxed) && !matches!(ready, Poll::Ready(Err(_)))
    }

    /// A stream, if one can be had. The first may always try.
    pub(super) fn seat(self: &Rc<Self>) -> Option<Seat> {
        let most = self.sender.current_max_send_streams().clamp(1, MOST_STREAMS as usize);
        let streams = &self.state.streams;
        (streams.load(Relaxed) < most && self.is_good()).then(|| {
            streams.fetch_add(1, Relaxed);
            Seat { connection: self.clone(), held: Held(self.state.clone()) }
        })
    }
}

/// The right to one stream of a connection, until it is dropped.
pub(super) struct Seat {
    connection: Rc<Connection>,
    held: Held,
}

/// A stream in use, until this is dropped.
pub(super) struct Held(Arc<State>);

impl Seat {
    /// Sends a request's head, which is the whole request if it `ends` there.
    pub(super) async fn begin(
        &self,
        head: Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = self.connection.sender.clone();
        poll_fn(|context| sender.poll_ready(context)).await?;
        self.held.0.used.store(self.held.0.age(), Relaxed);
        sender.send_request(head, ends)
    }

    /// The connection takes no further streams; those that it has go on.
    pub(super) fn retire(&self) {
        self.held.0.retired.store(true, Relaxed);
    }

    /// Whether the upstream has said that a stream may become a WebSocket (RFC 8441, section 3).
    pub(super) fn takes_websockets(&self) -> bool {
        self.connection.sender.is_extended_connect_protocol_enabled()
    }

    /// The stream alone, which lasts without the way to others.
    pub(super) fn hold(self) -> Held {
        self.held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        self.0.used.store(self.0.age(), Relaxed);
    }
}

/// Reads and writes until the connection has ended, or its upstream has.
async fn drive(
    driver: Driver<Stream, Bytes>,
    pings: PingPong,
    state: Arc<State>,
    pool: Weak<Http2>,
) {
    tokio::select! {
        // How it ends is told to the streams that are on it.
        _ = driver => {}
        () = look_after(pings, &state, &pool) => {
            tracing::debug!("a connection to an upstream answers no more and is given up");
        }
    }
    state.retired.store(true, Relaxed);
    if let Some(pool) = pool.upgrade() {
        pool.forget_old();
    }
}

/// Ends when nobody is at the other end any more.
async fn look_after(mut pings: PingPong, state: &State, pool: &Weak<Http2>) {
    let mut asked = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if state.streams.load(Relaxed) == 0 {
            asked = Instant::now();
            if state.unused_for() > IDLE
                && !state.retired.swap(true, Relaxed)
                && let Some(pool) = pool.upgrade()
            {
                pool.forget_old();
            }
        } else if asked.elapsed() > PING_EVERY {
            asked = Instant::now();
            let pong = tokio::time::timeout(PONG_TIME, pings.ping(Ping::opaque())).await;
            if !matches!(pong, Ok(Ok(_))) {
                return;
            }
        }
    }
}

fn closed() -> h2::Error {
    h2::Error::from(h2::Reason::NO_ERROR)
}
