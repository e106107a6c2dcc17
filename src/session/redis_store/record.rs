//! A session in Redis: what is written, compared and read, each in one script, so that each happens
//! whole or not at all. Every name begins with the session's id in braces: one slot of a cluster.

use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::Script;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::sleep;

use super::super::cache::Opened;
use super::super::change::{CommitRefused, Unavailable};
use super::super::cookie::MAX_SEALED;
use super::super::seal::{Purpose, SealError};
use super::super::{Session, SessionId};
use super::link::Link;
use super::ticket::Ticket;
use super::writer::{Saved, Write, Writer};
use crate::clock::Timestamp;

/// Nothing if the session is gone; its version if that and its last use are known; all of it
/// otherwise.
const READ: &str = "
local r = redis.call('HMGET', KEYS[1], 'v', 't')
if not r[1] then return {} end
if r[1] == ARGV[1] and r[2] == ARGV[2] then return {r[1]} end
return {r[1], r[2], redis.call('HGET', KEYS[1], 'd')}";

/// Not if it has ended already, at its user's logout elsewhere while the login was under way.
const CREATE: &str = "
if redis.call('EXISTS', KEYS[2]) == 1 then return answer('gone') end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2], 't', ARGV[3])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
return answer('done')";

/// A write whose answer was lost is sent again; by its name, the second key, it is known for what
/// it is, and made once. That is written too, for whoever waits until replicas have it.
const SWAP: &str = "
if redis.call('PEXPIRE', KEYS[2], ARGV[4]) == 1 then return answer('done') end
local version = redis.call('HGET', KEYS[1], 'v')
if not version then return answer('gone') end
if version ~= ARGV[1] then return answer('newer') end
redis.call('HSET', KEYS[1], 'v', ARGV[2], 'd', ARGV[3])
redis.call('SET', KEYS[2], '', 'PX', ARGV[4])
return answer('done')";

const TOUCH: &str = "
if redis.call('EXISTS', KEYS[1]) == 0 then return answer('gone') end
redis.call('HSET', KEYS[1], 't', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return answer('done')";

/// The second key is written so that there is something to wait for when the record is gone already,
/// and for one that is not there yet.
const END: &str = "
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], '', 'PX', ARGV[1])
return answer('done')";

/// How long it takes sentinels to name a primary that some know already.
const ELSEWHERE: Duration = Duration::from_millis(100);

/// Milliseconds for which a write is known by its name: longer than it is tried again.
const NAMED: u64 = 10_000;

/// The records of sessions.
pub(super) struct Records {
    link: Rc<Link>,
    writer: Rc<Writer>,
    read: Script,
}

/// What was read.
pub(super) enum Read {
    /// There is no such session, or nobody with this ticket has written what is there.
    Gone,
    /// What was known.
    Same(Rc<Opened>),
    /// Something else.
    Newer(Rc<Opened>),
}

/// What became of a change.
pub(super) enum Swapped {
    /// It is the newest version.
    Done(Rc<Opened>),
    /// Somebody was faster.
    Newer,
    /// There is no session any more.
    Gone,
}

impl Records {
    pub(super) fn new(link: Rc<Link>, writer: Rc<Writer>) -> Self {
        Self { link, writer, read: Script::new(READ) }
    }

    /// Reads the ticket's session.
    pub(super) async fn read(
        &self,
        ticket: &Ticket,
        deadline: Instant,
    ) -> Result<Read, Unavailable> {
        let known = ticket.known();
        let mut call = self.read.key(self.key(ticket.id));
        match &known {
            Some(known) => call.arg(known.opened.session.version).arg(&*known.use_mark),
            None => call.arg("").arg(""),
        };
        let found: Vec<Option<Vec<u8>>> = self.link.call(&call, deadline).await?;
        Ok(match (found.as_slice(), known) {
            ([Some(_)], Some(known)) => Read::Same(known.opened),
            ([Some(version), use_mark, Some(sealed)], _) => {
                let use_mark = use_mark.as_deref().unwrap_or_default();
                open(ticket, version, use_mark, sealed).map_or(Read::Gone, Read::Newer)
            }
            _ => Read::Gone,
        })
    }

    /// Reads go on where writes do, in a moment: another server has become the primary.
    pub(super) async fn read_elsewhere(&self, deadline: Instant) -> Result<(), Unavailable> {
        if Instant::now() + ELSEWHERE >= deadline {
            return Err(Unavailable("another server has just become the primary".to_owned()));
        }
        self.link.leave(Instant::now()).await;
        sleep(ELSEWHERE).await;
        Ok(())
    }

