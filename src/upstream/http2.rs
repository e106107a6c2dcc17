//! One worker's HTTP/2 connections to one upstream (RFC 9113): many requests at once over each, one
//! connection more when those there are have no stream to spare. What a connection that goes away
//! has not looked at is sent over another.
//!
//! | file | question |
//! |---|---|
//! | `connection` | is a connection good, and has it a stream to spare? |
//! | `head` | how is a request said in HTTP/2? |
//! | `upload` | how does a request's body go out? |
//! | `receiving` | how does a response's body come in? |
//! | `tunnel` | what becomes of a stream that is a WebSocket? |

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use thiserror::Error;
use tokio::sync::OnceCell;

use super::connect::{Reach, Stream, connect};
use super::pool::NoResponse;
use super::{Hear, UpstreamError, is_for_all, websocket};
use crate::body::Body;
use crate::config::Limits;
use crate::config::value::UpstreamUrl;

mod connection;
mod head;
mod receiving;
mod tunnel;
mod upload;

use connection::{Connection, Seat};
use receiving::Receiving;
use upload::Outgoing;

/// Connections on which a request that nobody looked at is tried.
const TRIES: usize = 3;

/// The most that may come before a response, in bytes, as [`size`] counts them.
const INTERIM_BYTES: usize = 256 * 1024;

/// Why an exchange over HTTP/2 broke off.
#[derive(Debug, Error)]
pub enum Http2Error {
    /// The stream or its connection broke.
    #[error("HTTP/2: {0}")]
    Stream(#[from] h2::Error),
    /// A response whose length two parties could read differently.
    #[error("the response's length is not certain")]
    Ambiguous,
    /// What came before the response is over 256 KiB.
    #[error("more than enough came before the response")]
    HeadTooLong,
    /// The request cannot be said in HTTP/2.
    #[error("the request cannot be said in HTTP/2")]
    Request,
    /// The request asks for a WebSocket, and the upstream has not said that it takes any over HTTP/2.
    #[error(
        "its HTTP/2 takes no WebSockets: SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441) is not set"
    )]
    NoWebSockets,
    /// The request asks for a WebSocket in another way than RFC 6455 says.
    #[error("a WebSocket is asked for without a key, or with a body")]
    Handshake,
}

/// What came in place of a response.
pub(super) enum Failed {
    /// As with any upstream.
    NoResponse(NoResponse),
    /// The upstream speaks HTTP/1.1 only: the request, as it was.
    SpeaksHttp1(Box<Request<Body>>),
}

/// Why there is no connection.
#[derive(Clone, Debug)]
enum Refusal {
    Io(io::ErrorKind, String),
    /// The handshake settled on HTTP/1.1.
    SpeaksHttp1,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind(), error.to_string())
    }
}

/// An attempt to open a connection, and all who wait for it.
type Opening = OnceCell<Result<Rc<Connection>, Refusal>>;

/// The connections.
pub(super) struct Http2 {
    /// For the connections, which tell when they are done for.
    own: Weak<Self>,
    url: UpstreamUrl,
    reach: Reach,
    connect_time: Duration,
    response_time: Duration,
    connections: RefCell<Vec<Rc<Connection>>>,
    opening: RefCell<Option<Rc<Opening>>>,
}

/// An exchange without a response.
struct Broken {
    error: Http2Error,
    /// Whether the upstream has certainly not looked at the request (RFC 9113, section 8.7).
    unprocessed: bool,
}

impl Http2 {
    pub(super) fn new(url: UpstreamUrl, reach: Reach, limits: &Limits) -> Rc<Self> {
        Rc::new_cyclic(|own| Self {
            own: own.clone(),
            url,
            reach,
            connect_time: limits.connect_time,
            response_time: limits.response_time,
            connections: RefCell::default(),
            opening: RefCell::default(),
        })
    }

