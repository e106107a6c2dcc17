//! Writes to Redis, and when they count: once the primary has made them and, where another server
//! may take its place, once so many replicas have them too. Redis copies to its replicas after it
//! has answered; who believes that answer loses a change when the primary dies.
//!
//! A replica that is not connected is not waited for: with one server of two left, sessions go on.
//! Which servers may go on alone is Redis's own setting (`min-replicas-to-write`).

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, ToRedisArgs};

use super::super::change::Unavailable;
use super::link::Link;
use crate::config::Redis;

/// How long replicas are waited for at a time.
const REPLICA_TIME: Duration = Duration::from_millis(500);

/// Each script ends by saying how many replicas are connected.
const COUNTED: &str = "local function online()
return select(2, string.gsub(redis.call('INFO', 'replication'), 'state=online', '')) end";
const NOT_COUNTED: &str = "local function online() return 0 end";

/// One worker's writes.
pub(super) struct Writer {
    link: Rc<Link>,
    replicas: usize,
    /// Replicas that were connected when something was written last.
    online: Cell<usize>,
}

/// A script that writes, with its keys and arguments. It answers with what it did and how many
/// replicas are connected, and may be run again.
pub(super) struct Write {
    script: &'static str,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// It is made.
    Done,
    /// What it would have changed has changed.
    Newer,
    /// What it would have changed is gone.
    Gone,
}

impl Write {
    pub(super) fn new(script: &'static str, keys: &[String]) -> Self {
        Self { script, keys: keys.to_vec(), arguments: Vec::new() }
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.arguments.extend(argument.to_redis_args());
        self
    }

    fn command(&self, counted: bool) -> Cmd {
        let count = if counted { COUNTED } else { NOT_COUNTED };
        let mut command = redis::cmd("EVAL");
        command.arg(format!("{count}{}", self.script)).arg(self.keys.len());
        command.arg(&self.keys).arg(&self.arguments);
        command
    }
}

impl Writer {
    /// Writes beside what is read over `link`.
    pub(super) fn new(link: &Rc<Link>, config: &std::sync::Arc<Redis>) -> Self {
        let replicas = config.replicas;
        // A connection that waits for replicas would keep readers waiting.
        let link = if replicas == 0 { link.clone() } else { Rc::new(Link::new(config.clone())) };
        Self { link, replicas, online: Cell::new(0) }
    }

    /// Makes a write, and again until it counts or time is up.
    pub(super) async fn save(
        &self,
        write: &Write,
        deadline: Instant,
    ) -> Result<Saved, Unavailable> {
        let command = write.command(self.replicas > 0);
        loop {
            let (saved, waited, copied) = self.write(&command, deadline).await?;
            let needed = self.replicas.min(self.online.get());
            if saved != Saved::Done || copied >= needed {
                return Ok(saved);
            }
            if waited >= needed && Instant::now() + REPLICA_TIME >= deadline {
                return Err(Unavailable("its replicas do not answer in time".to_owned()));
            }
        }
    }

    /// What was done, how many replicas were waited for, and how many have it.
    async fn write(
        &self,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<(Saved, usize, usize), Unavailable> {
        let waited = self.replicas.min(self.online.get());
        let (saved, online, copied) = self
            .link
            .run(deadline, async |connection| -> RedisResult<(String, usize, usize)> {
                if waited == 0 {
                    let (saved, online) = command.query_async(connection).await?;
                    return Ok((saved, online, 0));
                }
                // In one go, so that it is the connection that has written which waits.
                let mut both = redis::pipe();
                both.add_command(command.clone());
                both.cmd("WAIT").arg(waited).arg(REPLICA_TIME.as_millis().to_string());
                let ((saved, online), copied) = both.query_async(connection).await?;
                Ok((saved, online, copied))
            })
            .await?;
        let saved = match saved.as_str() {
            "done" => Saved::Done,
            "gone" => Saved::Gone,
            _ => Saved::Newer,
        };
        self.online.set(online);
        Ok((saved, waited, copied))
    }
}
