//! WebSockets to apps that speak nothing but HTTP/2 (RFC 8441): for browsers of either protocol they
//! are WebSockets like any other.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Method;
use hyper::ext::Protocol as Asked;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::live::SOON;
use crate::support::http2_app::{Http2App, Http2Reply, Seen, Socket};
use crate::support::program::{Program, repository};
use crate::support::wire::Stream;
use crate::support::{
    Browser, PATIENCE, PROTOCOLS, Protocol, Raw, Stage, free_port, join_all, raw, until,
};
use crate::upgrade::handshake;
use crate::websocket_http2::{self, ask};

type Client = WebSocketStream<Box<dyn Stream>>;

/// A gateway in front of who speaks only HTTP/2 at this address.
async fn before(url: &str) -> Stage {
    let upstream = format!("{{ url = {url:?}, protocol = 'http2' }}");
    Stage::with(|builder, _| {
        builder
            .limits("response_time = \"1s\"")
            .limits("idle_time = \"1s\"")
            .route_written("/", &upstream, "")
    })
    .await
}

async fn echo(mut socket: Socket) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() || message.is_binary() {
            let _ = socket.send(message).await;
        }
    }
}

fn yes(_: &Seen) -> Http2Reply {
    Http2Reply::default()
}

/// Opens one over this protocol; the fields of the answer.
async fn open(
    stage: &Stage,
    browser: &Browser,
    protocol: Protocol,
    more: &[(&str, &str)],
) -> (http::HeaderMap, Client) {
    let (fields, stream): (_, Box<dyn Stream>) = if protocol == Protocol::Http1 {
        let lines: String =
            more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        // It looks at Sec-WebSocket-Accept.
        let (answer, Raw(stream)) = handshake(&stage.gateway, browser, &lines).await;
        assert_eq!(raw::status(&answer), 101, "{answer}");
        let fields = answer.lines().skip(1).filter_map(|line| line.split_once(": "));
        let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        (fields.collect(), Box::new(stream))
    } else {
        let mut sender = websocket_http2::connect(&stage.gateway).await;
        let response = ask(&mut sender, browser, "/live", more).await;
        let fields = response.headers().clone();
        (fields, Box::new(websocket_http2::open(response).await.into_inner()))
    };
    (fields, WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

async fn next(socket: &mut Client) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_to_an_app_that_speaks_only_http2() {
    for over_tls in [false, true] {
        let answer = |seen: &Seen| {
            let protocols = seen.head.headers.get("sec-websocket-protocol");
            let reply = Http2Reply::default().header("x-session-update", r#"{"live":true}"#);
            protocols.map_or(reply.clone(), |_| reply.header("sec-websocket-protocol", "chat"))
        };
        let app = Http2App::with_websockets(over_tls, answer, echo).await;
        let stage = before(&app.url).await;
        for protocol in PROTOCOLS {
            let zoe = stage.signed_in_over("zoe", protocol).await;
            let more = [
                ("sec-websocket-protocol", "chat, other"),
                ("x-forwarded-user", "forged"),
                ("x_session", "{}"),
            ];
            let (fields, mut socket) = open(&stage, &zoe, protocol, &more).await;
            assert_eq!(fields["sec-websocket-protocol"], "chat");
            assert!(!fields.contains_key("x-session-update"));

            let seen = app.last();
            assert_eq!(seen.head.method, Method::CONNECT);
            assert_eq!(seen.head.extensions.get::<Asked>().unwrap().as_str(), "websocket");
            assert_eq!(seen.head.uri.path(), "/live");
            let authority = format!("localhost:{}", stage.gateway.url.port().unwrap());
            assert_eq!(seen.head.uri.authority().unwrap(), authority.as_str());
            let fields = &seen.head.headers;
            assert_eq!(fields["sec-websocket-version"], "13");
            assert_eq!(fields["sec-websocket-protocol"], "chat, other");
            assert_eq!(fields["x-forwarded-user"], "auth0|zoe");
            assert_eq!(fields["cookie"], "other=1", "without the gateway's own");
            assert!(fields.contains_key("x-session") && !fields.contains_key("x_session"));
            for name in ["connection", "upgrade", "sec-websocket-key", "host"] {
                assert!(!fields.contains_key(name), "{name}");
            }

            // More than any window, both ways.
            let binary = Message::binary((0..=255).cycle().take(3_000_000).collect::<Vec<u8>>());
            for message in [Message::text("hello"), Message::text(""), binary] {
                socket.send(message.clone()).await.unwrap();
                assert_eq!(next(&mut socket).await, message);
            }
            socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::Pong(Bytes::from_static(b"there?")));
            // The limits for requests are none of its.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            socket.send(Message::text("still there")).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::text("still there"));
            socket.close(None).await.unwrap();
            assert!(matches!(next(&mut socket).await, Message::Close(_)));
            let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
            assert!(end.is_none_or(|end| end.is_err()), "it has ended");
            assert_eq!(zoe.profile().await.unwrap()["live"], true);
        }
    }
}

/// With `auto`, where the handshake says what is spoken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_refuses_http1_is_asked_over_http2() {
    let app = Http2App::with_websockets(true, yes, echo).await;
    let stage = Stage::with(|builder, _| builder.route_to("/", &[&app.url], "")).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        let (_, mut socket) = open(&stage, &zoe, protocol, &[]).await;
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(next(&mut socket).await, Message::text("hello"));
        assert_eq!(zoe.fetch("/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_share_a_connection_with_pages_and_each_other() {
    let answer = |seen: &Seen| Http2Reply::new(seen.head.uri.path().to_owned());
    let app = Http2App::with_websockets(false, answer, echo).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    let talks = (0..40_usize).map(|number| {
        let (stage, zoe) = (&stage, &zoe);
        async move {
            let protocol = PROTOCOLS[number % 2];
            let (_, mut socket) = open(stage, zoe, protocol, &[]).await;
            for round in 0..20 {
                let message = Message::text(format!("{number}/{round}").repeat(500));
                socket.send(message.clone()).await.unwrap();
                assert_eq!(next(&mut socket).await, message);
                let path = format!("/{number}/{round}");
                assert_eq!(zoe.fetch(&path).await.text(), path);
            }
        }
    });
    join_all(talks).await;
    assert!(app.connections() <= 2, "two workers, {} connections", app.connections());
}

#[tokio::test]
async fn it_ends_with_its_session_and_its_app_is_told() {
    let open_now = Arc::<AtomicUsize>::default();
    let count = open_now.clone();
    let talk = move |socket: Socket| {
        let count = count.clone();
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            echo(socket).await;
            count.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let app = Http2App::with_websockets(false, yes, talk).await;
    let stage = before(&app.url).await;
    for protocol in PROTOCOLS {
        let (zoe, bob) = (stage.signed_in("zoe").await, stage.signed_in("bob").await);
        let (_, mut hers) = open(&stage, &zoe, protocol, &[]).await;
        let (_, mut his) = open(&stage, &bob, protocol, &[]).await;
        hers.send(Message::text("before")).await.unwrap();
        assert_eq!(next(&mut hers).await, Message::text("before"));

        zoe.page("/auth/logout").await;
        let ended = Instant::now();
        let Message::Close(Some(frame)) = next(&mut hers).await else { panic!("no goodbye") };
        assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Policy, "session ended"));
        assert!(ended.elapsed() < SOON, "{:?}", ended.elapsed());
        let left = async || (open_now.load(Ordering::Relaxed) == 1).then_some(());
        until("her app is told", left).await;
        his.send(Message::text("mine")).await.unwrap();
        assert_eq!(next(&mut his).await, Message::text("mine"), "his goes on");
        drop(his);
        let left = async || (open_now.load(Ordering::Relaxed) == 0).then_some(());
        until("his app is told that he has gone", left).await;
    }
}

#[tokio::test]
async fn an_app_may_end_it() {
    let talk = async |mut socket: Socket| {
        let _ = socket.next().await;
        // Without a goodbye.
    };
    let app = Http2App::with_websockets(false, yes, talk).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        let (_, mut socket) = open(&stage, &zoe, protocol, &[]).await;
        socket.send(Message::text("end it")).await.unwrap();
        let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        assert!(end.is_none_or(|end| end.is_err()), "it has ended");
    }
}

#[tokio::test]
async fn an_app_that_does_not_read_holds_up_whoever_sends() {
    let talk = async |socket: Socket| {
        std::future::pending::<()>().await;
        drop(socket);
    };
    let app = Http2App::with_websockets(false, yes, talk).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        let (_, mut socket) = open(&stage, &zoe, protocol, &[]).await;
        let message = Message::binary(vec![0; 1_000_000]);
        let mut taken = 0;
        while let Ok(sent) =
            tokio::time::timeout(Duration::from_secs(1), socket.send(message.clone())).await
        {
            sent.unwrap();
            taken += 1;
            assert!(taken < 24, "{protocol:?}: somebody gathers what nobody reads");
        }
    }
}

