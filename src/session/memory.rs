//! What the gateway remembers of cookie sessions, shared by all workers: the newest version of each
//! session that changed a while ago, and the ids of sessions that ended while a copied cookie could
//! still be alive. Bounded in entries and bytes; what does not fit is dropped by age and counted.
//! It knows nothing of cookies or keys.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::following::LastUses;
use super::logouts::Logouts;
use super::redis_store::Primary;
use super::{Session, SessionId};
use crate::clock::Timestamp;

/// How long a changed session is remembered: longer than any response is under way that could
/// carry an older cookie.
const REMEMBERED: Duration = Duration::from_secs(3600);
const SHARDS: usize = 32;

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions, changed and ended together.
    pub entries: usize,
    /// Bytes of sealed text of changed sessions; a session costs about four times that in memory.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 200_000, bytes: 64 * 1024 * 1024 }
    }
}

/// The newest version of a session, as its cookie.
#[derive(Clone)]
pub struct Newest {
    /// The session.
    pub session: Arc<Session>,
    /// Its sealed text.
    pub sealed: Arc<str>,
}

/// What is remembered of one session.
#[derive(Clone)]
pub enum Remembered {
    /// It changed.
    Changed(Newest),
    /// It ended.
    Ended,
}

/// The memory.
pub struct Memory {
    shards: Vec<Mutex<Shard>>,
    forgotten: AtomicU64,
    last_uses: LastUses,
    logouts: Logouts,
    primary: Arc<Primary>,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<SessionId, Entry, ahash::RandomState>,
    /// In the order of their making; an entry that was replaced leaves a stale one behind.
    order: VecDeque<(SessionId, u64)>,
    bytes: usize,
    made: u64,
    bounds: Option<Bounds>,
}

struct Entry {
    remembered: Remembered,
    made: u64,
    until: Timestamp,
}

impl Memory {
    /// An empty memory.
    pub fn new(bounds: Bounds) -> Self {
        let bounds = Some(Bounds {
            entries: bounds.entries.div_ceil(SHARDS),
            bytes: bounds.bytes.div_ceil(SHARDS),
        });
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard { bounds, ..Shard::default() }));
        Self {
            shards: shards.collect(),
            forgotten: AtomicU64::new(0),
            last_uses: LastUses::default(),
            logouts: Logouts::default(),
            primary: Arc::default(),
        }
    }

    /// What is remembered of a session.
    pub fn recall(&self, id: SessionId) -> Option<Remembered> {
        self.shard(id)?.entries.get(&id).map(|entry| entry.remembered.clone())
    }

    /// Whether something is remembered that a cookie of `version` does not know: the one look on
    /// every request, without a copy.
    pub fn is_current(&self, id: SessionId, version: u64) -> bool {
        let Some(shard) = self.shard(id) else { return true };
        match shard.entries.get(&id).map(|entry| &entry.remembered) {
            None => true,
            Some(Remembered::Changed(newest)) => newest.session.version <= version,
            Some(Remembered::Ended) => false,
        }
    }

    /// Whether a session is remembered to have ended.
    pub fn has_ended(&self, id: SessionId) -> bool {
        self.shard(id).is_some_and(|shard| {
            let entry = shard.entries.get(&id);
            entry.is_some_and(|entry| matches!(entry.remembered, Remembered::Ended))
        })
    }

    /// Replaces what is remembered of a session by what `change` makes of it; nobody else changes
    /// it meanwhile. `change` must be quick: it holds the lock of the session's shard.
    pub fn change<T, E>(
        &self,
        id: SessionId,
        now: Timestamp,
        change: impl FnOnce(Option<&Remembered>) -> Result<(T, Option<Newest>), E>,
    ) -> Result<T, E> {
        let Some(mut shard) = self.shard(id) else { return change(None).map(|(made, _)| made) };
        let (made, newest) = change(shard.entries.get(&id).map(|entry| &entry.remembered))?;
        if let Some(newest) = newest {
            shard.put(id, Remembered::Changed(newest), now.plus(REMEMBERED));
            self.forget(&mut shard, now);
        }
        Ok(made)
    }

    /// Remembers that a session ended, until no copy of its cookie could be alive.
    pub fn end(&self, id: SessionId, until: Timestamp, now: Timestamp) {
        if let Some(mut shard) = self.shard(id) {
            shard.put(id, Remembered::Ended, until);
            self.forget(&mut shard, now);
        }
    }

    /// Sessions remembered now.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sessions and logouts dropped before their time because a bound was reached: a parallel update
    /// of such a session may be lost, a copied cookie of such an ended session may live again.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed) + self.logouts.forgotten()
    }

    /// When the sessions were last used that something follows.
    pub(super) fn last_uses(&self) -> &LastUses {
        &self.last_uses
    }

    /// What the provider has ended.
    pub(super) fn logouts(&self) -> &Logouts {
        &self.logouts
    }

    /// Which server of Redis is the primary.
    pub(super) fn primary(&self) -> &Arc<Primary> {
        &self.primary
    }

    fn shard(&self, id: SessionId) -> Option<MutexGuard<'_, Shard>> {
        let [first, ..] = id.0;
        self.shards.get(usize::from(first) % SHARDS).map(lock)
    }

    fn forget(&self, shard: &mut Shard, now: Timestamp) {
        let early = shard.forget(now);
        if early > 0 {
            self.forgotten.fetch_add(early, Ordering::Relaxed);
        }
    }
}

