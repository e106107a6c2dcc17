//! What an app says before its answer (RFC 9110, section 15.2; RFC 8297): it reaches the client while
//! the app still works, as a response would, and changes nothing.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::app::Peer;
use crate::support::program::Program;
use crate::support::webdriver::Chromium;
use crate::support::wire::tls;
use crate::support::{
    App, Gateway, PATIENCE, PROTOCOLS, Protocol, Provider, Raw, Stage, free_port, until,
};

mod app;
mod exchange;

use app::{Hinting, Said, text};
use exchange::{Exchange, Head};

const COOKIE: &str = "__Host-session";
const LINK: (&str, &str) = ("link", "</a.css>; rel=preload; as=style");

/// A gateway before an app of each protocol, at paths of their names, for anyone.
async fn open(said: &[Said]) -> (Provider, Gateway, [Hinting; 2]) {
    let apps = [
        Hinting::start(Protocol::Http1, said.to_vec()).await,
        Hinting::start(Protocol::Http2, said.to_vec()).await,
    ];
    let provider = Provider::start().await;
    let access = r#"access = "public""#;
    let gateway = Gateway::with(&provider)
        .route_written("/http1", &apps[0].upstream, access)
        .route_written("/http2", &apps[1].upstream, access)
        .start()
        .await;
    (provider, gateway, apps)
}

