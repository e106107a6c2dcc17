//! A stream of HTTP/2 that has become a WebSocket (RFC 8441).

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderValue, Response, StatusCode};

use super::connection::Held;
use crate::body::Body;
use crate::duplex::Duplex;
use crate::upstream::Switched;

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
    Switched::new(Duplex::new(from, to, held), Bytes::new()).put(&mut response);
    response
}
