//! A stream of HTTP/2 that has become a WebSocket (RFC 8441): bytes both ways, each as fast as who
//! reads them takes them (RFC 9113, section 5.2). Dropped before its end, it tells the upstream so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Held;
use crate::body::Body;
use crate::upstream::Switched;

/// The upstream's end of it.
struct Tunnel {
    to: SendStream<Bytes>,
    from: RecvStream,
    /// What has come and is not read yet.
    read: Bytes,
    _held: Held,
}

/// The answer as it would be over HTTP/1.1: protocols are switched, and the key is `accepted`.
pub(super) fn open(
    response: Response<RecvStream>,
    to: SendStream<Bytes>,
    accepted: HeaderValue,
    held: Held,
) -> Response<Body> {
    let (mut parts, from) = response.into_parts();
    parts.status = StatusCode::SWITCHING_PROTOCOLS;
    // RFC 9110, section 9.3.6: it means nothing here.
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    let mut response = Response::from_parts(parts, Body::Empty);
    let tunnel = Tunnel { to, from, read: Bytes::new(), _held: held };
    Switched::new(tunnel, Bytes::new()).put(&mut response);
    response
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.from.poll_data(context)) {
                Some(bytes) => self.read = bytes.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read.split_to(length));
        // It fails where the stream has ended: no more is to come.
        let _ = self.from.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // There would never be room for nothing.
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.to.reserve_capacity(bytes.len());
        let Some(room) = ready!(self.to.poll_capacity(context)) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let piece = bytes.get(..room.map_err(io::Error::other)?).unwrap_or(bytes);
        let sent = self.to.send_data(Bytes::copy_from_slice(piece), false);
        Poll::Ready(sent.map(|()| piece.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// RFC 8441, section 5: `END_STREAM` is the end of what is sent.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.to.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
