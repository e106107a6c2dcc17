//! The Redis store: the cookie is a ticket, Redis has the session, sealed with the ticket's own key.
//! Every gateway sees every change, and nothing that Redis holds can be read or made by whoever
//! reads or writes Redis.
//!
//! | file | question |
//! |---|---|
//! | `ticket` | what does the cookie say? |
//! | `record` | how does a session look in Redis? |
//! | `connector` | how is a connection made? |
//! | `sentinels` | which server is the primary? |
//! | `link` | how is Redis reached, and again? |
//! | `writer` | how is a write made, once? |
//! | `copies` | when is a write safe? |
//! | `queue` | what if many changes come at once? |
//! | `index` | which sessions does a user have? |
//! | `ending` | how does a user's logout elsewhere end them? |
//! | `lease` | which gateway asks the provider? |
//! | `news` | what has ended on another gateway? |
//! | `standing` | what is still there, of what is followed? |
//!
//! A record is a hash: `v` the version, `d` the session, `t` its last use. A change is made by
//! comparing the version and is tried again on the newer one; no lock is held anywhere while an app
//! answers. The names of writes stand beside the record for a few seconds, so that none is made twice.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::cache::{Cache, Opened};
use super::change::{CommitRefused, Edit, Unavailable};
use super::cookie::Found;
use super::lifetime::Lifetimes;
use super::seal::Sealer;
use super::store::{Held, Made, Turn};
use super::{Logout, LogoutRefused, Memory, Session, SessionId};
use crate::clock::Timestamp;
use crate::config;

mod connector;
mod copies;
mod ending;
mod index;
mod lease;
mod link;
mod news;
mod queue;
mod record;
mod sentinels;
mod standing;
mod ticket;
mod writer;

use ending::Ending;
use index::Index;
pub use lease::Lease;
use lease::Leases;
use link::Link;
pub(super) use news::Primary;
pub use news::{Health, follow};
use queue::Saver;
use record::{Read, Records};
pub(super) use ticket::Ticket;
use ticket::Tickets;
use writer::Writer;

/// How long a write may take, with every try.
const WRITE_TIME: Duration = Duration::from_secs(2);
/// How long a read may take.
const READ_TIME: Duration = Duration::from_secs(2);
/// How often a session's end is tried again while Redis is away.
const END_AGAIN: Duration = Duration::from_secs(1);
/// Logouts by the provider that are tried again at once.
const MOST_ENDINGS: usize = 256;

/// One worker's view: its own connection and cache.
pub(super) struct RedisStore {
    lifetimes: Lifetimes,
    tickets: Tickets,
    records: Rc<Records>,
    saver: Rc<Saver>,
    index: Rc<Index>,
    leases: Leases,
    /// Sessions that have ended, and are still to be removed.
    ending: Rc<RefCell<HashSet<SessionId>>>,
    /// For logouts that are tried again.
    endings: Arc<Semaphore>,
    cache: RefCell<Cache<Ticket>>,
}

impl RedisStore {
    pub(super) fn new(
        name: &str,
        lifetimes: Lifetimes,
        sealer: Arc<Sealer>,
        config: &Arc<config::Redis>,
        secrets: &[config::value::Secret],
        memory: &Memory,
    ) -> Self {
        let link = Rc::new(Link::new(config.clone(), memory.primary().clone()));
        let writer = Rc::new(Writer::new(&link, config.replicas));
        let index = Rc::new(Index::new(link.clone(), writer.clone(), secrets));
        let leases = Leases::new(link.clone(), writer.clone());
        let records = Rc::new(Records::new(link, writer));
        Self {
            lifetimes,
            tickets: Tickets::new(name, sealer),
            index,
            leases,
            ending: Rc::default(),
            endings: Arc::new(Semaphore::new(MOST_ENDINGS)),
            saver: Rc::new(Saver::new(records.clone(), lifetimes)),
            records,
            cache: RefCell::default(),
        }
    }

    /// The session that one of these cookies is a ticket to.
    pub(super) async fn load(&self, found: &Found<'_>) -> Result<Option<Held>, Unavailable> {
        match self.ticket_in(found) {
            Some(ticket) => self.read(&ticket).await,
            None => Ok(None),
        }
    }

    /// The session that one of these cookies names, whether or not it is there.
    pub(super) fn named(&self, found: &Found<'_>) -> Option<SessionId> {
        Some(self.ticket_in(found)?.id)
    }

    /// The newest version of the session; none if it has ended.
    pub(super) async fn reload(&self, opened: &Rc<Opened>) -> Result<Option<Held>, Unavailable> {
        match &opened.ticket {
            Some(ticket) => self.read(ticket).await,
            None => Ok(None),
        }
    }

    /// Saves a session that is new.
    pub(super) async fn start(&self, session: Session) -> Result<Held, CommitRefused> {
        let ticket = self.tickets.issue(session.id).map_err(CommitRefused::Seal)?;
        let deadline = Instant::now() + WRITE_TIME;
        let expires = self.lifetimes.end(&session);
        // First where it is found by its user's logout elsewhere: no session escapes that.
        let last = session.created_at.plus(self.lifetimes.absolute);
        let opened = if self.index.add(&session, last, deadline).await? {
            self.records.create(&ticket, session, expires, deadline).await?
        } else {
            // It ended while the login was under way: the next request finds that out.
            Rc::new(Opened::with_ticket(Arc::new(session), Some(ticket.clone())))
        };
        self.cache.borrow_mut().put(ticket.text.as_bytes().into(), ticket.clone());
        Ok(Held { opened, text: Some(ticket.text.clone()) })
    }

