//! The way to the apps: which upstream of a route a request goes to, over which connection. It
//! sends what it is given; it knows nothing of sessions or identity.
//!
//! | file | question |
//! |---|---|
//! | `directory` | which upstreams are there? |
//! | `balance` | which of several is asked? |
//! | `condition` | is it worth asking? |
//! | `witness` | whose fault is it that it did not answer? |
//! | `health` | is it well, when nobody asks for anything else? |
//! | `connect` | how is an upstream reached: TCP, TLS, a unix socket? |
//! | `names` | where is it, and where is it no more? |
//! | `channel` | in which protocol? |
//! | `http2` | how are many requests sent over one connection? |
//! | `pool` | which connection is used again, and when is it free? |
//! | `http1` | what is said over one? |
//! | `switched`, `websocket` | what becomes of one that is no longer HTTP? |

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::body::Body;
use crate::config::value::UpstreamUrl;
use crate::outbox::Outbox;
use http::{HeaderMap, Request, Response, StatusCode};
use thiserror::Error;

mod balance;
mod channel;
mod condition;
pub mod connect;
mod directory;
mod health;
pub mod http1;
mod http2;
mod names;
mod pool;
mod switched;
pub mod websocket;
mod witness;

use balance::{Balance, Except, Member, UnderWay, spread};
use channel::Channel;
use condition::{Condition, Fault};
pub use directory::{Directory, Numbers};
use directory::{Entry, Known};
pub use http1::ExchangeError;
pub use http2::Http2Error;
use pool::NoResponse;
pub use switched::Switched;
use witness::Witness;

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
    /// The same over HTTP/2.
    #[error("the exchange with {upstream} broke off")]
    Http2 {
        /// As configured.
        upstream: UpstreamUrl,
        /// What went wrong.
        #[source]
        source: Http2Error,
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

impl UpstreamError {
    /// Whether nothing was sent, for the request itself cannot be.
    fn is_refusal(&self) -> bool {
        use Http2Error::{Handshake, NoWebSockets, Request};
        let Self::Http2 { source, .. } = self else { return false };
        matches!(source, Request | Handshake | NoWebSockets)
    }
}

/// Hears each interim response that comes before the response (RFC 9110, section 15.2), but for those
/// that one connection's two ends say to each other: `100`, and `101` over HTTP/1.1, which is final.
pub type Hear<'a> = &'a dyn Fn(StatusCode, HeaderMap);

/// Whether an interim response is for more than one connection's two ends: the gateway asks for no
/// `100` (RFC 9110, section 10.1.1) and for a `101` only over HTTP/1.1, where that is the answer.
fn is_for_all(status: StatusCode) -> bool {
    status != StatusCode::CONTINUE && status != StatusCode::SWITCHING_PROTOCOLS
}

/// One worker's connections to every upstream.
pub struct Upstreams {
    routes: Vec<Choice>,
}

/// The upstreams of one route.
enum Choice {
    /// There is nothing to choose.
    One(Channel),
    Many(Many),
}

struct Many {
    balance: Balance,
    places: Vec<Place>,
}

/// One worker's way to an upstream.
#[derive(Clone)]
struct Place {
    channel: Channel,
    condition: Arc<Condition>,
    under_way: Arc<AtomicU32>,
    spread: u64,
}

impl Upstreams {
    /// For one worker. Routes that name the same upstream share its connections.
    pub fn new(directory: &Directory, outbox: &Arc<Outbox>) -> Self {
        let place = |known: &Known| Place {
            channel: Channel::new(known, &directory.limits, outbox),
            condition: known.condition.clone(),
            under_way: Arc::default(),
            spread: spread(&known.upstream.url.to_string()),
        };
        let places: Vec<Place> = directory.known.iter().map(place).collect();
        let choice = |entries: &Vec<Entry>| {
            let of = |entry: &Entry| Some((places.get(entry.index)?.clone(), entry.weight));
            let mut all: Vec<(Place, u32)> = entries.iter().filter_map(of).collect();
            match (all.pop(), all.is_empty()) {
                (Some((only, _)), true) => Choice::One(only.channel),
                (last, _) => Choice::Many(Many::new(all.into_iter().chain(last))),
            }
        };
        Self { routes: directory.routes.iter().map(choice).collect() }
    }

    /// Sends a request to an upstream of the route with this index: with a `session`'s number to
    /// the one that the session has. `hear` is told what comes before the response.
    pub async fn send(
        &self,
        route: usize,
        request: Request<Body>,
        session: Option<u64>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, UpstreamError> {
        match self.routes.get(route) {
            None => Err(UpstreamError::None),
            Some(Choice::One(channel)) => {
                channel.send(request, hear).await.map_err(|failed| match failed {
                    NoResponse::Unsent(_, error)
                    | NoResponse::Unanswered(_, error)
                    | NoResponse::Sent(error) => error,
                })
            }
            // Boxed, so that the future of who has nothing to choose is no larger.
            Some(Choice::Many(many)) => Box::pin(many.send(request, session, hear)).await,
        }
    }
}

impl Many {
    fn new(all: impl Iterator<Item = (Place, u32)>) -> Self {
        let (members, places) = all
            .map(|(place, weight)| {
                let member = Member {
                    weight,
                    condition: place.condition.clone(),
                    under_way: place.under_way.clone(),
                    spread: place.spread,
                };
                (member, place)
            })
            .unzip();
        Self { balance: Balance::new(members), places }
    }

    /// Where no connection can be had nothing was sent, and another upstream is asked. It is asked
    /// too, but by one more request only, where a request was sent that may be repeated, and the
    /// connection was closed: a request that ends one app after the other must not end them all.
    async fn send(
        &self,
        request: Request<Body>,
        session: Option<u64>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, UpstreamError> {
        let (parts, body) = request.into_parts();
        let (witness, body) = Witness::of(body);
        let mut request = Request::from_parts(parts, body);
        let mut failed = UpstreamError::None;
        let (mut tried, mut is_repeated) = (Except::default(), false);
        while let Some(index) = self.balance.choose(tried, session) {
            let Some(place) = self.places.get(index) else { break };
            tried = tried.and(index);
            let under_way = UnderWay::begin(&place.under_way);
            match place.channel.send(request, hear).await {
                Ok(response) => {
                    place.condition.answered();
                    return Ok(under_way.until_the_end_of(response));
                }
                Err(NoResponse::Sent(error)) => {
                    // SECURITY: whoever sends a body can break the exchange, by breaking the body
                    // off, or asks for what cannot be sent. They must not be able to have an upstream
                    // left out.
                    if witness.has_seen_all() && !error.is_refusal() {
                        place.condition.failed(Fault::Broken);
                    }
                    return Err(error);
                }
                Err(NoResponse::Unanswered(back, error)) => {
                    place.condition.failed(Fault::Broken);
                    if is_repeated {
                        return Err(error);
                    }
                    is_repeated = true;
                    (request, failed) = (*back, error);
                }
                Err(NoResponse::Unsent(back, error)) => {
                    place.condition.failed(Fault::Unreachable);
                    (request, failed) = (*back, error);
                }
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests;
