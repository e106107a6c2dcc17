//! What other gateways say: which sessions have ended, at once. It also knows whether Redis can be
//! reached, for `/readyz`. A word that is missed costs nothing but time: every request asks Redis, and
//! `standing` does for what is open without one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::time::{sleep, timeout};

use super::super::SessionId;
use super::super::memory::Memory;
use super::connector::{Connection, Connector, Hearer};
use super::link::channel;
use super::standing::Standing;
use crate::clock::Timestamp;
use crate::config::Redis;

/// How often Redis is asked whether it is there, and how soon after a failure again.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to say so.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Whether Redis could be reached a moment ago.
#[derive(Debug, Default)]
pub struct Health(AtomicBool);

impl Health {
    /// It could.
    pub fn is_good(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn set(&self, good: bool) {
        let was = self.0.swap(good, Relaxed);
        if was && !good {
            tracing::error!("Redis cannot be reached: whoever is signed in gets 503");
        } else if good && !was {
            tracing::info!("Redis is there");
        }
    }
}

/// Which server is the primary, counted: another after each that sentinels name. One that was
/// replaced while it lives, because it was too slow for them or by order, goes on for some 10 s and
/// answers whoever still asks it.
#[derive(Debug, Default)]
pub(crate) struct Primary(AtomicU64);

impl Primary {
    /// The number of the one that is.
    pub(super) fn number(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn replaced(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Listens for what has ended, and writes it into `memory`. Never ends.
pub async fn follow(config: Arc<Redis>, memory: Arc<Memory>, health: Arc<Health>) {
    let news = memory.clone();
    let hearer: Hearer = Arc::new(move |push: PushInfo| {
        if push.kind == PushKind::Message
            && let Some(Value::BulkString(word)) = push.data.last()
            && let Some((id, until)) = parse(word)
        {
            news.end(id, until, Timestamp::now());
        }
    });
    let mut watch = Watch::new(&config);
    'connections: loop {
        match listen(&config, hearer.clone()).await {
            Ok(mut connection) => {
                health.set(true);
                let mut standing = Standing::begin(&config, &memory);
                loop {
                    let asked = standing.ask_for(ASK_EVERY, &mut connection).await;
                    if watch.has_moved().await {
                        memory.primary().replaced();
                        continue 'connections;
                    }
                    let ping = redis::cmd("PING");
                    let answer: Result<RedisResult<String>, _> =
                        timeout(PATIENCE, ping.query_async(&mut connection)).await;
                    if asked.is_err() || !matches!(answer, Ok(Ok(_))) {
                        break;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "Redis cannot be listened to"),
        }
        health.set(false);
        sleep(ASK_EVERY / 4).await;
    }
}

/// Sees sentinels name another primary.
struct Watch {
    connector: Option<Connector>,
    named: Option<(String, u16)>,
}

impl Watch {
    fn new(config: &Redis) -> Self {
        // Where it cannot be made nobody can listen either, and says so.
        Self { connector: Connector::new(config, None).ok(), named: None }
    }

    /// Whether they name another server than before.
    async fn has_moved(&mut self) -> bool {
        let Some(connector) = &mut self.connector else { return false };
        let Ok(Ok(Some(named))) = timeout(PATIENCE, connector.primary()).await else {
            return false;
        };
        let before = self.named.replace(named);
        before.is_some() && before != self.named
    }
}

async fn listen(config: &Redis, hearer: Hearer) -> RedisResult<Connection> {
    let mut connection = Connector::new(config, Some(hearer))?.connect().await?;
    match &mut connection {
        Connection::One(connection) => connection.subscribe(channel(config)).await?,
        Connection::Cluster(connection) => connection.subscribe(channel(config)).await?,
    }
    Ok(connection)
}

/// `id until`
fn parse(word: &[u8]) -> Option<(SessionId, Timestamp)> {
    let (id, until) = std::str::from_utf8(word).ok()?.split_once(' ')?;
    Some((session_id(id)?, Timestamp(until.parse().ok()?)))
}

/// A session's id as its `Display` writes it.
pub(super) fn session_id(id: &str) -> Option<SessionId> {
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(SessionId(u128::from_str_radix(id, 16).ok()?.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_an_id_and_a_time_or_nothing() {
        let id = SessionId([0xab; 16]);
        assert_eq!(parse(format!("{id} 17").as_bytes()), Some((id, Timestamp(17))));
        for word in ["", "x 1", "+bababababababababababababababab 1", &format!("{id} -1")] {
            assert_eq!(parse(word.as_bytes()), None, "{word}");
        }
    }
}
