//! Whether a request's body was handed over whole: only then an exchange that breaks off is its
//! upstream's fault.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::{Body, BodyError, Stream};

/// Sees a body go by.
pub(super) struct Witness(Option<Rc<Cell<bool>>>);

impl Witness {
    /// Of `body`, which is to be sent as it is returned.
    pub(super) fn of(body: Body) -> (Self, Body) {
        match body {
            Body::Stream(stream) if !stream.is_end_stream() => {
                let whole = Rc::<Cell<bool>>::default();
                let seen = Body::stream(Seen { stream, whole: whole.clone() });
                (Self(Some(whole)), seen)
            }
            body => (Self(None), body),
        }
    }

    /// Whether all of it was taken.
    pub(super) fn has_seen_all(&self) -> bool {
        self.0.as_ref().is_none_or(|whole| whole.get())
    }
}

struct Seen {
    stream: Stream,
    whole: Rc<Cell<bool>>,
}

impl http_body::Body for Seen {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(this.stream.as_mut().poll_frame(context));
        let ended = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || this.stream.is_end_stream(),
            Some(Err(_)) => false,
        };
        if ended {
            this.whole.set(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}
