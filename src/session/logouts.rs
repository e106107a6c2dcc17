//! Logouts that come from the provider, as a gateway remembers them that keeps no sessions: whose have
//! ended, and since when. Shared by all workers; bounded, what does not fit is dropped by age and
//! counted. While there is none it costs a request one look at a number that nobody writes.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use super::{Identity, Session, Unavailable};
use crate::clock::Timestamp;
use crate::lock::lock;

/// Logouts that are remembered, and names of logouts.
const MOST: usize = 100_000;

/// The provider's word that sessions have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logout {
    /// Its own name, by which it is known if it comes again.
    pub name: String,
    /// The provider.
    pub issuer: String,
    /// Whose sessions end.
    pub whose: Whose,
    /// When the provider said so: a session that began later stays.
    pub issued_at: Timestamp,
    /// Until when the same word might come again and be believed.
    pub expires: Timestamp,
}

/// Whose sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of one user: the claim `sub`.
    User(String),
    /// Those that came of one sign-in at the provider: the claim `sid`.
    SignIn(String),
}

/// A logout that was not obeyed.
#[derive(Debug, Error)]
pub enum LogoutRefused {
    /// It was obeyed before.
    #[error("it was obeyed before")]
    Replayed,
    /// Not every session is known to have ended.
    #[error("{0}")]
    Unavailable(#[from] Unavailable),
}

/// The claims by which sessions are found.
pub(super) const CLAIMS: [&str; 2] = ["sub", "sid"];

impl Whose {
    /// The claim that says so, and what it says.
    pub(super) fn claim(&self) -> (&'static str, &str) {
        match self {
            Self::User(sub) => ("sub", sub),
            Self::SignIn(sid) => ("sid", sid),
        }
    }
}

/// A hash under a key of this process. That two are alike by chance is not to be expected.
type Tag = u64;

/// What has ended.
#[derive(Default)]
pub(super) struct Logouts {
    /// How many there have been; 0 means that nobody has to look.
    count: AtomicU64,
    state: Mutex<State>,
    tags: ahash::RandomState,
    forgotten: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Sessions of these that began at this time or before have ended.
    ended: Aging<Timestamp>,
    /// The names of logouts that were obeyed.
    obeyed: Aging<()>,
}

/// By what a session could be logged out, and which logouts it is known to have outlived.
#[derive(Default)]
pub(super) struct Fate {
    tags: Cell<Option<[Option<Tag>; CLAIMS.len()]>>,
    outlived: Cell<u64>,
}

impl Logouts {
    /// Remembers a logout until `until`, when no session that it ends could be alive. Whether it is
    /// a new one.
    pub(super) fn obey(&self, logout: &Logout, until: Timestamp, now: Timestamp) -> bool {
        let name = self.tags.hash_one((&logout.issuer, &logout.name));
        let (claim, value) = logout.whose.claim();
        let whose = self.tag(claim, &logout.issuer, value);
        let mut state = lock(&self.state);
        if state.obeyed.get(name, now).is_some() {
            return false;
        }
        let mut early = state.obeyed.put(name, (), logout.expires, now);
        // A session that begins from now on was not meant, however fast the provider's clock is.
        let issued_at = logout.issued_at.min(now);
        let before = state.ended.get(whose, now).map_or(issued_at, |known| known.max(issued_at));
        early += state.ended.put(whose, before, until, now);
        self.count.fetch_add(1, Ordering::Release);
        drop(state);
        self.forgotten.fetch_add(early, Ordering::Relaxed);
        true
    }

    /// Whether a session was logged out.
    pub(super) fn cover(&self, session: &Session, fate: &Fate) -> bool {
        self.cover_since(session.created_at, fate, || self.tags_of(&session.identity))
    }

    /// A fate of its own, for who keeps no session.
    pub(super) fn fate(&self, session: &Session) -> Fate {
        Fate { tags: Cell::new(Some(self.tags_of(&session.identity))), ..Fate::default() }
    }

    /// The same for a session that began at `created_at` and whose fate was made by [`Self::fate`].
    pub(super) fn cover_fate(&self, created_at: Timestamp, fate: &Fate) -> bool {
        self.cover_since(created_at, fate, <[Option<Tag>; CLAIMS.len()]>::default)
    }

