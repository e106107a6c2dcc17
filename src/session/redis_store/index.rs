//! Which sessions a user has, and which came from one sign-in at the provider: for a logout that
//! comes from there. Users are named by a keyed hash: who reads Redis does not learn who they are. The
//! key is a secret's that may have been replaced since: a logout looks under each.

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

/// Some sessions of a user.
pub(super) struct Found {
    /// Where they stand.
    name: String,
    /// As [`Index::add`] wrote them.
    pub(super) members: Vec<Vec<u8>>,
}

/// The sessions of users, and the logouts that were obeyed.
pub(super) struct Index {
    link: Rc<Link>,
    writer: Rc<Writer>,
    /// One of each secret, in their order: new sessions stand under the first.
    keys: Vec<hmac::Key>,
    find: Script,
    remove: Script,
}

impl Index {
    pub(super) fn new(link: Rc<Link>, writer: Rc<Writer>, secrets: &[Secret]) -> Self {
        let key = |secret: &Secret| {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
            let key = hmac::sign(&secret, b"vestibule index of users, format 1");
            hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
        };
        let keys = secrets.iter().map(key).collect();
        Self { link, writer, keys, find: Script::new(FIND), remove: Script::new(REMOVE) }
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
        for name in self.sessions(logout) {
            let mut write = Write::new(MARK, &[ended(&name)]);
            write.arg(logout.issued_at.0).arg(MARKED);
            self.writer.save(&write, deadline).await?;
        }
        Ok(())
    }

    /// Some of the sessions that a logout ends; none when all are gone.
    pub(super) async fn find(
        &self,
        logout: &Logout,
        deadline: Instant,
    ) -> Result<Option<Found>, Unavailable> {
        for name in self.sessions(logout) {
            let mut call = self.find.key(&name);
            let members: Vec<Vec<u8>> =
                self.link.call(call.arg(logout.issued_at.0), deadline).await?;
            if !members.is_empty() {
                return Ok(Some(Found { name, members }));
            }
        }
        Ok(None)
    }

    /// Forgets sessions that were found and have ended.
    pub(super) async fn remove(&self, found: &Found, deadline: Instant) -> Result<(), Unavailable> {
        let mut call = self.remove.key(&found.name);
        self.link.call(call.arg(&found.members), deadline).await
    }

    /// Whether a logout is ours to obey, and nobody has done so before. `owner` is a name of ours.
    pub(super) async fn claim(
        &self,
        logout: &Logout,
        owner: &str,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        // All ask for the names in one order, or two could each have one of them, and neither both.
        for name in self.obeyed(logout) {
            let mut write = Write::new(CLAIM, &[name]);
            write.arg(owner).arg(CLAIMED);
            if self.writer.save(&write, deadline).await? != Saved::Done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// It was obeyed: it will not be again, for as long as it could be believed.
    pub(super) async fn keep(&self, logout: &Logout, deadline: Instant) -> Result<(), Unavailable> {
        for name in self.obeyed(logout) {
            let mut write = Write::new(KEEP, &[name]);
            write.arg(millis(logout.expires));
            self.writer.save(&write, deadline).await?;
        }
        Ok(())
    }

    /// Where the sessions stand that a logout ends.
    fn sessions(&self, logout: &Logout) -> impl Iterator<Item = String> {
        let (claim, value) = logout.whose.claim();
        self.keys.iter().map(move |key| self.name(key, claim, &logout.issuer, value))
    }

    fn obeyed(&self, logout: &Logout) -> Vec<String> {
        let name = |key| self.name(key, "logout", &logout.issuer, &logout.name);
        let mut names: Vec<String> = self.keys.iter().map(name).collect();
        names.sort_unstable();
        names
    }

    /// Where a user's sessions stand: by `sub`, and by `sid` if the provider named one.
    fn names(&self, identity: &Identity) -> Vec<String> {
        let claim = |name| identity.claim(name).and_then(serde_json::Value::as_str);
        let issuer = claim("iss").unwrap_or_default();
        let name = |kind| Some(self.name(self.keys.first()?, kind, issuer, claim(kind)?));
        CLAIMS.into_iter().filter_map(name).collect()
    }

    fn name(&self, key: &hmac::Key, kind: &str, issuer: &str, value: &str) -> String {
        let tag = hmac::sign(key, format!("{kind}\0{issuer}\0{value}").as_bytes());
        let tag = base64_simd::URL_SAFE_NO_PAD.encode_to_string(tag);
        format!("{}{kind}:{{{tag}}}", self.link.prefix())
    }
}

/// Where the last logout stands, beside the sessions: in one slot of a cluster.
fn ended(name: &str) -> String {
    format!("{name}:ended")
}
