//! Rules and paths: a request that is not for a route by the gateway's reading must not be for it by
//! the app's.

use crate::support::{Ask, Browser, PROTOCOLS, Protocol, Stage, raw};

async fn stage() -> Stage {
    Stage::with(|builder, app| {
        builder
            .route_with("/", app, r#"access = "public""#)
            .route_with("/public", app, r#"access = "public""#)
            .route_with("/admin", app, r#"require = { roles = ["admin"] }"#)
    })
    .await
}

/// Ways to write a target that some app would take for `/admin`, and some that are plainly it.
const WAYS_ROUND: [&str; 58] = [
    "/public#/../admin",
    "/public%23/../admin",
    "/public/../admin",
    "/public/..",
    "/public/../admin/x",
    "/public/%2e%2e/admin",
    "/public/%2E%2E/admin",
    "/public/.%2e/admin",
    "/public/..%2fadmin",
    "/public%2f..%2fadmin",
    "/public/..;/admin",
    "/public/..;x=y/admin",
    "/public/..%3b/admin",
    "/%3b/admin",
    "/public;/../admin",
    "/public/..%5cadmin",
    "/public/..\\admin",
    "/public\\..\\admin",
    "//admin",
    "///admin",
    "/./admin",
    "/.//admin",
    "/%2e/admin",
    "/;/admin",
    "/%61dmin",
    "/adm%69n",
    "/%2561dmin",
    "/admin%00",
    "/admin%00.html",
    "/admin;jsessionid=1",
    "/admin%3bx",
    "/admin%2fx",
    "/admin%252fx",
    "/admin%",
    "/admin%zz",
    "/admin/../admin",
    "/public/%252e%252e/admin",
    "/public/%c0%ae%c0%ae/admin",
    "admin",
    "admin/",
    "",
    "*",
    "../admin",
    "?/admin",
    "http:/admin",
    "http://localhost//admin",
    "http://localhost/public/../admin",
    "https://localhost/admin",
    "http://localhost/admin",
    "HTTP://LOCALHOST/admin",
    "http://evil.example/admin",
    "http://localhost@evil.example/admin",
    "http://evil.example@localhost/admin",
    "file:///admin",
    "/admin/",
    "/admin?",
    "/admin",
    "/admin/x",
];

/// CVE-2026-41059, CVE-2023-45539 (HAProxy), CVE-2021-39206 (Envoy), CVE-2026-33494, CVE-2019-9901,
/// CVE-2026-88009: raw request targets that lead an app to what a rule protects.
#[tokio::test]
async fn no_spelling_of_a_path_gets_past_a_rule() {
    let stage = stage().await;
    for target in WAYS_ROUND {
        let before = stage.app.seen().len();
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = raw::exchange(&stage.gateway, request).await;
        let status = raw::status(&response);
        let seen = &stage.app.seen()[before..];
        // Refused, or asked to sign in; what reaches the app is what was sent, and nobody could
        // take that for the rule's path.
        match status {
            400 | 401 | 404 | 405 | 421 => assert!(seen.is_empty(), "{target}: {status}"),
            200 => {
                let [seen] = seen else { panic!("{target}: {}", seen.len()) };
                assert!(
                    lenient(&seen.target).iter().all(|path| !is_admin(path)),
                    "{target}: {}",
                    seen.target
                );
            }
            other => panic!("{target}: {other}"),
        }
    }
}

fn is_admin(path: &str) -> bool {
    path == "/admin" || path.starts_with("/admin/")
}

/// What lenient apps may read in a target: decoded, without parameters, with the dots resolved.
fn lenient(target: &str) -> Vec<String> {
    let mut readings = Vec::new();
    let mut path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    for _ in 0..3 {
        let slashes = path.replace('\\', "/");
        let bare: Vec<&str> =
            slashes.split('/').map(|segment| segment.split(';').next().unwrap()).collect();
        let mut resolved: Vec<&str> = Vec::new();
        for segment in bare {
            match segment {
                ".." => drop(resolved.pop()),
                "." | "" => {}
                segment => resolved.push(segment.split('\0').next().unwrap()),
            }
        }
        readings.push(format!("/{}", resolved.join("/")));
        path = decoded(&path);
    }
    readings
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `docs/paths.md` says what is true.
#[tokio::test]
async fn every_row_of_the_documents_table_is_true() {
    let hosts = ["localhost", "app.example.test"];
    let stage = Stage::with(|builder, app| {
        let route = |host: &str, access: &str| format!("host = {host:?}\naccess = {access:?}");
        builder
            .host(hosts[1])
            .route_with("/", app, &route(hosts[0], "public"))
            .route_with("/admin", app, &route(hosts[0], "api"))
            .route_with("/", app, &route(hosts[1], "public"))
    })
    .await;
    let table = include_str!("../../docs/paths.md").lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        Some((cells[0].strip_suffix('`').unwrap(), [cells[1], cells[2]]))
    });
    let mut rows = 0;
    for (target, outcomes) in table {
        rows += 1;
        for (host, outcome) in hosts.into_iter().zip(outcomes) {
            let target = crate::bytes::bytes(&target.replace("HOST", host));
            let head = [b"GET ", &target[..], b" HTTP/1.1\r\nHost: ", host.as_bytes(), b"\r\n\r\n"];
            let mut client = raw::Raw::open_as(&stage.gateway, host, Protocol::Http1).await;
            let before = stage.app.seen().len();
            client.send(head.concat()).await;
            let status = raw::status(&client.response().await);
            let seen: Vec<_> = stage.app.seen().drain(before..).map(|seen| seen.target).collect();
            let target = String::from_utf8_lossy(&target).into_owned();
            let expected = match outcome {
                "forwarded" => (200, vec![target.clone()]),
                "admin" => (401, vec![]),
                status if status.len() == 3 => (status.parse().unwrap(), vec![]),
                outcome => {
                    let path = outcome.strip_prefix("forwarded as `").unwrap();
                    (200, vec![path.strip_suffix('`').unwrap().to_owned()])
                }
            };
            assert_eq!((status, seen), expected, "{target} on {host}");
        }
    }
    assert!(rows > 60, "{rows} rows were found");
}

#[tokio::test]
async fn over_http2_the_same_paths_are_refused() {
    let stage = stage().await;
    let browser = stage.gateway.browser();
    for target in [
        "/public/%2e%2e/admin",
        "/public/..;/admin",
        "//admin",
        "/%61dmin",
        "/admin;x",
        "/admin%2fx",
        "/public/..%5cadmin",
        "/admin%00",
        "/admin%",
        "/a%252fb",
    ] {
        let answer = browser.ask(Ask::fetch(target)).await;
        assert!([400, 401].contains(&answer.status.as_u16()), "{target}: {}", answer.status);
    }
    assert_eq!(stage.app.seen().len(), 0);
}

/// CVE-2025-54576 (oauth2-proxy), CVE-2026-40575, CVE-2026-34457: anything but the path decided.
#[tokio::test]
async fn nothing_but_the_path_chooses_the_rule() {
    for protocol in PROTOCOLS {
        let stage = stage().await;
        let browser = stage.gateway.browser_over(protocol);
        let page = |path: &str| Ask::page(path);
        for (what, ask) in [
            ("a public path in the query", page("/admin?x=/public")),
            ("the same, encoded", page("/admin?/public/%2e%2e")),
            ("X-Forwarded-Uri", page("/admin").header("x-forwarded-uri", "/public")),
            ("X-Original-URL", page("/admin").header("x-original-url", "/public")),
            ("X-Rewrite-URL", page("/admin").header("x-rewrite-url", "/public")),
            ("a health check", page("/admin").header("user-agent", "GoogleHC/1.0")),
            ("another one", page("/admin").header("user-agent", "ELB-HealthChecker/2.0")),
            ("a third one", page("/admin").header("user-agent", "kube-probe/1.29")),
            ("a method override", page("/admin").header("x-http-method-override", "OPTIONS")),
        ] {
            let answer = browser.ask(ask).await;
            assert_eq!(answer.status, 303, "{what}");
            assert_eq!(answer.location().host_str(), Some("127.0.0.1"), "{what}");
        }
        assert_eq!(stage.app.seen().len(), 0);
    }
}

#[tokio::test]
async fn a_preflight_for_a_protected_path_needs_a_session_as_well() {
    let stage = stage().await;
    let ask = Ask { method: http::Method::OPTIONS, ..Ask::fetch("/admin") }
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST");
    assert_eq!(stage.gateway.browser().ask(ask).await.status, 401);
    assert_eq!(stage.app.seen().len(), 0);
}

#[tokio::test]
async fn the_longest_path_wins_on_whole_segments() {
    let provider = crate::support::Provider::start().await;
    let app = crate::support::App::start(|seen| {
        let user = seen.header("x-forwarded-user").unwrap_or_default();
        crate::support::Reply::new(200).body(user)
    })
    .await;
    let gateway = crate::support::Gateway::with(&provider)
        .route("/", &app)
        .route_with("/a", &app, r#"access = "public""#)
        .route_with("/a/b", &app, r#"access = "api""#)
        .start()
        .await;
    let browser: Browser = gateway.browser();
    for (path, status) in [
        ("/", 303),
        ("/ab", 303),
        ("/a", 200),
        ("/a/", 200),
        ("/a?b", 200),
        ("/a/bc", 200),
        ("/a/b", 401),
        ("/a/b/", 401),
        ("/a/b/c", 401),
        ("/A", 303),
        ("/a/B", 200),
    ] {
        assert_eq!(browser.page(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn on_a_host_where_all_is_public_paths_pass_as_they_are() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    for target in ["/a/../b", "/a//b", "/a%2Fb", "/a;x/..", "/%61", "/a?b#c", "/100%"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = raw::exchange(&stage.gateway, request).await;
        if raw::status(&response) == 200 {
            let sent = target.split('#').next().unwrap();
            assert_eq!(stage.app.last().target, sent, "byte for byte");
        } else {
            assert_eq!(raw::status(&response), 400, "{target}");
        }
    }
    let sent: Vec<_> = stage.app.seen().into_iter().map(|seen| seen.target).collect();
    assert!(sent.len() >= 5, "{sent:?}");
}

#[tokio::test]
async fn the_path_and_query_that_match_are_the_bytes_that_are_forwarded() {
    let stage = stage().await;
    for protocol in PROTOCOLS {
        let browser = stage.gateway.browser_over(protocol);
        for target in [
            "/public/a%20b?x=%2F..%2f&y=//&z=a+b",
            "/public/%C3%AB",
            "/public/a.b/c..d/...",
            "/public?",
            "/public/?a?b",
            "/public/~!$&'()*+,=:@",
        ] {
            assert_eq!(browser.fetch(target).await.status, 200, "{target}");
            assert_eq!(stage.app.last().target, target);
        }
    }
}

/// CVE-2026-27587: the spelling of the host chose another rule.
#[tokio::test]
async fn the_spelling_of_a_host_does_not_choose_the_rule() {
    let stage = Stage::with(|builder, app| {
        builder.host("app.example.test").route_with("/", app, r#"access = "public""#).route_with(
            "/x",
            app,
            "host = \"app.example.test\"\naccess = \"api\"",
        )
    })
    .await;
    let status = async |host: &str| {
        let mut client =
            raw::Raw::open_as(&stage.gateway, "app.example.test", crate::support::Protocol::Http1)
                .await;
        client.send(format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        raw::status(&client.response().await)
    };
    for host in [
        "app.example.test",
        "APP.Example.TEST",
        "app.example.test.",
        "app.example.test:443",
        "App.Example.Test.:8443",
        "app.example.test:1",
    ] {
        assert_eq!(status(host).await, 401, "{host}");
    }
    for host in
        ["evil.example", "xapp.example.test", "app.example.test.evil.example", "127.0.0.1", "[::1]"]
    {
        assert_eq!(status(host).await, 421, "{host}");
    }
    for host in
        ["", " ", "a b", "app.example.test/x", "evil@app.example.test", "app.example.test:x", "a,b"]
    {
        assert!([400, 421].contains(&status(host).await), "{host:?}");
    }
    assert_eq!(stage.app.seen().len(), 0);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    for (head, status) in [
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n", 400),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n", 405),
    ] {
        let response = raw::exchange(&stage.gateway, format!("{head}\r\n")).await;
        assert_eq!(raw::status(&response), status, "{head}: {response}");
    }
    assert_eq!(stage.app.seen().len(), 1);
}
