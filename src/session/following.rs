//! A session as something follows it that outlives its request: an open stream, which asks now and
//! then whether the session is still alive. A stream is no use of the session; a request is, on
//! whichever worker. It knows nothing of streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use super::lifetime::Lifetimes;
use super::logouts::Fate;
use super::{Memory, Session, SessionId};
use crate::clock::Timestamp;
use crate::lock::lock;

/// A session that was alive when somebody began to follow it.
pub struct Followed {
    memory: Arc<Memory>,
    lifetimes: Lifetimes,
    id: SessionId,
    created_at: Timestamp,
    fate: Fate,
    /// Shared by all who follow this session.
    last_use: Arc<AtomicU64>,
}

impl Followed {
    pub(super) fn new(memory: Arc<Memory>, lifetimes: Lifetimes, session: &Session) -> Self {
        let last_use = memory.last_uses().follow(session.id, session.touched_at);
        let (id, created_at, fate) =
            (session.id, session.created_at, memory.logouts().fate(session));
        Self { memory, lifetimes, id, created_at, fate, last_use }
    }

    /// Whether it has neither ended nor expired.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        let last_use = Timestamp(self.last_use.load(Relaxed));
        // No version is newer than this one: what is not current has ended.
        now < self.lifetimes.end_after(self.created_at, last_use)
            && self.memory.is_current(self.id, u64::MAX)
            && !self.memory.logouts().cover_fate(self.created_at, &self.fate)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.memory.last_uses().unfollow(self.id, &self.last_use);
    }
}

/// When the sessions that somebody follows were last used, as far as it was written down. A touch
/// lives in the browser's cookie alone, which a stream that opened before it never sees.
#[derive(Default)]
pub(super) struct LastUses {
    /// Seconds since 1970; one entry a session that is followed.
    followed: Mutex<HashMap<SessionId, Weak<AtomicU64>, ahash::RandomState>>,
}

impl LastUses {
    /// A request has used the session.
    pub(super) fn used(&self, id: SessionId, now: Timestamp) {
        if let Some(last_use) = lock(&self.followed).get(&id).and_then(Weak::upgrade) {
            last_use.fetch_max(now.0, Relaxed);
        }
    }

    fn follow(&self, id: SessionId, touched_at: Timestamp) -> Arc<AtomicU64> {
        let mut followed = lock(&self.followed);
        let last_use = followed.get(&id).and_then(Weak::upgrade).unwrap_or_else(|| {
            let new = Arc::default();
            followed.insert(id, Arc::downgrade(&new));
            new
        });
        last_use.fetch_max(touched_at.0, Relaxed);
        last_use
    }

    fn unfollow(&self, id: SessionId, last_use: &Arc<AtomicU64>) {
        let mut followed = lock(&self.followed);
        // The last one: further ones are made under this lock only.
        if Arc::strong_count(last_use) == 1 {
            followed.remove(&id);
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
        let followed = Followed::new(memory.clone(), LIFETIMES, &session());
        assert!(followed.is_alive(Timestamp(150)));
        memory.end(session().id, Timestamp(2000), Timestamp(150));
        assert!(!followed.is_alive(Timestamp(150)));
    }

    #[test]
    fn what_is_followed_expires_after_the_last_use_and_absolutely() {
        let memory = memory();
        let followed = Followed::new(memory.clone(), LIFETIMES, &session());
        assert!(followed.is_alive(Timestamp(199)) && !followed.is_alive(Timestamp(200)));
        memory.last_uses().used(session().id, Timestamp(190));
        assert!(followed.is_alive(Timestamp(289)) && !followed.is_alive(Timestamp(290)));
        memory.last_uses().used(session().id, Timestamp(1090));
        assert!(followed.is_alive(Timestamp(1099)) && !followed.is_alive(Timestamp(1100)));
    }

    #[test]
    fn a_session_that_nobody_follows_any_more_takes_no_room() {
        let memory = memory();
        let one = Followed::new(memory.clone(), LIFETIMES, &session());
        let other = Followed::new(memory.clone(), LIFETIMES, &session());
        drop(one);
        memory.last_uses().used(session().id, Timestamp(190));
        assert!(other.is_alive(Timestamp(289)));
        drop(other);
        assert!(lock(&memory.last_uses().followed).is_empty());
    }
}
