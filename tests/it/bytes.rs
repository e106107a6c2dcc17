//! Streams of bytes, most of them hostile, and what becomes of each: the corpora are in
//! `bytes/*.txt`, written to be read.

use crate::support::app::Seen;

mod differential;
mod http1;
mod http2;
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

impl Request {
    fn of(seen: Seen) -> Self {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        Self { method: seen.method, target: seen.target, body }
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

/// What an app gets can be read in one way only, and says nothing that a client may not say.
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
