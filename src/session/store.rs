//! The cookie store: loads the session that a request brings, makes every change through one
//! `commit`, and writes the outcome to the response. The cookie carries session and version;
//! `memory` knows what is newer. It does not know what a login, a route or an upstream is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};
use thiserror::Error;

use super::cache::{Cache, Opened};
use super::cookie::{Brought, MAX_SEALED, SessionCookie};
use super::following::Followed;
use super::lifetime::Lifetimes;
use super::memory::{Memory, Newest, Remembered};
use super::seal::{Purpose, SealError, Sealer};
use super::update::{Outcome, UpdateRefused};
use super::{Identity, Session, SessionId, SessionUpdate, Tokens};
use crate::clock::Timestamp;
use crate::config;

/// A sealed session above this many bytes draws a warning when it is written.
const LARGE: usize = 4096;

/// A change of a session.
pub enum Change {
    /// A login: a new id, no data, and the session that the request brought ends.
    Start {
        /// Who the user is.
        identity: Identity,
        /// The provider's tokens.
        tokens: Tokens,
    },
    /// What an app asked for.
    Update(SessionUpdate),
    /// New tokens: the identity is replaced, the data stays.
    Refresh {
        /// Who the user is now.
        identity: Identity,
        /// The provider's tokens.
        tokens: Tokens,
    },
    /// The session ends, copied cookies too.
    End,
}

