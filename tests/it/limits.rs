//! `docs/limits.md` says what is true: every row of its table is a story here.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::app::Peer;
use crate::support::gateway::Builder;
use crate::support::wire::{Connection, tls};
use crate::support::{
    App, Ask, Gateway, PATIENCE, PROTOCOLS, Protocol, Provider, Raw, Reply, join_all, raw, until,
};

/// A gateway with this limit before an app, for everybody.
async fn limited(limit: &str, app: &App) -> (Provider, Gateway) {
    with(app, |builder| builder.limits(limit)).await
}

async fn with(app: &App, write: impl FnOnce(Builder) -> Builder) -> (Provider, Gateway) {
    let provider = Provider::start().await;
    let builder = Gateway::with(&provider).route_with("/", app, r#"access = "public""#);
    let gateway = write(builder).start().await;
    (provider, gateway)
}

/// Answers nothing.
async fn silent() -> App {
    App::by_hand(|mut peer: Peer| async move {
        if let Some(seen) = peer.head().await {
            peer.record(&seen);
        }
        while !peer.some().await.is_empty() {}
    })
    .await
}

/// What comes back for a stream of HTTP/1.1, up to the connection's end.
async fn to_close(gateway: &Gateway, bytes: &str) -> String {
    let mut client = Raw::open(gateway).await;
    client.send(bytes).await;
    client.read_to_close().await
}

const HEAD: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n";

/// What was tried out, as the table says it.
async fn try_out(key: &str) -> &'static str {
    match key {
        "target_bytes" => target_bytes().await,
        "header_bytes" => header_bytes().await,
        "headers" => headers().await,
        "header_time" => header_time().await,
        "handshake_time" => handshake_time().await,
        "idle_time" => idle_time().await,
        "body_bytes" => body_bytes().await,
        "body_time" => body_time().await,
        "requests" => requests().await,
        "connections" => connections().await,
        "streams" => streams().await,
        "client_connections" => client_connections().await,
        "client_logins" => client_logins().await,
        "connect_time" => connect_time().await,
        "response_time" => response_time().await,
        "drain_time" => drain_time().await,
        key => panic!("nobody has tried out {key}"),
    }
}

#[tokio::test]
async fn every_row_of_the_documents_table_is_true() {
    let rows: Vec<Vec<&str>> = include_str!("../../docs/limits.md")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split(" | ").collect()))
        .collect();
    assert_eq!(rows.len(), 16);
    let tried = rows.iter().map(|row| async {
        let key = row[0].trim_end_matches('`');
        let answer = row[3].trim_end_matches(" |");
        assert_eq!(try_out(key).await, answer, "{key}");
    });
    join_all(tried).await;
}

async fn target_bytes() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("target_bytes = \"1KiB\"", &app).await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let path = |length: usize| format!("/{}?y", "x".repeat(length - 3));
        assert_eq!(browser.fetch(&path(1024)).await.status, 200);
        assert_eq!(browser.fetch(&path(1025)).await.status, 414);
    }
    assert_eq!(app.seen().len(), 2);
    gateway.access_line(&["414"]).await;
    "414"
}

async fn header_bytes() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("header_bytes = \"8KiB\"", &app).await;
    let head = |length: usize| {
        let rest = length - HEAD.len() - "X: \r\nConnection: close\r\n\r\n".len();
        format!("{HEAD}X: {}\r\nConnection: close\r\n\r\n", "x".repeat(rest))
    };
    assert_eq!(raw::status(&to_close(&gateway, &head(8 * 1024)).await), 200);
    assert_eq!(raw::status(&to_close(&gateway, &head(8 * 1024 + 1)).await), 431);
    let large = Ask::fetch("/").header("x", "x".repeat(9 * 1024));
    assert_eq!(gateway.browser().ask(large).await.status, 431);
    assert_eq!(app.seen().len(), 1);
    "431, and the connection is closed"
}

