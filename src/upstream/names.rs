//! Host names of upstreams: who has which addresses, now, and who has left one. A name is asked for
//! at each new connection, and looked up again from time to time by the gateway as a whole: when an
//! address is gone, no idle connection to it is used any longer.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::directory::Directory;
use crate::config::value::UpstreamUrl;

/// How often names are looked up again. The resolver does not tell for how long an answer is good.
const LOOK_EVERY: Duration = Duration::from_secs(30);

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

type Resolve = dyn Fn(&str, u16) -> Resolving + Send + Sync;

/// Knows the addresses of names.
#[derive(Clone)]
pub(super) struct Names {
    resolve: Arc<Resolve>,
    every: Duration,
}

impl Names {
    /// The system's resolver.
    pub(super) fn system() -> Self {
        Self::new(LOOK_EVERY, |host, port| {
            let host = host.to_owned();
            let looking =
                async move { tokio::net::lookup_host((host, port)).await.map(Iterator::collect) };
            Box::pin(looking)
        })
    }

    /// Another, for names that are looked up this often.
    pub(super) fn new(
        every: Duration,
        resolve: impl Fn(&str, u16) -> Resolving + Send + Sync + 'static,
    ) -> Self {
        Self { resolve: Arc::new(resolve), every }
    }

    /// The addresses of a host, in the resolver's order; at least one.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        let found = (self.resolve)(host, port).await?;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

/// The name and the port of an upstream that may move.
pub(super) fn name(url: &UpstreamUrl) -> Option<(&str, u16)> {
    let (UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port }) = url else {
        return None;
    };
    // RFC 6761, section 6.3: it is always this machine.
    let moves = host != "localhost" && host.parse::<IpAddr>().is_err();
    moves.then_some((host.as_str(), *port))
}

/// How often an upstream's name has lost an address.
pub(super) type Moves = Arc<AtomicU64>;

/// Looks up the names of all upstreams of `directory`, as long as anybody else holds it.
pub(super) fn watch(directory: &Arc<Directory>) {
    for (index, known) in directory.known.iter().enumerate() {
        if name(&known.upstream.url).is_some() {
            let directory = Arc::downgrade(directory);
            tokio::task::spawn_local(async move { look(directory, index).await });
        }
    }
}

async fn look(directory: Weak<Directory>, index: usize) {
    let mut known = BTreeSet::new();
    while let Some(pause) = once(&directory, index, &mut known).await {
        tokio::time::sleep(pause).await;
    }
}

async fn once(
    directory: &Weak<Directory>,
    index: usize,
    known: &mut BTreeSet<SocketAddr>,
) -> Option<Duration> {
    let directory = directory.upgrade()?;
    let upstream = directory.known.get(index)?;
    let (host, port) = name(&upstream.upstream.url)?;
    // While names cannot be looked up, what was known is better than nothing.
    if let Ok(found) = directory.names.resolve(host, port).await {
        let found = BTreeSet::from_iter(found);
        if !known.is_subset(&found) {
            upstream.moves.fetch_add(1, Relaxed);
            tracing::info!(host, port, ?found, "an upstream has moved");
        }
        *known = found;
    }
    Some(directory.names.every)
}
