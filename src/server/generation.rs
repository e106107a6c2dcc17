//! What one reading of gateway.toml makes of the gateway: everything that is replaced as a whole when
//! the file is read again. What outlives it (sockets, the sessions' memory, numbers, permits) is not
//! here; who reads the file and when is not known here.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;

use super::StartError;
use super::tls::{self, Certificates, Tickets};
use crate::config::Config;
use crate::login::{Pace, Parties, Provider, ProviderError, Refreshes};
use crate::route::Routes;
use crate::session::Sealer;
use crate::upstream::Directory;

/// How long another provider may take to be reached before it is taken.
const REACH_TIME: Duration = Duration::from_secs(10);

/// One configuration, with what is made of it once for all workers.
pub(super) struct Generation {
    pub(super) parties: Parties,
    pub(super) directory: Arc<Directory>,
    pub(super) server_tls: Arc<ServerConfig>,
    pub(super) certificates: Arc<Certificates>,
    /// For the listener that only redirects.
    pub(super) routes: Routes,
    tickets: Tickets,
}

/// Why a configuration that is right cannot take the place of the one in force.
#[derive(Debug, Error)]
pub(super) enum Refused {
    /// It changes what is settled when the process starts.
    #[error("{key} cannot change while the gateway serves: restart it, or write what stood there")]
    Settled { key: &'static str },
    /// Logins would have been impossible from now on.
    #[error("provider: it cannot be reached, and so nobody could log in: {0}")]
    Provider(#[source] ProviderError),
    /// The same, for it did not answer.
    #[error("provider: it did not answer within {REACH_TIME:?}, and so nobody could log in")]
    Late,
    /// What would have kept the gateway from starting.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Generation {
    /// The first one.
    pub(super) fn first(config: Config) -> Result<Self, StartError> {
        let client_tls = tls::roots()?;
        let provider = Arc::new(Provider::new(&config.provider, &client_tls)?);
        let (refreshes, pace) = Default::default();
        Self::new(config, &client_tls, provider, refreshes, pace, Tickets::new()?, None)
    }

    /// Ends when logins are possible.
    ///
    /// # Errors
    /// When the provider cannot be reached in time.
    pub(super) async fn reach_provider(&self) -> Result<(), Refused> {
        reach(&self.parties.provider).await
    }

    /// The one that takes this one's place. Logins under way, refreshes and TLS tickets go on;
    /// another provider is reached first.
    pub(super) async fn next(&self, config: Config) -> Result<Self, Vec<Refused>> {
        let before = &self.parties;
        let settled = settled(&before.config, &config);
        if !settled.is_empty() {
            return Err(settled.into_iter().map(|key| Refused::Settled { key }).collect());
        }
        let one = |refused: StartError| vec![Refused::from(refused)];
        let client_tls = tls::roots().map_err(|error| one(error.into()))?;
        let provider = if before.config.provider == config.provider {
            before.provider.clone()
        } else {
            let provider = before.provider.with(&config.provider, &client_tls);
            let provider = provider.map_err(|error| one(error.into()))?;
            reach(&provider).await.map_err(|refused| vec![refused])?;
            Arc::new(provider)
        };
        let (refreshes, pace) = (before.refreshes.clone(), before.pace.clone());
        // SECURITY: a resumed session is not verified again: who was let in under other rules has
        // to show a certificate under these.
        let same = before.config.server.client_certificates == config.server.client_certificates;
        let tickets = if same { Ok(self.tickets.clone()) } else { Tickets::new() };
        let tickets = tickets.map_err(|error| one(error.into()))?;
        let directory = Some(&*self.directory);
        Self::new(config, &client_tls, provider, refreshes, pace, tickets, directory).map_err(one)
    }

    fn new(
        config: Config,
        client_tls: &Arc<ClientConfig>,
        provider: Arc<Provider>,
        refreshes: Arc<Refreshes>,
        pace: Arc<Pace>,
        tickets: Tickets,
        before: Option<&Directory>,
    ) -> Result<Self, StartError> {
        let certificates = Certificates::read(&config.server.certificates)?;
        let clients = config.server.client_certificates.as_ref();
        let server_tls = tls::settings(certificates.clone(), clients, &tickets)?;
        let routes = Routes::new(&config);
        let directory = Directory::new(&config.routes, &config.server.limits, client_tls, before)?;
        let directory = Arc::new(directory);
        let sealer = Arc::new(Sealer::new(&config.session.secrets));
        let parties = Parties { config: Arc::new(config), provider, sealer, refreshes, pace };
        Ok(Self { parties, directory, server_tls, certificates, routes, tickets })
    }

    /// The configuration.
    pub(super) fn config(&self) -> &Arc<Config> {
        &self.parties.config
    }
}

async fn reach(provider: &Provider) -> Result<(), Refused> {
    let reached = tokio::time::timeout(REACH_TIME, provider.reach()).await;
    reached.map_err(|_| Refused::Late)?.map_err(Refused::Provider)
}

/// The keys that differ and that only a start can change: sockets are bound, threads run, and
/// sessions are kept in one of two ways.
fn settled(before: &Config, after: &Config) -> Vec<&'static str> {
    let (old, new) = (&before.server, &after.server);
    let kept_in = |config: &Config| config.session.redis.is_some();
    [
        ("server.https", old.https == new.https),
        ("server.http", old.http == new.http),
        ("server.admin", old.admin == new.admin),
        ("server.handover", old.handover == new.handover),
        ("server.workers", old.workers == new.workers),
        ("session.redis", kept_in(before) == kept_in(after)),
    ]
    .into_iter()
    .filter_map(|(key, same)| (!same).then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sample;

    #[test]
    fn what_only_a_start_can_change_is_named() {
        let before = sample::config();
        let mut after = before.clone();
        after.routes.clear();
        assert!(settled(&before, &after).is_empty());
        let server = &mut after.server;
        server.https.set_port(1);
        server.http = Some(server.https);
        server.admin = Some(server.https);
        server.handover = Some("x".into());
        server.workers += 1;
        assert_eq!(
            settled(&before, &after),
            ["https", "http", "admin", "handover", "workers"].map(|key| format!("server.{key}"))
        );
    }
}
