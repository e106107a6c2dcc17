//! What changed sessions cost the gateway while the cookie store remembers them: the library's own
//! memory, under its default bounds, filled in this process. It starts no proxy and sends nothing.

use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Waker};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::HeaderValue;
use vestibule::clock::Timestamp;
use vestibule::config::value::{Keys, Secret};
use vestibule::config::{Cookie, SameSite, Session};
use vestibule::session::memory::{Bounds, Remembered};
use vestibule::session::{Change, Memory, Sealer, SessionUpdate, Sessions, Visit};

use crate::process::own_memory;
use crate::session::{NAME, login};

/// Sessions, each changed once.
const SESSIONS: usize = 100_000;
/// Changed before the first look: what the process brings up once, and the worker's cache of opened
/// cookies, which is full then, are not theirs.
const FIRST: usize = 4096;
/// What the app says.
const UPDATE: &str = r#"{"n":{"$add":1}}"#;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Fills the memory, and prints what a session costs and how many are held.
pub(crate) fn run() -> Result<()> {
    let secret = Secret::new("0123456789abcdef0123456789abcdef");
    let config = Session {
        secrets: vec![secret.clone()],
        absolute: 3 * DAY,
        inactivity: Some(DAY),
        cookie: Cookie {
            name: NAME.to_owned(),
            same_site: SameSite::Lax,
            domain: None,
            transient: false,
        },
        redis: None,
    };
    let memory = Arc::new(Memory::new(Bounds::default()));
    let sessions = Sessions::new(&config, Arc::new(Sealer::new(&[secret])), memory.clone());
    for _ in 1..FIRST {
        change_one(&sessions)?;
    }
    let last = change_one(&sessions)?;
    let sealed = last.session().and_then(|session| match memory.recall(session.id)? {
        Remembered::Changed(newest) => Some(newest.sealed.len()),
        Remembered::Ended => None,
    });
    let cookie = NAME.len() + 1 + sealed.context("a changed session is not remembered")?;
    drop(last);
    let (held_before, before) = (memory.len(), own_memory()?);
    for _ in 0..SESSIONS {
        change_one(&sessions)?;
    }
    let (held, growth) = (memory.len(), own_memory()?.saturating_sub(before));
    ensure!(held > held_before, "no changed session is remembered");
    let bytes = growth / u64::try_from(held - held_before)?;
    write!(
        std::io::stdout(),
        "\n### Memory of changed sessions, cookie store (`memory`)\n\n\
         | changed | cookie, bytes | held | forgotten early | RSS, MiB | bytes per session held |\n\
         |--:|--:|--:|--:|--:|--:|\n\
         | {} | {cookie} | {held} | {} | {} | {bytes} |\n",
        SESSIONS + FIRST,
        memory.forgotten(),
        growth / (1024 * 1024),
    )?;
    Ok(())
}

/// A login, and one update of an app's.
fn change_one(sessions: &Sessions) -> Result<Visit> {
    let now = Timestamp::now();
    let (identity, tokens) = login("http://127.0.0.1:9/")?;
    let mut visit = Visit::default();
    at_once(sessions.commit(&mut visit, Change::Start { identity, tokens }, now))??;
    let update = SessionUpdate::parse([&HeaderValue::from_static(UPDATE)], &Keys::All)?;
    at_once(sessions.commit(&mut visit, Change::Update(update), now))??;
    Ok(visit)
}

/// The outcome of a call that has nothing to wait for: the cookie store does no I/O.
fn at_once<T>(call: impl Future<Output = T>) -> Result<T> {
    match pin!(call).poll(&mut task::Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Ok(outcome),
        Poll::Pending => bail!("the cookie store waits for something"),
    }
}
