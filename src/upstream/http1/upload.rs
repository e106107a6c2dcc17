//! A request's body on its way to an upstream. It goes out in a task of its own, so that neither
//! direction waits for the other: an app may answer before it has read everything, or answer with
//! what it reads.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request};
use http_body::Body as _;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use super::head;
use crate::body::{Body, BodyError};
use crate::outbox::Posted;
use crate::upstream::connect::Stream;

/// How a request's body is framed (RFC 9112, section 6).
#[derive(Clone, Copy)]
pub(super) enum Outgoing {
    Nothing,
    Length(u64),
    Chunked,
}

impl Outgoing {
    pub(super) fn of(request: &Request<Body>) -> Self {
        let length = request.headers().get(CONTENT_LENGTH);
        match request.body() {
            // RFC 9110, section 8.6: where a body is expected, its absence is said.
            Body::Empty => match *request.method() {
                Method::POST | Method::PUT | Method::PATCH => Self::Length(0),
                _ if length.is_some() => Self::Length(0),
                _ => Self::Nothing,
            },
            Body::Full(bytes) => Self::Length(bytes.len() as u64),
            Body::Stream(_) => {
                let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
                length.map_or(Self::Chunked, Self::Length)
            }
        }
    }
}

/// The body has another length than the request's head said.
#[derive(Debug, Error)]
#[error("it is not as long as Content-Length says")]
struct WrongLength;

/// A body under way, or one that has arrived. Dropped, it goes no further.
pub(in crate::upstream) struct Upload(What);

enum What {
    Nothing,
    /// It goes with the request's head. Boxed, for it is rare.
    Posted(Box<Bytes>),
    UnderWay(UnderWay),
}

struct UnderWay {
    task: JoinHandle<Result<(), BodyError>>,
    /// That the task has ended was heard.
    has_ended: bool,
    state: Rc<State>,
    /// Of `State::pieces`, when last looked at.
    seen: u64,
}

#[derive(Default)]
struct State {
    pieces: Cell<u64>,
    complete: Cell<bool>,
    /// As long as nothing of it was read.
    body: Cell<Body>,
}

impl Upload {
    /// Nothing is to be sent.
    pub(super) fn none() -> Self {
        Self(What::Nothing)
    }

    /// This was posted behind the head.
    pub(super) fn posted(bytes: Bytes) -> Self {
        Self(What::Posted(Box::new(bytes)))
    }

    pub(super) fn start(wire: Posted<Stream>, body: Body, outgoing: Outgoing) -> Self {
        let state = Rc::<State>::default();
        state.complete.set(matches!(outgoing, Outgoing::Length(0)));
        state.body.set(body);
        let sending = Sending { wire, outgoing, state: state.clone() };
        let task = tokio::task::spawn_local(sending.run());
        Self(What::UnderWay(UnderWay { task, has_ended: false, state, seen: 0 }))
    }

    fn under_way(&mut self) -> Option<&mut UnderWay> {
        match &mut self.0 {
            What::UnderWay(upload) => Some(upload),
            What::Nothing | What::Posted(_) => None,
        }
    }

    /// The body, if nothing of it was read.
    pub(super) fn untouched(self) -> Body {
        match self.0 {
            What::Nothing => Body::Empty,
            What::Posted(bytes) => Body::Full(*bytes),
            What::UnderWay(upload) => upload.state.body.take(),
        }
    }

    /// Whether the upstream was sent the whole body.
    pub(in crate::upstream) fn is_complete(&self) -> bool {
        match &self.0 {
            What::Nothing | What::Posted(_) => true,
            What::UnderWay(upload) => upload.state.complete.get(),
        }
    }

    /// Whether a piece went since this was last asked.
    pub(super) fn has_moved(&mut self) -> bool {
        let Some(UnderWay { state, seen, .. }) = self.under_way() else { return false };
        state.pieces.get() > std::mem::replace(seen, state.pieces.get())
    }

    /// Ready when the body itself has broken off. That the upstream takes no more of it is no reason
    /// not to hear its answer.
    pub(super) fn poll_broken(&mut self, context: &mut Context<'_>) -> Poll<BodyError> {
        let Some(UnderWay { task, has_ended, .. }) = self.under_way() else { return Poll::Pending };
        if *has_ended {
            return Poll::Pending;
        }
        let ended = ready!(Pin::new(task).poll(context));
        *has_ended = true;
        match ended {
            Ok(Ok(())) => Poll::Pending,
            Ok(Err(error)) => Poll::Ready(error),
            Err(error) => Poll::Ready(error.into()),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task.
struct Sending {
    wire: Posted<Stream>,
    outgoing: Outgoing,
    state: Rc<State>,
}

impl Sending {
    /// Sends everything, or as much as the upstream takes. Where not even the head went, the body is
    /// left for another connection.
    async fn run(mut self) -> Result<(), BodyError> {
        if self.wire.is_unsent() {
            return Ok(());
        }
        let mut body = self.state.body.take();
        let mut trailers = None;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            match frame?.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    if self.send(bytes).await?.is_err() {
                        return Ok(());
                    }
                    self.state.pieces.set(self.state.pieces.get() + 1);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        match self.outgoing {
            Outgoing::Length(1..) => return Err(WrongLength.into()),
            Outgoing::Length(0) | Outgoing::Nothing => {}
            Outgoing::Chunked => {
                let last = self.wire.write_all(&last_chunk(trailers.as_ref())).await;
                self.state.complete.set(last.is_ok() && self.wire.flush().await.is_ok());
            }
        }
        Ok(())
    }

    /// Sends a piece: what the body is wrong in, then what becomes of the connection.
    async fn send(&mut self, bytes: Bytes) -> Result<io::Result<()>, WrongLength> {
        let length = bytes.len() as u64;
        let sent = match &mut self.outgoing {
            Outgoing::Length(left) => {
                *left = left.checked_sub(length).ok_or(WrongLength)?;
                self.wire.write_all(&bytes).await
            }
            Outgoing::Nothing => return Err(WrongLength),
            Outgoing::Chunked => {
                let size = format!("{length:x}\r\n");
                let mut chunk = size.as_bytes().chain(bytes).chain(&b"\r\n"[..]);
                self.wire.write_all_buf(&mut chunk).await
            }
        };
        Ok(match sent {
            Ok(()) => {
                let flushed = self.wire.flush().await;
                // The upstream has everything, and may answer before the client's end has come.
                if flushed.is_ok() && matches!(self.outgoing, Outgoing::Length(0)) {
                    self.state.complete.set(true);
                }
                flushed
            }
            Err(error) => Err(error),
        })
    }
}

/// RFC 9112, section 7.1.
fn last_chunk(trailers: Option<&HeaderMap>) -> Vec<u8> {
    let mut lines = b"0\r\n".to_vec();
    for (name, value) in trailers.into_iter().flatten() {
        head::field(&mut lines, name.as_str(), value.as_bytes());
    }
    lines.extend_from_slice(b"\r\n");
    lines
}
