//! What a connection does, or does not do: told by its stream and its requests, judged once a second
//! for all connections of a worker together. No timer is set per request.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::config::Limits;

/// How often connections are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// No time: nothing is waited for.
const NONE: u64 = u64::MAX;

/// All connections of one worker.
pub(super) struct Watches {
    started: Instant,
    /// Milliseconds since `started`, as of the last look: coarse, and read without a system call.
    now: Arc<AtomicU64>,
    all: RefCell<Vec<Weak<Watch>>>,
    header_time: Cell<u64>,
    idle_time: Cell<u64>,
}

/// One connection. Shared with its stream, which may move to another task.
pub(super) struct Watch {
    now: Arc<AtomicU64>,
    /// The last byte in either direction; over HTTP/2 the end of the last request, or the last time
    /// that the client took what had waited for it.
    last: AtomicU64,
    /// The first byte of a head that is not complete; over HTTP/2 of the first one alone.
    head: AtomicU64,
    /// Since when the client has not taken what was written.
    blocked: AtomicU64,
    /// Requests whose responses are not yet sent.
    under_way: AtomicU64,
    multiplexed: AtomicBool,
    upgraded: AtomicBool,
    /// Whether there was a request.
    asked: AtomicBool,
    /// What came last was a part of a head.
    within_head: AtomicBool,
    close: Notify,
    /// What counts the connection as open.
    _held: Box<dyn Any + Send + Sync>,
}

impl Watches {
    pub(super) fn new(limits: &Limits) -> Rc<Self> {
        let watches = Self {
            started: Instant::now(),
            now: Arc::default(),
            all: RefCell::default(),
            header_time: Cell::default(),
            idle_time: Cell::default(),
        };
        watches.limit(limits);
        Rc::new(watches)
    }

    /// These are the limits from now on, also for connections that are open.
    pub(super) fn limit(&self, limits: &Limits) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(NONE);
        self.header_time.set(millis(limits.header_time));
        self.idle_time.set(millis(limits.idle_time));
    }

    /// A new connection; `held` is dropped when its stream is.
    pub(super) fn add(&self, held: Box<dyn Any + Send + Sync>) -> Arc<Watch> {
        let now = self.now.load(Relaxed);
        let watch = Arc::new(Watch {
            now: self.now.clone(),
            last: AtomicU64::new(now),
            // Nothing was said yet: the first head is due from now on.
            head: AtomicU64::new(now),
            blocked: AtomicU64::new(NONE),
            under_way: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            within_head: AtomicBool::new(false),
            close: Notify::new(),
            _held: held,
        });
        self.all.borrow_mut().push(Arc::downgrade(&watch));
        watch
    }

    /// Closes what is over its limits, as long as the worker runs.
    pub(super) async fn look_regularly(self: Rc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    fn look(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(NONE);
        self.now.store(now, Relaxed);
        self.all.borrow_mut().retain(|watch| {
            let Some(watch) = watch.upgrade() else { return false };
            if self.is_over(&watch, now) {
                watch.close.notify_one();
            }
            true
        });
    }

    fn is_over(&self, watch: &Watch, now: u64) -> bool {
        let since = |time: &AtomicU64| match time.load(Relaxed) {
            NONE => 0,
            time => now.saturating_sub(time),
        };
        let waiting = watch.under_way.load(Relaxed) == 0;
        // A client that does not read holds the app's response, too.
        since(&watch.blocked) > self.idle_time.get()
            || (waiting && since(&watch.head) > self.header_time.get())
            || (waiting && since(&watch.last) > self.idle_time.get())
    }
}

impl Watch {
    /// Ends when the connection is over its limits.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Ends when the connection is over its limits still, or again, after this time.
    pub(super) async fn closed_after(&self, time: Duration) {
        tokio::time::sleep(time).await;
        self.closed().await;
        if !self.is_idle() {
            // That was said before its client asked again.
            self.closed().await;
        }
    }

    /// On this connection frames of many requests are mixed (HTTP/2): single heads are not seen, but
    /// for the first one, which is due as it is over HTTP/1.1. SECURITY: nor is a frame a request: with
    /// pings, or a byte now and then of a frame that never ends, a connection that asks nothing could
    /// be held for ever (slowloris).
    pub(super) fn multiplexed(&self) {
        self.multiplexed.store(true, Relaxed);
    }

    /// Whether frames of many requests are mixed.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Relaxed)
    }

    /// Whether what came last was a part of a head, which may have come with the request before it.
    pub(super) fn within_head(&self, within: bool) {
        self.within_head.store(within, Relaxed);
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Relaxed) == 0
    }

    /// Whether the client has asked and nothing is to come of that; over HTTP/2, where a farewell
    /// says which requests are answered still, whether it has asked.
    pub(super) fn is_at_rest(&self) -> bool {
        let over = self.is_multiplexed() || (self.is_idle() && self.head.load(Relaxed) == NONE);
        over && self.asked.load(Relaxed)
    }

    /// What follows on this connection is no HTTP (RFC 9110, section 7.8).
    pub(super) fn upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// A head has come; until the guard is dropped its request is under way.
    pub(super) fn request(self: &Arc<Self>) -> UnderWay {
        self.head.store(NONE, Relaxed);
        self.asked.store(true, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        UnderWay(self.clone())
    }

    fn read(&self) {
        if self.is_multiplexed() {
            return;
        }
        let now = self.now.load(Relaxed);
        self.last.store(now, Relaxed);
        if self.under_way.load(Relaxed) == 0 && self.head.load(Relaxed) == NONE {
            self.head.store(now, Relaxed);
        }
    }
}