    /// Sends a request over a connection that there is, or over a new one.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, Failed> {
        let broken = |source| UpstreamError::Http2 { upstream: self.url.clone(), source };
        let (parts, body) = request.into_parts();
        let repeatable = matches!(body, Body::Empty) && parts.method.is_idempotent();
        let mut body = Outgoing::new(body);
        let accepted = match handshake(&parts, &body) {
            Ok(accepted) => accepted,
            Err(error) => return Err(Failed::sent(broken(error))),
        };
        let (mut tries, mut repeated) = (0, false);
        loop {
            let (seat, is_new) = match self.seat().await {
                Ok(seat) => seat,
                Err(refusal) => return Err(self.refused(refusal, parts, body)),
            };
            tries += 1;
            match self.exchange(&parts, &mut body, accepted.as_ref(), seat, hear).await {
                Ok(response) => return Ok(response),
                Err(None) => {
                    let (upstream, limit) = (self.url.clone(), self.response_time);
                    return Err(Failed::sent(UpstreamError::Late { upstream, limit }));
                }
                Err(Some(Broken { error, unprocessed })) => {
                    if unprocessed && body.is_whole() {
                        if tries < TRIES {
                            continue;
                        }
                        let request = Box::new(Request::from_parts(parts, body.into_body()));
                        let unsent = NoResponse::Unsent(request, broken(error));
                        return Err(Failed::NoResponse(unsent));
                    }
                    // As with HTTP/1.1 (RFC 9112, section 9.3.1), and once.
                    let died = matches!(&error, Http2Error::Stream(error) if error.is_io());
                    if died && repeatable && !is_new && !repeated {
                        repeated = true;
                        continue;
                    }
                    return Err(Failed::sent(broken(error)));
                }
            }
        }
    }

    /// What is wrong with an upstream of HTTP/1.1 that should speak HTTP/2.
    pub(super) fn does_not_speak_it(&self) -> UpstreamError {
        let source = io::Error::other("it does not speak HTTP/2");
        UpstreamError::Connect { upstream: self.url.clone(), source }
    }

    fn refused(&self, refusal: Refusal, parts: Parts, body: Outgoing) -> Failed {
        let request = Box::new(Request::from_parts(parts, body.into_body()));
        match refusal {
            Refusal::SpeaksHttp1 => Failed::SpeaksHttp1(request),
            Refusal::Io(kind, text) => {
                let (upstream, source) = (self.url.clone(), io::Error::new(kind, text));
                let error = UpstreamError::Connect { upstream, source };
                Failed::NoResponse(NoResponse::Unsent(request, error))
            }
        }
    }

    /// One try, for a WebSocket if there is what its key is `accepted` with. Without a response in time
    /// there is no error.
    async fn exchange(
        &self,
        parts: &Parts,
        body: &mut Outgoing,
        accepted: Option<&HeaderValue>,
        seat: Seat,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, Option<Broken>> {
        let broken = |error| Some(Broken { error, unprocessed: false });
        let head = match accepted {
            None => head::write(parts, &self.url),
            Some(_) if seat.takes_websockets() => head::websocket(parts, &self.url),
            Some(_) => return Err(broken(Http2Error::NoWebSockets)),
        };
        let head = head.ok_or_else(|| broken(Http2Error::Request))?;
        let begun = seat.begin(head, body.is_nothing() && accepted.is_none()).await;
        let (response, stream): (ResponseFuture, SendStream<Bytes>) = begun.map_err(|error| {
            // Whatever is wrong with the connection: no stream of it was begun.
            seat.retire();
            Some(Broken { error: error.into(), unprocessed: true })
        })?;
        let (upload, stream) = match accepted {
            None => (body.start(stream), None),
            Some(_) => (None, Some(stream)),
        };
        let heard = heard(response, hear);
        let Some(outcome) = body.within_time(heard, self.response_time).await else {
            // Whoever is late may be gone: those who come later do not wait for it.
            seat.retire();
            return Err(None);
        };
        let response = outcome.map_err(|error| {
            let unprocessed = matches!(&error, Http2Error::Stream(error) if is_unprocessed(error));
            Some(Broken { error, unprocessed })
        })?;
        // SECURITY: response smuggling. HTTP/2 frames the body itself; a browser of HTTP/1.1 would
        // go by these (RFC 9113, section 8.1.1).
        if response.headers().get_all(CONTENT_LENGTH).iter().count() > 1 {
            return Err(broken(Http2Error::Ambiguous));
        }
        body.settle();
        if let (Some(accepted), Some(mut stream)) = (accepted, stream) {
            if response.status().is_success() {
                return Ok(tunnel::open(response, stream, accepted.clone(), seat.hold()));
            }
            // It declines, and hears no more of it.
            let _ = stream.send_data(Bytes::new(), true);
        }
        Ok(response.map(|stream| Receiving::begin(stream, upload, seat)))
    }

    /// A stream of a connection, and whether that was opened for it.
    async fn seat(&self) -> Result<(Seat, bool), Refusal> {
        let mut lost = 0;
        loop {
            if let Some(seat) = self.spare_seat() {
                return Ok((seat, false));
            }
            let opening = self.opening.borrow_mut().get_or_insert_with(Rc::default).clone();
            let opened = opening.get_or_init(|| self.open()).await.clone();
            let mut current = self.opening.borrow_mut();
            if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, &opening)) {
                *current = None;
            }
            let opened = opened?;
            if let Some(seat) = opened.seat() {
                return Ok((seat, true));
            }
            // Others have taken its streams; or it went away at once, which not all of them may do.
            lost += usize::from(!opened.is_good());
            if lost == TRIES {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
            }
        }
    }

    fn spare_seat(&self) -> Option<Seat> {
        self.forget_old();
        self.connections.borrow().iter().find_map(Connection::seat)
    }

    /// Lets go of connections that are done for: each closes when its last stream has ended.
    fn forget_old(&self) {
        self.connections.borrow_mut().retain(|connection| connection.is_good());
    }

    async fn open(&self) -> Result<Rc<Connection>, Refusal> {
        let opening = async {
            let stream = connect(&self.url, &self.reach, self.connect_time).await?;
            if is_tls(&stream) && stream.protocol() != Some(b"h2") {
                return Err(Refusal::SpeaksHttp1);
            }
            Ok(Connection::open(stream, self.own.clone()).await.map_err(io::Error::other)?)
        };
        let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let opened = tokio::time::timeout(self.connect_time, opening).await;
        let connection = opened.unwrap_or_else(|_| late())?;
        self.connections.borrow_mut().push(connection.clone());
        Ok(connection)
    }
}

