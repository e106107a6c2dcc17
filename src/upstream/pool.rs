//! One worker's connections to one upstream. The one used last is used next, so that those not
//! needed grow old. A connection comes back when the response's body has ended and the request's
//! body was sent whole; whatever else happens to it, it is closed: no byte of one exchange is ever
//! read in another.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use super::UpstreamError;
use super::connect::connect;
use super::upload::Upload;
use crate::body::{Body, BodyError};
use crate::config::Limits;
use crate::config::value::UpstreamUrl;

/// Idle connections kept; more than the requests that are ever under way at once, for else
/// connections come and go.
const KEPT: usize = 1024;
/// An idle connection older than this is not used again: many servers close theirs after 60 s.
const OLDEST: Duration = Duration::from_secs(55);

/// Why there is no response, and whether the upstream may have seen the request.
pub(super) enum NoResponse {
    /// It has seen nothing: the request may go elsewhere.
    Unsent(Box<Request<Body>>, UpstreamError),
    /// It may have acted.
    Sent(UpstreamError),
}

/// The connections.
pub(super) struct Pool {
    url: UpstreamUrl,
    tls: TlsConnector,
    connect_time: Duration,
    response_time: Duration,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

impl Pool {
    pub(super) fn new(url: UpstreamUrl, tls: TlsConnector, limits: &Limits) -> Self {
        Self {
            url,
            tls,
            connect_time: limits.connect_time,
            response_time: limits.response_time,
            idle: RefCell::default(),
        }
    }

    /// Sends a request over an idle connection, or over a new one.
    pub(super) async fn send(
        self: &Rc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, NoResponse> {
        let (parts, body) = request.into_parts();
        let (upload, body) = Upload::follow(body);
        let mut request = Request::from_parts(parts, body);
        loop {
            let (mut sender, reused) = match self.take().await {
                Some(sender) => (sender, true),
                None => match Box::pin(self.connect()).await {
                    Ok(sender) => (sender, false),
                    Err(error) => return Err(NoResponse::Unsent(Box::new(request), error)),
                },
            };
            let upstream = || self.url.clone();
            let exchange = sender.try_send_request(request);
            match self.within_time(exchange, &upload).await {
                None => {
                    let limit = self.response_time;
                    return Err(NoResponse::Sent(UpstreamError::Late {
                        upstream: upstream(),
                        limit,
                    }));
                }
                Some(Ok(response)) => return Ok(self.receive(response, sender, upload)),
                Some(Err(mut refused)) => match refused.take_message() {
                    // The upstream had closed the connection before the request was written.
                    Some(back) if reused => request = back,
                    back => {
                        let source = refused.into_error();
                        let error = UpstreamError::Broken { upstream: upstream(), source };
                        return Err(match back {
                            Some(back) => NoResponse::Unsent(Box::new(back), error),
                            None => NoResponse::Sent(error),
                        });
                    }
                },
            }
        }
    }

    /// The result of `exchange`, or nothing if `response_time` passed in which neither a response
    /// came nor a piece of the request's body went.
    async fn within_time<T>(
        &self,
        exchange: impl Future<Output = T>,
        upload: &Upload,
    ) -> Option<T> {
        let mut exchange = std::pin::pin!(exchange);
        loop {
            let before = upload.progress();
            let result = tokio::time::timeout(self.response_time, exchange.as_mut()).await;
            match result {
                Ok(result) => return Some(result),
                Err(_) if upload.progress() > before => {}
                Err(_) => return None,
            }
        }
    }

    /// An idle connection that is still good.
    async fn take(&self) -> Option<SendRequest<Body>> {
        loop {
            let Idle { mut sender, since } = self.idle.borrow_mut().pop()?;
            if since.elapsed() > OLDEST {
                // Those below are older still.
                self.idle.borrow_mut().clear();
                return None;
            }
            // Not ready yet: its task has not run since the last response's end. It will at once.
            if !sender.is_closed() && (sender.is_ready() || sender.ready().await.is_ok()) {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, UpstreamError> {
        let stream = connect(&self.url, &self.tls, self.connect_time)
            .await
            .map_err(|source| UpstreamError::Connect { upstream: self.url.clone(), source })?;
        let (sender, connection) = Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| UpstreamError::Broken { upstream: self.url.clone(), source })?;
        // How a connection ends is told to the request that is on it.
        tokio::task::spawn_local(async { drop(connection.with_upgrades().await) });
        Ok(sender)
    }

    fn receive(
        self: &Rc<Self>,
        response: Response<Incoming>,
        sender: SendRequest<Body>,
        upload: Upload,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response.map(|_| Body::Empty);
        }
        let lease = Lease { pool: self.clone(), sender, upload };
        response.map(|body| {
            if body.is_end_stream() {
                lease.give_back();
                Body::Empty
            } else {
                Body::stream(Leased { body, lease: Some(lease) })
            }
        })
    }
}

/// A connection that a response still comes over.
struct Lease {
    pool: Rc<Pool>,
    sender: SendRequest<Body>,
    upload: Upload,
}

impl Lease {
    fn give_back(self) {
        let mut idle = self.pool.idle.borrow_mut();
        if self.upload.is_complete() && !self.sender.is_closed() && idle.len() < KEPT {
            idle.push(Idle { sender: self.sender, since: Instant::now() });
        }
    }
}

/// A response's body; its end gives the connection back, its loss closes it.
struct Leased {
    body: Incoming,
    lease: Option<Lease>,
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let ended =
            frame.is_none() || (self.body.is_end_stream() && !matches!(frame, Some(Err(_))));
        if ended && let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
