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
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::UpstreamError;
use super::connect::{Tls, connect};
use super::upload::Upload;
use crate::body::{Body, BodyError};
use crate::config::Limits;
use crate::config::value::UpstreamUrl;

/// Idle connections kept; more than the requests that are ever under way at once, for else
/// connections come and go.
const KEPT: usize = 1024;
/// An idle connection older than this is not used again: many servers close theirs after 60 s.
const OLDEST: Duration = Duration::from_secs(55);

/// A connection that a response has just come over is ready at once; one that is not so for this
/// long is stuck, for example because its upstream answered early and reads no further.
const READY: Duration = Duration::from_millis(100);
/// A connection that was used within this time is not one that its upstream is about to close.
const FRESH: Duration = Duration::from_millis(10);

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
    tls: Tls,
    connect_time: Duration,
    response_time: Duration,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

impl Pool {
    pub(super) fn new(url: UpstreamUrl, tls: Tls, limits: &Limits) -> Self {
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
        let mut repeated = false;
        loop {
            let idle = if repeated { None } else { self.take().await };
            let (mut sender, reused, again) = match idle {
                Some(Idle { sender, since }) => {
                    let again = if since.elapsed() > FRESH { copy(&request) } else { None };
                    (sender, true, again)
                }
                None => match Box::pin(self.connect()).await {
                    Ok(sender) => (sender, false, None),
                    Err(error) => return Err(NoResponse::Unsent(Box::new(request), error)),
                },
            };
            let exchange = sender.try_send_request(request);
            match self.within_time(exchange, &upload).await {
                None => {
                    let (upstream, limit) = (self.url.clone(), self.response_time);
                    return Err(NoResponse::Sent(UpstreamError::Late { upstream, limit }));
                }
                Some(Ok(response)) if is_ambiguous(&response) => {
                    let upstream = self.url.clone();
                    return Err(NoResponse::Sent(UpstreamError::Ambiguous { upstream }));
                }
                Some(Ok(response)) => return Ok(self.receive(response, sender, upload)),
                Some(Err(mut refused)) => {
                    let back = refused.take_message();
                    let source = refused.into_error();
                    // The upstream had closed the connection before the request was written, or
                    // did so while the request was on its way: RFC 9112, section 9.3.1, lets what
                    // can be repeated be sent again.
                    let closed = if source.is_parse() { None } else { again };
                    match (back, closed) {
                        (Some(back), _) if reused => request = back,
                        // Once: a request that ends one connection is not to end them all.
                        (None, Some(again)) => (request, repeated) = (again, true),
                        (back, _) => {
                            let error =
                                UpstreamError::Broken { upstream: self.url.clone(), source };
                            return Err(match back {
                                Some(back) if !repeated => {
                                    NoResponse::Unsent(Box::new(back), error)
                                }
                                _ => NoResponse::Sent(error),
                            });
                        }
                    }
                }
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
    async fn take(&self) -> Option<Idle> {
        loop {
            let Idle { mut sender, since } = self.idle.borrow_mut().pop()?;
            if since.elapsed() > OLDEST {
                // Those below are older still.
                self.idle.borrow_mut().clear();
                return None;
            }
            if sender.is_closed() {
                continue;
            }
            // Not ready yet: its task has not run since the last response's end.
            let ready = sender.is_ready()
                || matches!(tokio::time::timeout(READY, sender.ready()).await, Ok(Ok(())));
            if ready {
                return Some(Idle { sender, since });
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, UpstreamError> {
        let stream = connect(&self.url, &self.tls, self.connect_time)
            .await
            .map_err(|source| UpstreamError::Connect { upstream: self.url.clone(), source })?;
        // hyper's own bounds hold for a response's head: 100 fields, about 400 KiB.
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

/// The same request once more, if it may be sent twice (RFC 9110, section 9.2.2).
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    if !matches!(request.body(), Body::Empty) || !request.method().is_idempotent() {
        return None;
    }
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Whether two parties could read the body's length differently.
///
// SECURITY: response smuggling: RFC 9112, section 6.3, has a gateway treat it as an error.
fn is_ambiguous(response: &Response<Incoming>) -> bool {
    let fields = response.headers();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let listed = lengths.next().is_some_and(|length| length.as_bytes().contains(&b','));
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => listed || lengths.next().is_some(),
        // Another coding would have to be undone, for the browser is not told of it.
        (Some(coding), None) => {
            !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
                || fields.contains_key(CONTENT_LENGTH)
        }
        (Some(_), Some(_)) => true,
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