impl Failed {
    fn sent(error: UpstreamError) -> Self {
        Self::NoResponse(NoResponse::Sent(error))
    }
}

/// What the key of a request for a WebSocket is accepted with. Nothing else is an upgrade here.
fn handshake(parts: &Parts, body: &Outgoing) -> Result<Option<HeaderValue>, Http2Error> {
    if !parts.headers.contains_key(UPGRADE) {
        return Ok(None);
    }
    let accepted = parts.headers.get(SEC_WEBSOCKET_KEY).and_then(websocket::accepted);
    accepted.filter(|_| body.is_nothing()).map(Some).ok_or(Http2Error::Handshake)
}

/// Asks once over a connection of its own, for the status alone.
pub(super) async fn ask(
    stream: Stream,
    url: &UpstreamUrl,
    request: Request<Body>,
) -> io::Result<u16> {
    if is_tls(&stream) && stream.protocol() != Some(b"h2") {
        return Err(io::Error::other("it does not speak HTTP/2"));
    }
    let connection = Connection::open(stream, Weak::new()).await.map_err(io::Error::other)?;
    let seat = connection.seat().ok_or(io::ErrorKind::ConnectionAborted)?;
    let (parts, _) = request.into_parts();
    let head = head::write(&parts, url).ok_or(io::ErrorKind::InvalidInput)?;
    let (response, _) = seat.begin(head, true).await.map_err(io::Error::other)?;
    response.await.map(|response| response.status().as_u16()).map_err(io::Error::other)
}

fn is_tls(stream: &Stream) -> bool {
    matches!(stream, Stream::Tls(_))
}

/// The response; `hear` is told what comes before it.
async fn heard(
    mut response: ResponseFuture,
    hear: Hear<'_>,
) -> Result<Response<RecvStream>, Http2Error> {
    let mut left = INTERIM_BYTES;
    poll_fn(|context| {
        while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
            let (interim, ()) = interim.into_parts();
            let Some(rest) = left.checked_sub(size(&interim.headers)) else {
                return Poll::Ready(Err(Http2Error::HeadTooLong));
            };
            left = rest;
            if is_for_all(interim.status) {
                hear(interim.status, interim.headers);
            }
        }
        Pin::new(&mut response).poll(context).map_err(Http2Error::Stream)
    })
    .await
}

/// RFC 9113, section 6.5.2, counts 32 bytes for a field beside its own; so does this for `:status`.
fn size(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>() + 42
}

/// RFC 9113, section 8.7: a stream beyond the last one of a GOAWAY, or refused by itself.
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}
