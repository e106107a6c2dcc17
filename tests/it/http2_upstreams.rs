//! Apps that speak HTTP/2: what they are told, in which protocol, and what comes back.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Version;

use crate::support::authority::{Pair, authority};
use crate::support::http2_app::{Http2App, Http2Reply, Seen};
use crate::support::program::Program;
use crate::support::{
    App, Ask, Gateway, PROTOCOLS, Protocol, Provider, Reply, Stage, free_port, join_all,
};

/// As a value of `upstream`.
fn spoken_to_in(url: &str, protocol: &str) -> String {
    format!("{{ url = {url:?}, protocol = {protocol:?} }}")
}

fn echo(seen: &Seen) -> Http2Reply {
    Http2Reply::new(seen.body.clone()).header("x-path", seen.head.uri.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_asked_over_http2_for_browsers_of_either_protocol() {
    let app = Http2App::start(echo).await;
    let stage =
        Stage::with(|builder, _| builder.route_written("/", &spoken_to_in(&app.url, "http2"), ""))
            .await;
    for protocol in PROTOCOLS {
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let body = vec![b'x'; 300_000];
        let ask = Ask::post("/a;b/%C3%AB?q=%zz", body.clone())
            .header("x-forwarded-user", "mallory")
            .header("x_session", "{}");
        let answer = zoe.ask(ask).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &body[..]));
        assert_eq!(answer.header("x-path"), Some("/a;b/%C3%AB"));
        let seen = app.last();
        assert_eq!(seen.head.version, Version::HTTP_2);
        let host = seen.head.uri.authority().unwrap().to_string();
        assert_eq!(host, format!("localhost:{}", stage.gateway.url.port().unwrap()));
        assert_eq!(seen.head.uri.path_and_query().unwrap(), "/a;b/%C3%AB?q=%zz");
        let fields = &seen.head.headers;
        assert_eq!(fields["x-forwarded-user"], "auth0|zoe");
        assert!(fields.contains_key("x-session") && !fields.contains_key("x_session"));
        for name in ["connection", "host", "upgrade", "transfer-encoding", "keep-alive"] {
            assert!(!fields.contains_key(name), "{name}");
        }
    }
    // Two workers, a connection each at most.
    assert!(app.connections() <= 2, "{}", app.connections());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_pass_both_ways_and_an_update_in_them_is_applied_and_kept_from_the_browser() {
    let app = Http2App::start(|seen| {
        let reply = Http2Reply::new("body").trailer("x-checksum", "7");
        match seen.head.uri.path() {
            "/trailers" => reply.trailer("x-session-update", r#"{"theme":"dark"}"#),
            // HTTP/2 allows for both; HTTP/1.1 would not.
            "/length" => reply
                .header("content-length", "4")
                .trailer("x-session-update", r#"{"length":true}"#),
            _ => reply.header("x-session-update", r#"{"head":1}"#),
        }
    })
    .await;
    let stage =
        Stage::with(|builder, _| builder.route_written("/", &spoken_to_in(&app.url, "http2"), ""))
            .await;
    for protocol in PROTOCOLS {
        let zoe = stage.signed_in_over("zoe", protocol).await;
        for path in ["/trailers", "/length", "/head"] {
            let ask = Ask::post(path, "up").header("te", "trailers").trailer("x-sum", "9");
            let answer = zoe.ask(ask).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "body"));
            assert!(!answer.trailers.contains_key("x-session-update"), "{path}");
            assert!(!answer.headers.contains_key("x-session-update"), "{path}");
            // HTTP/1.1 passes those on that were announced (RFC 9110, section 6.6.2).
            let passed = protocol == Protocol::Http2;
            assert_eq!(answer.trailers.contains_key("x-checksum"), passed, "{path}");
            let seen = app.last();
            assert_eq!(seen.trailers["x-sum"], "9");
            assert_eq!(seen.head.headers["te"], "trailers");
        }
        let profile = zoe.profile().await.unwrap();
        assert_eq!(profile["theme"], "dark");
        assert_eq!((&profile["length"], &profile["head"]), (&true.into(), &1.into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_handshake_says_which_protocol_is_spoken_unless_the_file_does() {
    let version = |seen: &Seen| Http2Reply::new(format!("{:?}", seen.head.version));
    let both = Http2App::over_tls(&[b"h2", b"http/1.1"], version).await;
    let old = Http2App::over_tls(&[b"http/1.1"], version).await;
    let none = App::over_tls("localhost", |_| Reply::new(200).body("HTTP/1.1")).await;
    let provider = Provider::start().await;
    let mut builder = Gateway::with(&provider);
    let ways = [
        ("/both", &both.url, "auto", "HTTP/2.0"),
        ("/both-old", &both.url, "http1", "HTTP/1.1"),
        ("/both-new", &both.url, "http2", "HTTP/2.0"),
        ("/old", &old.url, "auto", "HTTP/1.1"),
        ("/none", &none.url, "auto", "HTTP/1.1"),
    ];
    for (path, url, protocol, _) in ways {
        let upstream = spoken_to_in(url, protocol);
        builder = builder.route_written(path, &upstream, r#"access = "public""#);
    }
    let gateway = builder
        .route_written("/wrong", &spoken_to_in(&old.url, "http2"), r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    for _ in 0..3 {
        for (path, _, _, spoken) in ways {
            let answer = browser.ask(Ask::post(path, "body")).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, spoken), "{path}");
        }
        assert_eq!(browser.fetch("/wrong").await.status, 502);
    }
    // A WebSocket gets a connection of HTTP/1.1 for itself, unless the file says otherwise.
    let browser = gateway.browser_over(Protocol::Http1);
    for (path, answered) in [("/both", "HTTP/1.1"), ("/both-new", "")] {
        let ask = Ask::fetch(path)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let answer = browser.ask(ask).await;
        if answered.is_empty() {
            assert_eq!(answer.status, 502);
        } else {
            assert_eq!(answer.text(), answered);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_gone_is_502_and_its_connection_is_forgotten() {
    let app = Http2App::start(echo).await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_written("/", &spoken_to_in(&app.url, "http2"), r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    assert_eq!(browser.fetch("/").await.status, 200);
    let port: u16 = app.url.rsplit(':').next().unwrap().parse().unwrap();
    drop(app);
    let old = App::start_on(port, |_| Reply::new(200)).await;
    for _ in 0..3 {
        assert_eq!(browser.fetch("/").await.status, 502, "HTTP/1.1 will not do");
    }
    drop(old);
}

/// One that we did not write, which allows few streams and closes idle connections early: GOAWAY. Where
/// it closes one while a POST is on its way, nobody knows what became of that: now and then 502.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_loses_no_request_though_it_closes_connections_all_the_time() {
    let files = tempfile::TempDir::new().unwrap();
    let Pair { cert, key } = authority().issue(&["localhost"]);
    let pem = files.path().join("both.pem");
    std::fs::write(&pem, cert + &key).unwrap();
    let [secure, clear] = [free_port(), free_port()];
    let configuration = format!(
        "global\n  tune.h2.max-concurrent-streams 4\n\
         defaults\n  mode http\n  timeout client 1s\n  timeout connect 1s\n  timeout server 1s\n  \
         timeout http-keep-alive 40ms\n\
         frontend all\n  bind 127.0.0.1:{secure} ssl crt {} alpn h2,http/1.1\n  \
         bind 127.0.0.1:{clear} proto h2\n  \
         http-request return status 200 content-type text/plain lf-string \"%[req.ver]\"\n",
        pem.display(),
    );
    std::fs::write(files.path().join("haproxy.cfg"), configuration).unwrap();
    let mut command = std::process::Command::new("haproxy");
    command.arg("-db").arg("-f").arg(files.path().join("haproxy.cfg"));
    let mut haproxy = Program::start(&mut command, "install Debian's haproxy, or run tests/run");
    haproxy.listens(clear).await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_to("/auto", &[&format!("https://localhost:{secure}")], r#"access = "public""#)
        .route_written(
            "/clear",
            &spoken_to_in(&format!("http://127.0.0.1:{clear}"), "http2"),
            r#"access = "public""#,
        )
        .start()
        .await;
    let uncertain = AtomicUsize::new(0);
    let scripts = (0..12_u64).map(|script| {
        let (browser, uncertain) = (gateway.browser(), &uncertain);
        async move {
            for round in 0..12 {
                for path in ["/auto", "/clear"] {
                    let is_post = (script + round) % 3 == 0;
                    let ask = if is_post { Ask::post(path, "body") } else { Ask::fetch(path) };
                    let answer = browser.ask(ask).await;
                    if is_post && answer.status == 502 {
                        uncertain.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "2.0"));
                }
                let pause = (script * 7 + round * 13) % 60;
                tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            }
        }
    });
    join_all(scripts).await;
    let uncertain = uncertain.into_inner();
    assert!(uncertain <= 2, "{uncertain} of 96");
}