async fn one(app: &App) -> (Provider, Gateway) {
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).route_with("/", app, r#"access = "public""#).start().await;
    (provider, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_come_while_the_app_still_works_without_what_is_not_for_the_browser() {
    let said = vec![
        (100, vec![("x-unasked", "1")]),
        (
            103,
            vec![
                LINK,
                ("X-Session-Update", r#"{"early":true}"#),
                ("x_session.update", r#"{"early":true}"#),
                ("Set-Cookie", "__Host-session=planted; Secure; Path=/"),
                ("Set-Cookie", "app=1"),
                ("Connection", "x-private"),
                ("X-Private", "1"),
                ("Keep-Alive", "timeout=5"),
                ("Content-Length", "7"),
                ("Trailer", "x-session-update"),
            ],
        ),
        (102, vec![]),
        (199, vec![("x-what", "ever")]),
        (103, vec![("link", "</b.js>; rel=preload; as=script")]),
    ];
    for upstream in PROTOCOLS {
        let app = Hinting::start(upstream, said.clone()).await;
        let stage = Stage::with(|builder, _| builder.route_written("/", &app.upstream, "")).await;
        for protocol in PROTOCOLS {
            let zoe = stage.signed_in_over("zoe", protocol).await;
            let cookie = format!("{COOKIE}={}", zoe.cookie(COOKIE).unwrap());
            let mut exchange = Exchange::ask(&stage.gateway, protocol, "/", &cookie).await;
            let mut heads = Vec::new();
            for _ in 0..4 {
                heads.push(exchange.next().await.0);
            }
            // Only now the app answers.
            app.go.notify_one();
            let statuses: Vec<u16> = heads.iter().map(|head| head.status).collect();
            assert_eq!(statuses, [103, 102, 199, 103], "{protocol:?} {upstream:?}");
            let link = format!("{}: {}", LINK.0, LINK.1);
            let first = heads[0].lines();
            // What `Connection` names ends with it; HTTP/2 has no such field.
            let private = first.iter().any(|line| line.starts_with("x-private"));
            assert_eq!(private, upstream == Protocol::Http2);
            let first: Vec<_> = first.iter().filter(|it| !it.starts_with("x-private")).collect();
            assert_eq!(first, [&link, "set-cookie: app=1"], "{protocol:?} {upstream:?}");
            assert!(heads[1].lines().is_empty());
            assert_eq!(heads[2].lines(), ["x-what: ever"]);
            assert_eq!(heads[3].lines(), ["link: </b.js>; rel=preload; as=script"]);

            let (heads, body) = exchange.rest().await;
            assert_eq!((heads.len(), heads[0].status, &body[..]), (1, 200, &b"final"[..]));
            assert!(!heads[0].fields.contains_key("link"), "that was said before");
            let profile = zoe.profile().await.unwrap();
            assert!(profile.get("early").is_none(), "{profile}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_has_given_hints_may_still_fail_and_the_client_hears_of_both() {
    let app = App::by_hand(|mut peer: Peer| async move {
        let Some(seen) = peer.request().await else { return };
        let hint = text(&(103, vec![LINK]));
        let rest = match seen.path() {
            "/closes" => "",
            "/breaks" => "HTTP/1.1 what\r\n\r\n",
            _ => "HTTP/1.1 500 Whatever\r\nContent-Length: 5\r\n\r\nfault",
        };
        peer.write(hint + rest).await.unwrap();
    })
    .await;
    let (_provider, gateway) = one(&app).await;
    for protocol in PROTOCOLS {
        for (path, status) in [("/closes", 502), ("/breaks", 502), ("/fails", 500)] {
            let asked = app.seen().len();
            let mut exchange = Exchange::ask(&gateway, protocol, path, "").await;
            let (heads, body) = exchange.rest().await;
            let statuses: Vec<u16> = heads.iter().map(|head| head.status).collect();
            assert_eq!(statuses, [103, status], "{protocol:?} {path}");
            assert!(!body.is_empty());
            assert_eq!(app.seen().len(), asked + 1, "who has begun to answer is not asked again");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_hints_is_cut_and_the_answer_comes() {
    let many: Vec<Said> = (0..1500).map(|_| (103, vec![LINK])).collect();
    let (_provider, gateway, apps) = open(&many).await;
    for protocol in PROTOCOLS {
        for (path, app) in ["/http1", "/http2"].into_iter().zip(&apps) {
            app.go.notify_one();
            let (heads, body) = Exchange::ask(&gateway, protocol, path, "").await.rest().await;
            assert_eq!(heads.len(), 32 + 1, "{protocol:?} {path}");
            assert_eq!((heads[32].status, &body[..]), (200, &b"final"[..]));
        }
    }
    // One without end.
    let app = App::by_hand(|mut peer: Peer| async move {
        peer.request().await;
        let hint = text(&(103, vec![("x-long", "x".repeat(9000).leak())])).repeat(5);
        while peer.write(&hint).await.is_ok() {}
    })
    .await;
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).route_with("/", &app, r#"access = "public""#).start().await;
    for protocol in PROTOCOLS {
        let (heads, _) = Exchange::ask(&gateway, protocol, "/", "").await.rest().await;
        assert_eq!((heads.len(), heads[3].status), (3 + 1, 502), "{protocol:?}");
    }
}

/// RFC 9110, section 15.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_hears_the_answer_alone() {
    let (_provider, gateway, apps) = open(&[(103, vec![LINK]), (102, vec![])]).await;
    for (path, app) in ["/http1", "/http2"].into_iter().zip(&apps) {
        app.go.notify_one();
        let mut client = Raw::open(&gateway).await;
        client.send(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")).await;
        let all = client.read_to_close().await;
        assert!(all.starts_with("HTTP/1.0 200 OK\r\n") && all.ends_with("\r\n\r\nfinal"), "{all}");
        assert!(!all.contains("103") && !all.contains(" 102 "), "{all}");
    }
}

/// An app that says its hint and its answer at once, each with the path that was asked for; to
/// `/large` the answer is large.
async fn at_once() -> App {
    App::by_hand(|mut peer: Peer| async move {
        while let Some(seen) = peer.request().await {
            let path = seen.path();
            let body = if path == "/large" { "x".repeat(20_000_000) } else { path.to_owned() };
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: <{path}>\r\n\r\n");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if peer.write(hint + &head + &body).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// The heads of a connection's responses and the lengths of their bodies, as a client reads them.
fn read(mut bytes: &str) -> Vec<(Head, String)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (text, rest) = bytes.split_once("\r\n\r\n").expect("a whole head");
        let head = Head::read(text);
        let length = head.fields.get("content-length").map_or("0", |it| it.to_str().unwrap());
        let (body, rest) = rest.split_at(length.parse().unwrap());
        all.push((head, body.to_owned()));
        bytes = rest;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_requests_at_once_gets_its_own_hints_before_its_own_answer() {
    let app = at_once().await;
    let (_provider, gateway) = one(&app).await;
    let mut client = Raw::open(&gateway).await;
    let get =
        |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let paths = ["/a", "/b", "/c", "/d"];
    let more = |path| if path == "/d" { "Connection: close\r\n" } else { "" };
    let asks: String = paths.iter().map(|path| get(path, more(*path))).collect();
    client.send(asks).await;
    let heads = read(&client.read_to_close().await);
    assert_eq!(heads.len(), 8);
    for (path, pair) in paths.iter().zip(heads.chunks(2)) {
        let (hint, link) = (&pair[0].0, format!("<{path}>"));
        assert_eq!((hint.status, hint.fields["link"].as_bytes()), (103, link.as_bytes()));
        assert_eq!((pair[1].0.status, pair[1].1.as_str()), (200, *path));
    }
    // A client that reads late: a hint may be left out there, and nothing is broken into.
    let mut client = Raw::open(&gateway).await;
    let asks: String = ["/large", "/b", "/large", "/d"].map(|path| get(path, more(path))).concat();
    client.send(asks).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let heads = read(&client.read_to_close().await);
    let answers: Vec<_> = heads.iter().filter(|(head, _)| head.status == 200).collect();
    let bodies: Vec<_> = answers.iter().map(|(_, body)| &body[..body.len().min(4)]).collect();
    assert_eq!(bodies, ["xxxx", "/b", "xxxx", "/d"]);
    assert_eq!(heads.last().unwrap().1, "/d", "nothing comes after the last answer");
    for pair in heads.windows(2).filter(|pair| pair[0].0.status == 103) {
        let link = pair[0].0.fields["link"].to_str().unwrap();
        let body = &pair[1].1;
        assert!(link == format!("<{body}>") || (link == "</large>" && body.starts_with("xx")));
    }
}

/// RFC 9110, section 10.1.1: hints, the word to go on, and the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_the_word_to_send_a_body_gets_it_and_hints() {
    let app = App::by_hand(|mut peer: Peer| async move {
        while let Some(mut seen) = peer.head().await {
            peer.write(text(&(103, vec![LINK]))).await.unwrap();
            peer.body(&mut seen).await.unwrap();
            let length = seen.body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            peer.write([text(&(103, vec![])).as_bytes(), answer.as_bytes(), &seen.body].concat())
                .await
                .unwrap();
        }
    })
    .await;
    let (_provider, gateway) = one(&app).await;
    let mut client = Raw::open(&gateway).await;
    for _ in 0..3 {
        let head = "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n";
        client.send(format!("{head}Content-Length: 4\r\n\r\n")).await;
        let both = |text: &[u8]| memchr::memmem::find_iter(text, b"\r\n\r\n").count() == 2;
        let (text, _) = client.bytes_until(both).await;
        let heads = read(std::str::from_utf8(&text).unwrap());
        let mut statuses: Vec<u16> = heads.iter().map(|(head, _)| head.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [100, 103]);
        client.send("body").await;
        let heads = read(&client.until("\r\n\r\nbody").await);
        let statuses: Vec<u16> = heads.iter().map(|(head, _)| head.status).collect();
        assert_eq!(statuses, [103, 200]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_may_begin_with_hints() {
    let app = App::by_hand(|mut peer: Peer| async move {
        peer.request().await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                      Upgrade: websocket\r\n\r\n\x01\x02first";
        peer.write(text(&(103, vec![LINK])) + switch).await.unwrap();
        let heard = peer.some().await;
        peer.write(heard).await.unwrap();
    })
    .await;
    let (_provider, gateway) = one(&app).await;
    let mut client = Raw::open(&gateway).await;
    let ask = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    client.send(format!("{ask}\r\n")).await;
    let begun = client.until("first").await;
    let heads: Vec<&str> = begun.split("\r\n\r\n").collect();
    assert_eq!((Head::read(heads[0]).status, Head::read(heads[1]).status), (103, 101));
    assert_eq!((heads.len(), heads[2]), (3, "\x01\x02first"));
    client.send("echo").await;
    assert_eq!(client.until("echo").await, "echo");
}

/// An app and a client that we did not write: Node's `writeEarlyHints`, and curl.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_shows_the_early_hints_of_an_app_of_node() {
    let port = free_port();
    let script = format!(
        "require('http').createServer((request, response) => {{ \
           response.writeEarlyHints({{ link: '</a.css>; rel=preload; as=style' }}); \
           setTimeout(() => response.end('late'), 300); }}).listen({port}, '127.0.0.1')"
    );
    let mut node = Program::start(
        Command::new("node").arg("-e").arg(script),
        "install Node, or run tests/run",
    );
    node.listens(port).await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_to("/", &[&format!("http://127.0.0.1:{port}")], r#"access = "public""#)
        .start()
        .await;
    for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let authority = gateway.directory.path().join("authority.pem");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--verbose", "--max-time", "20", protocol]);
        curl.arg("--cacert").arg(authority).arg(gateway.url.as_str());
        let mut curl = Program::start(&mut curl, "install Debian's curl, or run tests/run");
        tokio::task::block_in_place(|| curl.wait(Duration::from_secs(25)));
        let said = curl.output();
        let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("no {what} in {said}"));
        let hint = at(&format!("< HTTP/{version} 103"));
        assert!(hint < at("< link: </a.css>; rel=preload; as=style"), "{said}");
        assert!(hint < at(&format!("< HTTP/{version} 200")), "{said}");
        assert!(said.contains("late"), "{said}");
    }
}

/// RFC 8297: what they are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_fetches_what_a_hint_names_while_the_app_works_on_the_page() {
    let fetched = Arc::new(Notify::new());
    let told = fetched.clone();
    let app = App::by_hand(move |mut peer: Peer| {
        let told = told.clone();
        async move {
            while let Some(seen) = peer.request().await {
                let (kind, body) = match seen.path() {
                    "/a.css" => {
                        told.notify_one();
                        ("text/css", "p { color: green }")
                    }
                    "/page" => {
                        peer.write(text(&(103, vec![LINK]))).await.unwrap();
                        let early = tokio::time::timeout(PATIENCE / 2, told.notified()).await;
                        let body = early.map_or("<p id=said>late", |()| "<p id=said>early");
                        ("text/html", body)
                    }
                    _ => ("text/plain", ""),
                };
                let length = body.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n");
                peer.write(format!("{head}Content-Length: {length}\r\n\r\n{body}")).await.unwrap();
            }
        }
    })
    .await;
    let (_provider, gateway) = one(&app).await;
    let chromium = Chromium::trusting(&gateway).await;
    chromium.open(&gateway.url.join("/page").unwrap()).await;
    assert_eq!(chromium.text("said").await.as_deref(), Some("early"));
}

/// RFC 8441: a stream of HTTP/2 that becomes a WebSocket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_over_http2_may_begin_with_hints() {
    let app = App::by_hand(|mut peer: Peer| async move {
        let seen = peer.request().await.unwrap();
        peer.write(text(&(103, vec![LINK]))).await.unwrap();
        let accept = derive_accept_key(seen.header("sec-websocket-key").unwrap().as_bytes());
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        peer.write(switch).await.unwrap();
        let heard = peer.some().await;
        peer.write(heard).await.unwrap();
    })
    .await;
    let (_provider, gateway) = one(&app).await;
    let stream = tls("localhost", gateway.url.port().unwrap(), &[b"h2"]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    until("it offers WebSockets", async || {
        sender.is_extended_connect_protocol_enabled().then_some(())
    })
    .await;
    let request = http::Request::builder()
        .method("CONNECT")
        .uri(gateway.url.as_str())
        .extension(h2::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13");
    let (response, mut to) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    let mut exchange = Exchange::Http2(response);
    let hint = exchange.next().await.0;
    assert_eq!((hint.status, hint.lines().len()), (103, 1));
    let Exchange::Http2(response) = exchange else { panic!("it is one of HTTP/2") };
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    to.send_data(Bytes::from_static(b"echo"), false).unwrap();
    let heard = response.into_body().data().await.unwrap().unwrap();
    assert_eq!(&heard[..], b"echo");
}
