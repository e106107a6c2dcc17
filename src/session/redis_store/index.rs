//! Which sessions a user has, and which came from one sign-in at the provider: for a logout that
//! comes from there. Users are named by a keyed hash: who reads Redis does not learn who they are.

use std::rc::Rc;
use std::time::Instant;

use redis::Script;
use ring::hmac;

use super::super::change::Unavailable;
use super::super::logouts::CLAIMS;
use super::super::{Identity, Logout, Session};
use super::link::Link;
use super::record::millis;
use super::writer::{Saved, Write, Writer};
use crate::clock::Timestamp;
use crate::config::value::Secret;

/// A sorted set, by the time of the login. What has expired by its age goes with each new one. A login
/// that was under way at a logout that has been carried out comes too late.
const ADD: &str = "
local ended = redis.call('GET', KEYS[2])
if ended and tonumber(ended) >= tonumber(ARGV[1]) then return answer('gone') end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
return answer('done')";

/// Sessions up to this time end.
const MARK: &str = "
local known = redis.call('GET', KEYS[1])
local before = math.max(tonumber(known or 0), tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', before), 'PX', ARGV[2])
return answer('done')";

/// The oldest first, so many at a time.
const FIND: &str = "return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 500)";

const REMOVE: &str = "return redis.call('ZREM', KEYS[1], unpack(ARGV))";

/// Whoever comes first has it, also if the answer was lost and it is asked again.
const CLAIM: &str = "
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return answer('newer') end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return answer('done')";

const KEEP: &str = "
redis.call('SET', KEYS[1], '', 'PXAT', ARGV[1])
return answer('done')";

/// Milliseconds for which a logout is held against new sessions: longer than a login is under way
/// between its callback and its session.
const MARKED: u64 = 600_000;

/// Milliseconds for which a logout is being obeyed: if its gateway dies over it, it may come again.
const CLAIMED: u64 = 10_000;

/// The sessions of users, and the logouts that were obeyed.
pub(super) struct Index {
    link: Rc<Link>,
    writer: Rc<Writer>,
    key: hmac::Key,
    find: Script,
    remove: Script,
}

impl Index {
    pub(super) fn new(link: Rc<Link>, writer: Rc<Writer>, secret: Option<&Secret>) -> Self {
        let secret = secret.map(Secret::expose).unwrap_or_default();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = hmac::sign(&secret, b"vestibule index of users, format 1");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
        Self { link, writer, key, find: Script::new(FIND), remove: Script::new(REMOVE) }
    }

    /// A session that will have expired at `expires`, whatever happens. Whether it has not ended by
    /// now.
    pub(super) async fn add(
        &self,
        session: &Session,
        expires: Timestamp,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let life = expires.since(session.created_at);
        let oldest = session.created_at.0.saturating_sub(life.as_secs());
        for name in self.names(&session.identity) {
            let ended = ended(&name);
            let mut write = Write::new(ADD, &[name, ended]);
            write
                .arg(session.created_at.0)
                .arg(session.id.to_string())
                .arg(oldest)
                .arg(expires.0.saturating_mul(1000));
            if self.writer.save(&write, deadline).await? == Saved::Gone {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// From now on [`Self::add`] holds new sessions against this logout.
    pub(super) async fn mark(&self, logout: &Logout, deadline: Instant) -> Result<(), Unavailable> {
        let mut write = Write::new(MARK, &[ended(&self.sessions(logout))]);
        write.arg(logout.issued_at.0).arg(MARKED);
        self.writer.save(&write, deadline).await.map(drop)
    }

    /// Some of the sessions that a logout ends, as [`Self::add`] wrote them; none when all are gone.
    pub(super) async fn find(
        &self,
        logout: &Logout,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, Unavailable> {
        let mut call = self.find.key(self.sessions(logout));
        self.link.call(call.arg(logout.issued_at.0), deadline).await
    }

    /// Forgets sessions that were found and have ended.
    pub(super) async fn remove(
        &self,
        logout: &Logout,
        found: &[Vec<u8>],
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        let mut call = self.remove.key(self.sessions(logout));
        self.link.call(call.arg(found), deadline).await
    }

    /// Whether a logout is ours to obey, and nobody has done so before. `owner` is a name of ours.
    pub(super) async fn claim(
        &self,
        logout: &Logout,
        owner: &str,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let mut write = Write::new(CLAIM, &[self.obeyed(logout)]);
        write.arg(owner).arg(CLAIMED);
        Ok(self.writer.save(&write, deadline).await? == Saved::Done)
    }

    /// A logout was obeyed.
    pub(super) async fn keep(&self, logout: &Logout, deadline: Instant) -> Result<(), Unavailable> {
        let mut write = Write::new(KEEP, &[self.obeyed(logout)]);
        write.arg(millis(logout.expires));
        self.writer.save(&write, deadline).await.map(drop)
    }

    fn sessions(&self, logout: &Logout) -> String {
        let (claim, value) = logout.whose.claim();
        self.name(claim, &logout.issuer, value)
    }

    fn obeyed(&self, logout: &Logout) -> String {
        self.name("logout", &logout.issuer, &logout.name)
    }

    /// Where a user's sessions stand: by `sub`, and by `sid` if the provider named one.
    fn names(&self, identity: &Identity) -> Vec<String> {
        let claim = |name| identity.claim(name).and_then(serde_json::Value::as_str);
        let issuer = claim("iss").unwrap_or_default();
        CLAIMS.into_iter().filter_map(|kind| Some(self.name(kind, issuer, claim(kind)?))).collect()
    }

    fn name(&self, kind: &str, issuer: &str, value: &str) -> String {
        let tag = hmac::sign(&self.key, format!("{kind}\0{issuer}\0{value}").as_bytes());
        let tag = base64_simd::URL_SAFE_NO_PAD.encode_to_string(tag);
        format!("{}{kind}:{{{tag}}}", self.link.prefix())
    }
}

/// Where the last logout stands, beside the sessions: in one slot of a cluster.
fn ended(name: &str) -> String {
    format!("{name}:ended")
}
