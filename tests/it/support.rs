//! What the stories stand on. It knows how to run the binary and how to talk to it; what is right
//! or wrong to answer, only the stories know.
//!
//! | file | part |
//! |---|---|
//! | `gateway` | the binary, its `gateway.toml`, its logs and numbers |
//! | `browser`, `jar` | a browser: pages, redirects, forms, cookies |
//! | `wire`, `raw` | one exchange over HTTP/1.1 or HTTP/2; bytes as they are |
//! | `app`, `peer`, `http2_app` | a scripted app |
//! | `provider` | a scripted provider, and the embedded one |
//! | `authority` | certificates |
//! | `program`, `curl`, `nginx` | a program that is not ours |
//! | `redis` | Redis servers |
//! | `cut` | a wire that can be cut |
//! | `field` | gateways that keep sessions together, for races |
//! | `dice` | chance that can be had again |
//! | `stage` | all of these, as most stories want them |
//! | `webdriver` | Chromium |

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub(crate) mod app;
pub(crate) mod authority;
pub(crate) mod browser;
pub(crate) mod curl;
pub(crate) mod cut;
pub(crate) mod dice;
pub(crate) mod field;
pub(crate) mod gateway;
pub(crate) mod http2_app;
pub(crate) mod jar;
pub(crate) mod nginx;
pub(crate) mod peer;
pub(crate) mod program;
pub(crate) mod provider;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod stage;
pub(crate) mod webdriver;
pub(crate) mod wire;

pub(crate) use app::{App, Reply};
pub(crate) use browser::Browser;
pub(crate) use futures_util::future::join_all;
pub(crate) use gateway::Gateway;
pub(crate) use provider::{Provider, Scripted};
pub(crate) use raw::Raw;
pub(crate) use stage::Stage;
pub(crate) use wire::{Answer, Ask, Protocol};

/// How long anything may take before a test gives it up: generous, for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Both protocols that browsers speak.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// The same of what is done a thousand times at once.
pub(crate) const PATIENCE_WITH_MANY: Duration = Duration::from_secs(180);

/// Waits until `check` gives something.
pub(crate) async fn until<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, check).await
}

/// Waits this long until `check` gives something.
pub(crate) async fn until_within<T>(
    patience: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port of loopback on which nobody listens: below those that the system deals out by itself, so
/// that no outgoing connection takes it, and never the same twice in one process. The gateway's
/// listeners share their ports (`SO_REUSEPORT`); two gateways on one port would not notice.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(u64::from(std::process::id()) * 131 % 20_000).unwrap();
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (first + next % 20_000) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
