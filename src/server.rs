//! Sockets, threads and signals: everything around the gateway that is not a request. One thread a
//! worker, each with a runtime, a listener and upstream connections of its own; what they share is
//! behind an `Arc`. This thread keeps the rest: the redirect, the admin listener, the provider's
//! discovery, certificates, signals.
//!
//! | file | question |
//! |---|---|
//! | `listen` | which sockets are there? |
//! | `accept` | when is a connection taken? |
//! | `worker` | what does a thread own? |
//! | `connection` | TLS, HTTP, and when does a connection end? |
//! | `watch` | what does a connection do, or not do? |
//! | `tls` | which certificate, which protocol? |
//! | `coalesce` | how does HTTP/2 write less often? |
//! | `plain` | the listeners without TLS: redirect, admin |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch::{Receiver, channel};
use tokio::sync::{Semaphore, mpsc};

use crate::config::Config;
use crate::config::certificate::CertificateError;
use crate::login::{KeyError, Parties, Provider, Refreshes};
use crate::observe::access::Writer;
use crate::observe::admin::Readiness;
use crate::observe::metrics::{Metrics, UpstreamNumbers};
use crate::observe::request::route_name;
use crate::session::memory::Bounds;
use crate::session::redis_store::{self, Health};
use crate::session::{Memory, Sealer};
use crate::upstream::Directory;

mod accept;
mod coalesce;
mod connection;
mod listen;
mod plain;
mod tls;
mod watch;
mod worker;

use listen::Listeners;
use tls::Certificates;
use worker::{Shared, Worker};

/// Where the gateway listens: the addresses as bound, port 0 replaced by the one it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// `server.https`
    pub https: SocketAddr,
    /// `server.http`
    pub http: Option<SocketAddr>,
    /// `server.admin`
    pub admin: Option<SocketAddr>,
}

/// Why the gateway did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address is taken, or not this machine's.
    #[error("server.{key}: cannot listen on {address}: {source}")]
    Listen {
        /// The key of `[server]`.
        key: &'static str,
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A certificate has changed since the configuration was read.
    #[error("server.certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// rustls does not take the settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The proof of the client is no good.
    #[error("provider: {0}")]
    Provider(#[from] KeyError),
    /// No thread, no runtime, no signal handler.
    #[error("the system refused what the gateway needs: {0}")]
    System(#[from] io::Error),
}

/// Serves until SIGTERM or SIGINT, then lets the requests under way finish, for
/// `server.limits.drain_time` at most. `listening` is called once every socket is open.
///
/// # Errors
/// Only before anything is served.
pub fn serve(config: Config, listening: impl FnOnce(&Addresses)) -> Result<(), StartError> {
    runtime()?.block_on(run(Arc::new(config), listening))
}

/// Turns of tasks before sockets are looked at again. tokio's 61 are those of a dozen requests: with
/// more, one look finds more answers for a connection, and `coalesce` writes them as one.
const TURNS: u32 = 256;

/// One thread's runtime.
fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .event_interval(TURNS)
        .build_local(LocalOptions::default())
}

async fn run(config: Arc<Config>, listening: impl FnOnce(&Addresses)) -> Result<(), StartError> {
    let certificates = Certificates::read(&config.server.certificates)?;
    let client_tls = tls::roots()?;
    let provider = Arc::new(Provider::new(&config.provider, &client_tls)?);
    let memory = Arc::new(Memory::new(Bounds::default()));
    let directory = Directory::new(&config.routes, &config.server.limits, &client_tls)?;
    let directory = Arc::new(directory);
    let metrics = Metrics::new(
        config.routes.iter().map(route_name).collect(),
        memory.clone(),
        upstream_numbers(&directory),
    );
    let mut signals = Signals::new()?;
    let Listeners { https, http, admin, addresses } = Listeners::open(&config.server)?;
    let log = Writer::start(&config.log);
    let shared = Arc::new(Shared {
        parties: Parties {
            sealer: Arc::new(Sealer::new(&config.session.secrets)),
            provider: provider.clone(),
            refreshes: Arc::new(Refreshes::default()),
            config: config.clone(),
        },
        memory: memory.clone(),
        metrics: metrics.clone(),
        server_tls: tls::settings(certificates.clone())?,
        directory: directory.clone(),
        certificates: certificates.clone(),
        permits: Arc::new(Semaphore::new(config.server.limits.connections)),
        log: log.as_ref().map(Writer::sender),
    });
    let (stop, stopped) = channel(false);
    let workers = Workers::start(https, &shared, &stopped)?;
    drop(shared);

    if let Some(listener) = http {
        plain::redirect(listener, &config);
    }
    let sessions = config.session.redis.clone().map(|redis| {
        let health = Arc::new(Health::default());
        tokio::task::spawn_local(redis_store::follow(redis, memory, health.clone()));
        health
    });
    if let Some(listener) = admin {
        let provider = provider.clone();
        let ready = move || Readiness {
            provider: provider.is_ready(),
            sessions: sessions.as_ref().is_none_or(|health| health.is_good()),
        };
        plain::admin(listener, metrics, ready);
    }
    tokio::task::spawn_local(async move { provider.stay_discovered().await });
    directory.watch();
    let watched = certificates.clone();
    tokio::task::spawn_local(async move { watched.watch().await });
    listening(&addresses);

    signals.wait_for_end(|| certificates.reread()).await;
    tracing::info!("stopping: requests under way may finish");
    // The workers hold receivers as long as they live.
    let _ = stop.send(true);
    workers.ended().await;
    if let Some(log) = log {
        log.finish();
    }
    Ok(())
}

/// What the upstreams' directory tells the numbers.
fn upstream_numbers(
    directory: &Arc<Directory>,
) -> impl Fn() -> Vec<UpstreamNumbers> + Send + Sync + 'static {
    let directory = directory.clone();
    move || {
        let numbers = directory.numbers();
        numbers
            .map(|one| UpstreamNumbers {
                upstream: one.upstream,
                is_in: one.is_in,
                ejections: one.ejections,
                checks: one.checks,
            })
            .collect()
    }
}

/// The workers' threads.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    ends: mpsc::Receiver<()>,
}

impl Workers {
    fn start(
        listeners: Vec<std::net::TcpListener>,
        shared: &Arc<Shared>,
        stopped: &Receiver<bool>,
    ) -> io::Result<Self> {
        let (end, ends) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(listeners.len());
        for (number, listener) in listeners.into_iter().enumerate() {
            let worker = Worker { listener, shared: shared.clone(), stopped: stopped.clone() };
            let end = end.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || {
                if let Err(error) = worker.run() {
                    tracing::error!(%error, "a worker could not start");
                }
                drop(end);
            })?);
        }
        Ok(Self { threads, ends })
    }

    /// Ends when the last worker has.
    async fn ended(mut self) {
        // Nothing is ever sent: it closes.
        let _ = self.ends.recv().await;
        for thread in self.threads {
            // A panic of a worker was reported already.
            let _ = thread.join();
        }
    }
}

/// What an operator says to the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Calls `reread` at each SIGHUP; ends at SIGTERM or SIGINT.
    async fn wait_for_end(&mut self, reread: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => reread(),
            }
        }
    }
}