    fn cover_since(
        &self,
        created_at: Timestamp,
        fate: &Fate,
        tags: impl FnOnce() -> [Option<Tag>; CLAIMS.len()],
    ) -> bool {
        let count = self.count.load(Ordering::Acquire);
        if count == fate.outlived.get() {
            return false;
        }
        let tags = fate.tags.get().unwrap_or_else(tags);
        fate.tags.set(Some(tags));
        let state = lock(&self.state);
        // What is past its time ends nothing that is alive.
        let ended = |tag: &Tag| state.ended.entries.get(tag).is_some_and(|e| created_at <= e.value);
        let covered = tags.iter().flatten().any(ended);
        if !covered {
            fate.outlived.set(count);
        }
        covered
    }

    /// What was dropped before its time.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    fn tags_of(&self, identity: &Identity) -> [Option<Tag>; CLAIMS.len()] {
        let text = |name| identity.claim(name).and_then(serde_json::Value::as_str);
        let issuer = text("iss").unwrap_or_default();
        CLAIMS.map(|claim| Some(self.tag(claim, issuer, text(claim)?)))
    }

    fn tag(&self, claim: &str, issuer: &str, value: &str) -> Tag {
        self.tags.hash_one((claim, issuer, value))
    }
}

/// Values that are good until a time each, the oldest first to go.
struct Aging<T> {
    entries: HashMap<Tag, Aged<T>>,
    /// In the order of their making; an entry that was replaced leaves a stale one behind.
    order: VecDeque<(Tag, u64)>,
    made: u64,
}

struct Aged<T> {
    value: T,
    until: Timestamp,
    made: u64,
}

impl<T> Default for Aging<T> {
    fn default() -> Self {
        Self { entries: HashMap::default(), order: VecDeque::default(), made: 0 }
    }
}

impl<T: Copy> Aging<T> {
    fn get(&self, tag: Tag, now: Timestamp) -> Option<T> {
        self.entries.get(&tag).filter(|entry| entry.until > now).map(|entry| entry.value)
    }

    /// How many were dropped before their time.
    fn put(&mut self, tag: Tag, value: T, until: Timestamp, now: Timestamp) -> u64 {
        self.made += 1;
        let until = self.entries.get(&tag).map_or(until, |entry| entry.until.max(until));
        self.entries.insert(tag, Aged { value, until, made: self.made });
        self.order.push_back((tag, self.made));
        // Stale marks may not outgrow what they mark.
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order.retain(|(tag, made)| entries.get(tag).is_some_and(|e| e.made == *made));
        }
        let mut early = 0;
        while let Some((tag, made)) = self.order.front().copied() {
            let full = self.entries.len() > MOST;
            match self.entries.get(&tag).filter(|entry| entry.made == made) {
                Some(entry) if entry.until > now && !full => break,
                Some(entry) => {
                    early += u64::from(entry.until > now);
                    self.entries.remove(&tag);
                }
                None => {}
            }
            self.order.pop_front();
        }
        early
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    const NOW: Timestamp = Timestamp(1000);
    const UNTIL: Timestamp = Timestamp(5000);

    fn logout(name: &str, whose: Whose, issued_at: u64) -> Logout {
        Logout {
            name: name.to_owned(),
            issuer: "https://tenant.auth0.com/".to_owned(),
            whose,
            issued_at: Timestamp(issued_at),
            expires: Timestamp(1200),
        }
    }

    fn zoe() -> Whose {
        Whose::User("auth0|zoe".to_owned())
    }

    fn covers(logouts: &Logouts, created_at: u64) -> bool {
        let session = Session { created_at: Timestamp(created_at), ..session() };
        let fate = logouts.fate(&session);
        let followed = logouts.cover_fate(session.created_at, &fate);
        let found = logouts.cover(&session, &Fate::default());
        assert_eq!(found, followed);
        found
    }

    #[test]
    fn sessions_up_to_the_logout_have_ended_and_later_ones_have_not() {
        for whose in [zoe(), Whose::SignIn("s1".to_owned())] {
            let logouts = Logouts::default();
            assert!(!covers(&logouts, 100));
            assert!(logouts.obey(&logout("1", whose, 200), UNTIL, NOW));
            for (created_at, ended) in [(0, true), (200, true), (201, false), (1000, false)] {
                assert_eq!(covers(&logouts, created_at), ended, "{created_at}");
            }
        }
    }

