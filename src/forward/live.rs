//! Connections that are open while their session ends: WebSockets, event streams, long downloads.
//! One look every half second at all of a worker's together; nothing is set up for a response until
//! its app first lets it wait, or it turns out to be long. It tells that a session is over, not how to
//! end what belongs to it.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::SHORT;
use crate::clock::Timestamp;
use crate::session::{Followed, Opened, Sessions};

/// How often sessions are looked at: what belongs to one is to end within a second of it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// And while one is in doubt.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// What is open on one worker.
pub(super) struct Live {
    sessions: Rc<Sessions>,
    open: RefCell<Vec<Weak<Open>>>,
    looking: Cell<bool>,
}

/// One stream or connection that is open.
pub(super) struct Open {
    session: Followed,
    over: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Live {
    pub(super) fn new(sessions: Rc<Sessions>) -> Rc<Self> {
        Rc::new(Self { sessions, open: RefCell::default(), looking: Cell::new(false) })
    }

    /// Something that belongs to this session is open, until the value is dropped.
    pub(super) fn open(self: &Rc<Self>, opened: &Opened) -> Rc<Open> {
        let open = Rc::new(Open {
            session: self.sessions.follow(&opened.session),
            over: Cell::new(false),
            waiting: RefCell::default(),
        });
        self.open.borrow_mut().push(Rc::downgrade(&open));
        if !self.looking.replace(true) {
            tokio::task::spawn_local(self.clone().look_regularly());
        }
        open
    }

    /// Whether anything has been open a moment ago.
    #[cfg(test)]
    pub(super) fn is_looking(&self) -> bool {
        self.looking.get()
    }

    /// Looks as long as anything is open.
    async fn look_regularly(self: Rc<Self>) {
        let mut pause = LOOK_EVERY;
        while !self.open.borrow().is_empty() {
            tokio::time::sleep(pause).await;
            let in_doubt = self.look(Timestamp::now());
            pause = if in_doubt { LOOK_SOON } else { LOOK_EVERY };
        }
        self.looking.set(false);
    }

    /// Whether any is in doubt.
    fn look(&self, now: Timestamp) -> bool {
        let mut in_doubt = false;
        // Woken tasks do not run in here: nothing is opened meanwhile.
        self.open.borrow_mut().retain(|open| {
            let Some(open) = open.upgrade() else { return false };
            let alive = open.session.is_alive(now);
            if !alive {
                open.end();
            }
            in_doubt |= alive && open.session.is_in_doubt();
            alive
        });
        in_doubt
    }
}

impl Open {
    /// Whether the session is over.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Ready when the session is over; one task waits at a time.
    pub(super) fn poll_over(&self, context: &Context<'_>) -> Poll<()> {
        if self.over.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waiting = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Ends when the session does.
    pub(super) async fn over(&self) {
        std::future::poll_fn(|context| self.poll_over(context)).await;
    }

    fn end(&self) {
        self.over.set(true);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// A response's tie to its session: it counts as open from when it first has to wait, or is not short.
pub(super) struct Tie {
    live: Rc<Live>,
    opened: Rc<Opened>,
    open: Option<Rc<Open>>,
    /// Bytes that have passed, until it is open.
    passed: u64,
}

/// The session has ended, or has expired.
#[derive(Debug, thiserror::Error)]
#[error("the session that the response belongs to is over")]
pub(super) struct SessionOver;

impl Tie {
    pub(super) fn new(live: &Rc<Live>, opened: &Rc<Opened>) -> Self {
        Self { live: live.clone(), opened: opened.clone(), open: None, passed: 0 }
    }

    /// So many bytes go out. An app that is always ahead of its browser never lets it wait.
    pub(super) fn pass(&mut self, bytes: usize) {
        if self.open.is_none() {
            self.passed += bytes as u64;
            if self.passed > SHORT {
                self.open = Some(self.live.open(&self.opened));
            }
        }
    }

    /// Whether the session was seen to be over.
    pub(super) fn is_over(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_over())
    }

    /// Ready when the session is over. Call it when there is nothing to send.
    pub(super) fn poll_over(&mut self, context: &Context<'_>) -> Poll<()> {
        let Self { live, opened, open, .. } = self;
        open.get_or_insert_with(|| live.open(opened)).poll_over(context)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use tokio::task::LocalSet;

    use super::*;
    use crate::session::tests::session;
    use crate::session::{Change, Session, Visit};

    /// Sessions of the default lifetimes, and a visit to one of them.
    pub(in crate::forward) async fn signed_in() -> (Rc<Sessions>, Visit) {
        use crate::config;
        use crate::session::memory::{Bounds, Memory};
        let config = config::Session {
            secrets: vec![config::value::Secret::new("0123456789abcdef0123456789abcdef")],
            absolute: Duration::from_secs(3600),
            inactivity: Some(Duration::from_secs(1800)),
            cookie: config::Cookie {
                name: "__Host-session".to_owned(),
                same_site: config::SameSite::Lax,
                domain: None,
                transient: false,
            },
            redis: None,
        };
        let sealer = Arc::new(crate::session::Sealer::new(&config.secrets));
        let memory = Arc::new(Memory::new(Bounds::default()));
        let sessions = Rc::new(Sessions::new(&config, sealer, memory));
        let Session { identity, tokens, .. } = session();
        let (mut visit, now) = (Visit::default(), Timestamp::now());
        sessions.commit(&mut visit, Change::Start { identity, tokens }, now).await.unwrap();
        (sessions, visit)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_hears_of_its_sessions_end_within_a_second() {
        LocalSet::new()
            .run_until(async {
                let (sessions, mut visit) = signed_in().await;
                let live = Live::new(sessions.clone());
                let open = live.open(visit.opened().unwrap());
                let waited = tokio::time::timeout(Duration::from_secs(3), open.over()).await;
                assert!(waited.is_err(), "the session is alive");
                sessions.commit(&mut visit, Change::End, Timestamp::now()).await.unwrap();
                tokio::time::timeout(Duration::from_secs(1), open.over()).await.unwrap();
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn looking_ends_when_nothing_is_open_and_begins_again() {
        LocalSet::new()
            .run_until(async {
                let (sessions, visit) = signed_in().await;
                let live = Live::new(sessions);
                for _ in 0..2 {
                    drop(live.open(visit.opened().unwrap()));
                    assert!(live.looking.get());
                    tokio::time::sleep(2 * LOOK_EVERY).await;
                    assert!(!live.looking.get() && live.open.borrow().is_empty());
                }
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_ends_when_the_session_expires() {
        LocalSet::new()
            .run_until(async {
                let (sessions, visit) = signed_in().await;
                let live = Live::new(sessions);
                let open = live.open(visit.opened().unwrap());
                let now = visit.session().unwrap().created_at;
                live.look(now.plus(Duration::from_secs(1799)));
                assert!(!open.is_over());
                live.look(now.plus(Duration::from_secs(1800)));
                assert!(open.is_over());
            })
            .await;
    }
}
