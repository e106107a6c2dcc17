//! What the gateway remembers of cookie sessions, shared by all workers: the newest version of each
//! session that changed, and the ids of sessions that ended, both while an older cookie of theirs could
//! still be alive. Bounded in entries and bytes; what does not fit is dropped by age and counted.
//! It knows nothing of cookies or keys.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::following::LastUses;
use super::logouts::Logouts;
use super::redis_store::Primary;
use super::{Session, SessionId};
use crate::clock::Timestamp;
use crate::lock::lock;

/// After this time no response is under way any more that could carry an older cookie: whoever has shown
/// the newest one keeps it.
const UNDER_WAY: Duration = Duration::from_secs(3600);
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
    /// Both in the order of their making; an entry that was replaced leaves a stale mark behind. What
    /// has changed may be let go for its bytes; what has ended has none, and goes for its number alone.
    changed: VecDeque<Mark>,
    ended: VecDeque<Mark>,
    bytes: usize,
    made: u64,
    bounds: Option<Bounds>,
}

type Mark = (SessionId, u64);

struct Entry {
    remembered: Remembered,
    made: u64,
    since: Timestamp,
    until: Timestamp,
    /// Whether a request has brought the newest version.
    seen: bool,
}

impl Entry {
    fn is_end(&self) -> bool {
        matches!(self.remembered, Remembered::Ended)
    }
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
        let Some(mut shard) = self.shard(id) else { return true };
        let Some(entry) = shard.entries.get_mut(&id) else { return true };
        match &entry.remembered {
            Remembered::Changed(newest) if newest.session.version <= version => {
                entry.seen = true;
                true
            }
            Remembered::Changed(_) | Remembered::Ended => false,
        }
    }

    /// Whether a session is remembered to have ended.
    pub fn has_ended(&self, id: SessionId) -> bool {
        self.shard(id).is_some_and(|shard| shard.entries.get(&id).is_some_and(Entry::is_end))
    }

    /// Replaces what is remembered of a session by what `change` makes of it, until no older cookie
    /// could be alive; nobody else changes it meanwhile. `change` must be quick: it holds the lock of
    /// the session's shard.
    pub fn change<T, E>(
        &self,
        id: SessionId,
        now: Timestamp,
        change: impl FnOnce(Option<&Remembered>) -> Result<(T, Option<(Newest, Timestamp)>), E>,
    ) -> Result<T, E> {
        let Some(mut shard) = self.shard(id) else { return change(None).map(|(made, _)| made) };
        let (made, newest) = change(shard.entries.get(&id).map(|entry| &entry.remembered))?;
        if let Some((newest, until)) = newest {
            shard.put(id, Remembered::Changed(newest), now, until);
            self.forget(&mut shard, now);
        }
        Ok(made)
    }

    /// Remembers that a session ended, until no copy of its cookie could be alive.
    pub fn end(&self, id: SessionId, until: Timestamp, now: Timestamp) {
        if let Some(mut shard) = self.shard(id) {
            let known = shard.entries.get(&id).filter(|entry| entry.is_end());
            let until = known.map_or(until, |entry| entry.until.max(until));
            shard.put(id, Remembered::Ended, now, until);
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

    /// Sessions and logouts dropped before their time because a bound was reached: an update of such a
    /// session may be lost, a copied cookie of such an ended session may live again. A changed session
    /// whose browser has long had its newest cookie is not counted.
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

impl Shard {
    fn put(&mut self, id: SessionId, remembered: Remembered, since: Timestamp, until: Timestamp) {
        self.made += 1;
        self.bytes += cost(&remembered);
        let order = match remembered {
            Remembered::Changed(_) => &mut self.changed,
            Remembered::Ended => &mut self.ended,
        };
        order.push_back((id, self.made));
        let entry = Entry { remembered, made: self.made, since, until, seen: false };
        if let Some(old) = self.entries.insert(id, entry) {
            self.bytes -= cost(&old.remembered);
        }
        // Stale marks may not outgrow what they mark.
        if order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            order.retain(|(id, made)| entries.get(id).is_some_and(|e| e.made == *made));
        }
    }

    /// Drops what is past its time from the fronts, then the oldest until the bounds hold. Returns
    /// how many went before their time.
    fn forget(&mut self, now: Timestamp) -> u64 {
        let bounds = self.bounds.unwrap_or_default();
        let mut early = 0;
        loop {
            let changed = self.front(now, |shard| &mut shard.changed);
            let ended = self.front(now, |shard| &mut shard.ended);
            let (too_long, too_many) =
                (self.bytes > bounds.bytes, self.entries.len() > bounds.entries);
            let victim = match (changed, ended) {
                (Some(changed), _) if too_long => changed,
                // Nobody would miss it.
                (Some(changed), _) if too_many && !changed.missed => changed,
                (Some(one), Some(other)) if too_many && other.made < one.made => other,
                (Some(one), _) | (None, Some(one)) if too_many => one,
                _ => return early,
            };
            early += u64::from(victim.missed);
            self.remove(victim.id);
        }
    }

    /// The oldest of an order that is not past its time.
    fn front(
        &mut self,
        now: Timestamp,
        order: impl Fn(&mut Self) -> &mut VecDeque<Mark>,
    ) -> Option<Oldest> {
        while let Some((id, made)) = order(self).front().copied() {
            match self.entries.get(&id).filter(|entry| entry.made == made) {
                Some(entry) if entry.until > now => {
                    let missed = !entry.seen || now < entry.since.plus(UNDER_WAY);
                    return Some(Oldest { id, made, missed });
                }
                Some(_) => self.remove(id),
                None => {}
            }
            order(self).pop_front();
        }
        None
    }

    /// Its mark goes as a stale one.
    fn remove(&mut self, id: SessionId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.bytes -= cost(&entry.remembered);
        }
    }
}

