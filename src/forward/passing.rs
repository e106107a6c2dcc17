//! Bodies as they pass: every byte as it came, but for trailers, from which the gateway's own names
//! are taken in both directions.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::headers::{Reserved, strip_updates};
use crate::body::{Body, BodyError};

/// A request's body. SECURITY: a client's trailers must not say what its header fields may not
/// (CVE-2026-88004).
pub(super) fn to_app(body: Incoming, reserved: &Rc<Reserved>) -> Body {
    if body.is_end_stream() {
        return Body::Empty;
    }
    let reserved = reserved.clone();
    Body::stream(Passing { body, clean: move |trailers: &mut HeaderMap| reserved.strip(trailers) })
}

/// A response's body. A body of known length has no trailers (RFC 9112, section 6).
pub(super) fn to_browser(body: Body) -> Body {
    match body {
        Body::Stream(body) if body.size_hint().exact().is_none() => {
            Body::stream(Passing { body, clean: strip_updates })
        }
        body => body,
    }
}

struct Passing<B, C> {
    body: B,
    clean: C,
}

impl<B, C> http_body::Body for Passing<B, C>
where
    B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
    C: Fn(&mut HeaderMap) + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, clean } = self.get_mut();
        let mut frame = ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            clean(trailers);
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
