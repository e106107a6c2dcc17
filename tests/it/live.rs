//! What is open when its session ends: WebSockets, event streams, downloads.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::jar::From;
use crate::support::wire::{Connection, authority_of, tls};
use crate::support::{App, Ask, Browser, PATIENCE, PROTOCOLS, Protocol, Stage};

/// The gateway's word, and what a busy machine may add to it.
pub(crate) const SOON: Duration = Duration::from_millis(1000 + 500);

/// An app that is never done: `/ws` says a word every 50 ms, `/silent` one only, and `/events`,
/// `/download` and `/parts` are responses that go on so; everything else is empty.
pub(crate) async fn endless() -> App {
    App::by_hand(|mut peer| async move {
        while let Some(seen) = peer.head().await {
            peer.record(&seen);
            let kind = match seen.path() {
                "/ws" | "/silent" => {
                    let key = seen.header("sec-websocket-key").unwrap();
                    let accept = derive_accept_key(key.as_bytes());
                    peer.write(format!(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                         Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                    ))
                    .await
                    .unwrap();
                    while peer.write(b"\x81\x04word").await.is_ok() {
                        if seen.path() == "/silent" {
                            // Until the gateway closes.
                            while !peer.some().await.is_empty() {}
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    return;
                }
                "/events" => "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked",
                "/parts" => "Transfer-Encoding: chunked",
                "/download" => "Content-Length: 1000000000",
                _ => {
                    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                    continue;
                }
            };
            let _ = peer.write(format!("HTTP/1.1 200 OK\r\n{kind}\r\n\r\n")).await;
            let piece = if kind.contains("chunked") { "7\r\ndata:\n\n\r\n" } else { "data" };
            while peer.write(piece).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            return;
        }
    })
    .await
}

pub(crate) type WebSocket = WebSocketStream<TlsStream<TcpStream>>;

/// Opens a WebSocket as a page of the browser's would, and hears the first word.
pub(crate) async fn websocket(browser: &Browser, path: &str) -> WebSocket {
    let url = browser.url(path);
    let mut request = format!("wss://{}{path}", authority_of(&url)).into_client_request().unwrap();
    if let Some(cookies) = browser.jar().line(&url, From::SameSite) {
        request.headers_mut().insert("cookie", cookies.parse().unwrap());
    }
    let stream = tls("localhost", url.port().unwrap(), &[b"http/1.1"]).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("word"));
    socket
}

/// Hears words until the socket is closed, and says how.
pub(crate) async fn close_of(socket: &mut WebSocket) -> (CloseCode, String) {
    let closed = async {
        loop {
            match socket.next().await.expect("a close frame comes first").unwrap() {
                Message::Text(word) => assert_eq!(word, "word"),
                Message::Close(Some(frame)) => break (frame.code, frame.reason.to_string()),
                other => panic!("{other:?}"),
            }
        }
    };
    let close = tokio::time::timeout(PATIENCE, closed).await.expect("it stays open");
    // The answer to the goodbye is taken, then the connection ends.
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("it stays open");
    assert!(matches!(end, None | Some(Err(Error::ConnectionClosed | Error::Io(_)))), "{end:?}");
    close
}

/// Asks with the browser's cookies and reads the first piece of what has no end.
pub(crate) async fn stream(
    browser: &Browser,
    protocol: Protocol,
    path: &str,
) -> (Connection, Incoming) {
    let url = browser.url(path);
    let cookies = browser.jar().line(&url, From::SameSite).unwrap_or_default();
    let connection = Connection::open(&url, protocol).await.unwrap();
    let ask = Ask::fetch(path).header("cookie", cookies);
    let mut body = connection.start(&url, ask).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    (connection, body)
}

/// Reads until the stream breaks off.
pub(crate) async fn break_of(body: &mut Incoming) {
    let broken = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("it ended as if it were whole");
    };
    tokio::time::timeout(PATIENCE, broken).await.expect("it goes on");
}

/// How long a stream still goes on, up to `most`.
async fn goes_on(body: &mut Incoming, most: Duration) -> Duration {
    let start = Instant::now();
    let _ = tokio::time::timeout(most, break_of(body)).await;
    start.elapsed()
}

