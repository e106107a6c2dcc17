//! One worker: a thread with a runtime, a listener, sessions' cache and upstream connections of its
//! own. What it shares with the others it holds behind `Arc`s.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use super::accept::accept;
use super::connection::Connections;
use super::runtime;
use super::tls::Certificates;
use super::watch::Watches;
use crate::gateway::Gateway;
use crate::login::Parties;
use crate::observe::access::LogSender;
use crate::observe::metrics::Metrics;
use crate::session::Memory;
use crate::upstream::Directory;

/// What all workers share.
pub(super) struct Shared {
    pub(super) parties: Parties,
    pub(super) memory: Arc<Memory>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) server_tls: Arc<ServerConfig>,
    pub(super) directory: Arc<Directory>,
    pub(super) certificates: Arc<Certificates>,
    /// One for each connection that may be open.
    pub(super) permits: Arc<Semaphore>,
    pub(super) log: Option<LogSender>,
}

/// A worker that has not begun.
pub(super) struct Worker {
    pub(super) listener: std::net::TcpListener,
    pub(super) shared: Arc<Shared>,
    /// Becomes true when no connection is to be taken any more.
    pub(super) stopped: watch::Receiver<bool>,
}

impl Worker {
    /// Serves on this thread until it is stopped and drained.
    pub(super) fn run(self) -> io::Result<()> {
        runtime()?.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<()> {
        let Self { listener, shared, mut stopped } = self;
        let listener = TcpListener::from_std(listener)?;
        let config = shared.parties.config.clone();
        let limits = &config.server.limits;
        let metrics = Rc::new(shared.metrics.worker());
        let log = shared.log.clone().map(|sender| sender.log(config.log.format, metrics.clone()));
        if let Some(log) = log.clone() {
            tokio::task::spawn_local(log.flush_regularly());
        }
        let gateway = Gateway::new(
            shared.parties.clone(),
            shared.memory.clone(),
            &shared.directory,
            metrics.clone(),
            log.clone(),
        );
        let watches = Watches::new(limits);
        tokio::task::spawn_local(watches.clone().look_regularly());
        // Nothing is ever sent: it closes when the last connection has ended.
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let connections =
            Rc::new(Connections::new(gateway, &shared, watches, metrics, stopped.clone()));
        let accepting = accept(listener, shared.permits.clone(), |stream, address, permit| {
            let (connections, alive) = (connections.clone(), alive.clone());
            tokio::task::spawn_local(async move {
                connections.serve(stream, address, permit).await;
                drop(alive);
            });
        });
        tokio::select! {
            never = accepting => match never {},
            // The sender lives until every worker has ended.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        drop(alive);
        let drained = async {
            let _ = ended.recv().await;
            connections.settled().await;
        };
        if tokio::time::timeout(limits.drain_time, drained).await.is_err() {
            tracing::warn!(after = ?limits.drain_time, "requests under way were cut off");
        }
        if let Some(log) = log {
            log.flush();
        }
        Ok(())
    }
}
