//! One worker's way to one upstream, in the protocol that the upstream speaks: as configured, or as
//! the TLS handshake says.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::UPGRADE;
use http::{Request, Response};

use super::connect::Tls;
use super::directory::{Known, Ways};
use super::http2::{Failed, Http2};
use super::pool::{NoResponse, Pool};
use crate::body::Body;
use crate::config::Limits;
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
        let url = &known.upstream.url;
        let http1 =
            |tls: &Tls| Rc::new(Pool::new(url.clone(), tls.clone(), limits, outbox.clone()));
        let http2 = |tls: &Tls| Http2::new(url.clone(), tls.clone(), limits);
        match &known.ways {
            Ways::Http1(tls) => Self::Http1(http1(tls)),
            Ways::Http2(tls) => Self::Http2(http2(tls)),
            Ways::Either { http1: one, http2: two } => Self::Either(Rc::new(Either {
                http1: http1(one),
                http2: http2(two),
                chose_http1: Cell::new(None),
            })),
        }
    }

    /// Sends a request.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, NoResponse> {
        match self {
            Self::Http1(pool) => pool.send(request).await,
            // Boxed, so that the future of the usual case is no larger.
            Self::Http2(http2) => Box::pin(only(http2, request)).await,
            Self::Either(either) => Box::pin(either.send(request)).await,
        }
    }
}

impl Either {
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, NoResponse> {
        let chosen = self.chose_http1.get().is_some_and(|then| then.elapsed() < ASK_AGAIN);
        // A WebSocket needs a connection for itself.
        if chosen || request.headers().contains_key(UPGRADE) {
            return self.http1.send(request).await;
        }
        match self.http2.send(request).await {
            Ok(response) => Ok(response),
            Err(Failed::NoResponse(failed)) => Err(failed),
            Err(Failed::SpeaksHttp1(request)) => {
                self.chose_http1.set(Some(Instant::now()));
                self.http1.send(*request).await
            }
        }
    }
}

/// Where nothing but HTTP/2 will do.
async fn only(http2: &Http2, request: Request<Body>) -> Result<Response<Body>, NoResponse> {
    http2.send(request).await.map_err(|failed| match failed {
        Failed::NoResponse(failed) => failed,
        Failed::SpeaksHttp1(request) => NoResponse::Unsent(request, http2.does_not_speak_it()),
    })
}
