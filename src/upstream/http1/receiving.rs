//! A response's body as it comes in, read when it is asked for: a browser that does not take it
//! makes the upstream wait.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use thiserror::Error;

use super::chunked::{BadChunk, Piece};
use super::{Connection, Framing, Upload};
use crate::body::BodyError;

/// Room for a piece of a body that is longer than that, in bytes.
const LONG: usize = 64 * 1024;
/// And of another one: a stream of events needs no more.
const SHORT: usize = 8 * 1024;

/// Why a body broke off.
#[derive(Debug, Error)]
enum BrokenBody {
    #[error("the app closed the connection before the end of its response")]
    Closed,
    #[error("the connection to the app broke within its response: {0}")]
    Io(#[from] io::Error),
    #[error("the app's response is no chunked body: {0}")]
    Chunk(#[from] BadChunk),
    #[error("the request's body broke off: {0}")]
    Upload(#[source] BodyError),
}

/// A body on its way, and what is done with its connection after its last byte.
pub(in crate::upstream) struct Receiving<F> {
    /// Until the end.
    rest: Option<Rest<F>>,
    framing: Framing,
    /// Whether there was more to read than there was room for, a moment ago.
    is_fast: bool,
}

struct Rest<F> {
    connection: Connection,
    /// The request's body, which may still be under way.
    upload: Upload,
    after: F,
}

impl<F: FnOnce(Connection)> Rest<F> {
    /// A connection on which the request is not at its end is closed.
    fn end(self) {
        if self.upload.is_complete() {
            (self.after)(self.connection);
        }
    }
}

impl<F: FnOnce(Connection)> Receiving<F> {
    /// The whole body, if it is here already; else what is to come. `after` gets the connection when
    /// both bodies have ended, not if one breaks off or is dropped.
    pub(in crate::upstream) fn begin(
        mut connection: Connection,
        upload: Upload,
        framing: Framing,
        after: F,
    ) -> Result<Bytes, Self> {
        match framing {
            Framing::Length(length) if length <= connection.read.len() as u64 => {
                let body = take(&mut connection.read, length).freeze();
                Rest { connection, upload, after }.end();
                Ok(body)
            }
            framing => {
                let rest = Some(Rest { connection, upload, after });
                Err(Self { rest, framing, is_fast: false })
            }
        }
    }

    fn end(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.end();
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, BrokenBody>> {
        loop {
            let Some(Rest { connection, .. }) = &mut self.rest else {
                return Poll::Ready(Ok(None));
            };
            let read = &mut connection.read;
            match &mut self.framing {
                Framing::Length(left) if !read.is_empty() => {
                    let bytes = take(read, *left).freeze();
                    *left -= bytes.len() as u64;
                    if *left == 0 {
                        self.end();
                    }
                    return Poll::Ready(Ok(Some(Frame::data(bytes))));
                }
                Framing::Close if !read.is_empty() => {
                    return Poll::Ready(Ok(Some(Frame::data(read.split().freeze()))));
                }
                Framing::Length(_) | Framing::Close => {}
                Framing::Chunked(chunked) => match chunked.take(read)? {
                    Some(Piece::Data(bytes)) => return Poll::Ready(Ok(Some(Frame::data(bytes)))),
                    Some(Piece::End(trailers)) => {
                        self.end();
                        return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                    }
                    None => {}
                },
            }
            let Some(Rest { connection, upload, .. }) = &mut self.rest else { continue };
            let long = match self.framing {
                Framing::Length(left) => left >= LONG as u64,
                Framing::Chunked(_) | Framing::Close => self.is_fast,
            };
            let Poll::Ready(filled) =
                connection.poll_fill(context, if long { LONG } else { SHORT })
            else {
                // An app that waits for the rest of a request would wait for ever.
                return upload.poll_broken(context).map(|error| Err(BrokenBody::Upload(error)));
            };
            let filled = filled?;
            let is_full = connection.read.len() == connection.read.capacity();
            self.is_fast = is_full || (self.is_fast && filled >= SHORT);
            if filled == 0 {
                let ends_so = matches!(self.framing, Framing::Close);
                self.rest = None;
                return Poll::Ready(if ends_so { Ok(None) } else { Err(BrokenBody::Closed) });
            }
        }
    }
}

fn take(read: &mut BytesMut, most: u64) -> BytesMut {
    let length = usize::try_from(most).unwrap_or(usize::MAX).min(read.len());
    read.split_to(length)
}

impl<F: FnOnce(Connection) + Unpin> http_body::Body for Receiving<F> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = ready!(this.poll(context));
        if polled.is_err() {
            this.rest = None;
        }
        Poll::Ready(polled.map_err(Into::into).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.rest, &self.framing) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Framing::Length(left)) => SizeHint::with_exact(*left),
            (Some(_), Framing::Chunked(_) | Framing::Close) => SizeHint::default(),
        }
    }
}
