//! A session as something follows it that outlives its request: an open stream, which asks now and
//! then whether the session is still alive. A stream is no use of the session; a request is, on
//! whichever worker, and on whichever gateway if they share their sessions. It knows nothing of streams.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::lifetime::Lifetimes;
use super::logouts::Fate;
use super::{Memory, Session, SessionId};
use crate::clock::Timestamp;
use crate::lock::lock;

/// How long the store may take to say whether a session that seems unused was used elsewhere.
const DOUBT: Duration = Duration::from_secs(3);

/// A session that was alive when somebody began to follow it.
pub struct Followed {
    memory: Arc<Memory>,
    lifetimes: Lifetimes,
    /// Whether other gateways have it too.
    shared: bool,
    id: SessionId,
    created_at: Timestamp,
    fate: Fate,
    /// Shared by all who follow this session.
    use_: Arc<Use>,
}

/// What is known of a session's use.
#[derive(Default)]
struct Use {
    /// The last one, in seconds since 1970.
    last: AtomicU64,
    /// When the session would expire, as the store has it.
    expires: AtomicU64,
    in_doubt: AtomicBool,
}

impl Followed {
    pub(super) fn new(
        memory: Arc<Memory>,
        lifetimes: Lifetimes,
        shared: bool,
        session: &Session,
    ) -> Self {
        let use_ = memory.last_uses().follow(session.id, session.touched_at);
        let (id, created_at, fate) =
            (session.id, session.created_at, memory.logouts().fate(session));
        Self { memory, lifetimes, shared, id, created_at, fate, use_ }
    }

    /// Whether it has neither ended nor expired. Where another gateway may have seen a use of it that
    /// is not known here, it is in doubt for a moment, and alive.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        let last_use = Timestamp(self.use_.last.load(Relaxed));
        let last = self.created_at.plus(self.lifetimes.absolute);
        let shared_end = last.min(Timestamp(self.use_.expires.load(Relaxed)));
        let end = self.lifetimes.end_after(self.created_at, last_use).max(shared_end);
        if self.memory.has_ended(self.id)
            || self.memory.logouts().cover_fate(self.created_at, &self.fate)
        {
            return false;
        }
        now < end || (self.shared && now < last && now < end.plus(DOUBT) && self.doubt())
    }

    /// Whether the store is being asked.
    pub fn is_in_doubt(&self) -> bool {
        self.use_.in_doubt.load(Relaxed)
    }

    fn doubt(&self) -> bool {
        if !self.use_.in_doubt.swap(true, Relaxed) {
            self.memory.last_uses().doubt(self.id);
        }
        true
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.memory.last_uses().unfollow(self.id);
    }
}

/// When the sessions that somebody follows were last used, as far as it was written down. A touch
/// lives in the browser's cookie alone, which a stream that opened before it never sees.
#[derive(Default)]
pub(super) struct LastUses {
    /// One entry a session that is followed.
    followed: Mutex<HashMap<SessionId, Entry, ahash::RandomState>>,
    /// Those that seem unused, where the store may know better.
    doubted: Mutex<HashSet<SessionId>>,
    doubt: Notify,
}

#[derive(Default)]
struct Entry {
    use_: Arc<Use>,
    followers: usize,
}

impl LastUses {
    /// A request has used the session.
    pub(super) fn used(&self, id: SessionId, now: Timestamp) {
        if let Some(Entry { use_, .. }) = lock(&self.followed).get(&id) {
            use_.last.fetch_max(now.0, Relaxed);
        }
    }

    /// The store says when the session expires, if it is not used again.
    pub(super) fn expires(&self, id: SessionId, at: Timestamp) {
        if let Some(Entry { use_, .. }) = lock(&self.followed).get(&id) {
            use_.expires.fetch_max(at.0, Relaxed);
            use_.in_doubt.store(false, Relaxed);
        }
    }

    /// All that are followed.
    pub(super) fn all(&self) -> Vec<SessionId> {
        lock(&self.doubted).clear();
        lock(&self.followed).keys().copied().collect()
    }

