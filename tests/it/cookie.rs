//! The session on the wire: what its cookies look like, and what cookies that are not ours do.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, Raw, Reply, Stage, raw,
};

const NAME: &str = "__Host-session";

/// Letters that look random, so that nothing could make them shorter.
fn letters(length: usize) -> String {
    (0..length).map(|at| char::from(b'a' + u8::try_from(at * at % 26).unwrap())).collect()
}

#[tokio::test]
async fn the_cookie_is_as_safe_as_a_cookie_can_be() {
    let stage = Stage::new().await;
    let zoe = stage.gateway.browser();
    let login_page = zoe.open("/").await;
    let callback = zoe.submit_once(&login_page, &[("user", "zoe")]).await.location();
    let answer = zoe.page(callback.as_str()).await;
    let line = answer.set_cookie(NAME).unwrap();
    for attribute in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax", "; Max-Age=86400"] {
        assert!(line.contains(attribute), "{attribute} in {line}");
    }
    assert!(!line.contains("Domain"), "{line}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    for secret in ["zoe", "auth0", "eyJ"] {
        assert!(!line.contains(secret), "{line}");
    }
}

#[tokio::test]
async fn the_cookie_is_as_the_file_says() {
    for (written, attributes, absent) in [
        ("same_site = \"strict\"", vec!["sid=", "; SameSite=Strict", "; Max-Age="], "Domain"),
        ("same_site = \"none\"", vec!["sid=", "; SameSite=None", "; Secure"], "Domain"),
        ("transient = true", vec!["sid=", "; Secure"], "Max-Age"),
        ("domain = \"example.test\"", vec!["sid=", "; Domain=example.test"], "Strict"),
    ] {
        let stage = Stage::with(|builder, app| {
            builder
                .only_host("app.example.test")
                .session(&format!("cookie = {{ name = \"sid\", {written} }}"))
                .route("/", app)
        })
        .await;
        let zoe = stage.gateway.browser();
        let login_page = zoe.open("/").await;
        let callback = zoe.submit_once(&login_page, &[("user", "zoe")]).await.location();
        let answer = zoe.page(callback.as_str()).await;
        let line = answer.set_cookie("sid").unwrap();
        for attribute in attributes {
            assert!(line.contains(attribute), "{attribute} in {line}");
        }
        assert!(!line.contains(absent), "{absent} in {line}");
        assert!(zoe.profile().await.is_some());
        if absent == "Max-Age" {
            zoe.jar().close_browser();
            assert_eq!(zoe.profile().await, None, "the browser has forgotten it");
        }
    }
}

#[tokio::test]
async fn a_link_from_another_site_finds_the_user_signed_in() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    assert_eq!(zoe.open_from_elsewhere("/inbox").await.url.path(), "/inbox");
}

#[tokio::test]
async fn a_large_session_is_split_and_a_small_one_is_one_again() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        assert_eq!(zoe.cookies(NAME), [NAME]);

        let answer = stage.update(&zoe, json!({ "draft": letters(5_000) }).to_string()).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let parts = zoe.cookies(NAME);
        assert!(parts.len() >= 2 && !parts.contains(&NAME.to_owned()), "{parts:?}");
        assert!(answer.set_cookie(NAME).unwrap().contains("Max-Age=0"), "the whole one goes");
        assert_eq!(zoe.refused(), Vec::<String>::new(), "a browser keeps every part");
        assert_eq!(zoe.profile().await.unwrap()["draft"].as_str().unwrap().len(), 5_000);
        stage.gateway.logged(&["WARN", "session", "large"]).await;

        stage.update(&zoe, json!({ "draft": letters(9_000) }).to_string()).await;
        let more = zoe.cookies(NAME);
        assert!(more.len() > parts.len(), "{more:?}");
        assert_eq!(zoe.profile().await.unwrap()["draft"].as_str().unwrap().len(), 9_000);

        stage.update(&zoe, r#"{"draft":null}"#).await;
        assert_eq!(zoe.cookies(NAME), [NAME], "parts that are no longer needed are deleted");
        assert!(zoe.profile().await.unwrap().get("draft").is_none());
    }
}