#[tokio::test]
async fn a_browser_that_does_not_read_holds_up_its_app() {
    let sent = Arc::<AtomicUsize>::default();
    let count = sent.clone();
    let talk = move |mut socket: Socket| {
        let count = count.clone();
        async move {
            socket.next().await.unwrap().unwrap();
            while socket.send(Message::binary(vec![0; 1_000_000])).await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let app = Http2App::with_websockets(false, yes, talk).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        sent.store(0, Ordering::Relaxed);
        let (_, mut socket) = open(&stage, &zoe, protocol, &[]).await;
        socket.send(Message::text("begin")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let taken = sent.load(Ordering::Relaxed);
        assert!(taken < 24, "{protocol:?}: somebody gathers what nobody reads: {taken} MB");
        for _ in 0..taken + 5 {
            assert_eq!(next(&mut socket).await.len(), 1_000_000);
        }
    }
}

#[tokio::test]
async fn an_app_that_declines_or_is_late_is_heard() {
    let answer = |seen: &Seen| match seen.head.uri.query() {
        Some("late") => {
            std::thread::sleep(Duration::from_secs(2));
            Http2Reply::default()
        }
        status => Http2Reply::new("no").status(status.unwrap().parse().unwrap()),
    };
    let app = Http2App::with_websockets(false, answer, echo).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    for (query, told) in [("404", 404), ("426", 426), ("302", 302), ("503", 503), ("late", 504)] {
        let mut sender = websocket_http2::connect(&stage.gateway).await;
        let response = ask(&mut sender, &zoe, &format!("/live?{query}"), &[]).await;
        assert_eq!(response.status(), told);
        let head = format!(
            "GET /live?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: __Host-session={cookie}\r\n\r\n"
        );
        let answer = raw::exchange(&stage.gateway, head).await;
        assert_eq!(raw::status(&answer), told);
        assert!(told == 504 || answer.ends_with("no"), "{answer}");
    }
}

/// RFC 6455, section 4.2.1: over HTTP/2 nobody else would look at it.
#[tokio::test]
async fn a_handshake_that_is_none_reaches_no_app() {
    let app = Http2App::with_websockets(false, yes, echo).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for lines in [
        String::new(),
        "Sec-WebSocket-Key: \r\n".to_owned(),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n".to_owned(),
        format!("{key}Transfer-Encoding: chunked\r\n"),
    ] {
        let head = format!(
            "GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nCookie: __Host-session={cookie}\r\n{lines}\r\n1\r\nx\r\n0\r\n\r\n"
        );
        let answer = raw::exchange(&stage.gateway, head).await;
        assert_eq!(raw::status(&answer), 400, "{lines}: {answer}");
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn an_app_whose_http2_takes_no_websockets_is_not_asked() {
    let app = Http2App::start(|_| Http2Reply::new("a page")).await;
    let stage = before(&app.url).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        let status = if protocol == Protocol::Http1 {
            raw::status(&handshake(&stage.gateway, &zoe, "").await.0)
        } else {
            let mut sender = websocket_http2::connect(&stage.gateway).await;
            ask(&mut sender, &zoe, "/live", &[]).await.status().as_u16()
        };
        assert_eq!(status, 502, "{protocol:?}");
    }
    stage.gateway.logged(&["WARN", "app_unreachable", "RFC 8441"]).await;
    assert!(app.seen().is_empty());
    assert_eq!(zoe.fetch("/").await.text(), "a page");
}

/// A server that we did not write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_own_server_is_one_of_them() {
    let port = free_port();
    let script = repository("tests/it/websocket_upstreams/server.mjs");
    let mut command = Command::new("node");
    let mut node = Program::start(command.arg(script).arg(port.to_string()), "install nodejs");
    node.listens(port).await;
    let stage = before(&format!("http://127.0.0.1:{port}")).await;
    let zoe = stage.signed_in("zoe").await;
    for protocol in PROTOCOLS {
        let more = [("sec-websocket-protocol", "chat")];
        let (fields, mut socket) = open(&stage, &zoe, protocol, &more).await;
        assert_eq!(fields["sec-websocket-protocol"], "chat");
        socket.send(Message::text("told?")).await.unwrap();
        let Message::Text(told) = next(&mut socket).await else { panic!("it says nothing") };
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told[":method"], &told[":protocol"]),
            (&"CONNECT".into(), &"websocket".into())
        );
        assert_eq!((&told[":scheme"], &told[":path"]), (&"http".into(), &"/live".into()));
        assert_eq!(told["x-forwarded-user"], "auth0|zoe");
        assert_eq!(told["sec-websocket-key"], Value::Null);
        let binary = Message::binary((0..=255).cycle().take(1_000_000).collect::<Vec<u8>>());
        for message in [Message::text("hello"), Message::text("x".repeat(70_000)), binary] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(next(&mut socket).await, message);
        }
        assert_eq!(zoe.fetch("/page").await.text(), "a page");
        socket.close(None).await.unwrap();
        assert!(matches!(next(&mut socket).await, Message::Close(_)));
    }
}
