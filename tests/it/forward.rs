//! Bodies and connections: what passes through untouched, and what an app's failure looks like.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use tokio::sync::Notify;

use crate::support::app::Peer;
use crate::support::wire::Connection;
use crate::support::{
    App, Ask, Gateway, PATIENCE, PROTOCOLS, Protocol, Provider, Raw, Reply, Stage, raw, until,
};

/// A gateway before one app, for everybody.
pub(crate) async fn public(app: &App) -> (Provider, Gateway) {
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).route_with("/", app, r#"access = "public""#).start().await;
    (provider, gateway)
}

#[tokio::test]
async fn methods_statuses_headers_and_bodies_pass() {
    let app = App::start(|seen| {
        let status = seen.target.trim_start_matches('/').parse().unwrap_or(200);
        Reply::new(status)
            .header("X-Method", &seen.method)
            .header("Link", "</a>; rel=x")
            .header("Link", "</b>; rel=y")
            .header("Content-Type", "text/odd; charset=\"x\"")
            .body(seen.body.clone())
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X-ODD"] {
            let body = if method == "GET" { "" } else { "a\0b\r\n\u{e9}" };
            let ask = Ask { method: method.parse().unwrap(), ..Ask::fetch("/200") }.body(body);
            let answer = browser.ask(ask).await;
            assert_eq!(answer.header("x-method"), Some(method));
            assert_eq!(answer.text(), body, "{method}");
            let links: Vec<_> = answer.headers.get_all("link").iter().collect();
            assert_eq!(links, ["</a>; rel=x", "</b>; rel=y"]);
            assert_eq!(answer.header("content-type"), Some("text/odd; charset=\"x\""));
        }
        for status in
            [200, 201, 204, 226, 299, 300, 304, 307, 400, 401, 404, 418, 451, 500, 503, 599]
        {
            let answer = browser.fetch(&format!("/{status}")).await;
            assert_eq!(answer.status.as_u16(), status);
        }
    }
}

#[tokio::test]
async fn the_answer_to_head_has_the_length_and_no_body() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    for protocol in PROTOCOLS {
        let ask = Ask { method: http::Method::HEAD, ..Ask::fetch("/") };
        let answer = stage.gateway.browser_over(protocol).ask(ask).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
        assert_eq!(answer.header("content-length"), Some("5"));
    }
}

