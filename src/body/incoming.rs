//! A request's body as it comes in, over either protocol: what its client has not sent whole breaks
//! off, and does not end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use super::BodyError;

/// A body as it comes in.
pub enum Incoming {
    /// There is none.
    Empty,
    /// Over HTTP/1.1.
    Http1(hyper::body::Incoming),
    /// Over HTTP/2.
    Http2(Streamed),
}

/// A body that is a stream of HTTP/2: its client may send more as soon as a piece is taken.
pub struct Streamed {
    stream: RecvStream,
    /// How much is to come, if the client has said so; HTTP/2 itself sees to it that it is right
    /// (RFC 9113, section 8.1.1).
    left: Option<u64>,
}

impl Incoming {
    /// The body of a request with these fields, on this stream.
    pub fn streamed(stream: RecvStream, fields: &HeaderMap) -> Self {
        if stream.is_end_stream() {
            return Self::Empty;
        }
        let length = fields.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        Self::Http2(Streamed { stream, left: length.and_then(|length| length.parse().ok()) })
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Http1(body)
    }
}

impl Streamed {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(bytes) = ready!(self.stream.poll_data(context)) else {
            let trailers = ready!(self.stream.poll_trailers(context));
            return Poll::Ready(trailers.map(|it| it.map(Frame::trailers)).transpose());
        };
        let taken = bytes.map(|bytes| {
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
            // It fails where the stream has ended: no more is to come.
            let _ = self.stream.flow_control().release_capacity(bytes.len());
            Frame::data(bytes)
        });
        Poll::Ready(Some(taken))
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Http2(body) => body.poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;

    /// What becomes of a body that begins with "half" and is to be `length` bytes long.
    async fn becomes(
        length: Option<&str>,
        end: impl FnOnce(&mut h2::SendStream<Bytes>),
    ) -> (SizeHint, Result<Bytes, BodyError>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let opening = h2::client::handshake(far);
        let (server, client) = tokio::join!(h2::server::handshake(near), opening);
        let (mut server, (mut sender, client)) = (server.unwrap(), client.unwrap());
        tokio::spawn(client);
        let mut request = Request::post("https://app.example/");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let (_response, mut to) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        to.send_data(Bytes::from_static(b"half"), false).unwrap();
        end(&mut to);
        let (request, _reply) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let (head, stream) = request.into_parts();
        let body = Incoming::streamed(stream, &head.headers);
        let hint = body.size_hint();
        (hint, body.collect().await.map(http_body_util::Collected::to_bytes))
    }

    #[tokio::test]
    async fn a_body_ends_where_its_client_ends_it_and_nowhere_else() {
        let rest = || Bytes::from_static(b" and half");
        let (hint, whole) = becomes(Some("13"), |to| to.send_data(rest(), true).unwrap()).await;
        assert_eq!((hint.exact(), &whole.unwrap()[..]), (Some(13), &b"half and half"[..]));
        let (hint, whole) = becomes(None, |to| to.send_data(rest(), true).unwrap()).await;
        assert_eq!((hint.exact(), hint.lower(), whole.unwrap().len()), (None, 0, 13));
        for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR] {
            let (_, broken) = becomes(None, |to| to.send_reset(reason)).await;
            assert!(broken.is_err(), "{reason}");
        }
    }
}
