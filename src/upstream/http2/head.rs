//! A request's head in HTTP/2: the target in pieces, and no field that concerns one connection.

use h2::ext::Protocol;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, Method, Request, Uri, Version};

use crate::config::value::UpstreamUrl;

/// RFC 9113, section 8.2.2.
const OF_A_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The head, if it can be said.
pub(super) fn write(parts: &Parts, url: &UpstreamUrl) -> Option<Request<()>> {
    let mut fields = parts.headers.clone();
    for name in &OF_A_CONNECTION {
        fields.remove(name);
    }
    // RFC 9113, section 8.2.2: nothing else may stand there.
    if fields.get(TE).is_some_and(|te| te.as_bytes() != b"trailers") {
        fields.remove(TE);
    }
    // RFC 9113, section 8.3.1: `:authority` stands for it.
    let authority = match fields.remove(HOST) {
        Some(host) => Authority::try_from(host.as_bytes()).ok()?,
        None => Authority::try_from(url.authority()).ok()?,
    };
    let mut target = http::uri::Parts::default();
    let secure = matches!(url, UpstreamUrl::Https { .. });
    target.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    target.authority = Some(authority);
    let path = parts.uri.path_and_query().cloned();
    target.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from_parts(target).ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields;
    Some(request)
}

/// The head of one that asks for a WebSocket (RFC 8441, sections 4 and 5).
pub(super) fn websocket(parts: &Parts, url: &UpstreamUrl) -> Option<Request<()>> {
    let mut head = write(parts, url)?;
    *head.method_mut() = Method::CONNECT;
    head.extensions_mut().insert(Protocol::from_static("websocket"));
    head.headers_mut().remove(SEC_WEBSOCKET_KEY);
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_concerns_one_connection_is_said() {
        let url = UpstreamUrl::Http { host: "10.0.0.1".to_owned(), port: 9000 };
        let request = Request::builder()
            .method("POST")
            .uri("/a%2fb;c?d=%zz")
            .header("host", "app.example")
            .header("connection", "te")
            .header("te", "trailers")
            .header("transfer-encoding", "chunked")
            .header("keep-alive", "timeout=5")
            .header("cookie", "a=b")
            .body(())
            .unwrap();
        let head = write(&request.into_parts().0, &url).unwrap();
        assert_eq!(head.uri().to_string(), "http://app.example/a%2fb;c?d=%zz");
        let mut names: Vec<_> = head.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "te"]);
        let other = Request::builder().uri("/").header("te", "gzip, trailers").body(()).unwrap();
        let head = write(&other.into_parts().0, &url).unwrap();
        assert_eq!(head.uri().to_string(), "http://10.0.0.1:9000/");
        assert!(head.headers().is_empty());
    }
}
