//! WebSockets: they pass, and so does what their handshake says; nothing else is upgraded.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::app::Peer;
use crate::support::{App, Ask, Browser, Gateway, Protocol, Provider, Raw, raw, until};

/// Takes WebSockets and echoes their messages; `lines` stand in its answer to the handshake.
pub(crate) async fn echo(lines: &'static str) -> App {
    echo_and(lines, "").await
}

/// The same, with a page for who asks for no WebSocket.
pub(crate) async fn echo_and(lines: &'static str, page: &'static str) -> App {
    App::by_hand(move |mut peer: Peer| async move {
        while let Some(seen) = peer.request().await {
            let Some(key) = seen.header("sec-websocket-key") else {
                let length = page.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length";
                let _ = peer.write(format!("{head}: {length}\r\n\r\n{page}")).await;
                continue;
            };
            let accept = derive_accept_key(key.as_bytes());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
            );
            peer.write(head).await.unwrap();
            let stream = peer.into_stream();
            let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() || message.is_binary() {
                    socket.send(message).await.unwrap();
                }
            }
            return;
        }
    })
    .await
}

/// A gateway before it, and Zoë signed in.
async fn signed_in(app: &App) -> (Provider, Gateway, Browser) {
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .limits("idle_time = \"1s\"")
        .limits("header_time = \"1s\"")
        .limits("drain_time = \"1s\"")
        .route("/", app)
        .start()
        .await;
    let zoe = gateway.browser_over(Protocol::Http1);
    zoe.log_in("zoe", "/").await;
    (provider, gateway, zoe)
}

/// A handshake's answer, and the connection after it.
pub(crate) async fn handshake(gateway: &Gateway, browser: &Browser, more: &str) -> (String, Raw) {
    let cookie = browser.cookie("__Host-session").unwrap_or_default();
    let mut client = Raw::open(gateway).await;
    let key = generate_key();
    let head = format!(
        "GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Cookie: __Host-session={cookie}; other=1\r\n{more}\r\n"
    );
    client.send(head).await;
    let answer = client.until("\r\n\r\n").await;
    if answer.contains(" 101 ") {
        let accept = derive_accept_key(key.as_bytes());
        assert!(answer.contains(&accept), "{answer}");
    }
    (answer, client)
}

#[tokio::test]
async fn a_websocket_passes_and_its_app_knows_the_user() {
    let app = echo("Sec-WebSocket-Protocol: chat\r\n").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let more =
        "Sec-WebSocket-Protocol: chat, other\r\nX-Forwarded-User: forged\r\nX_Session: {}\r\n";
    let (answer, client) = handshake(&gateway, &zoe, more).await;
    assert_eq!(raw::status(&answer), 101, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("sec-websocket-protocol: chat"), "{answer}");

    let seen = app.last();
    assert_eq!(seen.as_cgi("x-forwarded-user"), ["auth0|zoe"]);
    assert_eq!(seen.as_cgi("x-session").len(), 1);
    assert_eq!(seen.header("cookie").unwrap(), "other=1", "without the gateway's own");
    assert_eq!(seen.header("sec-websocket-protocol").unwrap(), "chat, other");

    let mut socket = WebSocketStream::from_raw_socket(client.0, Role::Client, None).await;
    for text in ["hello", "", &"x".repeat(200_000)] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    // Bytes of every kind: what follows a handshake is no HTTP, and is not read as if it were.
    let binary = Message::binary((0..=255).cycle().take(200_000).collect::<Vec<u8>>());
    socket.send(binary.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), binary);
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn the_answer_to_a_handshake_can_change_the_session() {
    let app = echo("X-Session-Update: {\"live\":true}\r\n").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let (answer, _client) = handshake(&gateway, &zoe, "").await;
    assert_eq!(raw::status(&answer), 101);
    let lower = answer.to_ascii_lowercase();
    assert!(!lower.contains("x-session-update"), "{answer}");
    assert!(lower.contains("set-cookie: __host-session="), "{answer}");
    assert_eq!(zoe.profile().await.unwrap()["live"], true);
}

#[tokio::test]
async fn a_quiet_websocket_outlives_the_limits_for_requests() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let (_, client) = handshake(&gateway, &zoe, "").await;
    let mut socket = WebSocketStream::from_raw_socket(client.0, Role::Client, None).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    socket.send(Message::text("still there")).await.expect("it was cut off");
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still there"));
}

