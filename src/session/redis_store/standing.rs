//! Whether the sessions that something follows are still there, and until when. Redis is asked about all
//! of them after each moment in which a word of an end may have been missed, and now and then; and about
//! one that seems to be unused, for another gateway may have seen a use of it.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::SessionId;
use super::super::memory::Memory;
use super::connector::Connection;
use super::news::PATIENCE;
use super::record::key;
use crate::clock::Timestamp;
use crate::config::Redis;

/// How often it is asked about all.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// How many it is asked about at a time: a request of somebody's waits for no more.
const BATCH: usize = 100;
/// How long it is remembered that a session was not there: what follows it looks more often.
const GONE: Duration = Duration::from_secs(60);

/// What Redis answers where there is no such key.
const NO_KEY: i64 = -2;

/// Redis did not answer.
pub(super) struct Silent;

/// The questions over one connection.
pub(super) struct Standing {
    prefix: String,
    memory: Arc<Memory>,
    all_at: Instant,
    /// Whether the log knows that Redis refuses to answer.
    told: bool,
}

impl Standing {
    /// Over a connection that has just begun to hear: what was said before it was missed.
    pub(super) fn begin(config: &Redis, memory: &Arc<Memory>) -> Self {
        let (prefix, memory) = (config.prefix.clone(), memory.clone());
        Self { prefix, memory, all_at: Instant::now(), told: false }
    }

    /// Asks what is to be asked, for so long.
    pub(super) async fn ask_for(
        &mut self,
        time: Duration,
        connection: &mut Connection,
    ) -> Result<(), Silent> {
        let end = Instant::now() + time;
        loop {
            let uses = self.memory.last_uses();
            let ids = if self.all_at <= Instant::now() {
                self.all_at = Instant::now() + ALL_EVERY;
                uses.all()
            } else {
                uses.doubted()
            };
            for some in ids.chunks(BATCH) {
                match timeout(PATIENCE, self.expirations(some, connection)).await {
                    Ok(Ok(answers)) => self.hear(answers),
                    // It is there; a user of an ACL may not be allowed to ask.
                    Ok(Err(error)) if error.code().is_some() => self.tell(&error),
                    Ok(Err(_)) | Err(_) => return Err(Silent),
                }
            }
            let more = timeout_at(end, self.memory.last_uses().doubt_comes()).await;
            if more.is_err() || Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// When these expire, in milliseconds since 1970.
    async fn expirations(
        &self,
        ids: &[SessionId],
        connection: &mut Connection,
    ) -> RedisResult<Vec<(SessionId, i64)>> {
        let question = |id: SessionId| {
            let mut question = redis::cmd("PEXPIRETIME");
            question.arg(key(&self.prefix, id));
            question
        };
        match connection {
            Connection::One(connection) => {
                let mut all = redis::pipe();
                for id in ids {
                    all.add_command(question(*id));
                }
                let answers: Vec<i64> = all.query_async(connection).await?;
                Ok(ids.iter().copied().zip(answers).collect())
            }
            // They stand on different servers.
            Connection::Cluster(connection) => {
                let mut asked = JoinSet::new();
                for id in ids.iter().copied() {
                    let (question, mut connection) = (question(id), connection.clone());
                    let ask = async move { question.query_async(&mut connection).await };
                    asked.spawn(async move { ask.await.map(|answer| (id, answer)) });
                }
                asked.join_all().await.into_iter().collect()
            }
        }
    }

    /// Once for each connection.
    fn tell(&mut self, error: &RedisError) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(%error, "Redis does not say which sessions are still there");
        }
    }

    fn hear(&self, answers: Vec<(SessionId, i64)>) {
        let now = Timestamp::now();
        for (id, answer) in answers {
            match (answer, u64::try_from(answer)) {
                (NO_KEY, _) => self.memory.end(id, now.plus(GONE), now),
                (_, Ok(millis)) => self.memory.last_uses().expires(id, Timestamp(millis / 1000)),
                // It never expires, as far as Redis knows: nothing is learnt.
                (_, Err(_)) => {}
            }
        }
    }
}
