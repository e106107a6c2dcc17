//! The sessions as the gateway sees them: loads the one that a request brings, makes every change
//! through one `commit`, and writes the outcome to the response. Where they are kept is
//! `cookie_store`'s or `redis_store`'s business. It does not know what a login, a route or an
//! upstream is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, EXPIRES, PRAGMA};
use http::{HeaderMap, HeaderValue};

use super::cache::Opened;
use super::change::{Change, CommitRefused, Edit, Unavailable};
use super::cookie::{Brought, SessionCookie};
use super::cookie_store::CookieStore;
use super::following::Followed;
use super::lifetime::Lifetimes;
use super::memory::Memory;
use super::redis_store::{Lease, RedisStore};
use super::seal::{SealError, Sealer};
use super::{Identity, Logout, LogoutRefused, Session, SessionId, Tokens};
use crate::clock::Timestamp;
use crate::config;

/// What one request brought, and what its response will write.
#[derive(Default)]
pub struct Visit {
    opened: Option<Rc<Opened>>,
    brought: Brought,
    write: Write,
    ended_unread: bool,
}

#[derive(Default)]
enum Write {
    /// The browser has what it should have.
    #[default]
    Nothing,
    /// The session's cookie text.
    Set(Arc<str>),
    /// There is no session.
    Delete,
}

/// A session as its store has it.
pub(super) struct Held {
    pub(super) opened: Rc<Opened>,
    /// What the cookie should say, if it says something else.
    pub(super) text: Option<Arc<str>>,
}

/// What a change has made.
pub(super) enum Made {
    Held(Held),
    Same,
    End,
}

/// Who does what only one gateway may do at a time.
pub enum Turn {
    /// We do.
    Ours(Lease),
    /// Nobody: the session has changed meanwhile, or has ended.
    Changed,
    /// Whoever did has just failed, or is not done in time.
    Failed,
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

    /// Whether its session was ended though it could not be read.
    pub fn ended_unread(&self) -> bool {
        self.ended_unread
    }

    /// From here on something slow is waited for, and by its answer the browser may have the cookie of a
    /// newer login. It could not be told from the dead one that this request brought: a cookie is
    /// deleted by its name alone (RFC 6265, section 5.3). What is waited for may still end the session.
    pub fn spare_cookies(&mut self) {
        if matches!(self.write, Write::Delete) {
            self.write = Write::Nothing;
        }
    }

    /// The session with what is made of it once.
    pub fn opened(&self) -> Option<&Rc<Opened>> {
        self.opened.as_ref()
    }

    fn hold(&mut self, held: Option<Held>) {
        self.opened = None;
        if let Some(Held { opened, text }) = held {
            self.opened = Some(opened);
            if let Some(text) = text {
                self.write = Write::Set(text);
            }
        }
    }
}

/// The sessions, as one worker sees them.
pub struct Sessions {
    cookie: SessionCookie,
    lifetimes: Lifetimes,
    memory: Arc<Memory>,
    store: Store,
}

/// The calls of the Redis store are boxed: room for them would else be held by every connection.
enum Store {
    Cookie(Box<CookieStore>),
    Redis(Box<RedisStore>),
}

impl Sessions {
    /// For one worker. What is in `memory` has ended or, in the cookie store, is newer.
    pub fn new(config: &config::Session, sealer: Arc<Sealer>, memory: Arc<Memory>) -> Self {
        let cookie = SessionCookie::new(&config.cookie);
        let lifetimes = Lifetimes { absolute: config.absolute, inactivity: config.inactivity };
        let store = match &config.redis {
            None => Store::Cookie(Box::new(CookieStore::new(
                cookie.name(),
                lifetimes,
                sealer,
                memory.clone(),
            ))),
            Some(redis) => Store::Redis(Box::new(RedisStore::new(
                cookie.name(),
                lifetimes,
                sealer,
                redis,
                &config.secrets,
                &memory,
            ))),
        };
        Self { cookie, lifetimes, memory, store }
    }

    /// The session's cookie.
    pub fn cookie(&self) -> &SessionCookie {
        &self.cookie
    }

    /// The session that the request brings: opened, brought up to date, and alive; or none.
    /// Whatever does not open, has ended or has expired will be deleted.
    ///
    /// # Errors
    /// When the store cannot be reached; whether there is a session is then not known.
    pub async fn load(&self, request: &HeaderMap, now: Timestamp) -> Result<Visit, Unavailable> {
        let found = self.cookie.find(request);
        let mut visit = Visit { brought: found.brought, ..Visit::default() };
        if !found.brought.nothing() {
            visit.hold(match &self.store {
                Store::Cookie(store) => store.load(&found),
                Store::Redis(store) => Box::pin(store.load(&found)).await?,
            });
            self.settle(&mut visit, now).await;
        }
        Ok(visit)
    }

