//! The one body type of every message the gateway sends: nothing, a few bytes of its own, or a
//! stream that passes through. It knows nothing of where a stream comes from. `body/incoming` is the
//! one of every request as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

mod incoming;

pub use incoming::Incoming;

/// Whatever broke a body under way: an I/O error, a limit, a peer that went away.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A stream of frames that passes through, boxed once.
pub type Stream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>;

/// A message body.
#[derive(Default)]
pub enum Body {
    /// No body.
    #[default]
    Empty,
    /// A body of the gateway's own.
    Full(Bytes),
    /// A body that passes through without being buffered.
    Stream(Stream),
}

impl Body {
    /// Boxes a stream that passes through.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::Full(bytes.into())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}
