//! One exchange of which every head is seen, also those before the response: over HTTP/1.1 to the
//! letter, over HTTP/2 by a client that tells of them.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use crate::support::wire::tls;
use crate::support::{Gateway, PATIENCE, Protocol, Raw};

/// A response's head, or that of what comes before it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) fields: HeaderMap,
}

impl Head {
    /// Reads the text of one, without its last line.
    pub(super) fn read(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap();
        let code = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = code.unwrap_or_else(|| panic!("no head: {text:?}")).parse().unwrap();
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        Self { status, fields: lines.map(field).collect() }
    }

    /// Its fields as lines, sorted; but for those that differ from time to time.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        let mut lines: Vec<_> = self.fields.iter().map(line).collect();
        lines.retain(|line| !line.starts_with("date: "));
        lines.sort();
        lines
    }
}

/// An exchange under way.
pub(super) enum Exchange {
    Http1(Box<Raw>, String),
    Http2(ResponseFuture),
}

impl Exchange {
    /// Asks for a path, with this cookie.
    pub(super) async fn ask(
        gateway: &Gateway,
        protocol: Protocol,
        path: &str,
        cookie: &str,
    ) -> Self {
        if protocol == Protocol::Http1 {
            let mut raw = Raw::open(gateway).await;
            let cookie = format!("Cookie: {cookie}\r\n");
            raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}\r\n")).await;
            return Self::Http1(Box::new(raw), String::new());
        }
        let port = gateway.url.port().unwrap();
        let stream = tls("localhost", port, &[protocol.alpn()]).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let url = gateway.url.join(path).unwrap();
        let request = Request::get(url.as_str()).header("cookie", cookie).body(()).unwrap();
        Self::Http2(sender.send_request(request, true).unwrap().0)
    }

    /// The next head; that of the response comes with its body.
    pub(super) async fn next(&mut self) -> (Head, Bytes) {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("no further head")
    }

    /// Every head up to the response's, and its body.
    pub(super) async fn rest(&mut self) -> (Vec<Head>, Bytes) {
        let mut heads = Vec::new();
        loop {
            let (head, body) = self.next().await;
            heads.push(head);
            if heads.last().unwrap().status >= 200 {
                return (heads, body);
            }
        }
    }

    async fn read(&mut self) -> (Head, Bytes) {
        match self {
            Self::Http1(raw, ahead) => {
                while !ahead.contains("\r\n\r\n") {
                    let (bytes, closed) = raw.bytes_until(|bytes| !bytes.is_empty()).await;
                    ahead.push_str(&String::from_utf8(bytes).unwrap());
                    assert!(!closed || ahead.contains("\r\n\r\n"), "closed after {ahead:?}");
                }
                let (text, rest) = ahead.split_once("\r\n\r\n").unwrap();
                let (head, mut rest) = (Head::read(text), rest.to_owned());
                let length = head.fields.get("content-length").filter(|_| head.status >= 200);
                let length = length.map_or(0, |text| text.to_str().unwrap().parse().unwrap());
                while rest.len() < length {
                    let (bytes, _) = raw.bytes_until(|bytes| !bytes.is_empty()).await;
                    rest.push_str(&String::from_utf8(bytes).unwrap());
                }
                *ahead = rest.split_off(length);
                (head, rest.into())
            }
            Self::Http2(response) => {
                let interim = poll_fn(|context| match response.poll_informational(context) {
                    Poll::Ready(Some(head)) => Poll::Ready(Some(head.unwrap())),
                    Poll::Ready(None) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                });
                if let Some(head) = interim.await {
                    let (head, ()) = head.into_parts();
                    let head = Head { status: head.status.as_u16(), fields: head.headers };
                    return (head, Bytes::new());
                }
                let (head, mut stream) = response.await.unwrap().into_parts();
                let mut body = Vec::new();
                while let Some(piece) = stream.data().await {
                    let piece = piece.unwrap();
                    stream.flow_control().release_capacity(piece.len()).unwrap();
                    body.extend(piece);
                }
                (Head { status: head.status.as_u16(), fields: head.headers }, body.into())
            }
        }
    }
}
