//! One HTTP/1.1 connection to an upstream (RFC 9112): a request goes out, the head of its response
//! comes in. There is no task behind it: whoever waits for the response reads it. It knows nothing
//! of other connections, and not what the fields mean that frame nothing.
//!
//! | file | question |
//! |---|---|
//! | `head` | how is a request's head written, and a response's read? |
//! | `framing` | where does a body end? |
//! | `chunked` | what is in a chunked body? |
//! | `upload` | how does a request's body go out? |
//! | `receiving` | how does a response's body come in? |

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Switched;
use super::connect::Stream;
use super::{Hear, is_for_all};
use crate::body::{Body, BodyError};
use crate::outbox::{Outbox, Posted};

mod chunked;
mod framing;
mod head;
mod receiving;
mod upload;

pub use chunked::{BadChunk, Chunked, Piece};
pub use framing::Framing;
pub use head::Head;
pub(super) use receiving::Receiving;
use upload::Outgoing;
pub(super) use upload::Upload;

/// Room for most heads with a short body behind them, in bytes.
const ROOM: usize = 8 * 1024;
/// The longest head of a response, in bytes, with all that comes before it.
// SECURITY: an upstream that goes on saying something else keeps its reader busy, and is never late:
// whoever has always something to read looks at no clock.
const HEAD_BYTES: usize = 256 * 1024;
/// Of a buffer that is still in use such a part is left over.
const SCRAPS: usize = 8;
/// A request's body of the gateway's own that goes out with the head, in bytes.
const SHORT: usize = 16 * 1024;

/// Why an exchange broke off.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// Before a response's head was whole.
    #[error("the connection was closed before the response")]
    Closed,
    /// Before or within a response's head.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// RFC 9112, section 4.
    #[error("what came is no response of HTTP/1.1: {0}")]
    Head(&'static str),
    /// It is over 256 KiB, with what came before it.
    #[error("the response's head is too long")]
    HeadTooLong,
    /// A body whose end two parties could see in two places: RFC 9112, section 6.3.
    #[error("the response's length is not certain")]
    Ambiguous,
    /// The request's own body broke off.
    #[error("the request's body broke off: {0}")]
    Upload(#[source] BodyError),
    /// Something came, or the end, before the request had gone.
    #[error("the connection was not silent before the request")]
    Unasked,
    /// Neither a head came nor a byte of the request's body went.
    #[error("there was no response in time")]
    Late,
}

/// An exchange without a response.
pub(super) struct Failed {
    pub(super) error: ExchangeError,
    /// How far it had come.
    pub(super) reached: Reached,
}

/// How far an exchange has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// No byte went out.
    Nothing,
    /// The request went out, in part at least; the connection closed without a byte in return.
    Sent,
    /// More than that.
    Further,
}

/// A connection.
pub(super) struct Connection {
    /// A request's body is written by a task of its own while the response is read here.
    wire: Posted<Stream>,
    /// What was read and belongs to nobody yet.
    read: BytesMut,
    /// How much was said before the response, in bytes.
    heard: u32,
    /// When the response is late. It is moved on by each request: a timer that only ever moves on
    /// costs next to nothing.
    deadline: Pin<Box<Sleep>>,
    /// How many times the pool has looked at it while it was idle.
    pub(super) age: u8,
    /// When the upstream may close it, as it says itself.
    until: Option<Instant>,
}

impl Drop for Connection {
    /// SECURITY: a request that is given up in the turn in which it came is never sent: who begins
    /// thousands and resets them (CVE-2023-44487) has none of them sent.
    fn drop(&mut self) {
        self.wire.take_back();
    }
}

impl Connection {
    pub(super) fn new(stream: Stream, outbox: Arc<Outbox>) -> Self {
        Self {
            wire: Posted::new(stream, outbox),
            read: BytesMut::new(),
            heard: 0,
            deadline: Box::pin(sleep_until(Instant::now())),
            age: 0,
            until: None,
        }
    }