#[tokio::test]
async fn a_session_past_its_cap_stays_as_it_was() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, json!({ "a": letters(6_000) }).to_string()).await;
    let before = (zoe.profile().await, zoe.cookies(NAME));
    stage.update(&zoe, json!({ "b": letters(8_000) }).to_string()).await;
    assert_eq!((zoe.profile().await, zoe.cookies(NAME)), before);
    stage.gateway.logged(&["WARN", "session_too_large"]).await;
}

/// SDK #2009: a stale whole cookie shadowed the newer parts.
#[tokio::test]
async fn a_stale_cookie_beside_the_parts_does_not_shadow_them() {
    let mut stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let stale = zoe.cookie(NAME).unwrap();
    stage.update(&zoe, json!({ "draft": letters(5_000) }).to_string()).await;
    // The memory would hide what the cookies alone say.
    stage.gateway.restart().await;
    let zoe = zoe.copy();
    zoe.set_cookie(NAME, &stale);
    let answer = zoe.fetch("/auth/profile").await;
    assert_eq!(answer.json()["draft"].as_str().unwrap().len(), 5_000);
}

#[tokio::test]
async fn parts_of_two_generations_are_never_joined() {
    let mut stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, json!({ "draft": letters(5_000) }).to_string()).await;
    let old = zoe.copy();
    stage.update(&zoe, json!({ "draft": letters(5_001) }).to_string()).await;
    stage.gateway.restart().await;
    for mixed in [0, 1] {
        let browser = zoe.copy();
        let name = format!("{NAME}.{mixed}");
        browser.set_cookie(&name, &old.cookie(&name).unwrap());
        let answer = browser.fetch("/auth/profile").await;
        assert_eq!(answer.status, 401, "part {mixed} of the older one");
        assert_eq!(browser.cookies(NAME), Vec::<String>::new(), "and they are deleted");
    }
}

/// SDK: a bad cookie was never cleared, so the failure repeated.
#[tokio::test]
async fn a_cookie_that_does_not_open_is_no_session_and_is_deleted() {
    let stage = Stage::new().await;
    for value in ["", "x", "null", "eyJhbGciOiJkaXIifQ..a.b.c", &letters(3_900), "%00%ff", "\"\""] {
        let browser = stage.gateway.browser();
        browser.set_cookie(NAME, value);
        let answer = browser.fetch("/").await;
        assert_eq!(answer.status, 401, "{value}");
        assert!(answer.set_cookie(NAME).unwrap().contains("Max-Age=0"), "{value}");
        assert_eq!(browser.cookies(NAME), Vec::<String>::new(), "{value}");
        assert_eq!(browser.log_in("zoe", "/").await.status, 200, "{value}");
    }
    assert_eq!(stage.app.seen().len(), 7);
}

/// CVE-2026-47775, CVE-2023-35941 (Envoy): what is wrong with a cookie must not show.
#[tokio::test]
async fn every_byte_counts_and_every_failure_looks_the_same() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let good = zoe.cookie(NAME).unwrap();
    let mut bad: Vec<String> =
        [1, good.len() / 2, good.len() - 1].map(|cut| good[..cut].to_owned()).into();
    bad.extend((0..good.len()).map(|at| {
        let other = if good[at..].starts_with('A') { "B" } else { "A" };
        format!("{}{other}{}", &good[..at], &good[at + 1..])
    }));
    let mut looks = std::collections::BTreeSet::new();
    // Many on one connection, for there are many.
    for batch in bad.chunks(64) {
        let request = |value: &String| {
            format!("GET /auth/profile HTTP/1.1\r\nHost: localhost\r\nCookie: {NAME}={value}\r\n")
        };
        let requests: Vec<String> = batch.iter().map(request).collect();
        let mut client = Raw::open(&stage.gateway).await;
        client.send(requests.join("\r\n") + "Connection: close\r\n\r\n").await;
        let text = client.read_to_close().await;
        let responses: Vec<&str> = text.split("HTTP/1.1 ").skip(1).collect();
        assert_eq!(responses.len(), batch.len(), "{text}");
        for response in responses {
            let own = |line: &&str| !line.starts_with("date:") && !line.starts_with("connection:");
            looks.insert(response.lines().filter(own).collect::<Vec<_>>().join("\n"));
        }
    }
    let looks: Vec<String> = looks.into_iter().collect();
    let [look] = &looks[..] else { panic!("{looks:#?}") };
    assert!(look.starts_with("401") && look.contains(&format!("set-cookie: {NAME}=;")), "{look}");
}