#[tokio::test]
async fn either_side_may_end_it() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let (_, mut client) = handshake(&gateway, &zoe, "").await;
    client.0.shutdown().await.unwrap();
    until("the gateway has let it go", async || {
        (gateway.metric("vestibule_open_connections").await <= 1).then_some(())
    })
    .await;

    let (_, mut client) = handshake(&gateway, &zoe, "").await;
    drop(app);
    client.read_to_close().await;
}

#[tokio::test]
async fn who_is_not_signed_in_gets_no_websocket() {
    let app = echo("").await;
    let (_provider, gateway, _zoe) = signed_in(&app).await;
    let before = app.seen().len();
    let nobody = gateway.browser();
    let (answer, _client) = handshake(&gateway, &nobody, "Accept: text/html\r\n").await;
    assert_eq!(raw::status(&answer), 401, "{answer}");
    assert_eq!(app.seen().len(), before);
}

#[tokio::test]
async fn an_app_that_declines_is_heard() {
    let app = App::plain().await;
    app.say(crate::support::Reply::new(403).body("no"));
    let (_provider, gateway, zoe) = {
        let provider = Provider::start().await;
        let gateway = Gateway::with(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(Protocol::Http1);
        zoe.log_in("zoe", "/").await;
        (provider, gateway, zoe)
    };
    let (answer, _client) = handshake(&gateway, &zoe, "").await;
    assert_eq!(raw::status(&answer), 403, "{answer}");
}

/// h2c smuggling: an upgrade that the gateway does not understand is a way past every later check.
#[tokio::test]
async fn no_other_upgrade_is_passed_on() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    for (what, lines) in [
        (
            "h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        ),
        ("h2c without asking", "Upgrade: h2c\r\n"),
        ("anything", "Connection: Upgrade\r\nUpgrade: anything/1\r\n"),
        ("TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\n{lines}Cookie: __Host-session={cookie}\r\n\r\n"
        );
        let response = raw::exchange(&gateway, request).await;
        assert_eq!(raw::status(&response), 200, "{what}: {response}");
        let seen = app.last();
        assert_eq!(seen.all("upgrade"), Vec::<String>::new(), "{what}");
        assert_eq!(seen.all("http2-settings"), Vec::<String>::new(), "{what}");
        assert!(
            !seen.all("connection").concat().to_ascii_lowercase().contains("upgrade"),
            "{what}"
        );
    }
    // A POST is no handshake.
    let mut ask =
        Ask::post("/", "x").header("connection", "upgrade").header("upgrade", "websocket");
    ask.headers.insert("sec-websocket-version", "13".parse().unwrap());
    zoe.ask(ask).await;
    assert_eq!(app.last().all("upgrade"), Vec::<String>::new());
}

#[tokio::test]
async fn a_websocket_over_http1_goes_on_until_drain_time_when_the_gateway_stops() {
    let app = echo("").await;
    let (_provider, mut gateway, zoe) = signed_in(&app).await;
    let (answer, client) = handshake(&gateway, &zoe, "").await;
    assert_eq!(raw::status(&answer), 101, "{answer}");
    let mut socket = WebSocketStream::from_raw_socket(client.0, Role::Client, None).await;
    let start = Instant::now();
    gateway.signal("TERM");
    gateway.logged(&["stopping"]).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still here"));
    while let Some(Ok(_)) = socket.next().await {}
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(gateway.ended().await.success());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    gateway.logged(&["cut off"]).await;
}

#[tokio::test]
async fn a_websocket_that_is_closed_is_not_waited_for_when_the_gateway_stops() {
    let app = echo("").await;
    let (_provider, mut gateway, zoe) = signed_in(&app).await;
    let (_answer, client) = handshake(&gateway, &zoe, "").await;
    let mut socket = WebSocketStream::from_raw_socket(client.0, Role::Client, None).await;
    gateway.signal("TERM");
    gateway.logged(&["stopping"]).await;
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    drop(socket);
    assert!(gateway.ended().await.success());
    assert!(!gateway.log().contains("cut off"), "{}", gateway.log());
}
