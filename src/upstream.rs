//! The way to the apps: which upstream of a route a request goes to, over which connection. It
//! sends what it is given; it knows nothing of sessions or identity.
//!
//! | file | question |
//! |---|---|
//! | `connect` | how is an upstream reached: TCP, TLS, a unix socket? |
//! | `pool` | which connection is used again, and when is it free? |
//! | `http1` | what is said over one? |

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::config::value::UpstreamUrl;
use crate::config::{Limits, Route};
use crate::outbox::Outbox;

pub mod connect;
mod http1;
mod pool;

pub use http1::{ExchangeError, Switched};
use pool::{NoResponse, Pool};

/// Why there is no response from an upstream.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// There is no upstream to ask.
    #[error("the route has no upstream")]
    None,
    /// No connection to any upstream of the route; the last one's error.
    #[error("no connection to {upstream}")]
    Connect {
        /// The one tried last, as configured.
        upstream: UpstreamUrl,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or what came over it was not HTTP/1.1.
    #[error("the exchange with {upstream} broke off")]
    Broken {
        /// As configured.
        upstream: UpstreamUrl,
        /// What went wrong.
        #[source]
        source: ExchangeError,
    },
    /// No response head within `response_time` of the last byte sent.
    #[error("{upstream} sent no response within {limit:?}")]
    Late {
        /// As configured.
        upstream: UpstreamUrl,
        /// `[server.limits] response_time`
        limit: Duration,
    },
}

/// Every upstream, with one worker's connections to it.
pub struct Upstreams {
    routes: Vec<Balanced>,
}

/// The upstreams of one route, taken in turn.
struct Balanced {
    pools: Vec<Rc<Pool>>,
    turn: Cell<usize>,
}

impl Upstreams {
    /// For one worker. Routes that name the same upstream share its connections.
    pub fn new(
        routes: &[Route],
        limits: &Limits,
        tls: &Arc<rustls::ClientConfig>,
        outbox: &Arc<Outbox>,
    ) -> Self {
        let mut known: HashMap<UpstreamUrl, Rc<Pool>> = HashMap::new();
        let mut pool = |url: &UpstreamUrl| {
            let new = || {
                let tls = TlsConnector::from(tls.clone());
                Rc::new(Pool::new(url.clone(), tls, limits, outbox.clone()))
            };
            known.entry(url.clone()).or_insert_with(new).clone()
        };
        let balanced = |route: &Route| Balanced {
            pools: route.upstream.iter().map(&mut pool).collect(),
            turn: Cell::new(0),
        };
        Self { routes: routes.iter().map(balanced).collect() }
    }

    /// Sends a request to the next upstream of the route with this index. Where no connection can
    /// be had nothing was sent, and the one after it is asked.
    pub async fn send(
        &self,
        route: usize,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut failed = UpstreamError::None;
        let Some(balanced) = self.routes.get(route) else { return Err(failed) };
        let count = balanced.pools.len();
        let first = balanced.turn.get() % count.max(1);
        balanced.turn.set(first + 1);
        for pool in balanced.pools.iter().cycle().skip(first).take(count) {
            match pool.send(request).await {
                Ok(response) => return Ok(response),
                Err(NoResponse::Sent(error)) => return Err(error),
                Err(NoResponse::Unsent(back, error)) => (request, failed) = (*back, error),
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests;