    /// Merges the edit into the newest version of the session.
    pub(super) async fn change(
        &self,
        opened: &Rc<Opened>,
        edit: Edit,
        now: Timestamp,
    ) -> Result<Made, CommitRefused> {
        match &opened.ticket {
            Some(ticket) => self.saver.change(ticket, opened, edit, now).await,
            None => Err(CommitRefused::NoSession),
        }
    }

    /// Writes down that the session is in use; none if it has ended meanwhile.
    pub(super) async fn touch(
        &self,
        opened: &Rc<Opened>,
        now: Timestamp,
    ) -> Result<Option<Held>, CommitRefused> {
        let Some(ticket) = &opened.ticket else { return Ok(None) };
        // Of many requests at once one writes it down.
        let Some(_touch) = ticket.touch() else {
            return Ok(Some(Held { opened: opened.clone(), text: None }));
        };
        if let Some(known) = ticket.known()
            && known.opened.session.touched_at >= now
        {
            return Ok(Some(Held { opened: known.opened, text: None }));
        }
        let touched = Session { touched_at: now, ..(*opened.session).clone() };
        let expires = self.lifetimes.end(&touched);
        let deadline = Instant::now() + READ_TIME;
        let opened = self.records.touch(ticket, touched, expires, deadline).await?;
        // The cookie is written again for its new age.
        let text = self.tickets.text(ticket).map_err(CommitRefused::Seal)?;
        Ok(opened.map(|opened| Held { opened, text: Some(text) }))
    }

    /// Ends a session on every gateway. While Redis is away it is tried again in the background.
    pub(super) async fn end(&self, id: SessionId, until: Timestamp) -> Result<(), Unavailable> {
        let first = self.records.end(id, until, Instant::now() + WRITE_TIME).await;
        if let Err(error) = &first {
            self.end_later(id, until, error);
        }
        first
    }

    /// Ends a session in the background, as soon as Redis is there, which it is not for this reason.
    pub(super) fn end_later(&self, id: SessionId, until: Timestamp, error: &Unavailable) {
        // Once, however often somebody wants it.
        if !self.ending.borrow_mut().insert(id) {
            return;
        }
        tracing::error!(%error, "a session that ended could not be removed from Redis yet");
        let (records, ending) = (self.records.clone(), self.ending.clone());
        tokio::task::spawn_local(async move {
            while Timestamp::now() < until {
                if records.end(id, until, Instant::now() + WRITE_TIME).await.is_ok() {
                    tracing::info!("a session that ended was removed from Redis");
                    break;
                }
                tokio::time::sleep(END_AGAIN).await;
            }
            ending.borrow_mut().remove(&id);
        });
    }

    /// Ends the sessions that the provider has ended, once. While Redis is away it is tried again in
    /// the background.
    pub(super) async fn end_all(
        &self,
        logout: Logout,
        until: Timestamp,
        memory: &Arc<Memory>,
    ) -> Result<(), LogoutRefused> {
        let (index, records) = (self.index.clone(), self.records.clone());
        let ending = Ending { index, records, memory: memory.clone(), logout, until };
        let first = ending.run_once().await;
        if let Err(LogoutRefused::Unavailable(error)) = &first
            && let Ok(permit) = self.endings.clone().try_acquire_owned()
        {
            tracing::error!(%error, "sessions that the provider ended are not yet gone from Redis");
            tokio::task::spawn_local(async move {
                let _permit = permit;
                while Timestamp::now() < until {
                    tokio::time::sleep(END_AGAIN).await;
                    if ending.run().await.is_ok() {
                        tracing::info!("sessions that the provider ended are gone from Redis");
                        return;
                    }
                }
            });
        }
        first
    }

    /// Who does what only one gateway may do at a time.
    pub(super) async fn turn(
        &self,
        opened: &Opened,
        deadline: Instant,
    ) -> Result<Turn, Unavailable> {
        match &opened.ticket {
            Some(ticket) => {
                let record = self.records.key(ticket.id);
                self.leases.take(record, opened.session.version, deadline).await
            }
            None => Ok(Turn::Changed),
        }
    }

    async fn read(&self, ticket: &Rc<Ticket>) -> Result<Option<Held>, Unavailable> {
        let read = self.records.read(ticket, Instant::now() + READ_TIME).await?;
        Ok(match read {
            Read::Gone => None,
            Read::Same(opened) | Read::Newer(opened) => Some(Held { opened, text: None }),
        })
    }

    fn ticket_in(&self, found: &Found<'_>) -> Option<Rc<Ticket>> {
        match found.only() {
            Some(text) => self.ticket(text),
            None => found.candidates().iter().find_map(|text| self.ticket(text)),
        }
    }

    fn ticket(&self, text: &[u8]) -> Option<Rc<Ticket>> {
        if let Some(ticket) = self.cache.borrow_mut().get(text) {
            return Some(ticket);
        }
        let ticket = self.tickets.open(text)?;
        self.cache.borrow_mut().put(text.into(), ticket.clone());
        Some(ticket)
    }
}
