//! HTTP/2 with browsers (RFC 9113), over the crate `h2`, which knows frames, flow control, and the
//! limits of both. Here a connection becomes requests, and each of them a task that ends with its
//! response; what a request gets is not known here.
//!
//! hyper could do as much but for two things: it sends no interim response, and takes a request's
//! body that was given up for one that has ended.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use http::request::Parts;
use http::response::Parts as Head;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::date::Dates;
use super::watch::{UnderWay, Watch};
use crate::body::{BodyError, Incoming};
use crate::config::Limits;
use crate::duplex::Duplex;
use crate::peer::{Opening, Tunnel};

mod aside;

pub(super) use aside::Aside;

/// Bytes of a request's body that may come before its app takes any: of one stream, and of all.
const WINDOW: u32 = 1024 * 1024;
/// What waits in memory for the client to take it, in bytes of one stream; the piece that came last
/// comes on top. SECURITY: a client may open all its windows, ask on all its streams, and read nothing.
const SEND_BUFFER: usize = 64 * 1024;
/// A client that breaks the rules on more streams than this has its connection closed.
const MOST_RESETS: usize = 1024;

/// How connections begin.
pub(super) fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MOST_RESETS))
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .enable_connect_protocol();
    builder
}

/// A connection. As a future it ends with it; what is under way on its streams then ends by itself.
pub(super) struct Http2<T, A> {
    stage: Stage<T>,
    /// Whether no further request is to be taken.
    leaving: bool,
    streams: Streams<A>,
}

enum Stage<T> {
    Begun(Handshake<T, Bytes>),
    Open(Connection<T, Bytes>),
}

/// What its streams have in common.
struct Streams<A> {
    /// Answers a request.
    answer: Rc<A>,
    aside: Rc<Aside>,
    dates: Rc<Dates>,
    watch: Arc<Watch>,
}

impl<T: AsyncRead + AsyncWrite + Unpin, A> Http2<T, A> {
    /// Begins with the preface. Every request is answered by `answer`; what is to be said before
    /// that is said to `aside`.
    pub(super) fn new(
        handshake: Handshake<T, Bytes>,
        answer: A,
        aside: Rc<Aside>,
        dates: Rc<Dates>,
        watch: Arc<Watch>,
    ) -> Self {
        let streams = Streams { answer: Rc::new(answer), aside, dates, watch };
        Self { stage: Stage::Begun(handshake), leaving: false, streams }
    }

    /// Says goodbye (RFC 9113, section 6.8): what the client has asked by then is answered, and the
    /// connection ends.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        if let Stage::Open(connection) = &mut self.stage {
            connection.graceful_shutdown();
        }
    }
}

impl<T, A, F, B> Future for Http2<T, A>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes, Error = BodyError> + Unpin + 'static,
{
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Stage::Begun(handshake) = &mut this.stage {
            let mut connection = ready!(Pin::new(handshake).poll(context))?;
            if this.leaving {
                connection.graceful_shutdown();
            }
            this.stage = Stage::Open(connection);
        }
        let Stage::Open(connection) = &mut this.stage else { return Poll::Pending };
        while let Some(accepted) = ready!(connection.poll_accept(context)) {
            let (request, reply) = accepted?;
            this.streams.begin(request, reply);
        }
        Poll::Ready(Ok(()))
    }
}

impl<A, F, B> Streams<A>
where
    A: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes, Error = BodyError> + Unpin + 'static,
{
    /// Sees to a request, in a task of its own.
    fn begin(&self, request: Request<RecvStream>, reply: SendResponse<Bytes>) {
        let (mut head, stream) = request.into_parts();
        let mut opens = None;
        let body = if is_websocket(&head) {
            // A WebSocket over HTTP/2 is asked for by CONNECT (RFC 8441, section 4); from here on it
            // is the GET that it is over HTTP/1.1.
            head.method = Method::GET;
            let (opening, tunnel) = Tunnel::new();
            head.extensions.insert(tunnel);
            opens = Some(Opens { opening, receiving: stream, in_use: self.watch.request() });
            Incoming::Empty
        } else if head.method == Method::CONNECT {
            // Any other CONNECT stays one, and is refused.
            Incoming::Empty
        } else {
            Incoming::streamed(stream, &head.headers)
        };
        let request = Request::from_parts(head, body);
        let answer = self.answer.clone();
        let asked = Asked { reply, opens, aside: self.aside.clone(), dates: self.dates.clone() };
        tokio::task::spawn_local(async move {
            if let Err(error) = asked.see_to(request, answer).await {
                // The client has left, or is gone, or the response has broken off.
                tracing::trace!(%error, "a stream has ended early");
            }
        });
    }
}

fn is_websocket(head: &Parts) -> bool {
    let protocol = head.extensions.get::<h2::ext::Protocol>();
    head.method == Method::CONNECT && protocol.is_some_and(|it| it.as_str() == "websocket")
}

