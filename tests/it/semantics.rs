//! Messages that are read differently from others: without a body though they have a length, of a
//! part, before the final one, after an expectation.

use crate::support::app::Peer;
use crate::support::curl::curl;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Provider, Raw, Reply, free_port, raw};

async fn public(app: &App) -> (Provider, Gateway) {
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).route_with("/", app, r#"access = "public""#).start().await;
    (provider, gateway)
}

/// Heads that an app answers with, by path; the connection stays, and nothing follows them.
const BODILESS: [(&str, &str, &str); 10] = [
    ("HEAD", "/length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("HEAD", "/large", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
    ("HEAD", "/none", "HTTP/1.1 200 OK\r\n\r\n"),
    ("HEAD", "/chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("HEAD", "/missing", "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n"),
    ("GET", "/204", "HTTP/1.1 204 No Content\r\n\r\n"),
    ("DELETE", "/204-with-length", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    ("GET", "/304", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    ("GET", "/304-with-length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
    ("HEAD", "/304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
];

/// RFC 9112, section 6.3: what has no body has none whatever its fields say, and what comes next on
/// its connection is the next response.
#[tokio::test]
async fn what_has_no_body_has_none_whatever_its_length_and_the_next_answer_is_the_next() {
    let app = App::by_hand(|mut peer: Peer| async move {
        while let Some(seen) = peer.request().await {
            let same = |(method, path, _): &&(&str, &str, &str)| {
                seen.method == *method && seen.target == *path
            };
            let head = BODILESS.iter().find(same).map(|(_, _, head)| *head);
            let other = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";
            peer.write(head.unwrap_or(other)).await.unwrap();
        }
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        for (method, path, head) in BODILESS {
            let ask = Ask { method: method.parse().unwrap(), ..Ask::fetch(path) };
            let answer = browser.ask(ask).await;
            let said: u16 = head[9..12].parse().unwrap();
            assert_eq!(answer.status.as_u16(), said, "{method} {path}");
            assert!(answer.body.is_empty());
            if method == "HEAD" && head.contains("Content-Length") {
                let length = head.split("Content-Length: ").nth(1).unwrap();
                let length = length.split('\r').next();
                assert_eq!(answer.header("content-length"), length, "{method} {path}");
            }
            assert_eq!(browser.fetch("/next").await.text(), "next", "after {method} {path}");
        }
    }
    assert!(app.connections() <= 2, "a worker's one connection was good for all of it");
    // To the letter, over HTTP/1.1.
    let mut client = Raw::open(&gateway).await;
    for (method, path, _) in BODILESS {
        let next = "GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n{next}")).await;
        let both = client.until("next").await;
        let (first, rest) = both.split_once("\r\n\r\n").unwrap();
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{method} {path}: {both}");
        let first = first.to_ascii_lowercase();
        if first.contains(" 204 ") {
            // RFC 9110, section 8.6.
            assert!(!first.contains("transfer-encoding"), "{first}");
        }
    }
}

/// RFC 9110, section 14.
#[tokio::test]
async fn ranges_are_the_apps() {
    let app = App::start(|seen| match seen.header("range").as_deref() {
        Some("bytes=0-3") if seen.header("if-range").as_deref() == Some("\"old\"") => {
            Reply::new(200).header("ETag", "\"new\"").body("whole of it")
        }
        Some("bytes=0-3") => Reply::new(206).header("Content-Range", "bytes 0-3/11").body("whol"),
        Some("bytes=0-1,4-5") => Reply::new(206)
            .header("Content-Type", "multipart/byteranges; boundary=x")
            .body("--x\r\nContent-Range: bytes 0-1/11\r\n\r\nwh\r\n--x--\r\n"),
        Some(_) => Reply::new(416).header("Content-Range", "bytes */11"),
        None => Reply::new(200).header("Accept-Ranges", "bytes").body("whole of it"),
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let range = async |range: &str| browser.ask(Ask::fetch("/").header("range", range)).await;
        let part = range("bytes=0-3").await;
        assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "whol"));
        assert_eq!(part.header("content-range"), Some("bytes 0-3/11"));
        let parts = range("bytes=0-1,4-5").await;
        assert_eq!(parts.status, 206);
        assert_eq!(parts.header("content-type"), Some("multipart/byteranges; boundary=x"));
        assert!(parts.text().contains("Content-Range: bytes 0-1/11\r\n\r\nwh\r\n--x--"));
        let outside = range("bytes=99-").await;
        assert_eq!(outside.status, 416);
        assert_eq!(outside.header("content-range"), Some("bytes */11"));
        let ask = Ask::fetch("/").header("range", "bytes=0-3").header("if-range", "\"old\"");
        assert_eq!(browser.ask(ask).await.text(), "whole of it");
        assert_eq!(browser.fetch("/").await.header("accept-ranges"), Some("bytes"));
    }
}

/// RFC 9110, section 10.1.1: the body is asked for when there is somebody to take it.
#[tokio::test]
async fn nobody_is_asked_for_a_body_that_nobody_will_take() {
    let provider = Provider::start().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let gateway = Gateway::with(&provider)
        .limits("body_bytes = \"1KiB\"")
        .route_to("/", &[&dead], r#"access = "public""#)
        .start()
        .await;
    for (length, status) in [(4, 502), (2000, 413)] {
        let mut client = Raw::open(&gateway).await;
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
        client.send(format!("{head}Content-Length: {length}\r\n\r\n")).await;
        assert_eq!(raw::status(&client.until("\r\n\r\n").await), status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_waits_for_the_word_and_sends_nothing_where_it_does_not_come() {
    let app = App::start(|seen| Reply::new(200).body(seen.body.len().to_string())).await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_with("/", &app, r#"access = "public""#)
        .route_with("/private", &app, r#"access = "api""#)
        .start()
        .await;
    let file = gateway.directory.path().join("upload");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let data = format!("@{}", file.display());
    let url = |path| gateway.url.join(path).unwrap().to_string();
    // Longer than curl would ever wait without the word.
    let wait = ["--http1.1", "--expect100-timeout", "15", "--header", "Expect: 100-continue"];
    let post = ["--data-binary", &data];
    let said = curl(&gateway, &[&wait[..], &post, &[&url("/")]].concat());
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("no {what} in {said}"));
    assert!(at("< HTTP/1.1 100 Continue") < at("< HTTP/1.1 200 OK"));
    assert!(said.contains("3000000\nsent 3000000\n"), "{said}");
    assert_eq!(app.last().header("expect"), None, "it was answered");

    let said = curl(&gateway, &[&wait[..], &post, &[&url("/private")]].concat());
    assert!(said.contains("< HTTP/1.1 401") && said.contains("\nsent 0\n"), "{said}");
    assert!(!said.contains("100 Continue"), "{said}");
    assert_eq!(app.seen().len(), 1);
}
