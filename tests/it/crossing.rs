//! What belongs to one request stays with it: bytes that could be read as two requests, answers to
//! clients that have gone, connections that many are on.

use std::time::Duration;

use crate::forward::public;
use crate::support::http2_app::{Http2App, Http2Reply};
use crate::support::wire::Connection;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Provider, Raw, Reply, join_all, raw};

/// CVE-2021-40346 (HAProxy), CVE-2026-48743, CVE-2023-25725: one request that two parties read as
/// two.
#[tokio::test]
async fn a_request_that_could_be_read_as_two_is_refused_and_the_connection_closed() {
    let app = App::plain().await;
    let (_provider, gateway) = public(&app).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (what, head) in [
        ("length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        ("chunks and length", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("a list of lengths", "Content-Length: 4, 5\r\n"),
        ("a signed length", "Content-Length: +4\r\n"),
        ("a negative length", "Content-Length: -4\r\n"),
        ("a length in hex", "Content-Length: 0x4\r\n"),
        ("an endless length", "Content-Length: 99999999999999999999\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a folded line", "X-A: 1\r\n Transfer-Encoding: chunked\r\n"),
        ("a folded line of tabs", "X-A: 1\r\n\tb\r\n"),
        ("an empty name", ": x\r\n"),
        ("no colon", "x\r\n"),
        ("a NUL", "X-A: a\0b\r\n"),
        ("a bare CR", "X-A: a\rTransfer-Encoding: chunked\r\n"),
        ("a name in parentheses", "X(A): 1\r\n"),
    ] {
        let before = app.seen().len();
        let mut client = Raw::open(&gateway).await;
        let request =
            format!("POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n0\r\n\r\n{smuggled}");
        client.send(request).await;
        let response = client.read_to_close().await;
        let status = raw::status(&response);
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{what}: {response}");
        assert_eq!(status, 400, "{what}: {response}");
        assert_eq!(app.seen().len(), before, "{what}: the app hears nothing");
    }
}

#[tokio::test]
async fn chunks_that_are_none_end_the_connection() {
    let app = App::plain().await;
    let (_provider, gateway) = public(&app).await;
    for (what, body) in [
        ("too large a size", "ffffffffffffffffff\r\nx"),
        ("no number", "zz\r\nx\r\n0\r\n\r\n"),
        ("a sign", "+1\r\nx\r\n0\r\n\r\n"),
        ("a space", " 1\r\nx\r\n0\r\n\r\n"),
        ("too much data", "1\r\nxyz\r\n0\r\n\r\n"),
        ("a bare line feed", "1\nx\r\n0\r\n\r\n"),
        ("a line feed in an extension", "1;a\nb\r\nx\r\n0\r\n\r\n"),
    ] {
        let mut client = Raw::open(&gateway).await;
        let request = format!(
            "POST /{} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
            what.replace(' ', "-")
        );
        client.send(request).await;
        let response = client.read_to_close().await;
        assert!(!response.contains("HTTP/1.1 200"), "{what}: {response}");
        assert!(app.seen().iter().all(|seen| seen.target != "/smuggled"), "{what}");
    }
}

#[tokio::test]
async fn two_requests_in_one_packet_are_two() {
    let app = App::plain().await;
    let (_provider, gateway) = public(&app).await;
    let mut client = Raw::open(&gateway).await;
    client
        .send("POST /one HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabcGET /two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await;
    let response = client.read_to_close().await;
    assert_eq!(response.matches("HTTP/1.1 200").count(), 2, "{response}");
    let targets: Vec<_> = app.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/one", "/two"]);
}

/// Browsers that go away in the middle of answers, and others who get theirs meanwhile.
async fn go_away_and_ask(gateway: &Gateway) {
    let browsers: Vec<_> =
        (0..6).map(|number| gateway.browser_over(PROTOCOLS[number % 2])).collect();
    let stories = browsers.iter().enumerate().map(|(number, browser)| async move {
        for round in 0..20 {
            // Goes away in the middle of the answer.
            let url = gateway.url.join(&format!("/{number}/{round}/slow")).unwrap();
            let connection = Connection::open(&url, PROTOCOLS[round % 2]).await.unwrap();
            let started = connection.start(&url, Ask::fetch("/"));
            let _ = tokio::time::timeout(Duration::from_millis(10), started).await;
            drop(connection);
            let target = format!("/{number}/{round}");
            let answer = browser.fetch(&target).await;
            assert!(
                answer.text().starts_with(&format!("{target}x")),
                "{target}: {}",
                &answer.text()[..40]
            );
        }
    });
    join_all(stories).await;
}

/// CVE-2026-71324 and its kin: an aborted exchange left bytes on a connection that was used again.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_crosses_over_to_another_request() {
    let app = App::start_later(|seen| async move {
        if seen.target.ends_with("slow") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Reply::new(200).body(format!("{}{}", seen.target, "x".repeat(20_000)))
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    go_away_and_ask(&gateway).await;
}

/// The requests of all share a connection, and the streams of who went are reset.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_an_app_of_http2_crosses_over_to_another_request() {
    let app = Http2App::start(|seen| {
        let target = seen.head.uri.path();
        if target.ends_with("slow") {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(20)));
        }
        Http2Reply::new(format!("{target}{}", "x".repeat(20_000)))
    })
    .await;
    let provider = Provider::start().await;
    let upstream = format!("{{ url = {:?}, protocol = 'http2' }}", app.url);
    let builder = Gateway::with(&provider).route_written("/", &upstream, r#"access = "public""#);
    go_away_and_ask(&builder.start().await).await;
    // A hundred and twenty have gone. Where the first ones went while their worker still connected,
    // the next one has begun that anew.
    let connections = app.connections();
    assert!(connections <= 12, "who goes does not take the connection along: {connections}");
}

/// An app may take many small frames that it has not read yet for an attack, and end the connection:
/// what one client cuts into small chunks must not come to that, for others are on it.
#[tokio::test]
async fn small_chunks_of_one_client_do_not_end_the_connection_that_others_are_on() {
    const CHUNKS: usize = 3000;
    let app = Http2App::start(|seen| {
        if seen.head.uri.path() == "/busy" {
            // With all that the app has to do, on its one thread.
            std::thread::sleep(Duration::from_millis(500));
        }
        Http2Reply::new(seen.body.len().to_string())
    })
    .await;
    let provider = Provider::start().await;
    let upstream = format!("{{ url = {:?}, protocol = 'http2' }}", app.url);
    let gateway = Gateway::with(&provider)
        .server("workers = 1")
        .route_written("/", &upstream, r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    for _ in 0..3 {
        let mut client = Raw::open(&gateway).await;
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(head).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send("1\r\nx\r\n".repeat(CHUNKS) + "0\r\n\r\n").await;
        let other = browser.ask(Ask::post("/busy", "a body"));
        let (other, small) = tokio::join!(other, client.response());
        assert_eq!((other.status.as_u16(), other.text().as_str()), (200, "6"));
        assert!(raw::status(&small) == 200 && small.ends_with("\r\n\r\n3000"), "{small}");
    }
    assert_eq!(app.connections(), 1);
}
