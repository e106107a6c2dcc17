//! One worker: a thread with a runtime, listeners, sessions' cache and upstream connections of its
//! own. What it shares with the others it holds behind `Arc`s. When the file is read again it takes
//! over what was made of it, between two requests.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::accept::accept;
use super::clients::Clients;
use super::connection::Connections;
use super::generation::Generation;
use super::runtime;
use super::watch::Watches;
use crate::observe::access::LogSender;
use crate::observe::metrics::Metrics;
use crate::session::Memory;

/// What all workers share as long as the process lives.
pub(super) struct Shared {
    pub(super) memory: Arc<Memory>,
    pub(super) metrics: Arc<Metrics>,
    /// One for each connection that may be open.
    pub(super) permits: Arc<Semaphore>,
    pub(super) clients: Arc<Clients>,
    pub(super) log: Option<LogSender>,
}

/// A generation for every worker to take.
#[derive(Clone)]
pub(super) struct Handed {
    pub(super) generation: Arc<Generation>,
    /// Is told by each worker that has taken it.
    pub(super) taken: mpsc::UnboundedSender<()>,
}

/// A worker that has not begun.
pub(super) struct Worker {
    /// At least one.
    pub(super) listeners: Vec<std::net::TcpListener>,
    pub(super) shared: Arc<Shared>,
    /// The generation in force.
    pub(super) handed: watch::Receiver<Handed>,
    /// Becomes true when no connection is to be taken any more.
    pub(super) stopped: watch::Receiver<bool>,
}

impl Worker {
    /// Serves on this thread until it is stopped and drained.
    pub(super) fn run(self) -> io::Result<()> {
        runtime()?.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<()> {
        let Self { listeners, shared, mut handed, mut stopped } = self;
        let first = handed.borrow_and_update().generation.clone();
        let metrics = Rc::new(shared.metrics.worker());
        let format = first.config().log.format;
        let log = shared.log.clone().map(|sender| sender.log(format, metrics.clone()));
        if let Some(log) = log.clone() {
            tokio::task::spawn_local(log.flush_regularly());
        }
        let watches = Watches::new(&first.config().server.limits);
        tokio::task::spawn_local(watches.clone().look_regularly());
        // Nothing is ever sent: it closes when the last connection has ended.
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let memory = shared.memory.clone();
        let connections = Connections::new(
            &first,
            memory,
            watches,
            metrics,
            log.clone(),
            shared.clients.clone(),
            stopped.clone(),
        );
        let connections = Rc::new(connections);
        drop(first);
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let (connections, alive) = (connections.clone(), alive.clone());
            let serve = move |stream, address, permit| {
                let (connections, alive) = (connections.clone(), alive.clone());
                tokio::task::spawn_local(async move {
                    connections.serve(stream, address, permit).await;
                    drop(alive);
                });
            };
            let listener = TcpListener::from_std(listener)?;
            accepting.spawn_local(accept(listener, shared.permits.clone(), stopped.clone(), serve));
        }
        loop {
            tokio::select! {
                // The senders live until every worker has ended.
                _ = stopped.wait_for(|stopped| *stopped) => break,
                Ok(()) = handed.changed() => {
                    let Handed { generation, taken } = handed.borrow_and_update().clone();
                    connections.take_over(&generation);
                    let _ = taken.send(());
                }
            }
        }
        connections.stop();
        drop(alive);
        let drained = async {
            while accepting.join_next().await.is_some() {}
            let _ = ended.recv().await;
            connections.settled().await;
        };
        let drain_time = handed.borrow().generation.config().server.limits.drain_time;
        if tokio::time::timeout(drain_time, drained).await.is_err() {
            tracing::warn!(after = ?drain_time, "requests under way were cut off");
        }
        if let Some(log) = log {
            log.flush();
        }
        Ok(())
    }
}
