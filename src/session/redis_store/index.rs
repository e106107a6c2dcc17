//! Which sessions a user has, and which came from one sign-in at the provider: for a logout that
//! comes from there. Users are named by a keyed hash: who reads Redis does not learn who they are.

use std::rc::Rc;
use std::time::Instant;

use ring::hmac;

use super::super::change::Unavailable;
use super::super::{Identity, Session};
use super::writer::{Write, Writer};
use crate::clock::Timestamp;
use crate::config::value::Secret;

/// A sorted set, by the time of the login. What has expired by its age goes with each new one.
const ADD: &str = "
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
return {'done', online()}";

/// The sessions of users.
pub(super) struct Index {
    prefix: String,
    writer: Rc<Writer>,
    key: hmac::Key,
}

impl Index {
    pub(super) fn new(prefix: &str, writer: Rc<Writer>, secret: Option<&Secret>) -> Self {
        let secret = secret.map(Secret::expose).unwrap_or_default();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = hmac::sign(&secret, b"vestibule index of users, format 1");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
        Self { prefix: prefix.to_owned(), writer, key }
    }

    /// A session that will have expired at `expires`, whatever happens.
    pub(super) async fn add(
        &self,
        session: &Session,
        expires: Timestamp,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        let life = expires.since(session.created_at);
        let oldest = session.created_at.0.saturating_sub(life.as_secs());
        for name in self.names(&session.identity) {
            let mut write = Write::new(ADD, &[name]);
            write
                .arg(session.created_at.0)
                .arg(session.id.to_string())
                .arg(oldest)
                .arg(expires.0.saturating_mul(1000));
            self.writer.save(&write, deadline).await?;
        }
        Ok(())
    }

    /// Where a user's sessions stand: by `sub`, and by `sid` if the provider named one.
    fn names(&self, identity: &Identity) -> Vec<String> {
        let claim = |name| identity.claim(name).and_then(serde_json::Value::as_str);
        let issuer = claim("iss").unwrap_or_default();
        ["sub", "sid"]
            .into_iter()
            .filter_map(|kind| Some(self.name(kind, issuer, claim(kind)?)))
            .collect()
    }

    fn name(&self, kind: &str, issuer: &str, value: &str) -> String {
        let tag = hmac::sign(&self.key, format!("{kind}\0{issuer}\0{value}").as_bytes());
        let tag = base64_simd::URL_SAFE_NO_PAD.encode_to_string(tag);
        format!("{}{kind}:{tag}", self.prefix)
    }
}