async fn headers() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("headers = 12", &app).await;
    for protocol in PROTOCOLS {
        for (more, status) in [(1, 200), (20, 431)] {
            let mut ask = Ask::fetch("/");
            for number in 0..more {
                ask = ask.header(&format!("x-{number}"), "y");
            }
            assert_eq!(gateway.browser_over(protocol).ask(ask).await.status, status);
        }
    }
    let mut ask = Ask::fetch("/");
    for number in 0..20 {
        ask = ask.header("cookie", format!("c{number}=1"));
    }
    assert_eq!(gateway.browser().ask(ask).await.status, 200, "cookies");
    "431"
}

async fn header_time() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("header_time = \"500ms\"", &app).await;
    assert_eq!(to_close(&gateway, "").await, "");
    let late = to_close(&gateway, HEAD).await;
    assert_eq!(raw::status(&late), 408, "{late}");
    // The second request of a connection as well.
    let late = to_close(&gateway, &format!("{HEAD}\r\n{HEAD}")).await;
    assert!(late.contains("hello") && late.contains("HTTP/1.1 408"), "{late}");
    gateway.access_line(&["408"]).await;
    "408, and the connection is closed; without an answer where not a byte has come"
}

async fn handshake_time() -> &'static str {
    use tokio::io::AsyncReadExt;
    let app = App::plain().await;
    let (_provider, gateway) = limited("handshake_time = \"500ms\"", &app).await;
    let port = gateway.url.port().unwrap();
    let mut mute = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, mute.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    "the connection is closed"
}

async fn idle_time() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("idle_time = \"500ms\"", &app).await;
    assert!(to_close(&gateway, &format!("{HEAD}\r\n")).await.ends_with("hello"));
    let connection = Connection::open(&gateway.url, Protocol::Http2).await.unwrap();
    assert_eq!(connection.ask(&gateway.url, Ask::fetch("/")).await.unwrap().status, 200);
    until("HTTP/2 is closed", async || (!connection.is_ready().await).then_some(())).await;
    // One who asks and does not read.
    let large = App::start(|_| Reply::new(200).body(vec![b'x'; 64 * 1024 * 1024])).await;
    let (_provider, gateway) = limited("idle_time = \"500ms\"", &large).await;
    let mut client = Raw::open(&gateway).await;
    client.send(format!("{HEAD}\r\n")).await;
    until("it is let go", async || {
        (gateway.metric("vestibule_open_connections").await == 0).then_some(())
    })
    .await;
    "the connection is closed"
}

async fn body_bytes() -> &'static str {
    let app = App::plain().await;
    let large = "access = \"public\"\nbody_bytes = \"2KiB\"";
    let (_provider, gateway) = with(&app, |builder| {
        builder.limits("body_bytes = \"1KiB\"").route_with("/large", &app, large)
    })
    .await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let post = async |path: &str, length: usize, announced: bool| {
            let ask = Ask::post(path, vec![b'x'; length]);
            // Trailers leave no room for a length.
            let ask = if announced { ask } else { ask.trailer("x", "y") };
            browser.ask(ask).await.status.as_u16()
        };
        for announced in [true, false] {
            assert_eq!(post("/", 1024, announced).await, 200);
            let before = app.seen().len();
            assert_eq!(post("/", 1025, announced).await, 413, "{protocol:?} {announced}");
            assert_eq!(app.seen().len(), before, "not whole");
            assert_eq!(post("/large", 2048, announced).await, 200);
            assert_eq!(post("/large", 2049, announced).await, 413);
        }
    }
    let post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1025\r\n\r\n";
    let refused = to_close(&gateway, post).await;
    assert!(raw::status(&refused) == 413 && refused.contains("body_too_large"), "{refused}");
    "413, and the connection is closed"
}

async fn body_time() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("body_time = \"500ms\"", &app).await;
    for (length, piece) in
        [("Content-Length: 10", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n")]
    {
        let post = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n{piece}");
        let late = to_close(&gateway, &post).await;
        assert!(raw::status(&late) == 408 && late.contains("body_timeout"), "{late}");
    }
    // Slow, but never so slow.
    let mut client = Raw::open(&gateway).await;
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n").await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        client.send("x").await;
    }
    assert_eq!(raw::status(&client.response().await), 200);
    assert_eq!(app.seen().len(), 1);
    body_time_of_a_stream(&gateway, &app).await;
    "408, and the connection is closed"
}

