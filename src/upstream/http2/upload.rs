//! A request's body on its way out: as fast as the upstream takes it (RFC 9113, section 5.2), in a
//! task of its own, so that an app can answer before it has everything. As long as nothing was
//! taken off it, it can go out another way.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use tokio::task::JoinHandle;

use crate::body::{Body, Stream};

/// A request's body.
pub(super) enum Outgoing {
    Nothing,
    Bytes(Bytes),
    Stream(Rc<Source>),
}

/// A stream that may yet be taken back.
pub(super) struct Source {
    stream: RefCell<Option<Stream>>,
    /// Frames that were taken off.
    taken: Cell<u64>,
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
                stream: RefCell::new(Some(stream)),
                taken: Cell::new(0),
                sent: Cell::new(0),
            })),
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Whether it could be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !matches!(self, Self::Stream(source) if source.taken.get() > 0)
    }

    /// The body, as far as nothing was taken off it.
    pub(super) fn into_body(self) -> Body {
        match self {
            Self::Nothing => Body::Empty,
            Self::Bytes(bytes) => bytes.into(),
            Self::Stream(source) => source.stream.take().map_or(Body::Empty, Body::Stream),
        }
    }

    /// Sends it over this stream.
    pub(super) fn start(&self, mut to: SendStream<Bytes>) -> Option<Upload> {
        match self {
            Self::Nothing => None,
            Self::Bytes(bytes) => {
                // It fits into memory, for it is there. What became of it is told to the response.
                let _ = to.send_data(bytes.clone(), true);
                None
            }
            Self::Stream(source) => Some(Upload(tokio::task::spawn_local(source.clone().send(to)))),
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
        loop {
            let frame = match self.next(&mut to).await {
                Next::Frame(frame) => frame,
                Next::End => return drop(to.send_data(Bytes::new(), true)),
                // SECURITY: what broke off must not look as if it were whole.
                Next::Broken => return to.send_reset(Reason::CANCEL),
                Next::Unwanted => return,
            };
            match frame.into_data() {
                Ok(bytes) => {
                    let ends =
                        self.stream.borrow().as_ref().is_some_and(http_body::Body::is_end_stream);
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

    async fn next(&self, to: &mut SendStream<Bytes>) -> Next {
        poll_fn(|context| {
            if to.poll_reset(context).is_ready() {
                return Poll::Ready(Next::Unwanted);
            }
            let mut stream = self.stream.borrow_mut();
            let Some(stream) = stream.as_mut() else { return Poll::Ready(Next::Unwanted) };
            stream.as_mut().poll_frame(context).map(|frame| {
                self.taken.set(self.taken.get() + 1);
                match frame {
                    Some(Ok(frame)) => Next::Frame(frame),
                    Some(Err(_)) => Next::Broken,
                    None => Next::End,
                }
            })
        })
        .await
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