/// A change that was not made; the session is as it was.
#[derive(Debug, Error)]
pub enum CommitRefused {
    /// The update is not one that may be made.
    #[error("the update was refused: {0}")]
    Update(#[from] UpdateRefused),
    /// The session has ended, or there never was one.
    #[error("there is no active session")]
    NoSession,
    /// The sealed session would be over 16 KiB.
    #[error("the session does not fit into cookies: {0} bytes sealed, at most 16384")]
    TooLarge(usize),
    /// It could not be sealed.
    #[error("the session could not be sealed")]
    Seal(#[source] SealError),
}

impl CommitRefused {
    /// The reason as the log and the counter have it; none where it is the gateway that failed.
    pub fn reason(&self) -> Option<UpdateRefused> {
        match self {
            Self::Update(refused) => Some(*refused),
            Self::NoSession => Some(UpdateRefused::NoSession),
            Self::TooLarge(_) => Some(UpdateRefused::SessionTooLarge),
            Self::Seal(_) => None,
        }
    }
}

/// What one request brought, and what its response will write.
#[derive(Default)]
pub struct Visit {
    opened: Option<Rc<Opened>>,
    brought: Brought,
    write: Write,
}

#[derive(Default)]
enum Write {
    /// The browser has what it should have.
    #[default]
    Nothing,
    /// The session as its sealed text.
    Set(Arc<str>),
    /// There is no session.
    Delete,
}

impl Visit {
    /// The session, if there is one and it is alive.
    pub fn session(&self) -> Option<&Session> {
        self.opened.as_ref().map(|opened| &*opened.session)
    }

    /// A visit to the same session that writes to no browser: for what goes on in the background.
    #[must_use]
    pub fn without_cookies(&self) -> Self {
        Self { opened: self.opened.clone(), ..Self::default() }
    }

    /// The session with what is made of it once.
    pub fn opened(&self) -> Option<&Rc<Opened>> {
        self.opened.as_ref()
    }
}

/// The sessions, as one worker sees them: its own cache over the memory that all share.
pub struct Sessions {
    cookie: SessionCookie,
    lifetimes: Lifetimes,
    sealer: Arc<Sealer>,
    memory: Arc<Memory>,
    cache: RefCell<Cache>,
}

impl Sessions {
    /// For one worker.
    pub fn new(config: &config::Session, sealer: Arc<Sealer>, memory: Arc<Memory>) -> Self {
        Self {
            cookie: SessionCookie::new(&config.cookie),
            lifetimes: Lifetimes { absolute: config.absolute, inactivity: config.inactivity },
            sealer,
            memory,
            cache: RefCell::default(),
        }
    }

    /// The session's cookie.
    pub fn cookie(&self) -> &SessionCookie {
        &self.cookie
    }

    /// The session that the request brings: opened, brought up to date from memory, and alive; or
    /// none. Whatever does not open, has ended or has expired will be deleted.
    pub fn load(&self, request: &HeaderMap, now: Timestamp) -> Visit {
        let found = self.cookie.find(request);
        if found.brought.nothing() {
            return Visit::default();
        }
        let mut visit = Visit { brought: found.brought, ..Visit::default() };
        visit.opened = match found.only() {
            Some(sealed) => self.open(sealed),
            // Split, or left over from a text of another size: the newest that opens counts.
            None => found
                .candidates()
                .iter()
                .filter_map(|sealed| self.open(sealed))
                .max_by_key(|opened| opened.session.version),
        };
        self.reload(&mut visit, now);
        visit
    }

    /// Brings the session up to date: newer, touched, or gone.
    pub fn reload(&self, visit: &mut Visit, now: Timestamp) {
        if let Some(session) = visit.session()
            && !self.memory.is_current(session.id, session.version)
        {
            match self.memory.recall(session.id) {
                Some(Remembered::Changed(newest)) => self.set(visit, newest),
                Some(Remembered::Ended) => visit.opened = None,
                None => {}
            }
        }
        let alive = visit.session().is_some_and(|session| self.lifetimes.allow(session, now));
        if !alive {
            visit.opened = None;
            visit.write = Write::Delete;
        } else if visit.session().is_some_and(|session| self.lifetimes.touch_is_due(session, now)) {
            self.touch(visit, now);
        }
    }

    /// Makes a change: every write goes through here. An update or a refresh is merged into the
    /// newest version of the session, not into the one that the request came with.
    ///
    /// # Errors
    /// When the change is refused; then nothing has changed.
    pub fn commit(
        &self,
        visit: &mut Visit,
        change: Change,
        now: Timestamp,
    ) -> Result<(), CommitRefused> {
        match change {
            Change::Start { identity, tokens } => self.start(visit, identity, tokens, now),
            Change::Update(update) => {
                self.change(visit, now, |session| match update.apply(session)? {
                    Outcome::Data(data) => Ok(Next::Session(Session { data, ..session.clone() })),
                    Outcome::Unchanged => Ok(Next::Same),
                    Outcome::End => Ok(Next::End),
                })
            }
            Change::Refresh { identity, tokens } => self.change(visit, now, |session| {
                Ok(Next::Session(Session { identity, tokens, ..session.clone() }))
            }),
            Change::End => {
                self.end(visit, now);
                Ok(())
            }
        }
    }

    /// Writes the visit's outcome to the response: the cookie, if it is new, newer or gone.
    pub fn answer(&self, visit: &Visit, response: &mut HeaderMap, now: Timestamp) {
        match (&visit.write, visit.session()) {
            (Write::Set(sealed), Some(session)) => {
                // A logout, and perhaps another login, came while this response was under way: its
                // cookie must not take the place of theirs.
                if matches!(self.memory.recall(session.id), Some(Remembered::Ended)) {
                    return;
                }
                let age = self.lifetimes.end(session).since(now);
                self.cookie.write(sealed, visit.brought, age, response);
            }
            (Write::Delete, _) if !visit.brought.nothing() => {
                self.cookie.delete(visit.brought, response);
            }
            _ => return,
        }
        // SECURITY: a shared cache must not keep a response with a session (CVE-2025-48947).
        response.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }

    /// Follows a session that is alive, for what outlives its request.
    pub fn follow(&self, session: &Session) -> Followed {
        Followed::new(self.memory.clone(), self.lifetimes, session)
    }

    fn start(
        &self,
        visit: &mut Visit,
        identity: Identity,
        tokens: Tokens,
        now: Timestamp,
    ) -> Result<(), CommitRefused> {
        let session = Session {
            id: SessionId::random().ok_or(CommitRefused::Seal(SealError::Random))?,
            version: 1,
            created_at: now,
            touched_at: now,
            identity,
            data: serde_json::Map::new(),
            tokens,
        };
        let newest = self.seal(session)?;
        // SECURITY: a session planted before the login does not outlive it (GHSA-f24x-5g9q-753f).
        self.end(visit, now);
        self.set(visit, newest);
        Ok(())
    }

    /// Applies `next` to the newest version of the session.
    fn change(
        &self,
        visit: &mut Visit,
        now: Timestamp,
        next: impl FnOnce(&Session) -> Result<Next, CommitRefused>,
    ) -> Result<(), CommitRefused> {
        let current = visit.opened.clone().ok_or(CommitRefused::NoSession)?.session.clone();
        let made = self.memory.change(current.id, now, |remembered| {
            let base = match remembered {
                Some(Remembered::Ended) => return Err(CommitRefused::NoSession),
                Some(Remembered::Changed(newest)) if newest.session.version > current.version => {
                    &newest.session
                }
                _ => &current,
            };
            if !self.lifetimes.allow(base, now) {
                return Err(CommitRefused::NoSession);
            }
            Ok(match next(base)? {
                Next::Same => (Made::Same, None),
                Next::End => (Made::End, None),
                Next::Session(session) => {
                    let touched_at = session.touched_at.max(current.touched_at);
                    let version = base.version + 1;
                    let newest = self.seal(Session { version, touched_at, ..session })?;
                    (Made::Newest(newest.clone()), Some(newest))
                }
            })
        });
        match made {
            Ok(Made::Same) => {}
            Ok(Made::End) => self.end(visit, now),
            Ok(Made::Newest(newest)) => self.set(visit, newest),
            Err(refused) => {
                if matches!(refused, CommitRefused::NoSession) {
                    *visit = Visit { brought: visit.brought, ..Visit::default() };
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Ends the session that the visit has, and with it every copy of its cookie.
    fn end(&self, visit: &mut Visit, now: Timestamp) {
        if let Some(opened) = visit.opened.take() {
            let until = self.lifetimes.end_of_copies(&opened.session, now);
            self.memory.end(opened.session.id, until, now);
        }
        visit.write = Write::Delete;
    }

    /// Writes the last use down: nothing else changes, so the version stays, and a change under way
    /// in another response is still the newer one.
    fn touch(&self, visit: &mut Visit, now: Timestamp) {
        if let Some(session) = visit.session() {
            self.memory.last_uses().used(session.id, now);
            match self.seal(Session { touched_at: now, ..session.clone() }) {
                Ok(newest) => self.set(visit, newest),
                Err(error) => tracing::warn!(%error, "a session's last use was not written down"),
            }
        }
    }

    fn set(&self, visit: &mut Visit, newest: Newest) {
        let text = newest.sealed.as_bytes();
        let mut cache = self.cache.borrow_mut();
        let opened = cache.get(text).unwrap_or_else(|| {
            let opened = Rc::new(Opened::new(newest.session.clone()));
            cache.put(text.into(), opened.clone());
            opened
        });
        visit.opened = Some(opened);
        visit.write = Write::Set(newest.sealed);
    }

    fn open(&self, sealed: &[u8]) -> Option<Rc<Opened>> {
        if sealed.len() > MAX_SEALED {
            return None;
        }
        if let Some(opened) = self.cache.borrow_mut().get(sealed) {
            return Some(opened);
        }
        let plain = self.sealer.open(Purpose::Session, self.cookie.name(), sealed)?;
        let session: Session = serde_json::from_slice(&plain).ok()?;
        let opened = Rc::new(Opened::new(Arc::new(session)));
        self.cache.borrow_mut().put(sealed.into(), opened.clone());
        Some(opened)
    }

    fn seal(&self, session: Session) -> Result<Newest, CommitRefused> {
        let plain = serde_json::to_vec(&session).unwrap_or_default();
        let sealed = self
            .sealer
            .seal(Purpose::Session, self.cookie.name(), &plain)
            .map_err(CommitRefused::Seal)?;
        if sealed.len() > MAX_SEALED {
            return Err(CommitRefused::TooLarge(sealed.len()));
        }
        if sealed.len() > LARGE {
            let bytes = sealed.len();
            tracing::warn!(bytes, "a session is large: some servers refuse long Cookie fields");
        }
        Ok(Newest { session: Arc::new(session), sealed: sealed.into() })
    }
}

/// What a change makes of a session.
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
enum Next {
    Session(Session),
    Same,
    End,
}

/// What a change has made.
enum Made {
    Newest(Newest),
    Same,
    End,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::{Keys, Secret};
    use crate::session::memory::Bounds;
    use crate::session::tests::session;
    use http::header::{COOKIE, SET_COOKIE};
    use serde_json::json;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp(1000);

    fn worker(memory: &Arc<Memory>) -> Sessions {
        let config = config::Session {
            secrets: vec![],
            absolute: Duration::from_secs(3000),
            inactivity: Some(Duration::from_secs(1000)),
            cookie: config::Cookie {
                name: "__Host-session".to_owned(),
                same_site: config::SameSite::Lax,
                domain: None,
                transient: false,
            },
        };
        let sealer = Arc::new(Sealer::new(&[Secret::new("secret")]));
        Sessions::new(&config, sealer, memory.clone())
    }

    fn sessions() -> Sessions {
        worker(&Arc::new(Memory::new(Bounds::default())))
    }

    /// The `Cookie` field after a response, for a browser that had `request`.
    fn after(sessions: &Sessions, visit: &Visit, request: &HeaderMap, now: Timestamp) -> HeaderMap {
        let mut response = HeaderMap::new();
        sessions.answer(visit, &mut response, now);
        let mut jar: std::collections::BTreeMap<String, String> =
            crate::session::cookie::pairs(request)
                .map(|(n, v)| (n.to_vec(), v.to_vec()))
                .map(|(n, v)| (String::from_utf8(n).unwrap(), String::from_utf8(v).unwrap()))
                .collect();
        for line in response.get_all(SET_COOKIE) {
            let line = cookie::Cookie::parse(line.to_str().unwrap().to_owned()).unwrap();
            jar.insert(line.name().to_owned(), line.value().to_owned());
        }
        jar.retain(|_, value| !value.is_empty());
        let pairs: Vec<_> = jar.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let mut request = HeaderMap::new();
        if !pairs.is_empty() {
            request.insert(COOKIE, HeaderValue::from_str(&pairs.join("; ")).unwrap());
        }
        request
    }

    fn log_in(sessions: &Sessions, request: &HeaderMap, now: Timestamp) -> HeaderMap {
        let mut visit = sessions.load(request, now);
        let (identity, tokens) = (session().identity, session().tokens);
        sessions.commit(&mut visit, Change::Start { identity, tokens }, now).unwrap();
        after(sessions, &visit, request, now)
    }

    fn update(patch: &serde_json::Value) -> Change {
        let line = HeaderValue::from_str(&patch.to_string()).unwrap();
        Change::Update(SessionUpdate::parse([&line], &Keys::All).unwrap())
    }

    fn view(sessions: &Sessions, request: &HeaderMap, now: Timestamp) -> Option<serde_json::Value> {
        sessions.load(request, now).session().map(|session| session.view().into())
    }

    #[test]
    fn a_login_is_seen_by_every_worker_from_the_cookie_alone() {
        let jar = log_in(&sessions(), &HeaderMap::new(), NOW);
        assert_eq!(view(&sessions(), &jar, NOW).unwrap()["user"]["sub"], "auth0|zoe");
    }

    #[test]
    fn parallel_updates_all_survive_whichever_response_comes_last() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        let mut visits: Vec<_> = (0..20).map(|_| sessions.load(&jar, NOW)).collect();
        for (n, visit) in visits.iter_mut().enumerate() {
            let patch = json!({format!("k{n}"): n, "sum": {"$add": n}});
            sessions.commit(visit, update(&patch), NOW).unwrap();
        }
        for visit in &visits {
            let seen = view(&sessions, &after(&sessions, visit, &jar, NOW), NOW).unwrap();
            assert_eq!(seen["sum"], 190);
            assert!((0..20).all(|n| seen[format!("k{n}")] == n));
        }
    }

    #[test]
    fn an_older_cookie_is_answered_from_memory_and_replaced() {
        let sessions = sessions();
        let old = log_in(&sessions, &HeaderMap::new(), NOW);
        let mut visit = sessions.load(&old, NOW);
        sessions.commit(&mut visit, update(&json!({"theme": "dark"})), NOW).unwrap();
        let visit = sessions.load(&old, NOW);
        assert_eq!(visit.session().unwrap().view()["theme"], "dark");
        let new = after(&sessions, &visit, &old, NOW);
        assert_ne!(new, old);
        // A gateway that remembers nothing reads the update from the newer cookie.
        assert_eq!(view(&self::sessions(), &new, NOW).unwrap()["theme"], "dark");
    }

    /// CVE-2024-21492, and a response under way at logout.
    #[test]
    fn a_copied_cookie_is_dead_after_logout_and_no_response_revives_it() {
        let memory = Arc::new(Memory::new(Bounds::default()));
        let (here, there) = (worker(&memory), worker(&memory));
        let jar = log_in(&here, &HeaderMap::new(), NOW);
        let (mut slow, mut logout) = (there.load(&jar, NOW), here.load(&jar, NOW));
        here.commit(&mut logout, Change::End, NOW).unwrap();
        assert!(after(&here, &logout, &jar, NOW).is_empty());
        assert!(view(&there, &jar, NOW).is_none());
        let refused = there.commit(&mut slow, update(&json!({"a": 1})), NOW);
        assert!(matches!(refused, Err(CommitRefused::NoSession)));
        let mut response = HeaderMap::new();
        there.answer(&slow, &mut response, NOW);
        assert!(
            response.is_empty(),
            "the response does not even delete: another login may be there"
        );
    }

    #[test]
    fn a_touch_under_way_at_logout_writes_nothing() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        let later = Timestamp(1200);
        let touched = sessions.load(&jar, later);
        sessions.commit(&mut sessions.load(&jar, later), Change::End, later).unwrap();
        let mut response = HeaderMap::new();
        sessions.answer(&touched, &mut response, later);
        assert!(response.is_empty());
    }

    /// GHSA-f24x-5g9q-753f
    #[test]
    fn a_login_over_a_planted_session_takes_a_new_id_and_kills_the_old() {
        let sessions = sessions();
        let planted = log_in(&sessions, &HeaderMap::new(), NOW);
        let id = sessions.load(&planted, NOW).session().unwrap().id;
        let mut visit = sessions.load(&planted, NOW);
        sessions.commit(&mut visit, update(&json!({"cart": "evil"})), NOW).unwrap();
        let own = log_in(&sessions, &planted, NOW);
        let visit = sessions.load(&own, NOW);
        assert_ne!(visit.session().unwrap().id, id);
        assert_eq!(visit.session().unwrap().view().get("cart"), None);
        assert!(view(&sessions, &planted, NOW).is_none());
    }

    #[test]
    fn most_responses_set_no_cookie_and_a_touch_only_in_time() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        for (now, touched) in [(1000, false), (1099, false), (1100, true)] {
            let visit = sessions.load(&jar, Timestamp(now));
            let mut response = HeaderMap::new();
            sessions.answer(&visit, &mut response, Timestamp(now));
            assert_eq!(response.contains_key(SET_COOKIE), touched, "{now}");
            assert_eq!(response.contains_key(CACHE_CONTROL), touched, "{now}");
        }
    }

    #[test]
    fn a_touch_does_not_revert_an_update_of_another_response() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        let later = Timestamp(1200);
        let touch = sessions.load(&jar, later);
        let mut change = sessions.load(&jar, later);
        sessions.commit(&mut change, update(&json!({"a": 1})), later).unwrap();
        let jar = after(&sessions, &change, &jar, later);
        let jar = after(&sessions, &touch, &jar, later);
        assert_eq!(view(&sessions, &jar, later).unwrap()["a"], 1);
    }

    #[test]
    fn an_expired_session_is_none_and_its_cookie_is_deleted() {
        let sessions = sessions();
        let mut jar = log_in(&sessions, &HeaderMap::new(), NOW);
        for (now, alive) in [(1999, true), (2998, true), (3997, true), (3998, true), (4000, false)]
        {
            let visit = sessions.load(&jar, Timestamp(now));
            assert_eq!(visit.session().is_some(), alive, "{now}");
            jar = after(&sessions, &visit, &jar, Timestamp(now));
        }
        assert!(jar.is_empty());
    }

    #[test]
    fn what_does_not_open_is_no_session_and_deleted() {
        let sessions = sessions();
        let mut request = HeaderMap::new();
        let parts = "__Host-session=junk; __Host-session.0=junkjunkjunk; __Host-session.3=x";
        request.insert(COOKIE, HeaderValue::from_static(parts));
        let visit = sessions.load(&request, NOW);
        assert!(visit.session().is_none());
        assert!(after(&sessions, &visit, &request, NOW).is_empty());
    }

    #[test]
    fn a_refresh_replaces_the_identity_and_keeps_the_data() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        let mut visit = sessions.load(&jar, NOW);
        let patch = json!({"user": {"nickname": "Al"}, "theme": "dark"});
        sessions.commit(&mut visit, update(&patch), NOW).unwrap();
        let claims = json!({"iss": "https://tenant.auth0.com/", "sub": "auth0|zoe", "nickname": "new", "plan": "pro"});
        let identity = Identity::new(claims.as_object().unwrap().clone()).unwrap();
        let change = Change::Refresh { identity, tokens: session().tokens };
        sessions.commit(&mut visit, change, NOW).unwrap();
        let seen = visit.session().unwrap();
        assert_eq!(seen.view()["user"]["nickname"], "Al");
        assert_eq!(seen.view()["user"]["plan"], "pro");
        assert_eq!(seen.view()["theme"], "dark");
        assert_eq!(seen.identity.claim("nickname"), Some(&json!("new")));
    }

    #[test]
    fn a_session_over_its_cap_is_refused_and_stays_as_it_was() {
        let sessions = sessions();
        let jar = log_in(&sessions, &HeaderMap::new(), NOW);
        let mut visit = sessions.load(&jar, NOW);
        let refused = sessions.commit(&mut visit, update(&json!({"a": "x".repeat(13_000)})), NOW);
        assert!(matches!(refused, Err(CommitRefused::TooLarge(_))));
        assert_eq!(view(&sessions, &jar, NOW).unwrap().get("a"), None);
        let big = update(&json!({"a": "x".repeat(9_000)}));
        sessions.commit(&mut visit, big, NOW).unwrap();
        let jar = after(&sessions, &visit, &jar, NOW);
        assert_eq!(view(&self::sessions(), &jar, NOW).unwrap()["a"], "x".repeat(9_000));
    }
}