/// A request under way.
pub(super) struct UnderWay(Arc<Watch>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.0.now.load(Relaxed);
        self.0.under_way.fetch_sub(1, Relaxed);
        self.0.last.store(now, Relaxed);
        if self.0.within_head.load(Relaxed) {
            self.0.head.store(now, Relaxed);
        }
    }
}

/// A stream that tells its watch what it does.
pub(super) struct Watched<T> {
    pub(super) inner: T,
    pub(super) watch: Arc<Watch>,
}

impl<T> Watched<T> {
    fn wrote(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if poll.is_ready() && !self.watch.is_multiplexed() {
            self.watch.last.store(self.watch.now.load(Relaxed), Relaxed);
        }
        self.moves(poll.is_ready());
        poll
    }

    /// Whether the client takes what is written; what a layer below keeps is not taken yet.
    fn moves(&self, moves: bool) {
        let now = self.watch.now.load(Relaxed);
        let blocked = self.watch.blocked.load(Relaxed);
        if moves && blocked != NONE {
            self.watch.blocked.store(NONE, Relaxed);
            // What was left of the last responses: they have not come to their end. Not so what
            // waited for a moment only, for it is written together.
            if blocked < now {
                self.watch.last.store(now, Relaxed);
            }
        } else if !moves && blocked == NONE {
            self.watch.blocked.store(now, Relaxed);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.watch.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.wrote(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(context);
        self.moves(poll.is_ready());
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watches() -> Watches {
        Watches {
            started: Instant::now(),
            now: Arc::default(),
            all: RefCell::default(),
            header_time: Cell::new(10),
            idle_time: Cell::new(50),
        }
    }

    #[test]
    fn a_connection_is_over_when_its_head_or_its_next_request_does_not_come() {
        let all = watches();
        let watch = all.add(Box::new(()));
        assert!(!all.is_over(&watch, 10) && all.is_over(&watch, 11), "it said nothing");
        let request = watch.request();
        assert!(!all.is_over(&watch, 1000), "a request is under way");
        all.now.store(100, Relaxed);
        drop(request);
        assert!(!all.is_over(&watch, 150) && all.is_over(&watch, 151), "it is idle");
        watch.read();
        assert!(!all.is_over(&watch, 110) && all.is_over(&watch, 111), "a head is not complete");
        let request = watch.request();
        watch.within_head(true);
        drop(request);
        assert!(!all.is_over(&watch, 110) && all.is_over(&watch, 111), "it came with a request");
    }

    #[test]
    fn a_connection_of_many_requests_is_over_whatever_is_said_between_them() {
        let all = watches();
        let watch = all.add(Box::new(()));
        watch.multiplexed();
        let watched = Watched { inner: (), watch: watch.clone() };
        let pings = |now| {
            all.now.store(now, Relaxed);
            watch.read();
            watched.moves(false);
            let _ = watched.wrote(Poll::Ready(Ok(17)));
        };
        pings(9);
        assert!(!all.is_over(&watch, 10) && all.is_over(&watch, 11), "the first head is due");
        let (one, two) = (watch.request(), watch.request());
        pings(100);
        drop(one);
        assert!(!all.is_over(&watch, 1000), "a request is under way");
        drop(two);
        pings(140);
        assert!(!all.is_over(&watch, 150) && all.is_over(&watch, 151), "it is idle");
        // The client is slow with what it has asked for.
        watched.moves(false);
        all.now.store(160, Relaxed);
        let _ = watched.wrote(Poll::Ready(Ok(1)));
        assert!(!all.is_over(&watch, 210) && all.is_over(&watch, 211), "it has taken something");
    }

    #[test]
    fn a_connection_is_over_when_the_client_does_not_read() {
        let all = watches();
        let watch = all.add(Box::new(()));
        let _request = watch.request();
        let watched = Watched { inner: (), watch: watch.clone() };
        let _ = watched.wrote(Poll::Pending);
        assert!(!all.is_over(&watch, 50) && all.is_over(&watch, 51));
        let _ = watched.wrote(Poll::Ready(Ok(1)));
        assert!(!all.is_over(&watch, 51));
        watched.moves(false);
        assert!(all.is_over(&watch, 51), "it was written, and is not taken");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let all = watches();
        drop(all.add(Box::new(())));
        let _kept = all.add(Box::new(()));
        all.look();
        assert_eq!(all.all.borrow().len(), 1);
    }
}