/// Over HTTP/2 the stream ends with it, and the others of its connection go on.
async fn body_time_of_a_stream(gateway: &Gateway, app: &App) {
    let before = app.seen().len();
    let stream = tls("localhost", gateway.url.port().unwrap(), &[b"h2"]).await.unwrap();
    let executor = TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut post = |pieces: usize, then: bool| {
        let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")));
        let slow = futures_util::stream::unfold(pieces, move |left| async move {
            if left == 0 && then {
                return None;
            }
            let pause = if left == 0 { PATIENCE } else { Duration::from_millis(250) };
            tokio::time::sleep(pause).await;
            Some((piece(), left.saturating_sub(1)))
        });
        let request = http::Request::post(gateway.url.as_str()).header("accept", "*/*");
        let body = BodyExt::boxed_unsync(StreamBody::new(slow));
        let response = sender.send_request(request.body(body).unwrap());
        async move {
            let response = response.await.unwrap();
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        }
    };
    let (late, slow) = (post(1, false), post(5, true));
    let ((late, page), (slow, _)) = tokio::join!(late, slow);
    assert_eq!((late, slow), (408, 200));
    assert!(memchr::memmem::find(&page, b"body_timeout").is_some(), "{page:?}");
    assert_eq!(app.seen().len() - before, 1, "the other was never whole");
}

async fn requests() -> &'static str {
    let app = silent().await;
    let (_provider, gateway) = limited("requests = 4", &app).await;
    for protocol in PROTOCOLS {
        let before = app.seen().len();
        let connections = join_all((0..12).map(|_| Connection::open(&gateway.url, protocol))).await;
        let asks = connections.into_iter().map(|connection| async {
            let connection = connection.unwrap();
            let asked = connection.start(&gateway.url, Ask::fetch("/"));
            let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
            answer.ok().map(Result::unwrap)
        });
        let answers = join_all(asks).await;
        let shed: Vec<_> = answers.iter().flatten().collect();
        assert!(shed.len() >= 12 - 4, "{}", shed.len());
        for response in shed {
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"));
        }
        assert!((2..=4).contains(&(app.seen().len() - before)), "the others were asked");
        assert_eq!(gateway.admin("/healthz").await.status, 200);
    }
    "503 with `Retry-After`"
}

async fn connections() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("connections = 1", &app).await;
    let first = Raw::open(&gateway).await;
    let second = tokio::spawn({
        let url = gateway.url.clone();
        async move {
            let connection = Connection::open(&url, Protocol::Http1).await.unwrap();
            connection.ask(&url, Ask::fetch("/")).await.unwrap().status
        }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.await.unwrap(), 200);
    "the next one waits"
}

async fn streams() -> &'static str {
    let app = silent().await;
    let (_provider, gateway) = limited("streams = 2", &app).await;
    let connection = Connection::open(&gateway.url, Protocol::Http2).await.unwrap();
    let asks = (0..6).map(|_| connection.start(&gateway.url, Ask::fetch("/")));
    let _ = tokio::time::timeout(Duration::from_secs(1), join_all(asks)).await;
    assert!(app.seen().len() <= 2, "{}", app.seen().len());
    "the next one waits, or is refused as one that can be sent again"
}

async fn client_connections() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) = limited("client_connections = 2", &app).await;
    // Whoever looked whether it is up has gone.
    until("nobody is there", async || {
        (gateway.metric("vestibule_open_connections").await == 0).then_some(())
    })
    .await;
    let open = async || Connection::open(&gateway.url, Protocol::Http1).await;
    let one = open().await.unwrap();
    let _two = open().await.unwrap();
    assert!(open().await.is_err());
    assert_eq!(gateway.metric("vestibule_connections_refused_total").await, 1);
    assert_eq!(one.ask(&gateway.url, Ask::fetch("/")).await.unwrap().status, 200);
    drop(one);
    until("there is room again", async || open().await.ok().map(drop)).await;
    "the connection is closed before the handshake"
}

