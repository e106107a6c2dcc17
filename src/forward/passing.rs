//! A request's body as it passes: every byte as it came, but for trailers, from which the gateway's
//! own names are taken.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::Whole;
use super::headers::Reserved;
use super::lasting::Broken;
use crate::body::{Body, BodyError};

/// A request's body; `whole` is told of its end. SECURITY: a client's trailers must not say what
/// its header fields may not (CVE-2026-88004).
pub(super) fn to_app(body: Incoming, reserved: &Rc<Reserved>, whole: &Whole) -> Body {
    if body.is_end_stream() {
        return Body::Empty;
    }
    Body::stream(Passing { body, reserved: reserved.clone(), whole: whole.clone() })
}

struct Passing {
    body: Incoming,
    reserved: Rc<Reserved>,
    whole: Whole,
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, reserved, whole } = self.get_mut();
        let mut frame = ready!(Pin::new(&mut *body).poll_frame(context));
        match &mut frame {
            None => whole.set(),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    reserved.strip(trailers);
                    whole.set();
                } else if body.is_end_stream() {
                    whole.set();
                }
            }
            Some(Err(_)) => whole.break_off(Broken::Off),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
