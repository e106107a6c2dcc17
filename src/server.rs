//! Sockets, threads and signals: everything around the gateway that is not a request. One thread a
//! worker, each with a runtime, a listener and upstream connections of its own; what they share is
//! behind an `Arc`. This thread keeps the rest: the redirect, the admin listener, the provider's
//! discovery, the file, signals.
//!
//! | file | question |
//! |---|---|
//! | `listen` | which sockets are there? |
//! | `accept` | when is a connection taken? |
//! | `worker` | what does a thread own? |
//! | `generation` | what is replaced when the file is read again? |
//! | `reload` | when is it read again, and what if it is wrong? |
//! | `permits` | how many connections may there be? |
//! | `connection` | TLS, HTTP, and when does a connection end? |
//! | `heads` | which bytes does the HTTP/1.1 parser never get? |
//! | `watch` | what does a connection do, or not do? |
//! | `tls` | which certificate, which protocol? |
//! | `client_certificate` | whose certificate does the client have? |
//! | `coalesce` | how does HTTP/2 write less often? |
//! | `proxy_protocol` | for whom does a load balancer speak? |
//! | `plain` | the listeners without TLS: redirect, admin |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::watch::{Receiver, channel};

use crate::config::Config;
use crate::config::certificate::CertificateError;
use crate::login::KeyError;
use crate::observe::access::Writer;
use crate::observe::admin::Readiness;
use crate::observe::metrics::{Metrics, UpstreamNumbers};
use crate::observe::request::route_name;
use crate::session::Memory;
use crate::session::memory::Bounds;
use crate::upstream::Directory;

mod accept;
mod client_certificate;
mod coalesce;
mod connection;
mod generation;
pub mod heads;
mod listen;
mod permits;
mod plain;
mod proxy_protocol;
mod reload;
mod tls;
mod watch;
mod worker;

use generation::Generation;
use listen::Listeners;
use reload::InForce;
pub use reload::Source;
use worker::{Handed, Shared, Worker};

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
/// `server.limits.drain_time` at most. `listening` is called once every socket is open. `source`, if
/// there is one, is read again at SIGHUP and when it changes.
///
/// # Errors
/// Only before anything is served.
pub fn serve(
    config: Config,
    source: Option<Source>,
    listening: impl FnOnce(&Addresses),
) -> Result<(), StartError> {
    runtime()?.block_on(run(config, source, listening))
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

async fn run(
    config: Config,
    source: Option<Source>,
    listening: impl FnOnce(&Addresses),
) -> Result<(), StartError> {
    let memory = Arc::new(Memory::new(Bounds::default()));
    let metrics = Metrics::new(config.routes.iter().map(route_name).collect(), memory.clone());
    let mut signals = Signals::new()?;
    let first = Generation::first(config)?;
    let Listeners { https, http, admin, addresses } = Listeners::open(&first.config().server)?;
    let log = Writer::start();
    let mut in_force = InForce::new(source, first, metrics.clone(), memory.clone());
    let shared = Arc::new(Shared {
        memory,
        metrics: metrics.clone(),
        permits: in_force.permits.semaphore(),
        log: log.as_ref().map(Writer::sender),
    });
    let handed = in_force.handed();
    metrics.ask_upstreams(move || upstream_numbers(&handed.borrow().generation.directory));
    let (stop, stopped) = channel(false);
    let workers = Workers::start(https, &shared, &in_force.handed(), &stopped)?;
    drop(shared);

    if let Some(listener) = http {
        plain::redirect(listener, in_force.redirect_permits.semaphore(), in_force.handed());
    }
    if let Some(listener) = admin {
        let (handed, sessions) = (in_force.handed(), in_force.health.clone());
        let ready = move || Readiness {
            provider: handed.borrow().generation.parties.provider.is_ready(),
            sessions: sessions.as_ref().is_none_or(|health| health.is_good()),
        };
        plain::admin(listener, metrics, ready);
    }
    listening(&addresses);

    signals.wait_for_end(&mut in_force).await;
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
fn upstream_numbers(directory: &Directory) -> Vec<UpstreamNumbers> {
    let numbers = directory.numbers().map(|one| UpstreamNumbers {
        upstream: one.upstream,
        is_in: one.is_in,
        ejections: one.ejections,
        checks: one.checks,
    });
    numbers.collect()
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
        handed: &Receiver<Handed>,
        stopped: &Receiver<bool>,
    ) -> io::Result<Self> {
        let (end, ends) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(listeners.len());
        for (number, listener) in listeners.into_iter().enumerate() {
            let (handed, stopped) = (handed.clone(), stopped.clone());
            let worker = Worker { listener, shared: shared.clone(), handed, stopped };
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

    /// Reads the file again at each SIGHUP and when it has changed; ends at SIGTERM or SIGINT,
    /// whatever is being read.
    async fn wait_for_end(&mut self, in_force: &mut InForce) {
        let Self { terminate, interrupt, hang_up } = self;
        loop {
            let again = async {
                tokio::select! {
                    _ = hang_up.recv() => {}
                    () = in_force.changed() => {}
                }
                in_force.reload().await;
            };
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                () = again => {}
            }
        }
    }
}