    /// Saves a session that is new.
    pub(super) async fn create(
        &self,
        ticket: &Ticket,
        session: Session,
        expires: Timestamp,
        deadline: Instant,
    ) -> Result<Rc<Opened>, CommitRefused> {
        let (sealed, used) = (seal(ticket, &session)?, seal_use(ticket, session.touched_at)?);
        let key = self.key(ticket.id);
        let ended = ended(&key);
        let mut write = Write::new(CREATE, &[key, ended]);
        write.arg(session.version).arg(sealed).arg(&used).arg(millis(expires));
        // Where it has ended the next request finds that out.
        self.writer.save(&write, deadline).await?;
        Ok(ticket.remember(session, used.as_bytes()))
    }

    /// Saves the next version, if `base` is still the newest.
    pub(super) async fn swap(
        &self,
        ticket: &Ticket,
        base: u64,
        next: Session,
        deadline: Instant,
    ) -> Result<Swapped, CommitRefused> {
        let mut name = [0; 16];
        let random = SystemRandom::new().fill(&mut name);
        random.map_err(|_| CommitRefused::Seal(SealError::Random))?;
        let key = self.key(ticket.id);
        let name = format!("{key}:{}", SessionId(name));
        let mut write = Write::new(SWAP, &[key, name]);
        write.arg(base).arg(next.version).arg(seal(ticket, &next)?).arg(NAMED);
        Ok(match self.writer.save(&write, deadline).await? {
            Saved::Done => Swapped::Done(ticket.remember_change(next)),
            Saved::Gone => Swapped::Gone,
            Saved::Newer => Swapped::Newer,
        })
    }

    /// Writes the last use of a session down; none if it is gone.
    pub(super) async fn touch(
        &self,
        ticket: &Ticket,
        touched: Session,
        expires: Timestamp,
        deadline: Instant,
    ) -> Result<Option<Rc<Opened>>, CommitRefused> {
        let used = seal_use(ticket, touched.touched_at)?;
        let mut write = Write::new(TOUCH, &[self.key(ticket.id)]);
        write.arg(&used).arg(millis(expires));
        let saved = self.writer.save(&write, deadline).await?;
        Ok((saved == Saved::Done).then(|| ticket.remember_use(touched, used.as_bytes())))
    }

    /// Removes a session, and tells every gateway.
    pub(super) async fn end(
        &self,
        id: SessionId,
        until: Timestamp,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        let key = self.key(id);
        let ended = ended(&key);
        let mut write = Write::new(END, &[key, ended]);
        write.arg(NAMED);
        self.writer.save(&write, deadline).await?;
        self.link.publish(&format!("{id} {}", until.0), deadline).await
    }

    /// Where a session stands.
    pub(super) fn key(&self, id: SessionId) -> String {
        key(self.link.prefix(), id)
    }
}

/// Where a session stands among names that begin with `prefix`.
pub(super) fn key(prefix: &str, id: SessionId) -> String {
    format!("{prefix}{{{id}}}")
}

/// Where its end is known for a while.
fn ended(key: &str) -> String {
    format!("{key}:ended")
}

/// Redis counts milliseconds.
pub(super) fn millis(time: Timestamp) -> u64 {
    time.0.saturating_mul(1000)
}

/// The name that a version is sealed under: what is at another id or version does not open.
fn record_name(id: SessionId, version: u64) -> String {
    format!("{id}:{version}")
}

fn seal(ticket: &Ticket, session: &Session) -> Result<String, CommitRefused> {
    let plain = serde_json::to_vec(session).unwrap_or_default();
    let name = record_name(ticket.id, session.version);
    let sealed = ticket.sealer.seal(Purpose::Record, &name, &plain).map_err(CommitRefused::Seal)?;
    if sealed.len() > MAX_SEALED {
        return Err(CommitRefused::TooLarge(sealed.len()));
    }
    Ok(sealed)
}

fn seal_use(ticket: &Ticket, at: Timestamp) -> Result<String, CommitRefused> {
    let name = ticket.id.to_string();
    ticket.sealer.seal(Purpose::Use, &name, &at.0.to_be_bytes()).map_err(CommitRefused::Seal)
}

/// What a gateway wrote for this ticket; nothing if a stranger did.
fn open(ticket: &Ticket, version: &[u8], use_mark: &[u8], sealed: &[u8]) -> Option<Rc<Opened>> {
    let version: u64 = std::str::from_utf8(version).ok()?.parse().ok()?;
    if sealed.len() > MAX_SEALED || use_mark.len() > MAX_SEALED {
        return None;
    }
    let name = record_name(ticket.id, version);
    let plain = ticket.sealer.open(Purpose::Record, &name, sealed)?;
    let mut session: Session = serde_json::from_slice(&plain).ok()?;
    if session.id != ticket.id || session.version != version {
        return None;
    }
    let used = ticket.sealer.open(Purpose::Use, &ticket.id.to_string(), use_mark)?;
    let used = Timestamp(u64::from_be_bytes(used.try_into().ok()?));
    session.touched_at = session.touched_at.max(used);
    Some(ticket.remember(session, use_mark))
}