    /// Ends the session that the request brings, for who wants to be signed out while the store cannot
    /// be reached: here at once, in the store as soon as it is there.
    pub fn end_unread(&self, request: &HeaderMap, now: Timestamp, error: &Unavailable) -> Visit {
        let found = self.cookie.find(request);
        let brought = found.brought;
        let mut visit = Visit { brought, write: Write::Delete, ..Visit::default() };
        if let Store::Redis(store) = &self.store
            && let Some(id) = store.named(&found)
        {
            // It began some time ago: it could not be alive longer than one that begins now.
            let until = self.lifetimes.end_after(now, now);
            self.memory.end(id, until, now);
            store.end_later(id, until, error);
            visit.ended_unread = true;
        }
        visit
    }

    /// Brings the session up to date: newer, touched, or gone.
    ///
    /// # Errors
    /// When the store cannot be reached; the visit is as it was.
    pub async fn reload(&self, visit: &mut Visit, now: Timestamp) -> Result<(), Unavailable> {
        if let Some(opened) = visit.opened.clone() {
            visit.hold(match &self.store {
                Store::Cookie(store) => store.reload(&opened),
                Store::Redis(store) => Box::pin(store.reload(&opened)).await?,
            });
            self.settle(visit, now).await;
        }
        Ok(())
    }

    /// Holds a session against its lifetimes and against what has ended, whatever the store still
    /// has; and writes its use down if that is due.
    async fn settle(&self, visit: &mut Visit, now: Timestamp) {
        let alive = visit.opened.as_ref().is_some_and(|opened| {
            self.lifetimes.allow(&opened.session, now) && !self.has_ended(opened)
        });
        if !alive {
            visit.opened = None;
            visit.write = Write::Delete;
        } else if let Some(opened) = visit.opened.clone()
            && self.lifetimes.touch_is_due(&opened.session, now)
        {
            self.memory.last_uses().used(opened.session.id, now);
            let touched = match &self.store {
                Store::Cookie(store) => store.touch(&opened, now).map(Some),
                Store::Redis(store) => Box::pin(store.touch(&opened, now)).await,
            };
            match touched {
                Ok(held) => visit.hold(held),
                Err(error) => tracing::warn!(%error, "a session's last use was not written down"),
            }
        }
    }