async fn client_logins() -> &'static str {
    let app = App::plain().await;
    let (_provider, gateway) =
        with(&app, |builder| builder.limits("client_logins = 3").route("/private", &app)).await;
    for path in ["/auth/login", "/private", "/auth/login"] {
        assert_eq!(gateway.browser().page(path).await.status, 303, "{path}");
    }
    for path in ["/auth/login", "/private"] {
        let ask = Ask::page(path).header("x-forwarded-for", "192.0.2.7");
        let refused = gateway.browser().ask(ask).await;
        assert_eq!(refused.status, 429, "{path}");
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
        assert!(refused.is_html() && refused.set_cookies().is_empty());
    }
    assert_eq!(gateway.browser().fetch("/private").await.status, 401, "begins nothing");
    assert_eq!(gateway.browser().fetch("/").await.status, 200);
    // Behind a trusted proxy each of its clients is one, whatever they say of themselves.
    let (_provider, gateway) = with(&app, |builder| {
        builder.server("trusted_proxies = [\"127.0.0.0/8\"]").limits("client_logins = 1")
    })
    .await;
    for (told, status) in [
        ("192.0.2.1", 303),
        ("192.0.2.1", 429),
        ("198.51.100.9, 192.0.2.1", 429),
        ("192.0.2.2", 303),
        ("2001:db8::1", 303),
        ("2001:db8::2", 429),
    ] {
        let ask = Ask::page("/auth/login").header("x-forwarded-for", told);
        assert_eq!(gateway.browser().ask(ask).await.status, status, "{told}");
    }
    "429 with `Retry-After`"
}

async fn connect_time() -> &'static str {
    // Takes connections, and says nothing in their handshakes.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", mute.local_addr().unwrap().port());
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .limits("connect_time = \"300ms\"")
        .route_to("/", &[&url], r#"access = "public""#)
        .start()
        .await;
    let start = Instant::now();
    assert_eq!(gateway.browser().fetch("/").await.status, 502);
    assert!(start.elapsed() >= Duration::from_millis(300));
    "502"
}

async fn response_time() -> &'static str {
    let app = silent().await;
    let (_provider, gateway) = limited("response_time = \"300ms\"", &app).await;
    for protocol in PROTOCOLS {
        assert_eq!(gateway.browser_over(protocol).fetch("/").await.status, 504);
    }
    "504"
}

async fn drain_time() -> &'static str {
    let app = silent().await;
    let (_provider, mut gateway) = limited("drain_time = \"300ms\"", &app).await;
    let connection = Connection::open(&gateway.url, Protocol::Http1).await.unwrap();
    let url = gateway.url.clone();
    let asked = tokio::spawn(async move { connection.start(&url, Ask::fetch("/")).await });
    until("it is asked", async || (!app.seen().is_empty()).then_some(())).await;
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert!(asked.await.unwrap().is_err());
    "they are cut off"
}