/// An app that sends a piece each time it is told to.
async fn dripping() -> (App, Arc<Notify>) {
    let next = Arc::new(Notify::new());
    let told = next.clone();
    let app = App::by_hand(move |mut peer: Peer| {
        let told = told.clone();
        async move {
            peer.request().await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            peer.write(head).await.unwrap();
            for number in 0.. {
                told.notified().await;
                let event = format!("data: {number}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                if peer.write(chunk).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (app, next)
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    for protocol in PROTOCOLS {
        let (app, next) = dripping().await;
        let (_provider, gateway) = public(&app).await;
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let response = connection.start(&gateway.url, Ask::fetch("/")).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        for number in 0..3 {
            next.notify_one();
            let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await;
            let data = frame.expect("the event is held back").unwrap().unwrap();
            assert_eq!(data.into_data().unwrap(), format!("data: {number}\n\n"));
        }
    }
}

#[tokio::test]
async fn an_app_notices_that_a_browser_has_gone() {
    let gone = Arc::new(Notify::new());
    let noticed = gone.clone();
    let app = App::by_hand(move |mut peer: Peer| {
        let noticed = noticed.clone();
        async move {
            peer.request().await;
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
            peer.write(head).await.unwrap();
            if peer.some().await.is_empty() {
                noticed.notify_one();
            }
        }
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let response = connection.start(&gateway.url, Ask::fetch("/")).await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        drop((body, connection));
        tokio::time::timeout(Duration::from_secs(10), gone.notified())
            .await
            .expect("the app's connection stays open");
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways_without_being_kept() {
    let app = App::by_hand(|mut peer: Peer| async move {
        while let Some(mut seen) = peer.head().await {
            let length: usize =
                seen.header("content-length").map_or(0, |length| length.parse().unwrap());
            let (mut got, mut sum) = (0, 0u64);
            while got < length {
                let bytes = peer.some().await;
                got += bytes.len();
                sum += bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
            }
            seen.body = sum.to_string().into_bytes();
            peer.record(&seen);
            let size = 64 * 1024 * 1024;
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await.unwrap();
            let piece = vec![7; 64 * 1024];
            for _ in 0..size / piece.len() {
                if peer.write(&piece).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    let upload = bytes::Bytes::from(vec![3; 32 * 1024 * 1024]);
    for protocol in PROTOCOLS {
        let before = gateway.resident();
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let ask = Ask { method: http::Method::PUT, ..Ask::fetch("/file") }.body(upload.clone());
        let mut body = connection.start(&gateway.url, ask).await.unwrap().into_body();
        let (mut got, mut most) = (0, 0);
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
            got += data.len();
            most = most.max(gateway.resident());
        }
        assert_eq!(got, 64 * 1024 * 1024);
        assert_eq!(app.last().body, (3 * 32 * 1024 * 1024u64).to_string().into_bytes());
        let grown = most.saturating_sub(before);
        assert!(grown < 16 * 1024, "{protocol:?}: {grown} kB more for what passes through");
    }
}

/// RFC 9110, section 10.1.1.
#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let stage = Stage::with(|builder, app| {
        builder.route_with("/", app, r#"access = "public""#).route_with(
            "/api",
            app,
            r#"access = "api""#,
        )
    })
    .await;
    let mut client = Raw::open(&stage.gateway).await;
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    client.send(head("/")).await;
    let interim = client.until("\r\n\r\n").await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.send("body").await;
    assert!(client.until("hello").await.contains("HTTP/1.1 200"));
    assert_eq!(stage.app.last().body, b"body");

    // Who is refused need not send the body at all.
    let mut client = Raw::open(&stage.gateway).await;
    client.send(head("/api")).await;
    let refused = client.until("\r\n\r\n").await;
    assert_eq!(raw::status(&refused), 401, "{refused}");
}

#[tokio::test]
async fn trailers_of_a_response_pass() {
    for protocol in PROTOCOLS {
        let app = App::start(|_| {
            Reply::new(200).header("Trailer", "X-Sum").body("streamed").trailer("X-Sum", "1")
        })
        .await;
        let (_provider, gateway) = public(&app).await;
        let answer =
            gateway.browser_over(protocol).ask(Ask::fetch("/").header("te", "trailers")).await;
        assert_eq!(answer.text(), "streamed");
        assert_eq!(answer.trailers.get("x-sum").unwrap(), "1", "{protocol:?}");
    }
}

#[tokio::test]
async fn connections_to_an_app_are_used_again() {
    let app = App::plain().await;
    let (_provider, gateway) = public(&app).await;
    let browser = gateway.browser();
    for _ in 0..30 {
        browser.fetch("/").await;
    }
    // One a worker at most.
    assert!(app.connections() <= 2, "{}", app.connections());
}

#[tokio::test]
async fn a_connection_that_an_app_has_closed_costs_no_request() {
    // Closes after each response without saying so.
    let app = App::by_hand(|mut peer: Peer| async move {
        if peer.request().await.is_some() {
            let _ = peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    let browser = gateway.browser();
    for number in 0..20 {
        let answer = browser.fetch(&format!("/{number}")).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn an_app_that_is_down_is_a_short_page_with_the_requests_id() {
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_to("/", &["http://127.0.0.1:1"], r#"access = "public""#)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let page = browser.page("/").await;
        assert_eq!(page.status, 502);
        assert!(page.is_html() && page.body.len() < 2048);
        assert_eq!(page.header("cache-control"), Some("no-store"));
        let json = browser.ask(Ask::fetch("/").header("accept", "application/json")).await;
        assert_eq!(json.json()["error"], "app_unreachable");
        let id = json.json()["request_id"].as_str().unwrap().to_owned();
        let line = gateway.logged(&["WARN", &id]).await;
        assert!(line.contains("127.0.0.1:1"), "the operator is told which: {line}");
        assert!(!page.text().contains("127.0.0.1"), "the user is not: {}", page.text());
    }
}

#[tokio::test]
async fn an_app_that_is_late_is_504_and_one_that_talks_nonsense_502() {
    let late =
        App::by_hand(|mut peer: Peer| async move { while peer.head().await.is_some() {} }).await;
    let provider = Provider::start().await;
    let nonsense = App::start(|seen| {
        Reply::raw(match seen.path() {
            "/x/nothing" => "",
            "/x/no-http" => "hello\r\n\r\n",
            "/x/half" => "HTTP/1.1 200 OK\r\nContent-",
            "/x/bad-header" => "HTTP/1.1 200 OK\r\nbad header: x\r\n\r\n",
            "/x/two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "/x/unasked" => "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            _ => "HTTP/9.9 200 OK\r\n\r\n",
        })
    })
    .await;
    let gateway = Gateway::with(&provider)
        .limits("response_time = \"300ms\"")
        .route_with("/", &late, r#"access = "public""#)
        .route_with("/x", &nonsense, r#"access = "public""#)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let start = Instant::now();
        assert_eq!(browser.page("/").await.status, 504);
        assert!(start.elapsed() < Duration::from_secs(5));
        for path in
            ["nothing", "no-http", "half", "bad-header", "two-lengths", "unasked", "version"]
        {
            let answer = browser.page(&format!("/x/{path}")).await;
            assert_eq!(answer.status, 502, "{path}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_taken_for_whole() {
    let app = App::start(|seen| {
        Reply::raw(match seen.path() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        })
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        for path in ["/length", "/chunked"] {
            let url = gateway.url.join(path).unwrap();
            let connection = Connection::open(&url, protocol).await.unwrap();
            let result = connection.ask(&url, Ask::fetch(path)).await;
            assert!(result.is_err(), "{protocol:?} {path}: {result:?}");
        }
    }
}

#[tokio::test]
async fn another_upstream_is_asked_where_nothing_was_sent() {
    let provider = Provider::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route_to(
            "/",
            &["http://127.0.0.1:1", &app.url, "unix:/nowhere/at/all.sock"],
            r#"access = "public""#,
        )
        .start()
        .await;
    let browser = gateway.browser();
    for number in 0..12 {
        let answer = browser.ask(Ask::post("/", format!("body {number}"))).await;
        assert_eq!(answer.status, 200, "{number}");
        assert_eq!(app.last().body, format!("body {number}").as_bytes());
    }
    assert_eq!(app.seen().len(), 12, "each is sent once");
}

#[tokio::test]
async fn each_upstream_gets_its_share() {
    let provider = Provider::start().await;
    let apps = [App::plain().await, App::plain().await, App::plain().await];
    let urls: Vec<&str> = apps.iter().map(|app| app.url.as_str()).collect();
    let gateway =
        Gateway::with(&provider).route_to("/", &urls, r#"access = "public""#).start().await;
    let browser = gateway.browser();
    for _ in 0..150 {
        browser.fetch("/").await;
    }
    for app in &apps {
        let share = app.seen().len();
        assert!((20..90).contains(&share), "{share} of 150");
    }
}

#[tokio::test]
async fn apps_may_be_behind_tls_or_a_unix_socket() {
    let directory = tempfile::TempDir::new().unwrap();
    let provider = Provider::start().await;
    let secure = App::over_tls("localhost", |_| Reply::new(200).body("over TLS")).await;
    let wrong = App::over_tls("other.example.test", |_| Reply::new(200)).await;
    let wrong_name = wrong.url.replace("other.example.test", "localhost");
    let socket =
        App::on_socket(&directory.path().join("app.sock"), |_| Reply::new(200).body("on a socket"));
    let gateway = Gateway::with(&provider)
        .route_with("/secure", &secure, r#"access = "public""#)
        .route_with("/socket", &socket, r#"access = "public""#)
        .route_to("/wrong", &[&wrong_name], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    assert_eq!(browser.fetch("/secure").await.text(), "over TLS");
    assert_eq!(browser.fetch("/socket").await.text(), "on a socket");
    assert_eq!(browser.fetch("/wrong").await.status, 502, "a certificate for another name");
    assert_eq!(wrong.seen().len(), 0);
}

#[tokio::test]
async fn an_early_answer_to_an_upload_arrives() {
    let app = App::by_hand(|mut peer: Peer| async move {
        peer.head().await;
        let _ = peer
            .write("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull")
            .await;
        // Reads on for a moment, as servers do who do not want their answer lost (RFC 9112, 9.6).
        let _ = tokio::time::timeout(Duration::from_millis(300), async {
            while !peer.some().await.is_empty() {}
        })
        .await;
    })
    .await;
    let (_provider, gateway) = public(&app).await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        let ask = Ask::post("/", vec![1; 4 * 1024 * 1024]);
        let answer = browser.ask(ask).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (413, "full"), "{protocol:?}");
    }
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_refused() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
    let many: String = (0..150).map(|number| format!("X-{number}: 1\r\n")).collect();
    // Its size is looked at between reads, of at most 64 KiB each.
    let large = format!("X-A: {}\r\n", "x".repeat(200 * 1024));
    for (lines, ok) in [
        (many.as_str(), false),
        (large.as_str(), false),
        (&format!("X-A: {}\r\n", "x".repeat(40 * 1024)), true),
        (&(0..90).map(|number| format!("X-{number}: 1\r\n")).collect::<String>(), true),
    ] {
        let mut client = Raw::open(&stage.gateway).await;
        client.send(head(lines)).await;
        let response = client.until("\r\n\r\n").await;
        let status = raw::status(&response);
        let shown: String = lines.chars().take(20).collect();
        assert_eq!(status == 200, ok, "{} bytes, {shown}: {status}", lines.len());
        assert!(ok || status == 431, "{response}");
    }
    let browser = stage.gateway.browser_over(Protocol::Http2);
    let mut ask = Ask::fetch("/");
    for number in 0..150 {
        ask = ask.header(&format!("x-{number}"), "1");
    }
    assert_eq!(browser.ask(ask).await.status, 431);
    assert_eq!(stage.app.seen().len(), 2);
}

#[tokio::test]
async fn a_slow_client_is_let_go_and_others_are_unharmed() {
    let stage = Stage::with(|builder, app| {
        builder
            .limits("header_time = \"700ms\"")
            .limits("handshake_time = \"700ms\"")
            .limits("idle_time = \"1s\"")
            .route_with("/", app, r#"access = "public""#)
    })
    .await;
    // Silent before TLS, silent after it, half a head, and a head that drips.
    let port = stage.gateway.url.port().unwrap();
    let mut mute = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut silent = Raw::open(&stage.gateway).await;
    let mut half = Raw::open(&stage.gateway).await;
    half.send("GET / HTTP/1.1\r\nHost: loc").await;
    let mut idle = Raw::open(&stage.gateway).await;
    idle.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(idle.response().await.contains("hello"));
    let mut dripping = Raw::open(&stage.gateway).await;
    let start = Instant::now();
    let drips = async {
        use tokio::io::AsyncWriteExt;
        let head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().cycle();
        for byte in head {
            if dripping.0.write_all(&[*byte]).await.is_err() || dripping.0.flush().await.is_err() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(8), "it may drip for ever");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let others = async {
        let browser = stage.gateway.browser();
        for _ in 0..10 {
            assert_eq!(browser.fetch("/").await.status, 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mutes = async {
        use tokio::io::AsyncReadExt;
        let mut buffer = [0; 16];
        let end = tokio::time::timeout(Duration::from_secs(8), mute.read(&mut buffer)).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    };
    tokio::join!(
        drips,
        others,
        mutes,
        async { assert_eq!(silent.read_to_close().await, "", "it asked for nothing") },
        async { assert_eq!(raw::status(&half.read_to_close().await), 408) },
        async { idle.read_to_close().await }
    );
    until("the connections are gone", async || {
        (stage.gateway.metric("vestibule_open_connections").await <= 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_slow_download_is_not_cut_off_by_the_limits() {
    for protocol in PROTOCOLS {
        let (app, next) = dripping().await;
        let provider = Provider::start().await;
        let gateway = Gateway::with(&provider)
            .limits("header_time = \"300ms\"")
            .limits("idle_time = \"600ms\"")
            .limits("response_time = \"300ms\"")
            .route_with("/", &app, r#"access = "public""#)
            .start()
            .await;
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let response = connection.start(&gateway.url, Ask::fetch("/")).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            next.notify_one();
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap();
            assert!(matches!(frame, Some(Ok(_))), "the stream was cut off: {frame:?}");
        }
    }
}