    /// Makes a change: every write goes through here. An update or a refresh is merged into the
    /// newest version of the session, not into the one that the request came with. An end that an app
    /// asks for is made, if not at once: here it holds, and the store is told as soon as it is there.
    ///
    /// # Errors
    /// When the change is refused; then nothing has changed.
    pub async fn commit(
        &self,
        visit: &mut Visit,
        change: Change,
        now: Timestamp,
    ) -> Result<(), CommitRefused> {
        let edit = match change {
            Change::Start { identity, tokens } => {
                return self.start(visit, identity, tokens, now).await;
            }
            Change::End => return self.end(visit, now).await.map_err(Into::into),
            Change::Update(update) => Edit::Update(update),
            Change::Refresh { identity, tokens } => Edit::Refresh(identity, tokens),
        };
        let opened = visit.opened.clone().ok_or(CommitRefused::NoSession)?;
        let ends = edit.ends(&opened.session);
        let made = match &self.store {
            _ if self.has_ended(&opened) => Err(CommitRefused::NoSession),
            Store::Cookie(store) => store.change(&opened, &edit, now),
            Store::Redis(store) => Box::pin(store.change(&opened, edit, now)).await,
        };
        match made {
            Ok(Made::Same) => {}
            Ok(Made::End) => self.end(visit, now).await?,
            Ok(Made::Held(held)) => visit.hold(Some(held)),
            Err(CommitRefused::Unavailable(error)) if ends => self.end_later(visit, now, &error),
            Err(refused) => {
                if matches!(refused, CommitRefused::NoSession) {
                    *visit = Visit { brought: visit.brought, ..Visit::default() };
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Writes the visit's outcome to the response: the cookie, if it is new, newer or gone.
    pub fn answer(&self, visit: &Visit, response: &mut HeaderMap, now: Timestamp) {
        match (&visit.write, &visit.opened) {
            (Write::Set(text), Some(opened)) => {
                // A logout, and perhaps another login, came while this response was under way: its
                // cookie must not take the place of theirs.
                if self.has_ended(opened) || !self.lifetimes.allow(&opened.session, now) {
                    return;
                }
                let age = self.lifetimes.end(&opened.session).since(now);
                self.cookie.write(text, visit.brought, age, response);
            }
            (Write::Delete, _) if !visit.brought.nothing() => {
                self.cookie.delete(visit.brought, response);
            }
            _ if visit.opened.is_none() || !is_bare_page(response) => return,
            _ => {}
        }
        // SECURITY: a shared cache must not keep a response with a session (CVE-2025-48947).
        response.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }

    /// Ends the sessions that the provider has ended: those that began before it said so, on every
    /// gateway of the store, copied cookies and changes under way included.
    ///
    /// # Errors
    /// If it was obeyed before, or if the store cannot be reached; then it is tried again in the
    /// background, and may be asked for again.
    pub async fn end_all(&self, logout: &Logout, now: Timestamp) -> Result<(), LogoutRefused> {
        // No session is alive then that began before.
        let last = logout.issued_at.min(now);
        let until = self.lifetimes.end_after(last, now);
        // What the name would be remembered for has no effect after that.
        let expires = logout.expires.min(now.plus(self.lifetimes.absolute));
        let logout = Logout { issued_at: last, expires, ..logout.clone() };
        match &self.store {
            Store::Cookie(_) if self.memory.logouts().obey(&logout, until, now) => Ok(()),
            Store::Cookie(_) => Err(LogoutRefused::Replayed),
            Store::Redis(store) => Box::pin(store.end_all(logout, until, &self.memory)).await,
        }
    }

    /// The right to do something for a session that only one gateway may do at a time. It is waited
    /// for as long as another one has it, until `deadline`.
    ///
    /// # Errors
    /// When the store cannot be reached: then nobody may.
    pub async fn turn(&self, visit: &Visit, deadline: Instant) -> Result<Turn, Unavailable> {
        match (&self.store, &visit.opened) {
            (Store::Redis(store), Some(opened)) => Box::pin(store.turn(opened, deadline)).await,
            _ => Ok(Turn::Ours(Lease::default())),
        }
    }

    /// Whether it has ended, whatever a cookie or the store still says.
    fn has_ended(&self, opened: &Opened) -> bool {
        let Opened { session, fate, .. } = opened;
        self.memory.has_ended(session.id) || self.memory.logouts().cover(session, fate)
    }

    /// Follows a session that is alive, for what outlives its request.
    pub fn follow(&self, session: &Session) -> Followed {
        let shared = matches!(self.store, Store::Redis(_));
        Followed::new(self.memory.clone(), self.lifetimes, shared, session)
    }

    async fn start(
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
        let held = match &self.store {
            Store::Cookie(store) => store.start(session)?,
            Store::Redis(store) => Box::pin(store.start(session)).await?,
        };
        // SECURITY: a session planted before the login does not outlive it (GHSA-f24x-5g9q-753f).
        self.end(visit, now).await?;
        visit.hold(Some(held));
        Ok(())
    }

    /// Ends the session that the visit has, and with it every copy of its cookie.
    async fn end(&self, visit: &mut Visit, now: Timestamp) -> Result<(), Unavailable> {
        match (self.end_here(visit, now), &self.store) {
            (Some((id, until)), Store::Redis(store)) => Box::pin(store.end(id, until)).await,
            _ => Ok(()),
        }
    }

    /// The same while the store does not answer: it is told in the background.
    fn end_later(&self, visit: &mut Visit, now: Timestamp, error: &Unavailable) {
        if let (Some((id, until)), Store::Redis(store)) = (self.end_here(visit, now), &self.store) {
            store.end_later(id, until, error);
        }
    }

    /// What ends, and until when it is known here to have ended; at once, whatever the store does.
    fn end_here(&self, visit: &mut Visit, now: Timestamp) -> Option<(SessionId, Timestamp)> {
        visit.write = Write::Delete;
        let opened = visit.opened.take()?;
        let (id, until) = (opened.session.id, self.lifetimes.end_of_copies(&opened.session, now));
        self.memory.end(id, until, now);
        Some((id, until))
    }
}

/// Whether it is a page of whose caching the app says nothing. SECURITY: after a logout the back
/// button would show it again, out of the browser's memory.
fn is_bare_page(response: &HeaderMap) -> bool {
    let kind = response.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| {
        kind.get(..9).is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html"))
    }) && ![CACHE_CONTROL, EXPIRES, PRAGMA].iter().any(|name| response.contains_key(name))
}
