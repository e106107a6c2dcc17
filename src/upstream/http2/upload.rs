//! A request's body on its way out: as fast as the upstream takes it (RFC 9113, section 5.2), in a
//! task of its own, so that an app can answer before it has everything. As long as little was taken
//! off it, that is kept, and the whole can go out another way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::task::JoinHandle;

use crate::body::{Body, BodyError, Stream};

/// A request's body.
pub(super) enum Outgoing {
    Nothing,
    Bytes(Bytes),
    Stream(Rc<Source>),
}

/// The most that is kept of a body, in bytes: gRPC's messages are mostly shorter.
const KEPT: usize = 32 * 1024;
/// And in pieces.
const FRAMES: usize = 64;
/// Pieces shorter than this, in bytes, wait for those that are there as well.
const SMALL: usize = 256;
/// What goes out together at most, in bytes.
const TOGETHER: usize = 16 * 1024;

/// A stream that may yet be taken back.
pub(super) struct Source {
    stream: RefCell<Option<Replayed>>,
    /// Pieces that went out.
    sent: Cell<u64>,
}

/// A body under way: dropped, it goes no further, and the upstream is told.
pub(super) struct Upload(JoinHandle<()>);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Outgoing {
    pub(super) fn new(body: Body) -> Self {
        match body {
            Body::Empty => Self::Nothing,
            Body::Full(bytes) if bytes.is_empty() => Self::Nothing,
            Body::Full(bytes) => Self::Bytes(bytes),
            Body::Stream(stream) if stream.is_end_stream() => Self::Nothing,
            Body::Stream(stream) => Self::Stream(Rc::new(Source {
                stream: RefCell::new(Some(Replayed::new(stream))),
                sent: Cell::new(0),
            })),
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Whether it could be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Nothing | Self::Bytes(_) => true,
            Self::Stream(source) => {
                source.stream.borrow().as_ref().is_some_and(|stream| stream.kept.is_some())
            }
        }
    }

    /// The body, as far as nothing was taken off it.
    pub(super) fn into_body(self) -> Body {
        match self {
            Self::Nothing => Body::Empty,
            Self::Bytes(bytes) => bytes.into(),
            Self::Stream(source) => source.stream.take().map_or(Body::Empty, |mut stream| {
                stream.rewind();
                Body::stream(stream)
            }),
        }
    }

    /// The upstream has looked at it: nothing is kept any more.
    pub(super) fn settle(&self) {
        if let Self::Stream(source) = self
            && let Some(stream) = source.stream.borrow_mut().as_mut()
        {
            stream.kept = None;
        }
    }

    /// Sends it over this stream, from its beginning.
    pub(super) fn start(&self, mut to: SendStream<Bytes>) -> Option<Upload> {
        match self {
            Self::Nothing => None,
            Self::Bytes(bytes) => {
                // It fits into memory, for it is there. What became of it is told to the response.
                let _ = to.send_data(bytes.clone(), true);
                None
            }
            Self::Stream(source) => {
                if let Some(stream) = source.stream.borrow_mut().as_mut() {
                    stream.rewind();
                }
                Some(Upload(tokio::task::spawn_local(source.clone().send(to))))
            }
        }
    }

    /// The result of `exchange`, or nothing if `limit` passed in which neither a response came nor a
    /// piece of the body went.
    pub(super) async fn within_time<T>(
        &self,
        exchange: impl Future<Output = T>,
        limit: Duration,
    ) -> Option<T> {
        let progress = || match self {
            Self::Stream(source) => source.sent.get(),
            Self::Nothing | Self::Bytes(_) => 0,
        };
        let mut exchange = pin!(exchange);
        loop {
            let before = progress();
            match tokio::time::timeout(limit, exchange.as_mut()).await {
                Ok(result) => return Some(result),
                Err(_) if progress() > before => {}
                Err(_) => return None,
            }
        }
    }
}

/// What comes next of a body that somebody may stop wanting.
enum Next {
    Frame(Frame<Bytes>),
    End,
    Broken,
    /// The upstream takes no more (RFC 9113, section 8.1).
    Unwanted,
}

impl Source {
    async fn send(self: Rc<Self>, mut to: SendStream<Bytes>) {
        let mut ahead = None;
        loop {
            let next = match ahead.take() {
                Some(next) => next,
                None => poll_fn(|context| self.poll_next(&mut to, context)).await,
            };
            let frame = match next {
                Next::Frame(frame) => frame,
                Next::End => return drop(to.send_data(Bytes::new(), true)),
                // SECURITY: what broke off must not look as if it were whole.
                Next::Broken => return to.send_reset(Reason::CANCEL),
                Next::Unwanted => return,
            };
            match frame.into_data() {
                Ok(mut bytes) => {
                    // The first goes out with the head: most bodies are no longer.
                    if bytes.len() < SMALL && self.sent.get() > 0 {
                        (bytes, ahead) = self.gather(&mut to, bytes).await;
                    }
                    let ends = ahead.is_none()
                        && self
                            .stream
                            .borrow()
                            .as_ref()
                            .is_some_and(http_body::Body::is_end_stream);
                    if self.push(&mut to, bytes, ends).await.is_none() || ends {
                        return;
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return drop(to.send_trailers(trailers));
                    }
                }
            }
        }
    }

