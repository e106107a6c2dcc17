//! The streams of `http1.txt`.

use std::time::Duration;

use super::script::{Story, stories};
use super::{Behind, Request, requests};
use crate::support::{Gateway, Protocol, Provider, Raw};

/// What comes of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    statuses: Vec<u16>,
    closes: bool,
    seen: Vec<Request>,
}

impl Outcome {
    /// As it is written down.
    fn parse(text: &str) -> Self {
        let (words, seen) = text.split_once("; ").unwrap_or((text, ""));
        let mut words: Vec<_> = words.split(' ').collect();
        let closes = match words.pop().unwrap() {
            "close" => true,
            "keep" => false,
            word => panic!("does it close? {word}"),
        };
        Self {
            statuses: words.iter().map(|status| status.parse().unwrap()).collect(),
            closes,
            seen: requests(seen),
        }
    }
}

/// The statuses of the whole responses at the beginning of what came.
fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") {
        let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no response: {head}"));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let Some(rest) = bytes.get(end + 4 + length..) else { return statuses };
        bytes = rest;
        statuses.push(status);
    }
    assert!(bytes.is_empty(), "bytes behind a response: {}", String::from_utf8_lossy(bytes));
    statuses
}

/// Sends a stream, in pieces of this size, and then, where the connection stays, one request more.
async fn play(gateway: &Gateway, app: &Behind, story: &Story, piece: usize) -> Outcome {
    let before = app.count();
    let mut client = Raw::open(gateway).await;
    let expected = Outcome::parse(story.outcomes().next().unwrap());
    for piece in story.bytes().chunks(piece) {
        client.send(piece).await;
    }
    let enough =
        |bytes: &[u8]| !expected.closes && statuses(bytes).len() >= expected.statuses.len();
    let (came, mut closes) = client.bytes_until(enough).await;
    if !closes {
        // Nothing comes unasked, and what comes next is the answer to what is asked next.
        let (more, closed) = client.bytes_for(Duration::from_millis(20)).await;
        assert!(more.is_empty(), "{}: {}", story.title, String::from_utf8_lossy(&more));
        client.send("GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let (next, _) = client.bytes_until(|bytes| !statuses(bytes).is_empty()).await;
        closes = closed || statuses(&next) != [200];
    }
    let mut seen = app.since(before, &story.title);
    if !closes {
        seen.pop_if(|seen| seen.target == "/next");
    }
    Outcome { statuses: statuses(&came), closes, seen }
}

async fn play_all(piece: usize, upstream: Protocol) {
    let provider = Provider::start().await;
    let app = Behind::asked_in(upstream).await;
    let builder =
        Gateway::with(&provider).limits("header_time = \"2s\"").limits("body_time = \"1s\"");
    let gateway = app.route(builder).start().await;
    let mut wrong = String::new();
    let stories = stories(include_str!("http1.txt"));
    for story in &stories {
        // A stream of 70,000 bytes is not sent in single ones.
        let outcome = play(&gateway, &app, story, piece.max(story.bytes().len() / 500)).await;
        if !story.outcomes().any(|expected| outcome == Outcome::parse(expected)) {
            let expected = &story.outcome;
            wrong += &format!("{}\n  expected {expected}\n  but      {outcome:?}\n", story.title);
        }
    }
    assert!(wrong.is_empty(), "of {} streams:\n{wrong}", stories.len());
    let refused = gateway.metric(r#"vestibule_requests_total{route="none",status="400"}"#).await;
    assert!(refused > 50, "what was refused was counted: {refused}");
    gateway.access_line(&["-", "none", "431", "127.0.0.1"]).await;
}

/// CVE-2021-40346, CVE-2026-48743, CVE-2023-25725 and their kin: the answer, the end of the
/// connection, and what the app gets, for each stream.
#[tokio::test]
async fn every_stream_of_bytes_has_its_answer() {
    play_all(usize::MAX, Protocol::Http1).await;
}

/// The network cuts a stream wherever it likes.
#[tokio::test]
async fn every_stream_of_bytes_has_its_answer_however_it_is_cut() {
    for piece in [1, 7] {
        play_all(piece, Protocol::Http1).await;
    }
}

/// The app is asked in HTTP/2: no stream of HTTP/1.1 becomes two requests there either (CVE-2021-33193
/// and its kin).
#[tokio::test]
async fn every_stream_of_bytes_has_its_answer_before_an_app_of_http2() {
    for piece in [usize::MAX, 7] {
        play_all(piece, Protocol::Http2).await;
    }
}
