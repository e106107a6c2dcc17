//! Reading gateway.toml again while serving: when, what becomes of it, and who is told. A file that is
//! wrong, or that changes what only a start can change, leaves everything as it was. It knows
//! generations as a whole, not what is in them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::generation::Generation;
use super::permits::Permits;
use super::worker::Handed;
use crate::clock::Timestamp;
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::files::SourceFile;
use crate::config::{self, Loaded, Read};
use crate::observe;
use crate::observe::metrics::{Metrics, ReloadOutcome};
use crate::session::Memory;
use crate::session::redis_store::{self, Health};

/// How often the files are looked at. What has changed has to look the same twice: a certificate
/// and its key are written one after the other.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a worker may take to take a generation over: it does so between two requests.
const TAKE_TIME: Duration = Duration::from_secs(10);

/// Where a configuration came from.
#[derive(Debug)]
pub struct Source {
    /// gateway.toml
    pub path: PathBuf,
    /// It and every file that it names, as they were when they were read.
    pub files: Vec<SourceFile>,
}

/// The generation in force, and what lasts longer and depends on it.
pub(super) struct InForce {
    source: Option<Source>,
    hand: watch::Sender<Handed>,
    workers: usize,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    /// Connections over TLS, and those that are only sent there.
    pub(super) permits: Permits,
    pub(super) redirect_permits: Permits,
    /// Whether Redis can be reached, where it keeps the sessions.
    pub(super) health: Option<Arc<Health>>,
    /// Keeps the provider discovered.
    discovering: JoinHandle<()>,
    /// Hears what other gateways say.
    hearing: Option<JoinHandle<()>>,
}

impl InForce {
    /// The generation of the start. Runs on a [`tokio::task::LocalSet`] or a local runtime.
    pub(super) fn new(
        source: Option<Source>,
        first: Generation,
        metrics: Arc<Metrics>,
        memory: Arc<Memory>,
    ) -> Self {
        let generation = Arc::new(first);
        let config = generation.config();
        let server = &config.server;
        let health = config.session.redis.as_ref().map(|_| Arc::new(Health::default()));
        metrics.configured(Timestamp::now().0);
        generation.directory.watch();
        Self {
            source,
            workers: server.workers,
            permits: Permits::new(server.limits.connections),
            redirect_permits: Permits::new(server.limits.connections),
            discovering: discover(&generation),
            hearing: hear(&generation, &memory, health.as_ref()),
            health,
            metrics,
            memory,
            hand: watch::Sender::new(Handed { generation, taken: mpsc::unbounded_channel().0 }),
        }
    }

    /// The generation in force, now and later.
    pub(super) fn handed(&self) -> watch::Receiver<Handed> {
        self.hand.subscribe()
    }

    /// Ends when the file, or one that it names, has changed.
    pub(super) async fn changed(&self) {
        let Some(source) = &self.source else { return std::future::pending().await };
        let mut last = Vec::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now: Vec<_> = source.files.iter().map(SourceFile::look_again).collect();
            if now != source.files && now == last {
                return;
            }
            last = now;
        }
    }

    /// Reads the file again; what it says is in force when this ends, or what it said before.
    pub(super) async fn reload(&mut self) {
        let Some(source) = &mut self.source else {
            return tracing::warn!("there is no file to read again");
        };
        let file = source.path.display().to_string();
        let Read { outcome, files } = config::read(&source.path);
        // Of a file that is wrong, too: what it names may be what is missing.
        let known = std::mem::replace(&mut source.files, files);
        let outcome = match outcome {
            Ok(loaded) => self.take(loaded).await,
            Err(wrong) => {
                wrong.list.iter().for_each(tell);
                Err(wrong.list.len() + wrong.more)
            }
        };
        match outcome {
            Ok(()) => {
                self.metrics.configured(Timestamp::now().0);
                self.metrics.reload(ReloadOutcome::Applied);
                tracing::info!(file, "the configuration was read again and is in force");
            }
            Err(errors) => {
                self.keep_looking_at(&known);
                self.hand.borrow().generation.certificates.reread();
                self.metrics.reload(ReloadOutcome::Refused);
                tracing::error!(
                    file,
                    errors,
                    "the configuration was not taken: the one before stays in force"
                );
            }
        }
    }

    /// Puts a configuration in force.
    ///
    /// # Errors
    /// How many reasons, each of which was told, there are against it.
    async fn take(&mut self, loaded: Loaded) -> Result<(), usize> {
        loaded.warnings.iter().for_each(tell);
        let before = self.hand.borrow().generation.clone();
        let generation = match before.next(loaded.config).await {
            Ok(generation) => Arc::new(generation),
            Err(refused) => {
                for problem in &refused {
                    tracing::error!(%problem, "the configuration cannot be taken");
                }
                return Err(refused.len());
            }
        };
        let config = generation.config();
        generation.directory.watch();
        observe::log::change(&config.log);
        self.permits.set(config.server.limits.connections);
        self.redirect_permits.set(config.server.limits.connections);
        if !Arc::ptr_eq(&before.parties.provider, &generation.parties.provider) {
            self.discovering.abort();
            self.discovering = discover(&generation);
        }
        if before.config().session.redis != config.session.redis {
            if let Some(hearing) = self.hearing.take() {
                hearing.abort();
            }
            self.hearing = hear(&generation, &self.memory, self.health.as_ref());
        }
        self.hand_over(generation).await;
        Ok(())
    }

    async fn hand_over(&self, generation: Arc<Generation>) {
        let (taken, mut all) = mpsc::unbounded_channel();
        self.hand.send_replace(Handed { generation, taken });
        let everybody = async {
            for _ in 0..self.workers {
                all.recv().await;
            }
        };
        if tokio::time::timeout(TAKE_TIME, everybody).await.is_err() {
            tracing::warn!("not every worker has taken over the configuration yet");
        }
    }

    /// What was looked at stays so, beside what a file that was not taken names.
    fn keep_looking_at(&mut self, known: &[SourceFile]) {
        let Some(source) = &mut self.source else { return };
        for file in known {
            if !source.files.iter().any(|named| named.is_same_path(file)) {
                source.files.push(file.look_again());
            }
        }
    }
}

fn discover(generation: &Generation) -> JoinHandle<()> {
    let provider = generation.parties.provider.clone();
    tokio::task::spawn_local(async move { provider.stay_discovered().await })
}

fn hear(
    generation: &Generation,
    memory: &Arc<Memory>,
    health: Option<&Arc<Health>>,
) -> Option<JoinHandle<()>> {
    let (redis, health) = (generation.config().session.redis.clone()?, health?.clone());
    Some(tokio::task::spawn_local(redis_store::follow(redis, memory.clone(), health)))
}

/// One line of the log for one fault.
fn tell(diagnostic: &Diagnostic) {
    let Diagnostic { severity, file, place, key, message: problem, remedy } = diagnostic;
    let at = place
        .as_ref()
        .map_or_else(|| file.clone(), |place| format!("{file}:{}:{}", place.line, place.column));
    let (key, problem, remedy) = (key.as_str(), problem.as_str(), remedy.as_str());
    match severity {
        Severity::Error => tracing::error!(at, key, problem, remedy, "the configuration is wrong"),
        Severity::Warning => {
            tracing::warn!(at, key, problem, remedy, "the configuration should be looked at");
        }
    }
}