    #[test]
    fn others_sessions_stay() {
        let logouts = Logouts::default();
        let elsewhere = Logout { issuer: "https://other/".to_owned(), ..logout("1", zoe(), 200) };
        assert!(logouts.obey(&elsewhere, UNTIL, NOW));
        for whose in [
            Whose::User("auth0|bob".to_owned()),
            // A `sub` that reads like a `sid` is none, and the other way round.
            Whose::User("s1".to_owned()),
            Whose::SignIn("auth0|zoe".to_owned()),
            Whose::SignIn("s2".to_owned()),
        ] {
            assert!(logouts.obey(&logout(&format!("{whose:?}"), whose, 200), UNTIL, NOW));
        }
        assert!(!covers(&logouts, 100));
    }

    #[test]
    fn a_session_that_outlived_one_logout_is_held_against_the_next() {
        let (logouts, fate) = (Logouts::default(), Fate::default());
        let session = Session { created_at: Timestamp(500), ..session() };
        assert!(logouts.obey(&logout("1", zoe(), 499), UNTIL, NOW));
        assert!(!logouts.cover(&session, &fate));
        assert!(logouts.obey(&logout("2", zoe(), 500), UNTIL, NOW));
        assert!(logouts.cover(&session, &fate));
        assert!(logouts.cover(&session, &fate), "and stays so");
        // An older word that comes late takes nothing back.
        assert!(logouts.obey(&logout("3", zoe(), 1), UNTIL, NOW));
        assert!(logouts.cover(&session, &fate));
    }

    #[test]
    fn a_provider_whose_clock_is_fast_ends_no_session_of_the_future() {
        let logouts = Logouts::default();
        assert!(logouts.obey(&logout("1", zoe(), 1050), UNTIL, NOW));
        assert!(covers(&logouts, 1000) && !covers(&logouts, 1001));
    }

    #[test]
    fn a_logout_is_obeyed_once_as_long_as_it_could_be_believed() {
        let logouts = Logouts::default();
        assert!(logouts.obey(&logout("1", zoe(), 900), UNTIL, NOW));
        assert!(!logouts.obey(&logout("1", zoe(), 900), UNTIL, NOW));
        assert!(!logouts.obey(&logout("1", zoe(), 900), UNTIL, Timestamp(1199)));
        assert!(logouts.obey(&logout("1", zoe(), 900), UNTIL, Timestamp(1200)));
        let other = Logout { issuer: "https://other/".to_owned(), ..logout("1", zoe(), 900) };
        assert!(logouts.obey(&other, UNTIL, NOW), "names are each provider's own");
    }

    #[test]
    fn memory_is_bounded_and_what_goes_early_is_counted() {
        let logouts = Logouts::default();
        assert!(logouts.obey(&logout("zoe", zoe(), 900), UNTIL, NOW));
        for number in 0..MOST {
            let whose = Whose::User(number.to_string());
            assert!(logouts.obey(&logout(&number.to_string(), whose, 900), UNTIL, NOW));
        }
        assert!(!covers(&logouts, 100), "the oldest went");
        assert_eq!(logouts.forgotten(), 2, "with its name");
        let state = lock(&logouts.state);
        assert_eq!((state.ended.entries.len(), state.obeyed.entries.len()), (MOST, MOST));
    }

    #[test]
    fn one_user_who_is_logged_out_again_and_again_takes_the_room_of_one() {
        let logouts = Logouts::default();
        // One that stays before them in the order.
        let bob = Whose::User("auth0|bob".to_owned());
        assert!(logouts.obey(&logout("bob", bob, 900), Timestamp(u64::MAX), NOW));
        for number in 0..3 * MOST as u64 {
            // One a second.
            let now = Timestamp(1000 + number);
            let expires = Timestamp(1000 + number + 120);
            let logout = Logout { expires, ..logout(&number.to_string(), zoe(), now.0) };
            assert!(logouts.obey(&logout, now.plus(std::time::Duration::from_secs(3600)), now));
        }
        let state = lock(&logouts.state);
        assert!(state.ended.order.len() < 100 && state.obeyed.entries.len() <= 120);
        assert_eq!((state.ended.entries.len(), logouts.forgotten()), (2, 0));
    }
}
