//! Every upstream of a configuration, as all workers share it: how it is reached, and in what
//! condition it is. Routes that name the same upstream share both.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::condition::Condition;
use crate::config::value::UpstreamUrl;
use crate::config::{Limits, Route};

/// The upstreams of all routes.
pub struct Directory {
    pub(super) limits: Limits,
    pub(super) known: Vec<Known>,
    /// The entries of each route, in the file's order.
    pub(super) routes: Vec<Vec<Entry>>,
}

/// One upstream.
pub(super) struct Known {
    pub(super) url: UpstreamUrl,
    pub(super) tls: TlsConnector,
    pub(super) condition: Arc<Condition>,
}

/// One upstream of a route.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Which of those known.
    pub(super) index: usize,
    pub(super) weight: u32,
}

impl Directory {
    /// The upstreams of these routes; `tls` is what https upstreams are asked with.
    pub fn new(routes: &[Route], limits: &Limits, tls: &Arc<rustls::ClientConfig>) -> Self {
        let mut directory = Self { limits: limits.clone(), known: vec![], routes: vec![] };
        for route in routes {
            let entries = route.upstream.iter().map(|upstream| Entry {
                index: directory.index(&upstream.url, tls),
                weight: upstream.weight,
            });
            let entries = entries.collect();
            directory.routes.push(entries);
        }
        directory
    }

    /// Where this upstream is known; from now on, if it was not.
    fn index(&mut self, url: &UpstreamUrl, tls: &Arc<rustls::ClientConfig>) -> usize {
        let found = self.known.iter().position(|known| known.url == *url);
        found.unwrap_or_else(|| {
            self.known.push(Known {
                url: url.clone(),
                tls: TlsConnector::from(tls.clone()),
                condition: Arc::new(Condition::new(url.to_string())),
            });
            self.known.len() - 1
        })
    }

    /// Each upstream by its name, for an operator's numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Numbers> {
        self.known.iter().map(|known| Numbers {
            upstream: known.url.to_string(),
            ejections: known.condition.ejections(),
        })
    }
}

/// What is counted of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// As configured.
    pub upstream: String,
    /// How often it was left out.
    pub ejections: u64,
}
