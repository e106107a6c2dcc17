//! Every upstream of a configuration, as all workers share it: how it is reached, and in what
//! condition it is. Routes that name the same upstream share both.

use std::sync::Arc;

use rustls::ClientConfig;

use super::condition::{Condition, State};
use super::connect::Reach;
use super::health;
use super::names::{self, Moves, Names};
use crate::config::upstream::{HealthCheck, Upstream, UpstreamProtocol};
use crate::config::value::UpstreamUrl;
use crate::config::{Limits, Route};

/// The upstreams of all routes.
pub struct Directory {
    pub(super) limits: Limits,
    pub(super) names: Names,
    pub(super) known: Vec<Known>,
    /// The entries of each route, in the file's order.
    pub(super) routes: Vec<Vec<Entry>>,
}

/// One upstream.
pub(super) struct Known {
    /// As the first route that names it has it.
    pub(super) upstream: Upstream,
    pub(super) ways: Ways,
    /// What it is called in the log and in numbers; no two are called the same.
    name: String,
    /// Of all routes that name it.
    pub(super) checks: Vec<HealthCheck>,
    pub(super) condition: Arc<Condition>,
    /// Where its name had addresses that it has no more.
    pub(super) moves: Moves,
}

/// Which protocols it may be asked in, and with which TLS, if it is an https upstream.
#[derive(Clone)]
pub(super) enum Ways {
    Http1(Reach),
    Http2(Reach),
    /// The handshake says.
    Either {
        http1: Reach,
        http2: Reach,
    },
}

impl Ways {
    fn new(
        upstream: &Upstream,
        base: &Arc<ClientConfig>,
        names: &Names,
        limits: &Limits,
    ) -> Result<Self, rustls::Error> {
        let tls = |protocols: &[&[u8]]| {
            let settings = upstream.tls.as_deref();
            Reach::new(base, settings, protocols, names.clone(), limits.response_time)
        };
        let secure = matches!(upstream.url, UpstreamUrl::Https { .. });
        Ok(match upstream.protocol {
            UpstreamProtocol::Http2 => Self::Http2(tls(&[b"h2"])?),
            UpstreamProtocol::Auto if secure => {
                Self::Either { http1: tls(&[b"http/1.1"])?, http2: tls(&[b"h2", b"http/1.1"])? }
            }
            UpstreamProtocol::Auto | UpstreamProtocol::Http1 => Self::Http1(tls(&[b"http/1.1"])?),
        })
    }
}

/// One upstream of a route.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Which of those known.
    pub(super) index: usize,
    pub(super) weight: u32,
}

impl Known {
    /// Whether it is the same upstream, reached in the same way.
    fn is(&self, upstream: &Upstream) -> bool {
        let Upstream { url, protocol, tls, weight: _ } = &self.upstream;
        (url, protocol, tls) == (&upstream.url, &upstream.protocol, &upstream.tls)
    }
}

impl Directory {
    /// The upstreams of these routes; `tls` is what https upstreams are asked with. What was known of
    /// them `before` is known on.
    ///
    /// # Errors
    /// If rustls does not take the settings of one.
    pub fn new(
        routes: &[Route],
        limits: &Limits,
        tls: &Arc<ClientConfig>,
        before: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        Self::with_names(routes, limits, tls, before, Names::system())
    }

    /// The same with another resolver.
    pub(super) fn with_names(
        routes: &[Route],
        limits: &Limits,
        tls: &Arc<ClientConfig>,
        before: Option<&Self>,
        names: Names,
    ) -> Result<Self, rustls::Error> {
        let mut directory = Self { limits: limits.clone(), names, known: vec![], routes: vec![] };
        for route in routes {
            let mut entries = Vec::with_capacity(route.upstream.len());
            for upstream in &route.upstream {
                let index = directory.index(upstream, tls)?;
                if let (Some(known), Some(check)) = (directory.known.get_mut(index), &route.health)
                    && !known.checks.contains(check)
                {
                    known.checks.push(check.clone());
                }
                entries.push(Entry { index, weight: upstream.weight });
            }
            directory.routes.push(entries);
        }
        for known in &mut directory.known {
            // Under other checks it may be well.
            let same = |old: &&Known| old.is(&known.upstream) && old.checks == known.checks;
            if let Some(old) = before.and_then(|before| before.known.iter().find(same)) {
                known.condition = old.condition.clone();
            }
        }
        Ok(directory)
    }