    /// It is idle from now on, and good for this time.
    pub(super) fn rest(&mut self, time: Option<Duration>) {
        self.age = 0;
        self.until = time.map(|time| Instant::now() + time);
    }

    /// Whether the upstream has not said that it may be closed by now.
    pub(super) fn is_in_time(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    /// Whether nothing came since the last response: no end, and no byte, which would be taken for
    /// the next response.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut context = Context::from_waker(Waker::noop());
        let reading =
            Pin::new(&mut self.wire).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
        self.read.is_empty() && reading.is_pending()
    }

    /// The same as the kernel knows it: the worker learns a turn of its loop later what has come.
    pub(super) fn is_silent(&self) -> bool {
        self.wire.look(Stream::is_silent)
    }

    /// The connection as it is when it is no longer HTTP, unless something is yet to be sent.
    pub(super) fn switch(mut self) -> Option<Switched> {
        // Nothing is kept of the room for a head.
        let early = Bytes::copy_from_slice(&std::mem::take(&mut self.read));
        let wire = self.wire.clone();
        drop(self);
        wire.into_inner().map(|stream| Switched::new(stream, early))
    }

    /// Sends a request and awaits the head of the response, for `limit` after the last piece that
    /// was sent; `hear` is told what comes before it. The body is taken out of the request; it is put
    /// back where the exchange fails before anything of it was read.
    pub(super) async fn exchange(
        &mut self,
        request: &mut Request<Body>,
        limit: Duration,
        hear: Hear<'_>,
    ) -> Result<(Head, Upload), Failed> {
        let outgoing = Outgoing::of(request);
        self.wire.post(|out| head::write(out, request, outgoing));
        let mut upload = match std::mem::take(request.body_mut()) {
            Body::Empty => Upload::none(),
            Body::Full(bytes) if bytes.len() <= SHORT => {
                self.wire.post(|out| out.extend_from_slice(&bytes));
                Upload::posted(bytes)
            }
            body => Upload::start(self.wire.clone(), body, outgoing),
        };
        self.deadline.as_mut().reset(Instant::now() + limit);
        self.heard = 0;
        let method = request.method();
        let head = std::future::poll_fn(|context| {
            self.poll_head(context, method, &mut upload, limit, hear)
        });
        match head.await {
            Ok(head) => Ok((head, upload)),
            Err(failed) => {
                *request.body_mut() = upload.untouched();
                Err(failed)
            }
        }
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &Method,
        upload: &mut Upload,
        limit: Duration,
        hear: Hear<'_>,
    ) -> Poll<Result<Head, Failed>> {
        let failed = |error, reached| Poll::Ready(Err(Failed { error, reached }));
        loop {
            let filled = self.poll_fill(context, ROOM);
            // SECURITY: what comes before the request has gone is not its response, but one too many
            // from before.
            if filled.is_ready() && self.wire.is_posted() {
                return failed(ExchangeError::Unasked, Reached::Nothing);
            }
            match filled {
                Poll::Ready(Ok(0)) => return failed(ExchangeError::Closed, self.reached()),
                Poll::Ready(Ok(_)) => match self.take_head(method, hear) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) if self.has_heard_too_much() => {
                        return failed(ExchangeError::HeadTooLong, Reached::Further);
                    }
                    Ok(None) => {}
                    Err(error) => return failed(error, Reached::Further),
                },
                Poll::Ready(Err(error)) => return failed(error.into(), self.reached()),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(error) = upload.poll_broken(context) {
            return failed(ExchangeError::Upload(error), Reached::Further);
        }
        loop {
            ready!(self.deadline.as_mut().poll(context));
            if !upload.has_moved() {
                return failed(ExchangeError::Late, Reached::Further);
            }
            self.deadline.as_mut().reset(Instant::now() + limit);
        }
    }

    fn take_head(
        &mut self,
        method: &Method,
        hear: Hear<'_>,
    ) -> Result<Option<Head>, ExchangeError> {
        let before = self.read.len();
        let head = Head::take(&mut self.read, method, |status, fields| {
            if is_for_all(status) {
                hear(status, fields);
            }
        });
        let heard = u32::try_from(before - self.read.len()).unwrap_or(u32::MAX);
        self.heard = self.heard.saturating_add(heard);
        head
    }

