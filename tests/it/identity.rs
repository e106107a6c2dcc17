//! What apps are told of the user and of the connection.

use serde_json::{Value, json};

use crate::support::app::Seen;
use crate::support::{
    App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, Scripted, Stage, raw,
};

/// Somebody with these claims, and what an app is told of them.
async fn told(claims: Value, lines: &str) -> (Seen, Gateway) {
    let provider = Scripted::start().await;
    provider.script().claims = claims;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route_with("/", &app, lines).start().await;
    assert_eq!(gateway.browser().open("/").await.status, 200);
    (app.last(), gateway)
}

#[tokio::test]
async fn an_app_is_told_who_the_user_is() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        zoe.fetch("/").await;
        let seen = stage.app.last();
        for (name, value) in [
            ("X-Forwarded-User", "auth0|zoe"),
            ("X-Forwarded-Email", "zoe@example.com"),
            ("X-Forwarded-Preferred-Username", "zoe"),
            ("X-Forwarded-Groups", "staff,engineering"),
        ] {
            assert_eq!(seen.as_cgi(name), [value], "{name}");
        }
        // One line of ASCII that any language reads.
        let text = seen.header("x-session").unwrap();
        assert!(text.is_ascii() && text.contains(r#""name":"Zo\u00eb Okafor""#), "{text}");
        assert_eq!(seen.session().unwrap()["user"]["sub"], "auth0|zoe");
    }
}

#[tokio::test]
async fn an_address_that_is_not_verified_is_not_told() {
    for (claims, email) in [
        (json!({ "email": "a@example.com", "email_verified": true }), Some("a@example.com")),
        (json!({ "email": "a@example.com" }), Some("a@example.com")),
        (json!({ "email": "a@example.com", "email_verified": false }), None),
        (json!({ "email": "a@example.com", "email_verified": "false" }), None),
        (json!({ "email_verified": true }), None),
    ] {
        let (seen, _gateway) = told(claims.clone(), "").await;
        assert_eq!(seen.header("x-forwarded-email").as_deref(), email, "{claims}");
    }
}

#[tokio::test]
async fn the_preferred_name_comes_before_the_nickname() {
    let (seen, _gateway) = told(json!({ "preferred_username": "z", "nickname": "zoe" }), "").await;
    assert_eq!(seen.header("x-forwarded-preferred-username").unwrap(), "z");
    let (seen, _gateway) = told(json!({ "nickname": null }), "").await;
    assert_eq!(seen.header("x-forwarded-preferred-username"), None);
}

#[tokio::test]
async fn a_group_with_a_comma_is_left_out_and_logged() {
    let claims = json!({ "groups": ["staff", "a,admin", "enginéering", "line\nbreak", " padded"] });
    let (seen, gateway) = told(claims, "").await;
    assert_eq!(seen.header("x-forwarded-groups").unwrap(), "staff,enginéering");
    gateway.logged(&["WARN", "x-forwarded-groups", "left_out=3"]).await;
}