/// CVE-2021-32791 (`mod_auth_openidc`): what is sealed for one purpose opens for no other.
#[tokio::test]
async fn a_cookie_under_another_name_or_for_another_purpose_does_not_open() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let session = zoe.cookie(NAME).unwrap();
    let browser = stage.gateway.browser();
    browser.page("/").await;
    let attempt_name = browser.cookies("__Host-login.").pop().unwrap();
    let attempt = browser.cookie(&attempt_name).unwrap();

    browser.set_cookie(NAME, &attempt);
    assert_eq!(browser.fetch("/").await.status, 401, "an attempt is no session");
    browser.set_cookie(&format!("{NAME}.0"), &session);
    assert_eq!(browser.fetch("/").await.status, 401, "a whole one is no part");

    // Two gateways with one secret and other names.
    let other = Stage::with(|builder, app| {
        builder.session("cookie = { name = \"__Host-other\" }").route("/", app)
    })
    .await;
    let browser = other.gateway.browser();
    browser.set_cookie("__Host-other", &session);
    assert_eq!(browser.fetch("/").await.status, 401);
}

/// CVE-2024-24814 (`mod_auth_openidc`), CVE-2026-55149: the count of parts came from the client.
#[tokio::test]
async fn a_thousand_parts_are_no_session_and_no_work() {
    let stage = Stage::with(|builder, app| {
        builder.limits("header_bytes = \"1MiB\"").limits("headers = 1000").route("/", app)
    })
    .await;
    let huge: Vec<String> =
        (0..900).map(|part| format!("{NAME}.{part}={}", letters(900))).collect();
    let before = stage.gateway.resident();
    for cookies in [
        format!("{NAME}.99999999=x"),
        format!("{NAME}.18446744073709551616=x; {NAME}.-1=y; {NAME}.+0=z; {NAME}.00=a"),
        format!("{NAME}=99999999:{}", letters(100)),
        huge.join("; "),
        (0..900).map(|_| format!("{NAME}=x")).collect::<Vec<_>>().join("; "),
    ] {
        let request =
            format!("GET /auth/profile HTTP/1.1\r\nHost: localhost\r\nCookie: {cookies}\r\n\r\n");
        // The machine may be busy: the quickest of several counts. Handshake and all.
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let response = raw::exchange(&stage.gateway, &request).await;
            quickest = quickest.min(start.elapsed());
            assert_eq!(raw::status(&response), 401, "{response}");
        }
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
    let grown = stage.gateway.resident().saturating_sub(before);
    assert!(grown < 20_000, "{grown} kB more");
}

/// CVE-2023-28625 (`mod_auth_openidc`): a NULL pointer for a cookie of semicolons.
#[tokio::test]
async fn odd_cookie_lines_break_nothing() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let cookie = format!("{NAME}={}", zoe.cookie(NAME).unwrap());
    for (line, status) in [
        (";;a;=;".to_owned(), 401),
        (String::new(), 401),
        ("=".to_owned(), 401),
        (";".repeat(5000), 401),
        (NAME.to_owned(), 401),
        (format!("x{cookie}"), 401),
        (format!("a=\"; {cookie}"), 200),
        (format!(";;{cookie};;"), 200),
        (format!("a=1;{cookie}"), 200),
        (format!("{cookie};\tb=2"), 200),
        (format!("\u{e9}=\u{fc}; {cookie}"), 200),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {line}\r\n\r\n");
        let response = raw::exchange(&stage.gateway, request).await;
        let shown: String = line.chars().take(40).collect();
        assert_eq!(raw::status(&response), status, "{shown}: {response}");
    }
}

