//! Sockets, threads and signals: everything around the gateway that is not a request. One thread a
//! worker, each with a runtime, a listener and upstream connections of its own; what they share is
//! behind an `Arc`. This thread keeps the rest: the redirect, the admin listener, the provider's
//! discovery, the file, signals.
//!
//! | file | question |
//! |---|---|
//! | `listen` | which sockets are there? |
//! | `relief`, `handover` | how does the next process get them, and when does it serve? |
//! | `accept` | when is a connection taken? |
//! | `clients` | how many of them are one client's? |
//! | `worker` | what does a thread own? |
//! | `generation` | what is replaced when the file is read again? |
//! | `reload` | when is it read again, and what if it is wrong? |
//! | `permits` | how many connections may there be? |
//! | `serving` | how does a connection begin: PROXY, TLS, HTTP? |
//! | `connection` | what happens on it, and when does it end? |
//! | `heads` | which bytes does the HTTP/1.1 parser never get? |
//! | `interim` | what is said over HTTP/1.1 before a response? |
//! | `http2`, `date` | how does a connection of HTTP/2 become requests and responses? |
//! | `watch` | what does a connection do, or not do? |
//! | `acme` | how does the gateway get a certificate? |
//! | `tls` | which certificate, which protocol? |
//! | `client_certificate`, `der` | whose certificate does the client have? |
//! | `coalesce` | how does HTTP/2 write less often? |
//! | `proxy_protocol` | for whom does a load balancer speak? |
//! | `plain` | the listeners without TLS: redirect, admin |

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

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
mod acme;
mod client_certificate;
mod clients;
mod coalesce;
mod connection;
mod date;
mod der;
mod generation;
mod handover;
pub mod heads;
mod http2;
mod interim;
mod listen;
mod permits;
mod plain;
mod proxy_protocol;
mod relief;
mod reload;
mod serving;
mod tls;
mod watch;
mod worker;

use acme::Challenges;
use generation::Generation;
use listen::Listeners;
use relief::{ForNext, Relief};
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
    /// The service manager has opened a socket that is none of ours.
    #[error(
        "the service manager passes a socket that listens on {0}, which is neither server.https, \
         server.http nor server.admin: write it there, to the letter, or take it out of the unit"
    )]
    Unknown(SocketAddr),
    /// The process before this one could not be relieved; it goes on.
    #[error("server.handover: {path}: {source}")]
    Handover {
        /// As configured.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The same, for this one would have nobody log in.
    #[error("server.handover: the process before this one goes on: {0}")]
    Unready(#[source] Box<dyn Error + Send + Sync>),
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
/// `server.limits.drain_time` at most. `listening` is called once every socket is open, and nobody else
/// serves on them. `source`, if
/// there is one, is read again at SIGHUP and when it changes.
///
/// # Errors
/// Before anything is served; and when the process before this one was to stop, and goes on.
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
    let (relief, listeners) = Relief::open(&first).await?;
    let log = Writer::start();
    let mut in_force = InForce::new(source, first, metrics.clone(), memory.clone());
    let shared = Arc::new(Shared {
        memory,
        metrics: metrics.clone(),
        permits: in_force.permits.semaphore(),
        clients: Arc::default(),
        log: log.as_ref().map(Writer::sender),
    });
    let handed = in_force.handed();
    metrics.ask_upstreams(move || upstream_numbers(&handed.borrow().generation.directory));
    let (stop, stopped) = channel(false);
    let (close_admin, admin_closed) = channel(false);
    let Listeners { https, http, admin, addresses } = listeners;
    let workers = Workers::start(https, &shared, &in_force.handed(), &stopped)?;
    drop(shared);

    let challenges = Arc::new(Challenges::default());
    let orders = tokio::task::spawn_local(acme::keep(in_force.handed(), challenges.clone()));
    let redirects = http.map(|listener| {
        let permits = in_force.redirect_permits.semaphore();
        plain::redirect(listener, permits, in_force.handed(), challenges, stopped)
    });
    let answers = admin.map(|listener| {
        let (handed, sessions) = (in_force.handed(), in_force.health.clone());
        let ready = move || Readiness {
            provider: handed.borrow().generation.parties.provider.is_ready(),
            sessions: sessions.as_ref().is_none_or(|health| health.is_good()),
        };
        plain::admin(listener, metrics, admin_closed, ready)
    });
    let begun = relief.begin().inspect(|_| listening(&addresses));

    let end = match &begun {
        Ok(for_next) => signals.wait_for_end(&mut in_force, for_next.as_ref()).await,
        // What has come here meanwhile is answered still.
        Err(_) => End::Signal,
    };
    tracing::info!("stopping: requests under way may finish");
    orders.abort();
    // Nobody is to wait at a socket that nobody takes connections from any more.
    let failed = begun.err();
    // The workers hold receivers as long as they live.
    let _ = stop.send(true);
    // Who asks how this process is does so to its end; or asks the next one.
    let _ = close_admin.send(end == End::HandedOver);
    workers.ended().await;
    let small = async {
        for task in redirects.into_iter().chain(answers.filter(|_| end == End::HandedOver)) {
            let _ = task.await;
        }
    };
    let _ = tokio::time::timeout(SMALL_TIME, small).await;
    if let Some(log) = log {
        log.finish();
    }
    failed.map_or(Ok(()), Err)
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

/// How long the listeners without TLS are waited for: their answers are at hand.
const SMALL_TIME: Duration = Duration::from_secs(1);

/// Why the gateway stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was told to.
    Signal,
    /// Another process serves in its place.
    HandedOver,
}

/// The workers' threads.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    ends: mpsc::Receiver<()>,
}

impl Workers {
    fn start(
        listeners: Vec<Vec<TcpListener>>,
        shared: &Arc<Shared>,
        handed: &Receiver<Handed>,
        stopped: &Receiver<bool>,
    ) -> io::Result<Self> {
        let (end, ends) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(listeners.len());
        for (number, listeners) in listeners.into_iter().enumerate() {
            let (handed, stopped) = (handed.clone(), stopped.clone());
            let worker = Worker { listeners, shared: shared.clone(), handed, stopped };
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

    /// Reads the file again at each SIGHUP and when it has changed; ends at SIGTERM or SIGINT, or
    /// when the next process serves, whatever is being read.
    async fn wait_for_end(&mut self, in_force: &mut InForce, for_next: Option<&ForNext>) -> End {
        let Self { terminate, interrupt, hang_up } = self;
        let relieved = async {
            match for_next {
                Some(for_next) => for_next.taken().await,
                None => std::future::pending().await,
            }
        };
        let mut relieved = std::pin::pin!(relieved);
        loop {
            // Boxed: reading a file takes room that waiting does not need.
            let again = Box::pin(async {
                tokio::select! {
                    _ = hang_up.recv() => {}
                    () = in_force.changed() => {}
                }
                in_force.reload().await;
            });
            tokio::select! {
                _ = terminate.recv() => return End::Signal,
                _ = interrupt.recv() => return End::Signal,
                () = relieved.as_mut() => return End::HandedOver,
                () = again => {}
            }
        }
    }
}
