//! One worker's way to one upstream, in the protocol that the upstream speaks: as configured, or as
//! the TLS handshake says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::header::UPGRADE;
use http::{Request, Response};
use rustls::AlertDescription;

use super::connect::Reach;
use super::directory::{Known, Ways};
use super::http2::{Failed, Http2};
use super::names::{self, Moves};
use super::pool::{NoResponse, Pool};
use super::{Hear, UpstreamError};
use crate::body::Body;
use crate::config::Limits;
use crate::config::value::UpstreamUrl;
use crate::outbox::Outbox;

/// How long an upstream that has chosen HTTP/1.1 is not asked for HTTP/2 again.
const ASK_AGAIN: Duration = Duration::from_secs(10 * 60);

/// A way to an upstream.
#[derive(Clone)]
pub(super) enum Channel {
    Http1(Rc<Pool>),
    Http2(Rc<Http2>),
    /// Whichever it prefers.
    Either(Rc<Either>),
    /// Whichever, to an upstream that may move.
    Named(Rc<Named>),
}

/// A way to an upstream that has a name.
pub(super) struct Named {
    moves: Moves,
    /// Of `moves`, when the connections were begun.
    seen: Cell<u64>,
    channel: RefCell<Channel>,
    make: Box<dyn Fn() -> Channel>,
}

/// An upstream that has a choice.
pub(super) struct Either {
    http1: Rc<Pool>,
    http2: Rc<Http2>,
    /// When it chose HTTP/1.1.
    chose_http1: Cell<Option<Instant>>,
}

impl Channel {
    pub(super) fn new(known: &Known, limits: &Limits, outbox: &Arc<Outbox>) -> Self {
        let (url, limits, outbox) = (known.upstream.url.clone(), limits.clone(), outbox.clone());
        let ways = known.ways.clone();
        let moves_about = names::name(&url).is_some();
        let make = move || Self::fixed(&url, &ways, &limits, &outbox);
        if !moves_about {
            return make();
        }
        Self::Named(Rc::new(Named {
            moves: known.moves.clone(),
            seen: Cell::new(known.moves.load(Relaxed)),
            channel: RefCell::new(make()),
            make: Box::new(make),
        }))
    }

    fn fixed(url: &UpstreamUrl, ways: &Ways, limits: &Limits, outbox: &Arc<Outbox>) -> Self {
        let http1 =
            |reach: &Reach| Rc::new(Pool::new(url.clone(), reach.clone(), limits, outbox.clone()));
        let http2 = |reach: &Reach| Http2::new(url.clone(), reach.clone(), limits);
        match ways {
            Ways::Http1(reach) => Self::Http1(http1(reach)),
            Ways::Http2(reach) => Self::Http2(http2(reach)),
            Ways::Either { http1: one, http2: two } => Self::Either(Rc::new(Either {
                http1: http1(one),
                http2: http2(two),
                chose_http1: Cell::new(None),
            })),
        }
    }

    /// Sends a request.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, NoResponse> {
        match self {
            Self::Http1(pool) => pool.send(request, hear).await,
            // Boxed, so that the future of the usual case is no larger.
            Self::Http2(http2) => Box::pin(only(http2, request, hear)).await,
            Self::Either(either) => Box::pin(either.send(request, hear)).await,
            Self::Named(named) => {
                let channel = named.channel();
                Box::pin(async move { channel.send(request, hear).await }).await
            }
        }
    }
}

impl Named {
    /// The way there, without connections to where the upstream was before it moved. Those in use
    /// are used to the end.
    fn channel(&self) -> Channel {
        let moves = self.moves.load(Relaxed);
        if self.seen.replace(moves) != moves {
            *self.channel.borrow_mut() = (self.make)();
        }
        self.channel.borrow().clone()
    }
}

impl Either {
    async fn send(
        &self,
        request: Request<Body>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, NoResponse> {
        let chosen = self.chose_http1.get().is_some_and(|then| then.elapsed() < ASK_AGAIN);
        let upgrade = request.headers().contains_key(UPGRADE);
        // A WebSocket gets a connection for itself, where it can be had.
        if chosen || upgrade {
            return match self.http1.send(request, hear).await {
                Err(NoResponse::Unsent(request, error)) if upgrade && speaks_no_http1(&error) => {
                    only(&self.http2, *request, hear).await
                }
                sent => sent,
            };
        }
        match self.http2.send(request, hear).await {
            Ok(response) => Ok(response),
            Err(Failed::NoResponse(failed)) => Err(failed),
            Err(Failed::SpeaksHttp1(request)) => {
                self.chose_http1.set(Some(Instant::now()));
                self.http1.send(*request, hear).await
            }
        }
    }
}

/// Whether the upstream has refused a handshake for HTTP/1.1 alone (RFC 7301, section 3.2).
fn speaks_no_http1(error: &UpstreamError) -> bool {
    let UpstreamError::Connect { source, .. } = error else { return false };
    let cause = source.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// Where nothing but HTTP/2 will do.
async fn only(
    http2: &Http2,
    request: Request<Body>,
    hear: Hear<'_>,
) -> Result<Response<Body>, NoResponse> {
    http2.send(request, hear).await.map_err(|failed| match failed {
        Failed::NoResponse(failed) => failed,
        Failed::SpeaksHttp1(request) => NoResponse::Unsent(request, http2.does_not_speak_it()),
    })
}
