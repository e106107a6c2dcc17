//! The cookie of the Redis store: the session's id and a key of its own, sealed with the gateway's
//! secret. Who has Redis lacks the key; who has the cookie lacks both.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::super::cache::Opened;
use super::super::seal::{Purpose, SealError, Sealer};
use super::super::{Session, SessionId};

const ID: usize = 16;
const KEY: usize = 32;

/// A ticket that was opened, with what the worker knows of its session.
pub(in crate::session) struct Ticket {
    pub(super) id: SessionId,
    /// Seals and opens with the session's own key.
    pub(super) sealer: Sealer,
    /// The cookie's text.
    pub(super) text: Arc<str>,
    /// Who changes the session on this worker.
    pub(super) turn: tokio::sync::Mutex<()>,
    known: RefCell<Option<Known>>,
    itself: Weak<Ticket>,
}

/// What was read or written last on this worker.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) opened: Rc<Opened>,
    /// The last use as Redis has it, sealed.
    pub(super) use_mark: Rc<[u8]>,
}

impl Ticket {
    fn new(id: SessionId, key: &[u8; KEY], text: Arc<str>) -> Rc<Self> {
        Rc::new_cyclic(|itself| Self {
            id,
            sealer: Sealer::of_key(key),
            text,
            turn: tokio::sync::Mutex::new(()),
            known: RefCell::default(),
            itself: itself.clone(),
        })
    }

    /// What was read or written last on this worker.
    pub(super) fn known(&self) -> Option<Known> {
        self.known.borrow().clone()
    }

    /// Remembers what was read or written; without a `use_mark` the last one stays.
    pub(super) fn remember(&self, session: Session, use_mark: Option<&[u8]>) -> Rc<Opened> {
        let opened = Rc::new(Opened::with_ticket(Arc::new(session), self.itself.upgrade()));
        let mut known = self.known.borrow_mut();
        let last = known.take().map(|known| known.use_mark);
        let use_mark = use_mark.map(Rc::from).or(last).unwrap_or_default();
        *known = Some(Known { opened: opened.clone(), use_mark });
        opened
    }
}

/// Issues and opens tickets.
pub(super) struct Tickets {
    name: String,
    sealer: Arc<Sealer>,
}

impl Tickets {
    pub(super) fn new(name: &str, sealer: Arc<Sealer>) -> Self {
        Self { name: name.to_owned(), sealer }
    }

    /// A ticket with a fresh key.
    pub(super) fn issue(&self, id: SessionId) -> Result<Rc<Ticket>, SealError> {
        let mut key = [0; KEY];
        SystemRandom::new().fill(&mut key).map_err(|_| SealError::Random)?;
        let plain = [&id.0[..], &key].concat();
        let text = self.sealer.seal(Purpose::Ticket, &self.name, &plain)?;
        Ok(Ticket::new(id, &key, text.into()))
    }

    /// The ticket that the text is, or nothing.
    pub(super) fn open(&self, text: &[u8]) -> Option<Rc<Ticket>> {
        let plain = self.sealer.open(Purpose::Ticket, &self.name, text)?;
        let (id, key) = plain.split_first_chunk::<ID>()?;
        let text = std::str::from_utf8(text).ok()?;
        Some(Ticket::new(SessionId(*id), key.try_into().ok()?, text.into()))
    }
}
