//! Connections that become something else: a WebSocket over HTTP/1.1 (RFC 6455, section 4). Any
//! other upgrade is not passed on: what the gateway does not understand it could not guard.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::headers::list;
use crate::body::Body;

/// Whether the request asks for a WebSocket.
pub(super) fn wanted<B>(request: &Request<B>) -> bool {
    // SECURITY: `Upgrade: h2c` would be a way past every later check (h2c smuggling).
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && names(request.headers(), CONNECTION, b"upgrade")
        && names(request.headers(), UPGRADE, b"websocket")
}

/// Whether an app that switches protocols switches to a WebSocket.
pub(super) fn agreed(response: &HeaderMap) -> bool {
    names(response, UPGRADE, b"websocket")
}

/// Asks an upstream, or tells a browser, to change the protocol of this connection.
pub(super) fn write(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Joins the two connections once both have changed, until either side ends.
pub(super) fn join(browser: OnUpgrade, response: &mut Response<Body>) {
    let upstream = hyper::upgrade::on(response);
    tokio::task::spawn_local(async move {
        let Ok((browser, upstream)) = tokio::try_join!(browser, upstream) else { return };
        let (mut browser, mut upstream) = (TokioIo::new(browser), TokioIo::new(upstream));
        // Either side may break off at any time; the other is closed then.
        let _ = tokio::io::copy_bidirectional(&mut browser, &mut upstream).await;
    });
}

fn names(fields: &HeaderMap, name: http::HeaderName, word: &[u8]) -> bool {
    fields.get_all(name).iter().flat_map(list).any(|element| element.eq_ignore_ascii_case(word))
}