/// oauth2-proxy #644: the gateway's own cookie was sent upstream.
#[tokio::test]
async fn the_gateways_cookies_are_not_sent_to_apps_and_others_are() {
    for protocol in PROTOCOLS {
        let stage = Stage::with(|builder, app| {
            builder.route("/", app).route_with("/public", app, r#"access = "public""#)
        })
        .await;
        let zoe = stage.gateway.browser_over(protocol);
        zoe.page("/attempt").await;
        zoe.log_in("zoe", "/").await;
        zoe.set_cookie("theme", "dark");
        zoe.set_cookie("__Host-session2", "not ours");
        zoe.set_cookie("__Host-sessio", "not ours either");
        for path in ["/", "/public"] {
            zoe.fetch(path).await;
            let cookies = stage.app.last().header("cookie").unwrap();
            assert_eq!(
                cookies,
                "theme=dark; __Host-session2=not ours; __Host-sessio=not ours either"
            );
        }
        // In parts, too.
        stage.update(&zoe, json!({ "draft": letters(5_000) }).to_string()).await;
        zoe.fetch("/").await;
        assert!(!stage.app.last().header("cookie").unwrap().contains("__Host-session."));
        for name in ["theme", "__Host-session2", "__Host-sessio"] {
            zoe.forget(name);
        }
        zoe.fetch("/").await;
        assert_eq!(stage.app.last().all("cookie"), Vec::<String>::new(), "no empty line is left");
    }
}

#[tokio::test]
async fn an_apps_own_cookies_pass_in_order_beside_ours() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let lines = [
            "PHPSESSID=1; path=/",
            "a=\"x, y\"; Expires=Wed, 21 Oct 2037 07:28:00 GMT",
            "b=2",
            "a=3",
        ];
        let reply =
            lines.iter().fold(Reply::new(200), |reply, line| reply.header("Set-Cookie", line));
        stage.app.say(reply.update(r#"{"n":1}"#).header("Cache-Control", "public, max-age=600"));
        let answer = zoe.fetch("/").await;
        let others: Vec<_> =
            answer.set_cookies().into_iter().filter(|line| !line.starts_with(NAME)).collect();
        assert_eq!(others, lines);
        assert!(answer.set_cookie(NAME).is_some());
        // CVE-2025-48947 (SDK): a shared cache kept a response with a session.
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn an_app_cannot_plant_or_delete_the_gateways_cookies() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/public", app, r#"access = "public""#)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let before = zoe.cookie(NAME);
    for name in [NAME, "__Host-session.0", "__Host-session.17", "__Host-login.0a1b2c3d"] {
        for path in ["/", "/public"] {
            let planted = format!("{name}=planted; Path=/; Secure");
            stage.app.say(
                Reply::new(200)
                    .header("Set-Cookie", planted.clone())
                    .header("Set-Cookie", format!(" {name} = x; Max-Age=0"))
                    .header("Set-Cookie", "mine=1"),
            );
            let answer = zoe.fetch(path).await;
            assert_eq!(answer.set_cookies(), ["mine=1"], "{name} {path}");
            assert_eq!(zoe.cookie(NAME), before);
        }
    }
    let line = stage.gateway.logged(&["WARN", "Set-Cookie"]).await;
    assert!(!line.contains("planted"), "{line}");
}

#[tokio::test]
async fn a_browser_may_split_its_cookies_over_http2() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http2).await;
    let session = zoe.cookie(NAME).unwrap();
    let browser = stage.gateway.browser();
    // RFC 9113, section 8.2.3.
    let ask = Ask::fetch("/")
        .header("cookie", "a=1")
        .header("cookie", format!("{NAME}={session}"))
        .header("cookie", "b=2");
    assert_eq!(browser.ask(ask).await.status, 200);
    assert_eq!(stage.app.last().header("cookie").unwrap(), "a=1; b=2");
}

#[tokio::test]
async fn a_session_across_subdomains_is_one() {
    let provider = Provider::start_with(&["a.example.test", "b.example.test"], |_| {}).await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .only_host("a.example.test")
        .host("b.example.test")
        .session("cookie = { name = \"__Secure-s\", domain = \"example.test\" }")
        .route("/", &app)
        .start()
        .await;
    let zoe = gateway.browser();
    zoe.log_in("zoe", "/").await;
    let there = format!("https://b.example.test:{}/", gateway.url.port().unwrap());
    assert_eq!(zoe.page(&there).await.status, 200);
    let seen = app.last();
    assert_eq!(seen.header("x-forwarded-user").unwrap(), "auth0|zoe");
    assert!(seen.header("host").unwrap().starts_with("b.example.test"));
}

#[tokio::test]
async fn a_session_of_one_host_is_none_on_another() {
    let provider = Provider::start_with(&["localhost", "b.example.test"], |_| {}).await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).host("b.example.test").route("/", &app).start().await;
    let zoe: Browser = gateway.browser();
    zoe.log_in("zoe", "/").await;
    let there = format!("https://b.example.test:{}/", gateway.url.port().unwrap());
    assert_eq!(zoe.page(&there).await.status, 303, "a __Host- cookie stays where it was set");
}