    /// A small piece with all that is there behind it, and what comes then if that is no data.
    ///
    /// SECURITY: an upstream may take many small frames that it has not read yet for an attack, and
    /// end the connection; who cuts a body into small chunks would end it for all who are on it.
    async fn gather(&self, to: &mut SendStream<Bytes>, first: Bytes) -> (Bytes, Option<Next>) {
        let mut all = BytesMut::new();
        let mut waited = false;
        while all.len() < TOGETHER {
            let next = poll_fn(|context| Poll::Ready(self.poll_next(to, context))).await;
            match next {
                Poll::Ready(Next::Frame(frame)) => match frame.into_data() {
                    Ok(bytes) => {
                        if all.is_empty() {
                            all.extend_from_slice(&first);
                        }
                        all.extend_from_slice(&bytes);
                        waited = false;
                    }
                    Err(frame) => return (or(all, first), Some(Next::Frame(frame))),
                },
                Poll::Ready(other) => return (or(all, first), Some(other)),
                // The client's connection has its turn: it hands over piece by piece.
                Poll::Pending if !waited => {
                    waited = true;
                    tokio::task::yield_now().await;
                }
                Poll::Pending => break,
            }
        }
        (or(all, first), None)
    }

    fn poll_next(&self, to: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<Next> {
        if to.poll_reset(context).is_ready() {
            return Poll::Ready(Next::Unwanted);
        }
        let mut stream = self.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else { return Poll::Ready(Next::Unwanted) };
        Pin::new(stream).poll_frame(context).map(|frame| match frame {
            Some(Ok(frame)) => Next::Frame(frame),
            Some(Err(_)) => Next::Broken,
            None => Next::End,
        })
    }

    /// Sends a piece as fast as the upstream takes it; nothing if it takes no more.
    async fn push(&self, to: &mut SendStream<Bytes>, mut bytes: Bytes, ends: bool) -> Option<()> {
        if bytes.is_empty() && ends {
            return to.send_data(bytes, true).ok();
        }
        while !bytes.is_empty() {
            to.reserve_capacity(bytes.len());
            let room = poll_fn(|context| to.poll_capacity(context)).await?.ok()?;
            let piece = bytes.split_to(room.min(bytes.len()));
            to.send_data(piece, ends && bytes.is_empty()).ok()?;
            self.sent.set(self.sent.get() + 1);
        }
        Some(())
    }
}

/// All that was gathered, if it is more than the first piece.
fn or(all: BytesMut, first: Bytes) -> Bytes {
    if all.is_empty() { first } else { all.freeze() }
}

/// A body whose beginning can be had again.
struct Replayed {
    rest: Stream,
    /// What was taken off it, unless that is too much.
    kept: Option<Vec<Kept>>,
    /// What comes before the rest.
    again: VecDeque<Kept>,
}

/// A frame that was taken.
#[derive(Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Replayed {
    fn new(rest: Stream) -> Self {
        Self { rest, kept: Some(Vec::new()), again: VecDeque::new() }
    }

    /// Begins anew, if it can.
    fn rewind(&mut self) {
        if let Some(kept) = &mut self.kept {
            let rest = std::mem::take(&mut self.again);
            self.again = kept.drain(..).chain(rest).collect();
        }
    }

    fn keep(&mut self, frame: Kept) {
        let Some(kept) = &mut self.kept else { return };
        kept.push(frame);
        let length = |frame: &Kept| match frame {
            Kept::Data(bytes) => bytes.len(),
            Kept::Trailers(_) => 0,
        };
        if kept.len() > FRAMES || kept.iter().map(length).sum::<usize>() > KEPT {
            self.kept = None;
        }
    }
}

impl http_body::Body for Replayed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.again.pop_front() {
            self.keep(frame.clone());
            return Poll::Ready(Some(Ok(match frame {
                Kept::Data(bytes) => Frame::data(bytes),
                Kept::Trailers(fields) => Frame::trailers(fields),
            })));
        }
        let frame = ready!(self.rest.as_mut().poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            if let Some(bytes) = frame.data_ref() {
                self.keep(Kept::Data(bytes.clone()));
            } else if let Some(fields) = frame.trailers_ref() {
                self.keep(Kept::Trailers(fields.clone()));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.rest.is_end_stream()
    }
}