#[tokio::test]
async fn a_websocket_is_closed_with_1008_within_a_second_of_the_logout() {
    let stage = Stage::before(endless().await).await;
    for path in ["/ws", "/silent"] {
        let (zoe, bob) = (stage.gateway.browser(), stage.gateway.browser());
        zoe.log_in("zoe", "/").await;
        bob.log_in("bob", "/").await;
        let mut hers = websocket(&zoe, path).await;
        let mut his = websocket(&bob, "/ws").await;

        zoe.page("/auth/logout").await;
        let ended = Instant::now();
        let close = close_of(&mut hers).await;

        assert_eq!(close, (CloseCode::Policy, "session ended".to_owned()));
        assert!(ended.elapsed() < SOON, "{:?}", ended.elapsed());
        let others = tokio::time::timeout(PATIENCE, his.next()).await.unwrap();
        assert_eq!(others.unwrap().unwrap(), Message::text("word"), "his goes on");
    }
}

#[tokio::test]
async fn open_responses_break_off_within_a_second_of_the_logout() {
    let stage = Stage::before(endless().await).await;
    for protocol in PROTOCOLS {
        for path in ["/events", "/parts", "/download"] {
            let zoe = stage.signed_in_over("zoe", protocol).await;
            let (connection, mut body) = stream(&zoe, protocol, path).await;

            zoe.page("/auth/logout").await;
            let ended = Instant::now();
            break_of(&mut body).await;

            assert!(ended.elapsed() < SOON, "{path} over {protocol:?}: {:?}", ended.elapsed());
            // HTTP/1.1 has no other way to say it; over HTTP/2 the other streams go on.
            assert_eq!(connection.is_ready().await, protocol == Protocol::Http2);
        }
    }
}

#[tokio::test]
async fn a_login_over_a_session_closes_what_the_old_one_has_open() {
    let stage = Stage::before(endless().await).await;
    let zoe = stage.signed_in("zoe").await;
    let mut socket = websocket(&zoe, "/ws").await;
    // The provider knows her: she is back without a word.
    assert_eq!(zoe.open("/auth/login").await.url, zoe.url("/"));
    let ended = Instant::now();
    assert_eq!(close_of(&mut socket).await.0, CloseCode::Policy);
    assert!(ended.elapsed() < SOON);
}

#[tokio::test]
async fn a_stream_is_no_use_of_its_session_but_a_request_is() {
    let stage = Stage::before_with(endless().await, |builder, app| {
        builder.route("/", app).session("inactivity = \"3s\"")
    })
    .await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let (_connection, mut events) = stream(&zoe, Protocol::Http1, "/events").await;
    let mut socket = websocket(&zoe, "/silent").await;

    for _ in 0..12 {
        assert_eq!(zoe.fetch("/").await.status, 200);
        assert!(goes_on(&mut events, Duration::from_millis(500)).await.as_millis() >= 500);
    }
    let start = Instant::now();
    assert_eq!(close_of(&mut socket).await.0, CloseCode::Policy);
    break_of(&mut events).await;
    assert!(start.elapsed() < Duration::from_secs(3) + SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn absolute_expiry_closes_whatever_the_use() {
    let stage = Stage::before_with(endless().await, |builder, app| {
        builder.route("/", app).session("absolute = \"3s\"")
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let start = Instant::now();
    let mut socket = websocket(&zoe, "/ws").await;
    assert_eq!(close_of(&mut socket).await.0, CloseCode::Policy);
    assert!(start.elapsed() < Duration::from_secs(3) + SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_route_can_keep_its_connections_open_and_what_has_no_session_stays() {
    let stage = Stage::before_with(endless().await, |builder, app| {
        builder.route_with("/", app, "close_on_session_end = false").route_with(
            "/parts",
            app,
            "access = \"optional\"",
        )
    })
    .await;
    for protocol in PROTOCOLS {
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let (_events, mut events) = stream(&zoe, protocol, "/events").await;
        let (_parts, mut parts) = stream(&stage.gateway.browser(), protocol, "/parts").await;
        let mut socket = websocket(&zoe, "/ws").await;
        zoe.page("/auth/logout").await;
        assert!(goes_on(&mut events, 2 * SOON).await >= 2 * SOON);
        assert!(goes_on(&mut parts, SOON).await >= SOON);
        for _ in 0..50 {
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("word"));
        }
    }
}