/// A poisoned lock is still good: no change leaves a shard half made.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn put(&mut self, id: SessionId, remembered: Remembered, until: Timestamp) {
        self.made += 1;
        self.bytes += cost(&remembered);
        let entry = Entry { remembered, made: self.made, until };
        if let Some(old) = self.entries.insert(id, entry) {
            self.bytes -= cost(&old.remembered);
        }
        self.order.push_back((id, self.made));
        // Stale marks may not outgrow what they mark.
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order.retain(|(id, made)| entries.get(id).is_some_and(|e| e.made == *made));
        }
    }

    /// Drops what is past its time from the front, then the oldest until the bounds hold. Returns
    /// how many went before their time.
    fn forget(&mut self, now: Timestamp) -> u64 {
        let bounds = self.bounds.unwrap_or_default();
        let mut early = 0;
        while let Some((id, made)) = self.order.front().copied() {
            let full = self.entries.len() > bounds.entries || self.bytes > bounds.bytes;
            match self.entries.get(&id).filter(|entry| entry.made == made) {
                Some(entry) if entry.until > now && !full => break,
                Some(entry) => {
                    early += u64::from(entry.until > now);
                    self.bytes -= cost(&entry.remembered);
                    self.entries.remove(&id);
                }
                None => {}
            }
            self.order.pop_front();
        }
        early
    }
}

fn cost(remembered: &Remembered) -> usize {
    match remembered {
        Remembered::Changed(newest) => newest.sealed.len(),
        Remembered::Ended => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    const NOW: Timestamp = Timestamp(1000);

    fn id(number: u16) -> SessionId {
        let mut id = [0; 16];
        id[1..3].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    fn remember(memory: &Memory, number: u16, version: u64, now: Timestamp) {
        let session = Arc::new(Session { id: id(number), version, ..session() });
        let newest = Newest { session, sealed: "x".repeat(100).into() };
        let changed: Result<(), ()> = memory.change(id(number), now, |_| Ok(((), Some(newest))));
        changed.unwrap();
    }

    fn small(entries: usize, bytes: usize) -> Memory {
        Memory::new(Bounds { entries: entries * SHARDS, bytes: bytes * SHARDS })
    }

    #[test]
    fn an_older_cookie_is_not_current_and_an_ended_one_never() {
        let memory = Memory::new(Bounds::default());
        assert!(memory.is_current(id(1), 0));
        remember(&memory, 1, 2, NOW);
        assert!(!memory.is_current(id(1), 1));
        assert!(memory.is_current(id(1), 2));
        memory.end(id(1), Timestamp(2000), NOW);
        assert!(!memory.is_current(id(1), u64::MAX));
    }

    #[test]
    fn a_changed_session_is_forgotten_after_its_hour_and_not_counted() {
        let memory = Memory::new(Bounds::default());
        remember(&memory, 1, 2, NOW);
        remember(&memory, 2, 2, NOW.plus(REMEMBERED));
        assert!(memory.recall(id(1)).is_none());
        assert!(memory.recall(id(2)).is_some());
        assert_eq!(memory.forgotten(), 0);
    }

    #[test]
    fn the_oldest_goes_first_when_entries_or_bytes_are_full_and_is_counted() {
        for memory in [small(3, 10_000), small(1000, 300)] {
            for number in 1..=5 {
                remember(&memory, number, 2, NOW);
            }
            let left: Vec<_> = (1..=5).filter(|n| memory.recall(id(*n)).is_some()).collect();
            assert_eq!(left, [3, 4, 5]);
            assert_eq!(memory.forgotten(), 2);
        }
    }

    #[test]
    fn many_changes_of_one_session_take_the_room_of_one() {
        let memory = small(3, 300);
        remember(&memory, 1, 1, NOW);
        for version in 2..10_000 {
            remember(&memory, 2, version, NOW);
        }
        assert_eq!(memory.len(), 2);
        assert!(memory.recall(id(1)).is_some());
        assert!(lock(&memory.shards[0]).order.len() < 100);
    }
}
