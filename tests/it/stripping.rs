//! What a client says and must not: the names that are the gateway's reach no app, in no spelling.

use crate::support::{App, Ask, Gateway, PROTOCOLS, Protocol, Provider, Raw, Stage, raw};

/// Every name that the gateway may set, and those that legacy apps believe as if it had.
const NAMES: [&str; 24] = [
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Groups",
    "X-Forwarded-Access-Token",
    "X-Forwarded-Ssl",
    "X-Forwarded-Prefix",
    "X-Forwarded-Uri",
    "X-Forwarded-Server",
    "X-Session",
    "X-Session-Update",
    "X-Session-Omitted",
    "X-Session-Anything",
    "X-Plan",
    "X-Real-Ip",
    "X-Original-Url",
    "X-Rewrite-Url",
    "Proxy",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-For",
    "X-Request-Id",
    "Tracestate",
];

/// The spellings that a CGI environment folds to one variable, and the plain one twice.
fn spellings(name: &str) -> Vec<String> {
    let upper_underscores = name.to_ascii_uppercase().replace('-', "_");
    let mixed = name.replacen('-', "_", 1);
    vec![
        name.to_owned(),
        name.to_ascii_lowercase(),
        name.to_ascii_uppercase(),
        name.replace('-', "_"),
        upper_underscores,
        name.replace('-', "."),
        mixed,
        name.replacen('-', ".", 1).to_ascii_lowercase(),
    ]
}

