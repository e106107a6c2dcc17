//! What only one gateway may do at a time for a session: whoever has its lease does it, the others
//! wait. A lease ends by itself when its holder dies. What it is taken for it does not know.

use std::rc::Rc;
use std::time::{Duration, Instant};

use redis::Script;
use tokio::time::sleep;

use super::super::SessionId;
use super::super::change::Unavailable;
use super::super::store::Turn;
use super::READ_TIME;
use super::link::Link;
use super::writer::{Saved, Write, Writer};

/// How long a lease lives after its holder's last sign of life.
const LIFE: Duration = Duration::from_secs(5);
/// How often a holder gives one.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How often those who wait look.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a failure is known: those who wait do not each fail in their turn.
const FAILED: Duration = Duration::from_secs(1);

/// For the version that is known, and for nobody else. Where the answer was lost it is asked again.
const TAKE: &str = "
if redis.call('HGET', KEYS[2], 'v') ~= ARGV[1] then return answer('gone') end
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[2] then return answer('newer') end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return answer('done')";

const LOOK: &str = "
if redis.call('HGET', KEYS[2], 'v') ~= ARGV[1] then return 'changed' end
local owner = redis.call('GET', KEYS[1])
if not owner then return 'free' end
if owner == 'failed' then return 'failed' end
return 'held'";

const RENEW: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

const RELEASE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])";

const FAIL: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], 'failed', 'PX', ARGV[2])
return 1";

/// The leases of one worker's Redis.
pub(super) struct Leases {
    link: Rc<Link>,
    writer: Rc<Writer>,
    look: Script,
}

/// The right to do something alone. One gateway on the cookie store needs none: [`Lease::default`].
#[derive(Default)]
pub struct Lease(Option<Held>);

struct Held {
    link: Rc<Link>,
    key: String,
    owner: String,
}

impl Leases {
    pub(super) fn new(link: Rc<Link>, writer: Rc<Writer>) -> Self {
        Self { link, writer, look: Script::new(LOOK) }
    }

    /// The lease of the session whose `record` is at `version`, once nobody else has it.
    pub(super) async fn take(
        &self,
        record: String,
        version: u64,
        deadline: Instant,
    ) -> Result<Turn, Unavailable> {
        let owner = SessionId::random().ok_or_else(|| Unavailable("no randomness".to_owned()))?;
        let held = Held {
            link: self.link.clone(),
            key: format!("{record}:lease"),
            owner: owner.to_string(),
        };
        let soon = || deadline.min(Instant::now() + READ_TIME);
        loop {
            let mut write = Write::new(TAKE, &[held.key.clone(), record.clone()]);
            write.arg(version).arg(&held.owner).arg(millis(LIFE));
            match self.writer.save(&write, soon()).await? {
                Saved::Done => return Ok(Turn::Ours(Lease(Some(held)))),
                Saved::Gone => return Ok(Turn::Changed),
                Saved::Newer => {}
            }
            let mut look = self.look.key(&held.key);
            look.key(&record).arg(version);
            loop {
                let found: String = self.link.call(&look, soon()).await?;
                match found.as_str() {
                    "changed" => return Ok(Turn::Changed),
                    "free" => break,
                    "failed" => return Ok(Turn::Failed),
                    _ if Instant::now() + LOOK_EVERY > deadline => return Ok(Turn::Failed),
                    _ => sleep(LOOK_EVERY).await,
                }
            }
        }
    }
}

impl Lease {
    /// Does `work`, and keeps the lease alive meanwhile.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(held) = &self.0 else { return work.await };
        tokio::select! {
            done = work => done,
            never = held.renew_regularly() => match never {},
        }
    }

    /// Whether nobody else has had it since it was taken, as far as can be known.
    pub async fn is_ours(&self) -> bool {
        let Some(held) = &self.0 else { return true };
        held.say(RENEW, Some(LIFE)).await.unwrap_or(false)
    }

    /// It is done. After a failure those who wait do not try at once what has just failed.
    pub async fn end(self, failed: bool) {
        let Some(held) = self.0 else { return };
        let ended =
            if failed { held.say(FAIL, Some(FAILED)).await } else { held.say(RELEASE, None).await };
        if let Err(error) = ended {
            tracing::debug!(%error, "a lease was left to expire");
        }
    }
}

impl Held {
    async fn renew_regularly(&self) -> std::convert::Infallible {
        loop {
            sleep(RENEW_EVERY).await;
            match self.say(RENEW, Some(LIFE)).await {
                Ok(true) => {}
                Ok(false) => tracing::warn!("a lease expired while it was held"),
                Err(error) => tracing::warn!(%error, "a lease could not be renewed"),
            }
        }
    }

    /// Whether it is still ours.
    async fn say(&self, script: &str, time: Option<Duration>) -> Result<bool, Unavailable> {
        let script = Script::new(script);
        let mut call = script.key(&self.key);
        call.arg(&self.owner);
        if let Some(time) = time {
            call.arg(millis(time));
        }
        self.link.call(&call, Instant::now() + READ_TIME).await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
