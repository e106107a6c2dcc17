//! The cookie store: the cookie carries session and version, sealed; the memory that all workers
//! share knows what is newer and what has ended. It writes no header.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Session;
use super::cache::{Cache, Opened};
use super::change::{CommitRefused, Edit, Next};
use super::cookie::{Found, MAX_SEALED};
use super::lifetime::Lifetimes;
use super::memory::{Memory, Newest, Remembered};
use super::seal::{Purpose, Sealer};
use super::store::{Held, Made};
use crate::clock::Timestamp;

/// A sealed session above this many bytes draws a warning when it is written.
const LARGE: usize = 4096;

/// One worker's view: its own cache over the memory that all share.
pub(super) struct CookieStore {
    name: String,
    lifetimes: Lifetimes,
    sealer: Arc<Sealer>,
    memory: Arc<Memory>,
    cache: RefCell<Cache<Opened>>,
}

impl CookieStore {
    pub(super) fn new(
        name: &str,
        lifetimes: Lifetimes,
        sealer: Arc<Sealer>,
        memory: Arc<Memory>,
    ) -> Self {
        Self { name: name.to_owned(), lifetimes, sealer, memory, cache: RefCell::default() }
    }

    /// The session that these cookies hold, or what the memory knows to be newer.
    pub(super) fn load(&self, found: &Found<'_>) -> Option<Held> {
        let opened = match found.only() {
            Some(sealed) => self.open(sealed),
            // Split, or left over from a text of another size: the newest that opens counts.
            None => found
                .candidates()
                .iter()
                .filter_map(|sealed| self.open(sealed))
                .max_by_key(|opened| opened.session.version),
        };
        self.reload(&opened?)
    }

    /// The newest version of the session; none if it has ended.
    pub(super) fn reload(&self, opened: &Rc<Opened>) -> Option<Held> {
        let session = &opened.session;
        if !self.memory.is_current(session.id, session.version) {
            match self.memory.recall(session.id) {
                Some(Remembered::Changed(newest)) => {
                    let used = session.touched_at;
                    let newer_use = used > newest.session.touched_at;
                    let newest = self.hold(newest);
                    // A use that was written down stands in its browser's cookie alone.
                    let touched = newer_use.then(|| self.touch(&newest.opened, used));
                    return Some(touched.and_then(Result::ok).unwrap_or(newest));
                }
                Some(Remembered::Ended) => return None,
                None => {}
            }
        }
        Some(Held { opened: opened.clone(), text: None })
    }

    /// Seals a session that is new.
    pub(super) fn start(&self, session: Session) -> Result<Held, CommitRefused> {
        Ok(self.hold(self.seal(session)?))
    }

    /// Merges the edit into the newest version of the session, not into the one given.
    pub(super) fn change(
        &self,
        current: &Rc<Opened>,
        edit: &Edit,
        now: Timestamp,
    ) -> Result<Made, CommitRefused> {
        let current = &current.session;
        self.memory.change(current.id, now, |remembered| {
            let base = match remembered {
                Some(Remembered::Ended) => return Err(CommitRefused::NoSession),
                Some(Remembered::Changed(newest)) if newest.session.version > current.version => {
                    &newest.session
                }
                _ => current,
            };
            // The newest version need not be of the browser that used the session last.
            let touched_at = base.touched_at.max(current.touched_at);
            if now >= self.lifetimes.end_after(base.created_at, touched_at) {
                return Err(CommitRefused::NoSession);
            }
            Ok(match edit.apply(base)? {
                Next::Same => (Made::Same, None),
                Next::End => (Made::End, None),
                Next::Session(session) => {
                    let version = base.version + 1;
                    let newest = self.seal(Session { version, touched_at, ..session })?;
                    let until = self.lifetimes.end_of_copies(&newest.session, now);
                    (Made::Held(self.hold(newest.clone())), Some((newest, until)))
                }
            })
        })
    }

    /// The session as used now: nothing else changes, so the version stays, and a change under way
    /// in another response is still the newer one.
    pub(super) fn touch(&self, opened: &Opened, now: Timestamp) -> Result<Held, CommitRefused> {
        let session = Session { touched_at: now, ..(*opened.session).clone() };
        Ok(self.hold(self.seal(session)?))
    }

    fn hold(&self, newest: Newest) -> Held {
        let text = newest.sealed.as_bytes();
        let mut cache = self.cache.borrow_mut();
        let opened = cache.get(text).unwrap_or_else(|| {
            let opened = Rc::new(Opened::new(newest.session.clone()));
            cache.put(text.into(), opened.clone());
            opened
        });
        Held { opened, text: Some(newest.sealed) }
    }

    fn open(&self, sealed: &[u8]) -> Option<Rc<Opened>> {
        if sealed.len() > MAX_SEALED {
            return None;
        }
        if let Some(opened) = self.cache.borrow_mut().get(sealed) {
            return Some(opened);
        }
        let plain = self.sealer.open(Purpose::Session, &self.name, sealed)?;
        let session: Session = serde_json::from_slice(&plain).ok()?;
        let opened = Rc::new(Opened::new(Arc::new(session)));
        self.cache.borrow_mut().put(sealed.into(), opened.clone());
        Some(opened)
    }

    fn seal(&self, session: Session) -> Result<Newest, CommitRefused> {
        let plain = serde_json::to_vec(&session).unwrap_or_default();
        let sealed =
            self.sealer.seal(Purpose::Session, &self.name, &plain).map_err(CommitRefused::Seal)?;
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