    fn has_heard_too_much(&self) -> bool {
        self.heard as usize + self.read.len() > HEAD_BYTES
    }

    /// How far an exchange came that ends before its response's head.
    fn reached(&self) -> Reached {
        match (self.read.is_empty() && self.heard == 0, self.wire.is_unsent()) {
            (true, true) => Reached::Nothing,
            (true, false) => Reached::Sent,
            (false, _) => Reached::Further,
        }
    }

    /// Reads more, into room for `room` bytes, or for what is left of it; 0 is the end.
    fn poll_fill(&mut self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        // SECURITY: pieces that wait for a browser that does not read lie in the buffers that they were
        // read into. The rest of one is used before there is another: if each small piece held a buffer
        // of its own, a thousand of them would hold sixty megabytes.
        let free = self.read.capacity() - self.read.len();
        if free < room && !self.read.try_reclaim(room) && free < room / SCRAPS {
            self.read.reserve(room);
        }
        let reading = self.wire.read_buf(&mut self.read);
        std::pin::pin!(reading).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;

    /// SECURITY: response queue poisoning: what came before the request is nobody's response, and
    /// the request goes over another connection.
    #[tokio::test]
    async fn what_comes_before_a_request_is_not_its_response() {
        tokio::task::LocalSet::new()
            .run_until(async {
                for early in ["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", ""] {
                    let (here, mut there) = UnixStream::pair().unwrap();
                    let mut connection = Connection::new(Stream::Unix(here), Arc::default());
                    there.write_all(early.as_bytes()).await.unwrap();
                    there.shutdown().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let mut request = Request::new(Body::Empty);
                    let got =
                        connection.exchange(&mut request, Duration::from_secs(1), &|_, _| {}).await;
                    let Err(Failed { error, reached }) = got else { panic!("{early}") };
                    assert!(matches!(error, ExchangeError::Unasked), "{error}");
                    assert!(reached == Reached::Nothing);
                    drop(connection);
                    let mut heard = Vec::new();
                    there.read_to_end(&mut heard).await.unwrap();
                    assert!(heard.is_empty(), "it was never sent");
                }
            })
            .await;
    }

    /// What the worker has had no turn to hear of.
    #[tokio::test]
    async fn what_has_come_just_now_is_seen_at_the_socket() {
        use std::io::Write;
        for (bytes, ends) in [("", false), ("x", false), ("", true)] {
            let (here, mut there) = std::os::unix::net::UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let here = UnixStream::from_std(here).unwrap();
            let connection = Connection::new(Stream::Unix(here), Arc::default());
            there.write_all(bytes.as_bytes()).unwrap();
            let _there = (!ends).then_some(there);
            assert_eq!(connection.is_silent(), bytes.is_empty() && !ends, "{bytes} {ends}");
        }
    }

    /// Of a request that nobody was sent nothing is lost.
    #[tokio::test]
    async fn a_body_of_which_nothing_was_read_is_given_back() {
        tokio::task::LocalSet::new()
            .run_until(async {
                for (early, stream) in [("HTTP/1.1", false), ("HTTP/1.1", true), ("", true)] {
                    let (here, mut there) = UnixStream::pair().unwrap();
                    let mut connection = Connection::new(Stream::Unix(here), Arc::default());
                    there.write_all(early.as_bytes()).await.unwrap();
                    if early.is_empty() {
                        // Now nothing can be written.
                        drop(there);
                    } else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let body = || Body::from("whole");
                    let body = if stream { Body::stream(body()) } else { body() };
                    let mut request = Request::post("/").body(body).unwrap();
                    let got =
                        connection.exchange(&mut request, Duration::from_secs(1), &|_, _| {}).await;
                    let Err(Failed { reached, .. }) = got else { panic!("{early}") };
                    assert!(reached == Reached::Nothing);
                    let whole = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(whole, "whole", "{early} {stream}");
                }
            })
            .await;
    }
}