#[tokio::test]
async fn groups_are_read_from_the_configured_claim() {
    let provider = Scripted::start().await;
    provider.script().claims =
        json!({ "groups": ["wrong"], "https://example.com/teams": ["a", "b"] });
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .provider(r#"groups_claim = "https://example.com/teams""#)
        .route("/", &app)
        .start()
        .await;
    gateway.browser().open("/").await;
    assert_eq!(app.last().header("x-forwarded-groups").unwrap(), "a,b");
}

#[tokio::test]
async fn a_claim_that_no_header_can_carry_is_never_written() {
    for hostile in
        ["zoe\r\nX-Forwarded-Groups: admin", "zoe\n", "zoe\u{0}", "\u{7f}", "a\u{85}b", " zoe"]
    {
        let claims = json!({ "nickname": hostile, "email": hostile, "plan": hostile });
        let (seen, gateway) = told(claims, r#"headers = { "X-Plan" = "user.plan" }"#).await;
        for name in ["x-forwarded-preferred-username", "x-forwarded-email", "x-plan"] {
            assert_eq!(seen.as_cgi(name), Vec::<String>::new(), "{name} {hostile:?}");
        }
        assert_eq!(seen.as_cgi("x-forwarded-groups"), Vec::<String>::new(), "{hostile:?}");
        assert_eq!(seen.header("x-forwarded-user").unwrap(), "auth0|zoe");
        assert_eq!(seen.session().unwrap()["user"]["nickname"], hostile, "escaped, it can be told");
        gateway.logged(&["WARN", "left out"]).await;
    }
}

#[tokio::test]
async fn a_routes_own_headers_read_identity_and_data() {
    let provider = Scripted::start().await;
    provider.script().claims = json!({
        "org_id": "org_1", "https://example.com/plan": { "name": "paid" }, "age": 7, "vip": true,
    });
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route_with(
            "/",
            &app,
            r#"headers = { "X-Team" = "user.org_id", "X-Plan" = "user.\"https://example.com/plan\".name", "X-Age" = "user.age", "X-Vip" = "user.vip", "X-Theme" = "session.ui.theme", "X-Nothing" = "user.nothing" }"#,
        )
        .start()
        .await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    // An app cannot change what is read from the identity.
    app.say(crate::support::Reply::new(200).update(r#"{"ui":{"theme":"dark"},"user":{"age":99}}"#));
    zoe.fetch("/").await;
    zoe.fetch("/").await;
    let seen = app.last();
    for (name, value) in [
        ("x-team", "org_1"),
        ("x-plan", "paid"),
        ("x-age", "7"),
        ("x-vip", "true"),
        ("x-theme", "dark"),
    ] {
        assert_eq!(seen.as_cgi(name), [value], "{name}");
    }
    assert_eq!(seen.as_cgi("x-nothing"), Vec::<String>::new());
}

/// The values of what an app was told of the connection.
fn connection(seen: &Seen) -> [String; 5] {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded"]
        .map(|name| seen.as_cgi(name).join(" | "))
}

async fn ask_as_proxy(zoe: &Browser) {
    let ask = Ask::fetch("/")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "javascript")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-port", "1")
        .header("x-forwarded-prefix", "//evil")
        .header("x-forwarded-uri", "/public")
        .header("x-real-ip", "203.0.113.7")
        .header("forwarded", "for=203.0.113.7;host=evil.example")
        .header("x-request-id", "mine")
        .header("traceparent", "00-11111111111111111111111111111111-2222222222222222-01");
    zoe.ask(ask).await;
}

/// CVE-2026-40575 and its kin: what any client says of the connection was believed.
#[tokio::test]
async fn an_app_is_told_of_the_connection_and_a_strangers_word_counts_for_nothing() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let port = stage.gateway.url.port().unwrap();
        let host = format!("localhost:{port}");
        let expected = [
            "127.0.0.1".to_owned(),
            "https".to_owned(),
            host.clone(),
            port.to_string(),
            format!("for=127.0.0.1;host=\"{host}\";proto=https"),
        ];
        zoe.fetch("/").await;
        assert_eq!(connection(&stage.app.last()), expected);
        ask_as_proxy(&zoe).await;
        let seen = stage.app.last();
        assert_eq!(connection(&seen), expected);
        for name in ["x-forwarded-prefix", "x-forwarded-uri", "x-real-ip"] {
            assert_eq!(seen.as_cgi(name), Vec::<String>::new(), "{name}");
        }
        assert_eq!(seen.header("host").unwrap(), host);
        assert!(!seen.holds("evil") && !seen.holds("203.0.113.7") && !seen.holds("1111111"));
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_about_whom_it_speaks_for() {
    let stage = Stage::with(|builder, app| {
        builder.server("trusted_proxies = [\"127.0.0.0/8\"]").route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    ask_as_proxy(&zoe).await;
    let seen = stage.app.last();
    assert_eq!(seen.header("x-forwarded-for").unwrap(), "203.0.113.7, 127.0.0.1");
    assert!(
        seen.header("forwarded")
            .unwrap()
            .starts_with("for=203.0.113.7;host=evil.example, for=127.0.0.1;")
    );
    assert!(seen.header("traceparent").unwrap().contains("1111111"));
    // Which origin it is stays the gateway's to say.
    assert_eq!(seen.header("x-forwarded-proto").unwrap(), "https");
    assert_eq!(seen.header("x-forwarded-host").unwrap(), seen.header("host").unwrap());
    stage.gateway.access_line(&["203.0.113.7", "GET", "200"]).await;
}

/// RFC 7239; whoever is behind a proxy that writes one of the headers may have sent the other.
#[tokio::test]
async fn either_header_names_the_client_and_where_they_differ_neither_does() {
    let stage = Stage::with(|builder, app| {
        builder.server("trusted_proxies = [\"127.0.0.0/8\"]").route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let ask = |path: &str, listed: &str, forwarded: &str| {
        let told = [("x-forwarded-for", listed), ("forwarded", forwarded)];
        let told = told.into_iter().filter(|(_, line)| !line.is_empty());
        zoe.ask(told.fold(Ask::fetch(path), |ask, (name, line)| ask.header(name, line)))
    };

    ask("/six", "", "for=6.6.6.6, for=\"[2001:db8::7]:4711\";proto=http").await;
    stage.gateway.access_line(&["2001:db8::7", "/six"]).await;
    assert_eq!(stage.app.last().header("x-forwarded-for").unwrap(), "2001:db8::7, 127.0.0.1");
    ask("/same", "6.6.6.6, 203.0.113.7", "for=203.0.113.7").await;
    stage.gateway.access_line(&["203.0.113.7", "/same"]).await;
    assert!(!stage.gateway.log().contains("name different clients"));

    ask("/listed", "203.0.113.7", "for=6.6.6.6").await;
    stage.gateway.access_line(&["127.0.0.1", "/listed"]).await;
    ask("/named", "6.6.6.6", "for=203.0.113.7").await;
    stage.gateway.access_line(&["127.0.0.1", "/named"]).await;
    stage.gateway.logged(&["WARN", "127.0.0.1", "name different clients"]).await;
    // Each as it came: the app knows which of the two its proxies write.
    assert_eq!(stage.app.last().header("x-forwarded-for").unwrap(), "6.6.6.6, 127.0.0.1");
    assert!(stage.app.last().header("forwarded").unwrap().starts_with("for=203.0.113.7, for="));
}

#[tokio::test]
async fn every_request_has_an_id_that_app_log_and_page_share() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_to("/down", &["http://127.0.0.1:1"], "")
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        zoe.fetch("/x").await;
        let seen = stage.app.last();
        let id = seen.header("x-request-id").unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        let trace = seen.header("traceparent").unwrap();
        // W3C Trace Context, section 3.2.2.
        let parts: Vec<_> = trace.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[2].len(), parts.len()), ("00", id.as_str(), 16, 4));
        stage.gateway.access_line(&["/x", &id]).await;
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3);
    let failed = zoe.page("/down").await;
    assert_eq!(failed.status, 502);
    let line = stage.gateway.logged(&["WARN", "app_unreachable"]).await;
    let id = line.split("request_id=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(failed.text().contains(id), "{id}: {}", failed.text());
}

#[tokio::test]
async fn an_access_line_tells_no_query_no_cookie_and_no_name() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    zoe.fetch("/inbox?token=SECRET").await;
    let line = stage.gateway.access_line(&["/inbox", "route=/"]).await;
    assert!(!line.contains("SECRET") && !line.contains("zoe"), "{line}");
    let cookie = zoe.cookie("__Host-session").unwrap();
    for text in [stage.gateway.output(), stage.gateway.log()] {
        assert!(!text.contains(&cookie[..40]) && !text.contains("code="), "{text}");
    }
}

/// RFC 3986 hosts: whatever the client writes, the app is told the configured origin.
#[tokio::test]
async fn the_host_that_an_app_is_told_is_the_configured_one() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    let port = stage.gateway.url.port().unwrap();
    for host in ["LOCALHOST", "localhost.", "Localhost:1", &format!("localhost:{port}")] {
        let response =
            raw::exchange(&stage.gateway, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(raw::status(&response), 200, "{host}");
        assert_eq!(stage.app.last().header("host").unwrap(), format!("localhost:{port}"), "{host}");
    }
}

#[tokio::test]
async fn two_apps_are_told_the_same_and_nothing_of_each_others_headers() {
    let provider = Provider::start().await;
    let (one, other) = (App::plain().await, App::plain().await);
    let gateway = Gateway::with(&provider)
        .route_with("/one", &one, r#"headers = { "X-Mail" = "user.email" }"#)
        .route("/", &other)
        .start()
        .await;
    let zoe = gateway.browser_over(Protocol::Http2);
    zoe.log_in("zoe", "/").await;
    zoe.fetch("/one").await;
    assert_eq!(one.last().header("x-mail").unwrap(), "zoe@example.com");
    zoe.ask(Ask::fetch("/").header("x-mail", "forged@example.com")).await;
    // The name is the gateway's on every route, also where it is not set.
    assert_eq!(other.last().as_cgi("x-mail"), Vec::<String>::new());
}