/// Resident memory of the gateway, in MiB.
pub(crate) fn resident(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// Sends a gigabyte, as far as it is taken; how far is told in the end.
async fn flood() -> (App, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let sent = std::sync::Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let app = App::by_hand(move |mut peer: Peer| {
        let count = count.clone();
        async move {
            if peer.request().await.is_none() {
                return;
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_usize << 30);
            let _ = peer.write(head).await;
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..(1 << 30) / piece.len() {
                if peer.write(&piece).await.is_err() {
                    return;
                }
                count.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    (app, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_makes_nobody_gather_what_it_was_to_read() {
    use std::sync::atomic::Ordering;
    for protocol in PROTOCOLS {
        let (app, sent) = flood().await;
        let (_provider, gateway) = with(&app, |builder| builder).await;
        let before = resident(&gateway);
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let streams = if protocol == Protocol::Http2 { 8 } else { 1 };
        let asks = (0..streams).map(|_| connection.start(&gateway.url, Ask::fetch("/")));
        let mut bodies: Vec<_> = join_all(asks)
            .await
            .into_iter()
            .map(|response| response.unwrap().into_body())
            .collect();
        // Until nothing moves any more.
        let mut last = usize::MAX;
        until("everybody waits", async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = sent.load(Ordering::Relaxed);
            (std::mem::replace(&mut last, now) == now).then_some(())
        })
        .await;
        let (held, grown) = (last / 1024 / 1024, resident(&gateway).saturating_sub(before));
        assert!(held < 64 * streams, "{protocol:?}: {held} MiB were taken from the app");
        assert!(grown < 24, "{protocol:?}: the gateway has grown by {grown} MiB");
        // Who reads again gets the rest.
        bodies.truncate(1);
        let body = &mut bodies[0];
        let mut read = 0;
        while read < 128 * 1024 * 1024 {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap();
            read += frame.unwrap().unwrap().data_ref().map_or(0, bytes::Bytes::len);
        }
        let grown = resident(&gateway).saturating_sub(before);
        assert!(grown < 32, "{protocol:?}: the gateway has grown by {grown} MiB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_read_makes_nobody_gather_what_it_was_to_read() {
    let app = App::by_hand(|mut peer: Peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    for protocol in PROTOCOLS {
        let (_provider, gateway) = with(&app, |builder| builder).await;
        let before = resident(&gateway);
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let body = vec![b'x'; 256 * 1024 * 1024];
        let asked = connection.start(&gateway.url, Ask::post("/", body));
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        assert!(answer.is_err(), "nobody has answered");
        let grown = resident(&gateway).saturating_sub(before);
        assert!(grown < 24, "{protocol:?}: the gateway has grown by {grown} MiB");
    }
}

/// A byte of a body now and then, up to the answer's status.
fn drip(mut client: Raw) -> tokio::task::JoinHandle<u16> {
    tokio::spawn(async move {
        client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n").await;
        loop {
            client.send("x").await;
            let (answer, closed) = client.bytes_for(Duration::from_millis(100)).await;
            if closed || !answer.is_empty() {
                return raw::status(&String::from_utf8(answer).unwrap());
            }
        }
    })
}

/// Who sends a byte now and then is within every limit of his own, and must not be able to hold the
/// room of everybody.
#[tokio::test]
async fn uploads_that_drip_give_up_their_room_when_others_want_it() {
    let app = App::plain().await;
    // Answers at once, and goes on reading.
    let early = App::by_hand(|mut peer: Peer| async move {
        peer.head().await;
        let _ = peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while !peer.some().await.is_empty() {}
    })
    .await;
    let (_provider, gateway) = with(&app, |builder| {
        builder.server("workers = 1").limits("requests = 8\nbody_time = \"2s\"").route_with(
            "/early",
            &early,
            r#"access = "public""#,
        )
    })
    .await;
    // A conversation holds no room.
    let mut talking = Raw::open(&gateway).await;
    talking.send("POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n").await;
    talking.until("200 OK").await;
    let talking = tokio::spawn(async move {
        for _ in 0..40 {
            talking.send("x").await;
            let (_, closed) = talking.bytes_for(Duration::from_millis(100)).await;
            assert!(!closed, "its response has begun");
        }
    });
    // A few are nobody's harm.
    let drips = async |count| {
        let clients = join_all((0..count).map(|_| Raw::open(&gateway))).await;
        clients.into_iter().map(drip).collect::<Vec<_>>()
    };
    let few = drips(3).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(few.iter().all(|asked| !asked.is_finished()), "there is room for others");
    let many = drips(16).await;
    let browser = gateway.browser();
    until("there is room again", async || (browser.fetch("/").await.status == 200).then_some(()))
        .await;
    // Those that came when all of it was taken, and those that gave it up.
    until("nobody holds more than half of it", async || {
        let drips = few.iter().chain(&many);
        (drips.filter(|drip| !drip.is_finished()).count() <= 4).then_some(())
    })
    .await;
    let mut refused = std::collections::BTreeMap::<u16, usize>::new();
    for drip in few.into_iter().chain(many) {
        if drip.is_finished() {
            *refused.entry(drip.await.unwrap()).or_default() += 1;
        }
    }
    assert!(refused.keys().eq(&[408, 503]), "{refused:?}");
    assert_eq!(browser.fetch("/").await.status, 200);
    assert!(app.seen().iter().all(|seen| seen.method == "GET"), "they got nowhere");
    talking.await.unwrap();
}