/// What would have to go next.
struct Oldest {
    id: SessionId,
    made: u64,
    /// Whether something may be lost with it.
    missed: bool,
}

fn cost(remembered: &Remembered) -> usize {
    match remembered {
        Remembered::Changed(newest) => newest.sealed.len(),
        Remembered::Ended => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::following::Followed;
    use super::super::lifetime::Lifetimes;
    use super::*;
    use crate::session::tests::session;

    const NOW: Timestamp = Timestamp(1000);

    fn id(number: u16) -> SessionId {
        let mut id = [0; 16];
        id[1..3].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    /// As long as the sessions of these tests live.
    const LIFE: Duration = Duration::from_secs(3 * 3600);

    fn remember(memory: &Memory, number: u16, version: u64, now: Timestamp) {
        let session = Arc::new(Session { id: id(number), version, ..session() });
        let newest = Newest { session, sealed: "x".repeat(100).into() };
        let newest = Some((newest, now.plus(LIFE)));
        let changed: Result<(), ()> = memory.change(id(number), now, |_| Ok(((), newest)));
        changed.unwrap();
    }

    fn small(entries: usize, bytes: usize) -> Memory {
        Memory::new(Bounds { entries: entries * SHARDS, bytes: bytes * SHARDS })
    }

    /// What is open asks about its session again and again; that is no browser with a newer cookie.
    #[test]
    fn a_session_that_something_follows_is_missed_like_any_other() {
        let memory = Arc::new(small(1, 1000));
        remember(&memory, 1, 2, NOW);
        let lifetimes = Lifetimes { absolute: LIFE, inactivity: None };
        let session = Session { id: id(1), created_at: NOW, ..session() };
        let followed = Followed::new(memory.clone(), lifetimes, false, &session);
        assert!(followed.is_alive(NOW));
        remember(&memory, 2, 2, NOW.plus(UNDER_WAY));
        assert_eq!(memory.forgotten(), 1);
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
        memory.end(id(1), Timestamp(1500), NOW);
        remember(&memory, 33, 2, Timestamp(1900));
        assert!(memory.has_ended(id(1)), "said twice, it holds for the longer time");
    }

    #[test]
    fn a_changed_session_is_forgotten_when_it_would_have_ended_and_not_counted() {
        let memory = Memory::new(Bounds::default());
        memory.end(id(9), NOW.plus(2 * LIFE), NOW);
        remember(&memory, 1, 2, NOW);
        remember(&memory, 2, 2, NOW.plus(LIFE / 2));
        assert!(memory.recall(id(1)).is_some());
        remember(&memory, 3, 2, NOW.plus(LIFE));
        assert!(memory.recall(id(1)).is_none(), "whatever lives longer and came before it");
        assert!(memory.recall(id(2)).is_some() && memory.has_ended(id(9)));
        assert_eq!(memory.forgotten(), 0);
    }

    #[test]
    fn a_session_that_ended_takes_no_room_from_those_that_changed_nor_they_from_it() {
        let memory = small(1000, 300);
        memory.end(id(9), NOW.plus(LIFE), NOW);
        for number in 1..=5 {
            remember(&memory, number, 2, NOW);
        }
        assert!(memory.has_ended(id(9)), "it has no bytes to give");
        assert_eq!(memory.forgotten(), 2);
    }

    #[test]
    fn whoever_has_long_had_the_newest_cookie_goes_first_and_is_not_counted() {
        let memory = small(3, 10_000);
        memory.end(id(9), NOW.plus(LIFE), NOW);
        remember(&memory, 1, 2, NOW);
        remember(&memory, 2, 2, NOW);
        assert!(memory.is_current(id(1), 2) && !memory.is_current(id(2), 1));
        remember(&memory, 3, 2, NOW.plus(UNDER_WAY));
        assert!(memory.recall(id(1)).is_none() && memory.has_ended(id(9)));
        assert_eq!(memory.forgotten(), 0);
        remember(&memory, 4, 2, NOW.plus(UNDER_WAY));
        assert!(!memory.has_ended(id(9)), "now the oldest goes");
        remember(&memory, 5, 2, NOW.plus(UNDER_WAY));
        assert!(memory.recall(id(2)).is_none());
        assert_eq!(memory.forgotten(), 2);
        assert!(memory.is_current(id(3), 2));
        remember(&memory, 6, 2, NOW.plus(UNDER_WAY));
        assert_eq!(memory.forgotten(), 3, "an older cookie may still come");
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
        assert!(lock(&memory.shards[0]).changed.len() < 100);
        for _ in 0..1000 {
            memory.end(id(3), NOW.plus(LIFE), NOW);
        }
        assert!(lock(&memory.shards[0]).ended.len() < 100);
    }
}