/// A request that waits for its response.
struct Asked {
    reply: SendResponse<Bytes>,
    opens: Option<Opens>,
    aside: Rc<Aside>,
    dates: Rc<Dates>,
}

/// What a stream needs that becomes a tunnel.
struct Opens {
    opening: Opening,
    receiving: RecvStream,
    in_use: UnderWay,
}

impl Asked {
    /// Sends the response and its body, or opens the tunnel.
    async fn see_to<A, F, B>(
        mut self,
        request: Request<Incoming>,
        answer: Rc<A>,
    ) -> Result<(), h2::Error>
    where
        A: Fn(Request<Incoming>) -> F,
        F: Future<Output = Result<Response<B>, Infallible>>,
        B: Body<Data = Bytes, Error = BodyError> + Unpin,
    {
        let (mut head, mut body) = {
            let answer = pin!(answer(request));
            self.response(answer).await?.into_parts()
        };
        if let Some(opens) = self.opens.take_if(|_| head.status.is_success()) {
            return self.open(head, opens);
        }
        if body.is_end_stream() {
            return self.send(head, true).map(drop);
        }
        if let Some(length) = body.size_hint().exact() {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let mut to = self.send(head, false)?;
        let sent = send(&mut body, &mut to).await;
        sent.inspect_err(|error| to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR)))
    }

    /// The response, unless its client does not wait for it. What is said before it is sent at once.
    async fn response<B>(
        &mut self,
        mut answer: Pin<&mut impl Future<Output = Result<Response<B>, Infallible>>>,
    ) -> Result<Response<B>, h2::Error> {
        poll_fn(|context| {
            let polled = self.aside.listen(|| answer.as_mut().poll(context));
            if polled.is_ready() && !self.aside.has_heard() {
                return polled.map(|Ok(response)| Ok(response));
            }
            let heard = self.aside.take();
            if let Poll::Ready(reason) = self.reply.poll_reset(context)? {
                return Poll::Ready(Err(reason.into()));
            }
            for head in heard {
                // What cannot be said in HTTP/2 is left out: the response is what counts.
                let _ = self.reply.send_informational(head);
            }
            polled.map(|Ok(response)| Ok(response))
        })
        .await
    }

    fn open(mut self, mut head: Head, opens: Opens) -> Result<(), h2::Error> {
        // RFC 9110, section 9.3.6.
        head.headers.remove(CONTENT_LENGTH);
        let sending = self.send(head, false)?;
        let Opens { opening, receiving, in_use } = opens;
        // Where nobody waits for it any more, it is reset.
        let _ = opening.send(Box::new(Duplex::new(receiving, sending, in_use)));
        Ok(())
    }

    fn send(&mut self, mut head: Head, ends: bool) -> Result<SendStream<Bytes>, h2::Error> {
        // RFC 9113, section 8.2.2. What an app says to its connection has ended with that.
        head.headers.remove(CONNECTION);
        // RFC 9110, section 6.6.1.
        head.headers.entry(DATE).or_insert_with(|| self.dates.now());
        let sent = self.reply.send_response(Response::from_parts(head, ()), ends);
        sent.inspect_err(|_| self.reply.send_reset(Reason::INTERNAL_ERROR))
    }
}

/// Sends a body as fast as the client takes it (RFC 9113, section 5.2). Only what is there claims a
/// share of the connection: a stream that waits for its app holds up no other.
async fn send<B>(body: &mut B, to: &mut SendStream<Bytes>) -> Result<(), h2::Error>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    loop {
        let frame = poll_fn(|context| {
            if let Poll::Ready(reason) = to.poll_reset(context)? {
                return Poll::Ready(Err(reason.into()));
            }
            Pin::new(&mut *body).poll_frame(context).map(Ok::<_, h2::Error>)
        });
        let frame = match frame.await? {
            None => return to.send_data(Bytes::new(), true),
            Some(frame) => frame.map_err(|error| reason(error.as_ref()))?,
        };
        match frame.into_data() {
            Ok(bytes) => {
                let ends = body.is_end_stream();
                if !bytes.is_empty() {
                    room(to).await?;
                }
                to.send_data(bytes, ends)?;
                if ends {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return to.send_trailers(trailers);
                }
            }
        }
    }
}

/// Waits until the client takes more.
async fn room(to: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    to.reserve_capacity(1);
    while to.capacity() == 0 {
        match poll_fn(|context| to.poll_capacity(context)).await {
            Some(room) => room.map(drop)?,
            None => return Err(Reason::STREAM_CLOSED.into()),
        }
    }
    Ok(())
}

/// Why a body broke off, as HTTP/2 says it: an upstream's own reason is passed on, but for that which
/// would look as if all were well.
fn reason(error: &(dyn Error + 'static)) -> h2::Error {
    let mut next = Some(error);
    let mut found = None;
    while let (Some(error), None) = (next, found) {
        found = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        next = error.source();
    }
    found.filter(|it| *it != Reason::NO_ERROR).unwrap_or(Reason::INTERNAL_ERROR).into()
}
