//! What changed sessions cost: the gateway's memory in the cookie store, where the library's own,
//! under its default bounds, is filled in this process; Redis's memory in the Redis store. It starts no
//! proxy and sends no request.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use vestibule::session::memory::Bounds;
use vestibule::session::{Memory, Sessions};

use crate::process::own_memory;
use crate::redis::Redis;
use crate::session::{runtime, sessions, sign_in};

/// Sessions, each changed once.
const SESSIONS: u32 = 100_000;
/// Changed before the first look: what a process brings up once, and the worker's cache of opened
/// cookies, which is full then, are not theirs.
const FIRST: u32 = 4096;
/// Sign-ins under way at a time.
const AT_ONCE: u32 = 32;
/// What the app says.
const UPDATE: &str = r#"{"n":{"$add":1}}"#;
const ISSUER: &str = "http://127.0.0.1:9/";
/// It protects nothing.
const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Redis knows a write by its name for ten seconds. Those names are not the sessions'.
const NAMES_GONE: Duration = Duration::from_secs(13);

/// What can be asked for.
#[derive(Args)]
pub(crate) struct Options {
    /// Where Redis's configuration and what it says go.
    #[arg(long, default_value = "benches/run")]
    directory: PathBuf,
}

/// Fills both stores, and prints what a session costs in each.
pub(crate) fn run(options: &Options) -> Result<()> {
    fs::create_dir_all(&options.directory)?;
    let redis = Redis::start(&options.directory.canonicalize()?)?;
    let cookie_store = runtime()?.block_on(cookie_store())?;
    let redis_store = runtime()?.block_on(redis_store(&redis))?;
    write!(
        std::io::stdout(),
        "| | changed | held | forgotten early | MiB | bytes per session held |\n\
         |---|--:|--:|--:|--:|--:|\n\
         | cookie store: resident, the gateway's | {cookie_store}\n\
         | Redis store: `used_memory`, Redis's | {redis_store}\n",
    )?;
    Ok(())
}

/// The rest of the table's line.
struct Cost {
    held: u64,
    forgotten: u64,
    bytes: u64,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { held, forgotten, bytes } = self;
        let (mebibytes, each) = (bytes / (1024 * 1024), bytes / held.max(&1));
        write!(formatter, "{SESSIONS} | {held} | {forgotten} | {mebibytes} | {each} |")
    }
}

async fn cookie_store() -> Result<Cost> {
    let memory = Arc::new(Memory::new(Bounds::default()));
    let sessions = Rc::new(sessions(SECRET, None, memory.clone()));
    change(&sessions, 0..FIRST).await?;
    let (held_before, before) = (memory.len(), own_memory()?);
    change(&sessions, FIRST..FIRST + SESSIONS).await?;
    let (held, bytes) = (memory.len(), own_memory()?.saturating_sub(before));
    ensure!(held > held_before, "no changed session is remembered");
    let held = u64::try_from(held - held_before)?;
    Ok(Cost { held, forgotten: memory.forgotten(), bytes })
}

async fn redis_store(redis: &Redis) -> Result<Cost> {
    let memory = Arc::new(Memory::new(Bounds::default()));
    let sessions = Rc::new(sessions(SECRET, Some(redis.address), memory));
    change(&sessions, 0..FIRST).await?;
    tokio::time::sleep(NAMES_GONE).await;
    let before = redis.used_memory()?;
    change(&sessions, FIRST..FIRST + SESSIONS).await?;
    tokio::time::sleep(NAMES_GONE).await;
    let bytes = redis.used_memory()?.saturating_sub(before);
    // It has no bound of its own: all of them are there.
    Ok(Cost { held: SESSIONS.into(), forgotten: 0, bytes })
}

/// Signs these users in, and changes the session of each.
async fn change(sessions: &Rc<Sessions>, users: Range<u32>) -> Result<()> {
    let lanes: Vec<_> = (0..AT_ONCE)
        .map(|lane| {
            let (sessions, users) = (sessions.clone(), users.clone());
            tokio::task::spawn_local(async move {
                for user in users.skip(lane as usize).step_by(AT_ONCE as usize) {
                    sign_in(&sessions, ISSUER, user, UPDATE).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for lane in lanes {
        lane.await.context("a sign-in panicked")??;
    }
    Ok(())
}
