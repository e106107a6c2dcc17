//! The cookie of the Redis store: the session's id and a key of its own, sealed with the gateway's
//! secret. Who has Redis lacks the key; who has the cookie lacks both.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::super::cache::Opened;
use super::super::seal::{Purpose, SealError, Sealer};
use super::super::{Session, SessionId};
use super::queue::Queue;

const ID: usize = 16;
const KEY: usize = 32;

/// A ticket that was opened, with what the worker knows of its session.
pub(in crate::session) struct Ticket {
    pub(super) id: SessionId,
    /// Seals and opens with the session's own key.
    pub(super) sealer: Sealer,
    /// The cookie's text.
    pub(super) text: Arc<str>,
    /// Whether the text was sealed with the secret that seals now.
    is_current: bool,
    /// What of this worker's is to be saved.
    pub(super) queue: Queue,
    /// Whether a use is being written down.
    touching: Cell<bool>,
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
    fn new(id: SessionId, key: &[u8; KEY], text: Arc<str>, is_current: bool) -> Rc<Self> {
        Rc::new_cyclic(|itself| Self {
            id,
            sealer: Sealer::of_key(key),
            text,
            is_current,
            queue: Queue::default(),
            touching: Cell::new(false),
            known: RefCell::default(),
            itself: itself.clone(),
        })
    }

    /// The right to write a use down; nothing while somebody does.
    pub(super) fn touch(&self) -> Option<Touch<'_>> {
        (!self.touching.replace(true)).then(|| Touch(&self.touching))
    }

    /// What was read or written last on this worker.
    pub(super) fn known(&self) -> Option<Known> {
        self.known.borrow().clone()
    }

    /// Remembers what was read.
    pub(super) fn remember(&self, session: Session, use_mark: &[u8]) -> Rc<Opened> {
        self.know(session, use_mark.into())
    }

    /// Remembers what was changed. Its use may have been written down meanwhile.
    pub(super) fn remember_change(&self, mut session: Session) -> Rc<Opened> {
        let (used, use_mark) = match self.known() {
            Some(known) => (known.opened.session.touched_at, known.use_mark),
            None => Default::default(),
        };
        session.touched_at = session.touched_at.max(used);
        self.know(session, use_mark)
    }

    /// Remembers that a session was used. It may have been changed meanwhile.
    pub(super) fn remember_use(&self, mut used: Session, use_mark: &[u8]) -> Rc<Opened> {
        if let Some(known) = self.known()
            && known.opened.session.version > used.version
        {
            used = Session { touched_at: used.touched_at, ..(*known.opened.session).clone() };
        }
        self.know(used, use_mark.into())
    }

    fn know(&self, session: Session, use_mark: Rc<[u8]>) -> Rc<Opened> {
        let opened = Rc::new(Opened::with_ticket(Arc::new(session), self.itself.upgrade()));
        *self.known.borrow_mut() = Some(Known { opened: opened.clone(), use_mark });
        opened
    }
}

/// A use is being written down, until the value is dropped.
pub(super) struct Touch<'a>(&'a Cell<bool>);

impl Drop for Touch<'_> {
    fn drop(&mut self) {
        self.0.set(false);
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
        Ok(Ticket::new(id, &key, text.into(), true))
    }

    /// The text to write for a ticket: its own, or sealed anew if that was done with a secret that
    /// will be taken away.
    pub(super) fn text(&self, ticket: &Ticket) -> Result<Arc<str>, SealError> {
        if !ticket.is_current {
            let plain = self.sealer.open(Purpose::Ticket, &self.name, ticket.text.as_bytes());
            if let Some(plain) = plain {
                return Ok(self.sealer.seal(Purpose::Ticket, &self.name, &plain)?.into());
            }
        }
        Ok(ticket.text.clone())
    }

    /// The ticket that the text is, or nothing.
    pub(super) fn open(&self, text: &[u8]) -> Option<Rc<Ticket>> {
        let (plain, secret) = self.sealer.open_with(Purpose::Ticket, &self.name, text)?;
        let (id, key) = plain.split_first_chunk::<ID>()?;
        let text = std::str::from_utf8(text).ok()?;
        Some(Ticket::new(SessionId(*id), key.try_into().ok()?, text.into(), secret == 0))
    }
}
