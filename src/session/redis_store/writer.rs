//! Writes to Redis: made once, and again until they count. Where another server may take the primary's
//! place they count once enough replicas have them too, as `copies` says.

use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, ToRedisArgs};
use tokio::time::sleep;

use super::super::change::Unavailable;
use super::copies::{Copies, Verdict};
use super::link::Link;

/// How long replicas are waited for at a time.
const REPLICA_TIME: Duration = Duration::from_millis(500);

/// Between two tries of a write that some replicas do not have.
const PAUSE: Duration = Duration::from_millis(100);

/// Each script ends by saying which history it has written, and how many replicas are connected.
const COUNTED: &str = "local function answer(what)
local info = redis.call('INFO', 'replication')
return {what, string.match(info, 'master_replid:(%w+)'),
select(2, string.gsub(info, 'state=online', ''))} end";
const NOT_COUNTED: &str = "local function answer(what) return {what, '', 0} end";

/// One worker's writes.
pub(super) struct Writer {
    /// Where others read.
    reading: Rc<Link>,
    link: Rc<Link>,
    copies: Copies,
}

/// A script that writes, with its keys and arguments. It ends with `answer` and what it did, and may be
/// run again.
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

/// What a script answers, with how many replicas have what it wrote.
struct Written {
    saved: Saved,
    history: String,
    online: usize,
    copied: usize,
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
    /// Writes beside what is read over `link`, with up to so many copies.
    pub(super) fn new(link: &Rc<Link>, replicas: usize) -> Self {
        // A connection that waits for replicas would keep readers waiting.
        let writing = if replicas == 0 { link.clone() } else { Rc::new(link.another()) };
        Self { reading: link.clone(), link: writing, copies: Copies::new(replicas) }
    }

    /// Makes a write, and again until it counts or time is up.
    pub(super) async fn save(
        &self,
        write: &Write,
        deadline: Instant,
    ) -> Result<Saved, Unavailable> {
        let command = write.command(self.copies.matter());
        let mut wait = self.copies.usual(Instant::now());
        loop {
            let before = Instant::now();
            let Written { saved, history, online, copied } =
                self.write(&command, wait, deadline).await?;
            if saved != Saved::Done || !self.copies.matter() {
                return Ok(saved);
            }
            let now = Instant::now();
            match self.copies.judge(&history, online, wait, copied, now) {
                Verdict::Safe => return Ok(saved),
                Verdict::Wait(more) => wait = more,
                Verdict::Short(_) if now + PAUSE >= deadline => {
                    return Err(Unavailable(
                        "a replica is missing, and may be the primary by now".to_owned(),
                    ));
                }
                Verdict::Short(reachable) => {
                    wait = reachable;
                    // They may be copying another primary by now.
                    self.link.leave(before).await;
                    self.reading.leave(before).await;
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// What was done, and how many of `wait` replicas have it in time.
    async fn write(
        &self,
        command: &Cmd,
        wait: usize,
        deadline: Instant,
    ) -> Result<Written, Unavailable> {
        let answered = self.link.run(
            deadline,
            async |connection| -> RedisResult<(String, String, usize, usize)> {
                if wait == 0 {
                    let (saved, history, online) = command.query_async(connection).await?;
                    return Ok((saved, history, online, 0));
                }
                // In one go, so that it is the connection that has written which waits.
                let mut both = redis::pipe();
                both.add_command(command.clone());
                both.cmd("WAIT").arg(wait).arg(REPLICA_TIME.as_millis().to_string());
                let ((saved, history, online), copied) = both.query_async(connection).await?;
                Ok((saved, history, online, copied))
            },
        );
        let (saved, history, online, copied) = answered.await?;
        let saved = match saved.as_str() {
            "done" => Saved::Done,
            "gone" => Saved::Gone,
            _ => Saved::Newer,
        };
        Ok(Written { saved, history, online, copied })
    }
}