async fn stage() -> Stage {
    Stage::with(|builder, app| {
        builder
            .route_with("/", app, r#"headers = { "X-Plan" = "user.plan" }"#)
            .route_with("/api", app, r#"access = "api""#)
            .route_with("/open", app, r#"access = "optional""#)
            .route_with("/public", app, r#"access = "public""#)
    })
    .await
}

/// CVE-2025-64484, CVE-2026-54763, CVE-2026-52845 (oauth2-proxy and others), Traefik GHSA-rf44,
/// CVE-2018-1283 (Apache `mod_session`).
#[tokio::test]
async fn no_spelling_of_the_gateways_names_reaches_an_app() {
    let stage = stage().await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    let mut client = Raw::open(&stage.gateway).await;
    for name in NAMES {
        let lines: String =
            spellings(name).iter().map(|name| format!("{name}: forged\r\n")).collect();
        for (target, cookie) in [
            ("GET /", Some(&cookie)),
            ("OPTIONS /", Some(&cookie)),
            ("GET /api", Some(&cookie)),
            ("GET /open", Some(&cookie)),
            ("GET /open", None),
            ("OPTIONS /open", None),
            ("GET /public", Some(&cookie)),
            ("GET /public", None),
            ("HEAD /public", None),
            ("OPTIONS /public", None),
            ("BREW /public", None),
        ] {
            let cookie = cookie.map(|cookie| format!("Cookie: __Host-session={cookie}\r\n"));
            let cookie = cookie.unwrap_or_default();
            let request = format!("{target} HTTP/1.1\r\nHost: localhost\r\n{lines}{cookie}\r\n");
            client.send(request).await;
            let response = client.until("\r\n\r\n").await;
            let _ = if target.starts_with("HEAD") {
                String::new()
            } else {
                rest(&mut client, &response).await
            };
            assert_eq!(raw::status(&response), 200, "{name} {target}");
            let seen = stage.app.last();
            assert!(
                !seen.holds("forged"),
                "{name} {target}: {}",
                String::from_utf8_lossy(&seen.raw)
            );
            assert!(seen.as_cgi(name).len() <= 1, "{name} {target}");
        }
    }
}

/// Reads what is left of a response whose head has come.
async fn rest(client: &mut Raw, response: &str) -> String {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    if body.len() >= length { String::new() } else { client.until("hello").await }
}

#[tokio::test]
async fn no_spelling_passes_over_http2_either() {
    let stage = stage().await;
    let zoe = stage.signed_in("zoe").await;
    let nobody = stage.gateway.browser();
    for name in NAMES {
        let mut ask = Ask::fetch("/");
        for spelling in spellings(name) {
            ask = ask.header(&spelling, "forged");
        }
        for (browser, path) in
            [(&zoe, "/"), (&zoe, "/public"), (&nobody, "/open"), (&nobody, "/public")]
        {
            let ask = Ask { target: path.to_owned(), ..ask.clone() };
            assert_eq!(browser.ask(ask).await.status, 200, "{name} {path}");
            assert!(!stage.app.last().holds("forged"), "{name} {path}");
        }
    }
}

/// CVE-2026-88004: what could not be said in a header field was said in a trailer.
#[tokio::test]
async fn no_trailer_says_what_no_header_may() {
    let stage = stage().await;
    for protocol in PROTOCOLS {
        let nobody = stage.gateway.browser_over(protocol);
        for name in NAMES {
            let mut ask = Ask::post("/public", "body").trailer("x-checksum", "abc");
            for spelling in spellings(name) {
                ask = ask.trailer(&spelling, "forged");
            }
            // The announcement holds names only.
            ask.headers.remove("trailer");
            let names = spellings(name).join(", ");
            let ask = ask.header("trailer", format!("x-checksum, {names}"));
            assert_eq!(nobody.ask(ask).await.status, 200, "{name}");
            let seen = stage.app.last();
            assert_eq!(seen.body, b"body");
            assert!(!seen.holds("forged"), "{name}: {}", String::from_utf8_lossy(&seen.raw));
            let checksum: Vec<_> = seen
                .trailers
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("x-checksum"))
                .collect();
            assert_eq!(
                checksum.len(),
                1,
                "{protocol:?} {name} others pass: {}",
                String::from_utf8_lossy(&seen.raw)
            );
        }
    }
}

/// CVE-2024-45410 (Traefik), CVE-2026-29054, CVE-2022-31813 (Apache).
#[tokio::test]
async fn connection_cannot_take_our_headers_away() {
    let stage = stage().await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    for options in [
        "close, X-Forwarded-User",
        "keep-alive, x-forwarded-user, X-Forwarded-For, X-Session, X-Forwarded-Proto",
        "X-Forwarded-User",
        "Host, X-Forwarded-Host, Cookie, X-Forwarded-Email",
    ] {
        let request = format!(
            "GET /api HTTP/1.1\r\nHost: localhost\r\nConnection: {options}\r\n\
             Cookie: __Host-session={cookie}\r\nX-Forwarded-User: forged\r\n\r\n"
        );
        let response = raw::exchange(&stage.gateway, request).await;
        // Whoever takes their own cookie away is not signed in; nothing else changes.
        let seen = stage.app.last();
        assert_eq!(raw::status(&response), 200, "{options}");
        assert_eq!(seen.as_cgi("x-forwarded-user"), ["auth0|zoe"], "{options}");
        for name in
            ["x-forwarded-for", "x-forwarded-proto", "x-session", "x-forwarded-host", "host"]
        {
            assert_eq!(seen.as_cgi(name).len(), 1, "{name}: {options}");
        }
    }
}

#[tokio::test]
async fn what_concerns_one_connection_ends_with_it() {
    let stage = stage().await;
    let request = "GET /public HTTP/1.1\r\nHost: localhost\r\nConnection: x-private\r\n\
                   X-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
                   Proxy-Authorization: Basic eDp5\r\nTE: gzip\r\nX-Public: 2\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let response = raw::exchange(&stage.gateway, request).await;
    assert_eq!(raw::status(&response), 200, "{response}");
    let seen = stage.app.last();
    for name in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
        "http2-settings",
    ] {
        assert_eq!(seen.all(name), Vec::<String>::new(), "{name}");
    }
    assert_eq!(seen.header("x-public").unwrap(), "2");
}

/// CVE-2026-30851 (Caddy): the user has no such claim, and so the client's own header stayed.
#[tokio::test]
async fn a_claim_that_the_user_lacks_is_absent_and_not_the_clients() {
    let stage = stage().await;
    // Ada has no groups, no plan, and an address that nobody verified.
    let ada = stage.signed_in("ada").await;
    let ask = Ask::fetch("/")
        .header("x-plan", "paid")
        .header("x-forwarded-email", "admin@example.com")
        .header("x-forwarded-groups", "admins");
    ada.ask(ask).await;
    let seen = stage.app.last();
    for name in ["x-plan", "x-forwarded-email", "x-forwarded-groups"] {
        assert_eq!(seen.as_cgi(name), Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn the_access_token_takes_the_place_of_the_clients_authorization() {
    let stage = Stage::with(|builder, app| {
        builder.route_with("/token", app, "access_token = true").route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    for name in ["authorization", "Authorization"] {
        zoe.ask(Ask::fetch("/token").header(name, "Basic Zm9yZ2Vk")).await;
        let [value] = &stage.app.last().as_cgi("authorization")[..] else { panic!("one line") };
        assert!(value.starts_with("Bearer ") && !value.contains("Zm9yZ2Vk"), "{value}");
    }
    // Elsewhere it is the app's own business.
    zoe.ask(Ask::fetch("/").header("authorization", "Basic Zm9yZ2Vk")).await;
    assert_eq!(stage.app.last().header("authorization").unwrap(), "Basic Zm9yZ2Vk");
}

#[tokio::test]
async fn everything_else_passes_as_it_came() {
    let stage = stage().await;
    let request = "POST /public/a?b=c&d=%20 HTTP/1.1\r\nHost: localhost\r\nX-Custom: one\r\n\
                   X-Custom: two\r\nx_custom_2: three\r\nAccept-Language: de, en;q=0.5\r\n\
                   User-Agent: a very odd (agent)\r\nContent-Type: text/plain\r\n\
                   X-Utf8: Zo\u{eb}\r\nContent-Length: 4\r\n\r\nbody";
    raw::exchange(&stage.gateway, request).await;
    let seen = stage.app.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/public/a?b=c&d=%20"));
    assert_eq!(seen.all("x-custom"), ["one", "two"]);
    for (name, value) in [
        ("x_custom_2", "three"),
        ("accept-language", "de, en;q=0.5"),
        ("user-agent", "a very odd (agent)"),
        ("content-type", "text/plain"),
        ("x-utf8", "Zo\u{eb}"),
        ("content-length", "4"),
    ] {
        assert_eq!(seen.header(name).unwrap(), value, "{name}");
    }
    assert_eq!(seen.body, b"body");
}

/// The upgrade request is a request like any other.
#[tokio::test]
async fn names_are_taken_off_upgrades_too() {
    let provider = Provider::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route("/", &app)
        .route_with("/public", &app, r#"access = "public""#)
        .start()
        .await;
    let lines: String = NAMES
        .iter()
        .flat_map(|name| spellings(name))
        .take(80)
        .map(|name| format!("{name}: forged\r\n"))
        .collect();
    let request = format!(
        "GET /public HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, X-Forwarded-For\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    );
    let response = raw::exchange(&gateway, request).await;
    assert_eq!(raw::status(&response), 200, "{response}");
    let seen = app.last();
    assert!(!seen.holds("forged"));
    assert_eq!(seen.header("upgrade").unwrap(), "websocket");
    assert_eq!(seen.header("x-forwarded-for").unwrap(), "127.0.0.1");
}
