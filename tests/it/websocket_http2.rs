//! WebSockets over HTTP/2 (RFC 8441): for the app they are WebSockets like any other.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol as Asked;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::wire::tls;
use crate::support::{App, Browser, Gateway, PATIENCE, Protocol, Provider, Reply, Stage, until};
use crate::upgrade::echo;

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;
pub(crate) type Sender = SendRequest<Empty<Bytes>>;

/// A connection of HTTP/2.
pub(crate) async fn connect(gateway: &Gateway) -> Sender {
    let stream = tls("localhost", gateway.url.port().unwrap(), &[b"h2"]).await.unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Asks for a WebSocket as browsers do.
pub(crate) async fn ask(
    sender: &mut Sender,
    browser: &Browser,
    path: &str,
    more: &[(&str, &str)],
) -> Response<Incoming> {
    let url = browser.url(path);
    let cookie = browser.cookie("__Host-session").unwrap_or_default();
    let make = || {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri(url.as_str())
            .extension(Asked::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("origin", url.origin().ascii_serialization())
            .header("cookie", format!("__Host-session={cookie}; other=1"));
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        request.body(Empty::new()).unwrap()
    };
    // Until the gateway's settings have come, nobody may ask.
    until("it offers WebSockets", async || sender.send_request(make()).await.ok()).await
}

pub(crate) async fn open(response: Response<Incoming>) -> Socket {
    assert_eq!(response.status(), 200);
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

async fn signed_in(app: &App) -> (Provider, Gateway, Browser) {
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).limits("idle_time = \"1s\"").route("/", app).start().await;
    let zoe = gateway.browser_over(Protocol::Http2);
    zoe.log_in("zoe", "/").await;
    (provider, gateway, zoe)
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_like_any_other_to_its_app() {
    let app = echo("Sec-WebSocket-Protocol: chat\r\nX-Session-Update: {\"live\":true}\r\n").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let mut sender = connect(&gateway).await;
    let more = [
        ("sec-websocket-protocol", "chat, other"),
        ("x-forwarded-user", "forged"),
        ("x_session", "{}"),
        ("sec-websocket-key", "of the client's own"),
    ];
    let response = ask(&mut sender, &zoe, "/live?a=b", &more).await;
    let fields = response.headers();
    assert_eq!(fields["sec-websocket-protocol"], "chat");
    for name in ["connection", "upgrade", "sec-websocket-accept", "x-session-update"] {
        assert!(!fields.contains_key(name), "{name}");
    }
    let mut socket = open(response).await;

    let seen = app.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/live?a=b"));
    assert_eq!(seen.header("connection").unwrap(), "upgrade");
    assert_eq!(seen.header("upgrade").unwrap(), "websocket");
    assert_eq!(seen.header("sec-websocket-version").unwrap(), "13");
    assert_eq!(seen.header("sec-websocket-key").unwrap().len(), 24);
    assert_eq!(seen.header("sec-websocket-protocol").unwrap(), "chat, other");
    assert_eq!(seen.as_cgi("x-forwarded-user"), ["auth0|zoe"]);
    assert_eq!(seen.as_cgi("x-session").len(), 1);
    assert_eq!(seen.header("cookie").unwrap(), "other=1", "without the gateway's own");

    let binary = Message::binary((0..=255).cycle().take(200_000).collect::<Vec<u8>>());
    for message in [Message::text("hello"), Message::text(""), binary] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut socket).await, message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong(Bytes::from_static(b"there?")));
    // Another on the same connection, and pages beside them.
    let mut other = open(ask(&mut sender, &zoe, "/live", &[]).await).await;
    other.send(Message::text("two")).await.unwrap();
    assert_eq!(next(&mut other).await, Message::text("two"));
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
    other.send(Message::text("still")).await.unwrap();
    assert_eq!(next(&mut other).await, Message::text("still"));
    let profile = zoe.profile().await.unwrap();
    assert_eq!(profile["live"], true, "the handshake has changed the session");
}

#[tokio::test]
async fn a_quiet_websocket_over_http2_keeps_its_connection() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let mut sender = connect(&gateway).await;
    let mut socket = open(ask(&mut sender, &zoe, "/live", &[]).await).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    socket.send(Message::text("still there")).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::text("still there"));
    drop(socket);
    until("an idle connection is closed", async || sender.ready().await.is_err().then_some(()))
        .await;
}

#[tokio::test]
async fn a_websocket_over_http2_ends_with_its_session() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let mut sender = connect(&gateway).await;
    let mut socket = open(ask(&mut sender, &zoe, "/live", &[]).await).await;
    socket.send(Message::text("before")).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::text("before"));
    zoe.page("/auth/logout").await;
    let start = Instant::now();
    let Message::Close(Some(frame)) = next(&mut socket).await else { panic!("no goodbye") };
    assert_eq!(frame.code, CloseCode::Policy);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_may_not_have_it_gets_no_websocket_over_http2() {
    let app = echo("").await;
    let (_provider, gateway, zoe) = signed_in(&app).await;
    let mut sender = connect(&gateway).await;
    let stranger = gateway.browser();
    let before = app.seen().len();
    assert_eq!(ask(&mut sender, &stranger, "/live", &[]).await.status(), 401);
    assert_eq!(ask(&mut sender, &zoe, "/auth/profile", &[]).await.status(), 400);
    assert_eq!(ask(&mut sender, &zoe, "/a/../live", &[]).await.status(), 200, "the URL is /live");
    assert_eq!(app.seen().len(), before + 1);
}

#[tokio::test]
async fn an_app_that_declines_is_heard_over_http2_and_success_is_not_taken_for_a_websocket() {
    let stage = Stage::with(|b, app| b.route_with("/", app, r#"access = "public""#)).await;
    let mut sender = connect(&stage.gateway).await;
    let browser = stage.gateway.browser();
    for (status, told) in [(404, 404), (426, 426), (302, 302), (503, 503), (200, 502), (204, 502)] {
        stage.app.say(Reply::new(status).body(if status == 204 { "" } else { "no" }));
        let response = ask(&mut sender, &browser, "/live", &[]).await;
        assert_eq!(response.status(), told, "{status}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body == "no", told == status, "{status}");
    }
    for (accept, upgrade) in [("wrong", "websocket"), ("", "h2c")] {
        let answer = format!(
            "HTTP/1.1 101 Yes\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stage.app.say(Reply::raw(answer));
        let response = ask(&mut sender, &browser, "/live", &[]).await;
        assert_eq!(response.status(), 502, "{upgrade} {accept}");
    }
}
