//! The cookies that a worker has just opened, by their whole text: a request with the same cookie
//! as the last one pays a look-up, not a decryption. It remembers what a cookie says, never a
//! decision: expiry, version and end are held against every hit by `store`.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::IntoIter;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::Session;
use super::logouts::Fate;
use super::redis_store::Ticket;

/// Texts in each of the two generations.
const ENTRIES: usize = 2048;
/// Bytes of text in each of the two generations.
const BYTES: usize = 8 * 1024 * 1024;

/// Header lines of a session for one route.
pub(crate) type Lines = Rc<[(HeaderName, HeaderValue)]>;

/// An opened session, with what is made of it once and sent with every request.
pub struct Opened {
    /// The session.
    pub session: Arc<Session>,
    /// The user's `sub`, hashed, as the log names it: filled by who logs.
    pub log_name: OnceCell<String>,
    /// The identity headers for a route: filled by who forwards.
    lines: RefCell<Vec<(usize, Lines)>>,
    /// Which logouts of the provider's it has outlived.
    pub(super) fate: Fate,
    /// What Redis is asked with, where it keeps the session.
    pub(super) ticket: Option<Rc<Ticket>>,
}

impl Opened {
    /// Without anything made of it yet.
    pub fn new(session: Arc<Session>) -> Self {
        Self::with_ticket(session, None)
    }

    pub(super) fn with_ticket(session: Arc<Session>, ticket: Option<Rc<Ticket>>) -> Self {
        let fate = Fate::default();
        Self { session, log_name: OnceCell::new(), lines: RefCell::default(), fate, ticket }
    }

    /// The header lines for a route, made at its first request.
    pub fn lines(&self, route: usize, make: impl FnOnce(&Session) -> Lines) -> Lines {
        let known = self.lines.borrow().iter().find(|(r, _)| *r == route).map(|(_, l)| l.clone());
        known.unwrap_or_else(|| {
            let lines = make(&self.session);
            self.lines.borrow_mut().push((route, lines.clone()));
            lines
        })
    }
}

/// Two generations: when the young one is full it becomes the old one, and what is not asked for
/// again goes with the next.
pub(super) struct Cache<T> {
    young: Texts<T>,
    old: Texts<T>,
    /// What has gone, dropped bit by bit: thousands of sessions at once would hold up the requests
    /// of a worker for milliseconds.
    gone: IntoIter<Box<[u8]>, Rc<T>>,
    bytes: usize,
}

type Texts<T> = HashMap<Box<[u8]>, Rc<T>, ahash::RandomState>;

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            gone: HashMap::new().into_iter(),
            bytes: 0,
        }
    }
}

impl<T> Cache<T> {
    pub(super) fn get(&mut self, sealed: &[u8]) -> Option<Rc<T>> {
        if let Some(opened) = self.young.get(sealed) {
            return Some(opened.clone());
        }
        let (text, opened) = self.old.remove_entry(sealed)?;
        self.put(text, opened.clone());
        Some(opened)
    }

    pub(super) fn put(&mut self, sealed: Box<[u8]>, opened: Rc<T>) {
        if self.young.len() >= ENTRIES || self.bytes + sealed.len() > BYTES {
            let young = std::mem::take(&mut self.young);
            self.gone = std::mem::replace(&mut self.old, young).into_iter();
            self.bytes = 0;
        }
        // Two for one: they are dropped before the next generation goes.
        drop((self.gone.next(), self.gone.next()));
        self.bytes += sealed.len();
        self.young.insert(sealed, opened);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes_in_time() {
        let mut cache = Cache::<Opened>::default();
        let opened = Rc::new(Opened::new(Arc::new(session())));
        let text = |n: usize| n.to_string().into_bytes().into_boxed_slice();
        for n in 0..10 * ENTRIES {
            cache.put(text(n), opened.clone());
            assert!(cache.get(b"0").is_some(), "{n}");
        }
        assert!(cache.get(b"1").is_none());
        assert!(cache.young.len() + cache.old.len() <= 2 * ENTRIES);
    }

    #[test]
    fn long_texts_are_bounded_by_their_bytes() {
        let mut cache = Cache::<Opened>::default();
        let opened = Rc::new(Opened::new(Arc::new(session())));
        for n in 0..2000_u32 {
            let mut text = vec![0; 16 * 1024];
            text[..4].copy_from_slice(&n.to_be_bytes());
            cache.put(text.into(), opened.clone());
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * BYTES / (16 * 1024));
    }
}