    /// What is known of the upstreams of the directory before this one is true of the same ones here.
    pub fn take_over(&mut self, before: &Self) {
        for known in &mut self.known {
            let same = |old: &&Known| {
                old.upstream.url == known.upstream.url
                    && old.upstream.tls == known.upstream.tls
                    && old.name == known.name
                    && old.checks == known.checks
            };
            if let Some(old) = before.known.iter().find(same) {
                known.condition = old.condition.clone();
            }
        }
    }

    /// Where this upstream is known; from now on, if it was not.
    fn index(
        &mut self,
        upstream: &Upstream,
        tls: &Arc<ClientConfig>,
    ) -> Result<usize, rustls::Error> {
        if let Some(index) = self.known.iter().position(|known| known.is(upstream)) {
            return Ok(index);
        }
        let url = upstream.url.to_string();
        let others = self.known.iter().filter(|known| known.upstream.url == upstream.url).count();
        let name = if others == 0 { url } else { format!("{url} #{}", others + 1) };
        self.known.push(Known {
            ways: Ways::new(upstream, tls, &self.names, &self.limits)?,
            upstream: upstream.clone(),
            condition: Arc::new(Condition::new(name.clone())),
            checks: vec![],
            moves: Moves::default(),
            name,
        });
        Ok(self.known.len() - 1)
    }

    /// Each upstream by its name, for an operator's numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Numbers> {
        self.known.iter().map(|known| Numbers {
            upstream: known.name.clone(),
            is_in: known.condition.state() != State::Out,
            ejections: known.condition.ejections(),
            checks: (!known.checks.is_empty()).then(|| known.condition.checks()),
        })
    }

    /// Begins to check those upstreams that are to be checked, and to look up those that have names;
    /// ends when nobody else holds the directory any more.
    pub fn watch(self: &Arc<Self>) {
        health::watch(self);
        names::watch(self);
    }
}

/// What is counted of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// As configured.
    pub upstream: String,
    /// Whether it is asked like any other.
    pub is_in: bool,
    /// How often it was left out because it failed.
    pub ejections: u64,
    /// How many checks have passed and how many have failed, if there are any.
    pub checks: Option<[u64; 2]>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::condition::Fault;
    use super::*;
    use crate::config::sample;

    fn directory(check_every: Option<u64>, before: Option<&Directory>) -> Directory {
        let tls =
            ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let health = check_every.map(|seconds| HealthCheck {
            path: "/up".parse().unwrap(),
            host: None,
            interval: Duration::from_secs(seconds),
            timeout: Duration::from_secs(1),
            status: None,
            down_after: 1,
            up_after: 1,
        });
        let routes = [Route { health, ..sample::route() }, sample::route()];
        Directory::new(&routes, &sample::limits(), &Arc::new(tls), before).unwrap()
    }

    #[test]
    fn routes_that_name_one_upstream_share_what_is_known_of_it() {
        let directory = directory(Some(1), None);
        assert_eq!(directory.known.len(), 1);
        assert_eq!(directory.known[0].checks.len(), 1);
        assert!(directory.routes.iter().flatten().all(|entry| entry.index == 0));
    }

    #[test]
    fn what_was_known_outlives_a_reload_unless_it_is_checked_in_another_way() {
        let before = directory(Some(1), None);
        before.known[0].condition.failed(Fault::Unreachable);
        let state = |directory: &Directory| directory.known[0].condition.state();
        assert_eq!(state(&directory(Some(1), Some(&before))), State::Out);
        assert_eq!(state(&directory(Some(2), Some(&before))), State::In);
        assert_eq!(state(&directory(None, Some(&before))), State::In);
    }
}
