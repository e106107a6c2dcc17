//! Streams of bytes, most of them hostile, and what becomes of each: the corpora are in
//! `bytes/*.txt`, written to be read.

use crate::support::app::Seen;
use crate::support::gateway::Builder;
use crate::support::http2_app::{self, Http2App, Http2Reply};
use crate::support::{App, Protocol};

mod differential;
mod http1;
pub(crate) mod http2;
mod readers;
mod script;

pub(crate) use script::bytes;

/// What is told of a request that an app got.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    target: String,
    body: String,
}

/// The app behind the gateway, and the protocol in which it is asked.
enum Behind {
    Http1(App),
    Http2(Http2App),
}

impl Behind {
    /// One that greets whoever asks.
    async fn asked_in(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1(App::plain().await),
            Protocol::Http2 => Self::Http2(Http2App::start(|_| Http2Reply::new("hello")).await),
        }
    }

    /// A public route to it.
    fn route(&self, builder: Builder) -> Builder {
        let upstream = match self {
            Self::Http1(app) => format!("{:?}", app.url),
            Self::Http2(app) => format!("{{ url = {:?}, protocol = 'http2' }}", app.url),
        };
        builder.route_written("/", &upstream, r#"access = "public""#)
    }

    /// How many requests it got whole.
    fn count(&self) -> usize {
        match self {
            Self::Http1(app) => app.seen().len(),
            Self::Http2(app) => app.seen().len(),
        }
    }

    /// What it got whole after the first so many, all of it sane.
    fn since(&self, before: usize, title: &str) -> Vec<Request> {
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let of_http1 = |seen: Seen| {
            is_sane(&seen, title);
            Request { method: seen.method, target: seen.target, body: words(&seen.body) }
        };
        let of_http2 = |seen: http2_app::Seen| {
            is_sane_in_http2(&seen, title);
            let target = seen.head.uri.path_and_query().unwrap().to_string();
            Request { method: seen.head.method.to_string(), target, body: words(&seen.body) }
        };
        match self {
            Self::Http1(app) => app.seen().drain(before..).map(of_http1).collect(),
            Self::Http2(app) => app.seen().drain(before..).map(of_http2).collect(),
        }
    }
}

/// Requests as they are written down, with semicolons between them.
fn requests(text: &str) -> Vec<Request> {
    let request = |text: &str| {
        let mut words = text.splitn(3, ' ').map(bytes);
        let mut next = || String::from_utf8(words.next().unwrap_or_default()).unwrap();
        Request { method: next(), target: next(), body: next() }
    };
    text.split("; ").filter(|text| !text.is_empty()).map(request).collect()
}

/// What an app gets over HTTP/1.1 can be read in one way only, and says nothing that a client may not say.
fn is_sane(seen: &Seen, title: &str) {
    let head = memchr::memmem::find(&seen.raw, b"\r\n\r\n").unwrap();
    let head = &seen.raw[..head];
    for (at, byte) in head.iter().enumerate() {
        let after = head.get(at + 1);
        let before = at.checked_sub(1).and_then(|at| head.get(at));
        match byte {
            b'\r' => assert_eq!(after, Some(&b'\n'), "{title}: a bare CR"),
            b'\n' => {
                assert_eq!(before, Some(&b'\r'), "{title}: a bare LF");
                assert!(!matches!(after, Some(b' ' | b'\t')), "{title}: a fold");
            }
            0..=8 | 11..=31 | 127 => panic!("{title}: a control character"),
            _ => {}
        }
    }
    assert_eq!(seen.all("host").len(), 1, "{title}");
    assert!(seen.all("content-length").len() + seen.all("transfer-encoding").len() <= 1, "{title}");
    for name in ["x-forwarded-user", "x-session", "http2-settings", "expect"] {
        assert!(seen.as_cgi(name).is_empty(), "{title}: {name}");
    }
    let upgrades = seen.as_cgi("upgrade");
    assert!(upgrades.iter().all(|protocol| protocol == "websocket"), "{title}: {upgrades:?}");
    for (name, _) in &seen.trailers {
        assert!(["digest"].contains(&name.to_ascii_lowercase().as_str()), "{title}: {name}");
    }
}

/// The same of HTTP/2, where frames end what has an end (RFC 9113, section 8.2).
fn is_sane_in_http2(seen: &http2_app::Seen, title: &str) {
    let (fields, trailers) = (&seen.head.headers, &seen.trailers);
    for (name, value) in fields.iter().chain(trailers) {
        let bad = |byte: &u8| matches!(byte, 0..=8 | 10..=31 | 127);
        assert!(!value.as_bytes().iter().any(bad), "{title}: a control character in {name}");
        let folded = name.as_str().replace(['_', '.'], "-");
        let of_the_gateway = ["x-forwarded-user", "x-session", "http2-settings", "expect"];
        assert!(!of_the_gateway.contains(&folded.as_str()), "{title}: {name}");
        let of_http1 = ["connection", "upgrade", "transfer-encoding", "keep-alive"];
        assert!(!of_http1.contains(&name.as_str()), "{title}: {name}");
    }
    assert!(seen.head.uri.authority().is_some(), "{title}: no authority");
    assert!(!fields.contains_key("host"), "{title}: two hosts");
    let lengths = fields.get_all("content-length").iter();
    let lengths: Vec<usize> =
        lengths.map(|length| length.to_str().unwrap().parse().unwrap()).collect();
    let told = seen.body.len();
    assert!(lengths.is_empty() || lengths == [told], "{title}: {lengths:?}, of {told}");
    assert!(trailers.keys().all(|name| name == "digest"), "{title}: {trailers:?}");
}
