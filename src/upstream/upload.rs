//! A request's body on its way to an upstream: whether it moves, and whether it is all sent. The
//! connection may serve the next request only then, and the upstream is not late while it still
//! receives.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::body::{Body, BodyError};

/// How far a body has come.
#[derive(Clone, Default)]
pub(super) struct Upload {
    state: Option<Rc<State>>,
}

#[derive(Default)]
struct State {
    frames: Cell<u64>,
    complete: Cell<bool>,
}

impl Upload {
    /// Follows `body`, if it is a stream: anything else is sent at once.
    pub(super) fn follow(body: Body) -> (Self, Body) {
        match body {
            Body::Stream(stream) if !stream.is_end_stream() => {
                let state = Rc::<State>::default();
                let upload = Self { state: Some(state.clone()) };
                (upload, Body::stream(Followed { stream, state }))
            }
            body => (Self::default(), body),
        }
    }

    /// Whether the whole body was taken off its source.
    pub(super) fn is_complete(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.complete.get())
    }

    /// Grows with every piece that is taken.
    pub(super) fn progress(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.frames.get())
    }
}

struct Followed {
    stream: crate::body::Stream,
    state: Rc<State>,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(this.stream.as_mut().poll_frame(context));
        this.state.frames.set(this.state.frames.get() + 1);
        let ended = frame.is_none() || this.stream.is_end_stream();
        if ended && !matches!(frame, Some(Err(_))) {
            this.state.complete.set(true);
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