    /// Those that came to be in doubt.
    pub(super) fn doubted(&self) -> Vec<SessionId> {
        lock(&self.doubted).drain().collect()
    }

    /// Ends when one comes to be in doubt.
    pub(super) async fn doubt_comes(&self) {
        self.doubt.notified().await;
    }

    fn doubt(&self, id: SessionId) {
        lock(&self.doubted).insert(id);
        self.doubt.notify_one();
    }

    fn follow(&self, id: SessionId, touched_at: Timestamp) -> Arc<Use> {
        let mut followed = lock(&self.followed);
        let entry = followed.entry(id).or_default();
        entry.followers += 1;
        entry.use_.last.fetch_max(touched_at.0, Relaxed);
        entry.use_.clone()
    }

    fn unfollow(&self, id: SessionId) {
        let mut followed = lock(&self.followed);
        if let Some(entry) = followed.get_mut(&id) {
            entry.followers -= 1;
            if entry.followers == 0 {
                followed.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::memory::Bounds;
    use crate::session::tests::session;

    const LIFETIMES: Lifetimes = Lifetimes {
        absolute: Duration::from_secs(1000),
        inactivity: Some(Duration::from_secs(100)),
    };

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(Bounds::default()))
    }

    #[test]
    fn what_is_followed_ends_with_the_session() {
        let memory = memory();
        let followed = Followed::new(memory.clone(), LIFETIMES, false, &session());
        assert!(followed.is_alive(Timestamp(150)));
        memory.end(session().id, Timestamp(2000), Timestamp(150));
        assert!(!followed.is_alive(Timestamp(150)));
    }

    #[test]
    fn what_is_followed_expires_after_the_last_use_and_absolutely() {
        let memory = memory();
        let followed = Followed::new(memory.clone(), LIFETIMES, false, &session());
        assert!(followed.is_alive(Timestamp(199)) && !followed.is_alive(Timestamp(200)));
        memory.last_uses().used(session().id, Timestamp(190));
        assert!(followed.is_alive(Timestamp(289)) && !followed.is_alive(Timestamp(290)));
        memory.last_uses().used(session().id, Timestamp(1090));
        assert!(followed.is_alive(Timestamp(1099)) && !followed.is_alive(Timestamp(1100)));
    }

    #[test]
    fn a_session_that_nobody_follows_any_more_takes_no_room() {
        let memory = memory();
        let one = Followed::new(memory.clone(), LIFETIMES, false, &session());
        let other = Followed::new(memory.clone(), LIFETIMES, false, &session());
        drop(one);
        memory.last_uses().used(session().id, Timestamp(190));
        assert!(other.is_alive(Timestamp(289)));
        drop(other);
        assert!(lock(&memory.last_uses().followed).is_empty());
    }

    #[test]
    fn many_who_stop_following_at_once_leave_nothing() {
        let memory = memory();
        for _ in 0..200 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let followed = Followed::new(memory.clone(), LIFETIMES, false, &session());
                    scope.spawn(move || drop(followed));
                }
            });
            assert!(lock(&memory.last_uses().followed).is_empty());
        }
    }

    #[test]
    fn what_other_gateways_have_too_is_in_doubt_before_it_is_over() {
        let memory = memory();
        let followed = Followed::new(memory.clone(), LIFETIMES, true, &session());
        assert!(followed.is_alive(Timestamp(199)) && !followed.is_in_doubt());
        assert!(followed.is_alive(Timestamp(200)) && followed.is_in_doubt());
        assert_eq!(memory.last_uses().doubted(), [session().id]);
        assert!(followed.is_alive(Timestamp(201)) && memory.last_uses().doubted().is_empty());
        memory.last_uses().expires(session().id, Timestamp(250));
        assert!(followed.is_alive(Timestamp(249)) && !followed.is_in_doubt());
        // Nobody answers.
        assert!(followed.is_alive(Timestamp(252)) && !followed.is_alive(Timestamp(253)));
        // The store is told, not believed: absolute expiry is the gateway's own.
        memory.last_uses().expires(session().id, Timestamp(9999));
        assert!(followed.is_alive(Timestamp(1099)) && !followed.is_alive(Timestamp(1100)));
    }
}
