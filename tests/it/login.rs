//! Logging in: from a page to the provider and back; and who is not sent there.

use http::Method;

use crate::support::wire::parameter;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Protocol, Provider, Stage};

#[tokio::test]
async fn somebody_who_opens_a_page_signs_in_and_is_on_that_page() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.gateway.browser_over(protocol);

        let page = zoe.log_in("zoe", "/inbox/7?sort=date").await;

        assert_eq!((page.status.as_u16(), page.text().as_str()), (200, "hello"));
        assert_eq!(page.url, zoe.url("/inbox/7?sort=date"));
        let seen = stage.app.seen();
        assert_eq!(seen.len(), 1, "the app hears of her only when she is signed in");
        assert_eq!(seen[0].target, "/inbox/7?sort=date");
        assert_eq!(seen[0].header("x-forwarded-user").as_deref(), Some("auth0|zoe"));
        assert_eq!(zoe.refused(), Vec::<String>::new(), "a browser keeps every cookie");
        let profile = zoe.profile().await.unwrap();
        assert_eq!(profile["user"]["name"], "Zoë Okafor");
    }
}

#[tokio::test]
async fn the_way_from_login_to_logout() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.gateway.browser_over(protocol);
        assert_eq!(zoe.profile().await, None);

        zoe.log_in("zoe", "/").await;
        assert_eq!(zoe.profile().await.unwrap()["user"]["sub"], "auth0|zoe");

        stage.update(&zoe, r#"{"theme":"dark"}"#).await;
        assert_eq!(zoe.profile().await.unwrap()["theme"], "dark");
        zoe.page("/").await;
        assert_eq!(stage.app.last().session().unwrap()["theme"], "dark");

        let after = zoe.open("/auth/logout").await;
        assert_ne!(after.url.host_str(), zoe.home.host_str(), "she has to sign in again");
        assert_eq!(zoe.profile().await, None);
        assert_eq!(zoe.cookies("__Host-session"), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_login_asks_for_a_code_with_pkce_state_and_nonce() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let answer = browser.page("/inbox").await;
        assert_eq!(answer.status, 303);
        let asked = |name| answer.location_parameter(name).unwrap_or_default();
        assert_eq!(asked("response_type"), "code");
        assert_eq!(asked("code_challenge_method"), "S256");
        assert_eq!(asked("scope"), "openid profile email offline_access");
        assert_eq!(asked("redirect_uri"), browser.url("/auth/callback").as_str());
        // RFC 7636, section 4.2; RFC 9700, section 2.1: 128 bits at least.
        assert_eq!(asked("code_challenge").len(), 43);
        assert!(asked("state").len() >= 22 && asked("nonce").len() >= 22);
        seen.extend([asked("state"), asked("nonce"), asked("code_challenge")]);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6, "none of them comes twice: {seen:?}");
}

#[tokio::test]
async fn an_attempt_has_a_cookie_of_its_own_for_a_quarter_of_an_hour() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let answer = browser.page("/").await;
    let [line] = answer.set_cookies()[..] else { panic!("{:?}", answer.set_cookies()) };
    assert!(line.starts_with("__Host-login."), "{line}");
    for attribute in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax", "; Max-Age=900"] {
        assert!(line.contains(attribute), "{attribute} in {line}");
    }
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_login_may_be_asked_for_with_a_way_back_and_hints() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let hints = "screen_hint=signup&connection=google-oauth2&organization=org_1&invitation=inv_1\
                 &login_hint=zoe%40example.com&prompt=login&max_age=60&acr_values=mfa&ui_locales=de";
    let answer = browser
        .page(&format!("/auth/login?return_to=/a%3Fb%3D1&{hints}&scope=admin&redirect_uri=x"))
        .await;
    for pair in hints.split('&') {
        let (name, value) = pair.split_once('=').unwrap();
        let value = value.replace("%40", "@");
        assert_eq!(answer.location_parameter(name), Some(value), "{name}");
    }
    let scope = answer.location_parameter("scope").unwrap();
    assert!(!scope.contains("admin"), "a link does not choose the scope");
    let redirects =
        answer.location().query_pairs().filter(|(name, _)| name == "redirect_uri").count();
    assert_eq!(redirects, 1);

    let login_page = browser.open("/auth/login?return_to=/a%3Fb%3D1").await;
    let page = browser.submit(&login_page, &[("user", "zoe")]).await;
    assert_eq!(page.url, browser.url("/a?b=1"));
}

#[tokio::test]
async fn what_the_file_fixes_a_link_cannot_change() {
    let stage = Stage::with(|builder, app| {
        builder.provider("login_params = { connection = \"staff\" }").route("/", app)
    })
    .await;
    let answer = stage.gateway.browser().page("/auth/login?connection=public").await;
    let location = answer.location();
    let connections = location.query_pairs().filter(|(name, _)| name == "connection");
    let connections: Vec<_> = connections.map(|(_, value)| value.into_owned()).collect();
    assert_eq!(connections, ["staff"]);
}

/// SDK #1761, oauth2-proxy #1393.
#[tokio::test]
async fn what_is_no_page_navigation_gets_401_and_starts_no_attempt() {
    let stage = Stage::new().await;
    let page = || Ask::page("/inbox?x=1");
    let with = |name: &str, value: &str| {
        let mut ask = page();
        ask.headers.remove(name);
        ask.header(name, value)
    };
    let post = Ask { method: Method::POST, ..page() }.body("draft");
    let head = Ask { method: Method::HEAD, ..page() };
    for (what, ask) in [
        ("fetch", Ask::fetch("/inbox?x=1")),
        ("a form", post),
        ("HEAD", head),
        ("Sec-Fetch-Mode: no-cors", with("sec-fetch-mode", "no-cors")),
        ("XMLHttpRequest", with("x-requested-with", "XMLHttpRequest")),
        ("no HTML wanted", with("accept", "application/json")),
        ("anything wanted", with("accept", "*/*")),
        ("Sec-Purpose: prefetch", with("sec-purpose", "prefetch;prerender")),
        ("Purpose: prefetch", with("purpose", "prefetch")),
        ("nothing said", Ask::new(Method::GET, "/inbox?x=1")),
    ] {
        for protocol in PROTOCOLS {
            let browser = stage.gateway.browser_over(protocol);
            let answer = browser.ask(ask.clone()).await;
            assert_eq!(answer.status, 401, "{what}");
            assert_eq!(answer.set_cookies(), Vec::<&str>::new(), "{what}");
            assert_eq!(answer.header("location"), None, "{what}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
            if ask.method != Method::HEAD {
                let json = answer.json();
                assert_eq!(json["error"], "login_required", "{what}");
                let login = json["login_url"].as_str().unwrap();
                assert!(login.starts_with("/auth/login"), "{what}: {login}");
            }
        }
    }
    assert_eq!(stage.app.seen().len(), 0, "the app hears nothing of it");
}

#[tokio::test]
async fn a_websocket_without_a_session_gets_401() {
    let stage = Stage::new().await;
    let ask = Ask::page("/live")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let answer = stage.gateway.browser_over(Protocol::Http1).ask(ask).await;
    assert_eq!(answer.status, 401);
    assert_eq!(stage.app.seen().len(), 0);
}

#[tokio::test]
async fn an_api_route_never_redirects() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/api", app, r#"access = "api""#)
    })
    .await;
    let browser = stage.gateway.browser();
    assert_eq!(browser.page("/api/items").await.status, 401);
    assert_eq!(browser.page("/apian").await.status, 303, "another segment, another route");
    let zoe = stage.signed_in("zoe").await;
    assert_eq!(zoe.page("/api/items").await.status, 200);
}

#[tokio::test]
async fn open_routes_are_open_and_only_an_optional_one_tells_the_user() {
    let stage = Stage::with(|builder, app| {
        builder.route_with("/", app, r#"access = "optional""#).route_with(
            "/public",
            app,
            r#"access = "public""#,
        )
    })
    .await;
    let nobody = stage.gateway.browser();
    let zoe = stage.signed_in("zoe").await;
    let told = |path: &'static str, user: Option<&'static str>| (path, user);
    for (browser, (path, user)) in [
        (&nobody, told("/", None)),
        (&nobody, told("/public", None)),
        (&zoe, told("/", Some("auth0|zoe"))),
        (&zoe, told("/public", None)),
    ] {
        assert_eq!(browser.page(path).await.status, 200);
        let seen = stage.app.last();
        assert_eq!(seen.header("x-forwarded-user").as_deref(), user, "{path}");
        assert_eq!(seen.header("x-session").is_some(), user.is_some(), "{path}");
    }
}

/// CVE-2025-31492 (`mod_auth_openidc`): the protected page came along after the redirect's body.
#[tokio::test]
async fn who_is_not_signed_in_gets_our_page_and_the_app_hears_nothing() {
    let stage = Stage::new().await;
    for protocol in PROTOCOLS {
        let browser = stage.gateway.browser_over(protocol);
        let redirect = browser.page("/").await;
        assert_eq!((redirect.status.as_u16(), redirect.body.len()), (303, 0));
        let post = browser.ask(Ask::post("/", "x=1")).await;
        assert_eq!(post.status, 401);
        assert!(!post.text().contains("hello"));
    }
    assert_eq!(stage.app.seen().len(), 0);
    assert_eq!(stage.app.connections(), 0);
}

/// CVE-2022-29226 (Envoy).
#[tokio::test]
async fn a_bearer_token_that_nobody_checked_signs_nobody_in() {
    let stage = Stage::new().await;
    for value in ["Bearer junk", "Basic enp6Onp6", "Bearer"] {
        let ask = Ask::fetch("/").header("authorization", value);
        assert_eq!(stage.gateway.browser().ask(ask).await.status, 401, "{value}");
    }
    assert_eq!(stage.app.seen().len(), 0);
}

/// oauth2-proxy #2163, SDK #1917: the attempts' cookies pile up until nothing works any more.
#[tokio::test]
async fn at_most_five_attempts_are_kept_and_the_oldest_goes_first() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let mut pages = Vec::new();
    for tab in 0..8 {
        pages.push(browser.open(&format!("/tab/{tab}")).await);
        assert!(browser.cookies("__Host-login.").len() <= 5);
    }
    let newest = browser.submit(&pages[7], &[("user", "zoe")]).await;
    assert_eq!((newest.status.as_u16(), newest.url.path()), (200, "/tab/7"));
}

#[tokio::test]
async fn two_tabs_log_in_without_disturbing_each_other() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let first = browser.open("/first").await;
    let second = browser.open("/second").await;
    assert_eq!(browser.cookies("__Host-login.").len(), 2);

    let first = browser.submit(&first, &[("user", "zoe")]).await;
    assert_eq!((first.status.as_u16(), first.url.path()), (200, "/first"));
    let second = browser.submit(&second, &[("user", "zoe")]).await;
    assert_eq!((second.status.as_u16(), second.url.path()), (200, "/second"));
    assert_eq!(browser.cookies("__Host-login."), Vec::<String>::new());
}

#[tokio::test]
async fn a_provider_that_is_down_fails_only_what_needs_it() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let bob = stage.gateway.browser();
    let login_page = bob.open("/").await;
    let callback = bob.submit_once(&login_page, &[("user", "bob")]).await.location();

    stage.provider.go_down().await;
    assert_eq!(zoe.page("/").await.status, 200, "a session keeps working");
    let failed = bob.page(callback.as_str()).await;
    assert_eq!(failed.status, 503);
    assert!(failed.is_html() && failed.headers.contains_key("retry-after"));
    assert_eq!(bob.cookies("__Host-session"), Vec::<String>::new());

    stage.provider.come_back().await;
    // The code is still good, and so is the attempt.
    let page = bob.open(callback.as_str()).await;
    assert_eq!((page.status.as_u16(), page.text().as_str()), (200, "hello"));
}

#[tokio::test]
async fn a_gateway_that_has_never_reached_its_provider_serves_what_needs_no_login() {
    let provider = Provider::start().await;
    provider.go_down().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route("/", &app)
        .route_with("/public", &app, r#"access = "public""#)
        .unready()
        .start()
        .await;
    let browser = gateway.browser();
    assert_eq!(browser.page("/public").await.status, 200);
    let refused = browser.page("/").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.set_cookies(), Vec::<&str>::new());
    assert_eq!(gateway.admin("/readyz").await.status, 503);
    assert_eq!(gateway.admin("/healthz").await.status, 200);

    provider.come_back().await;
    crate::support::until("the provider is found", async || {
        (gateway.admin("/readyz").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(browser.log_in("zoe", "/").await.status, 200);
}

/// CVE-2021-29651 (Pomerium), CVE-2024-21497 (caddy-security).
#[tokio::test]
async fn no_redirect_of_ours_holds_a_code_or_a_token_but_the_logouts_hint() {
    let stage = Stage::new().await;
    let zoe = stage.gateway.browser();
    let first = zoe.page("/inbox").await;
    let login_page = zoe.follow(first.clone()).await;
    let callback = zoe.submit_once(&login_page, &[("user", "zoe")]).await.location();
    let code = parameter(&callback, "code").unwrap();
    let done = zoe.page(callback.as_str()).await;
    assert_eq!(done.location(), zoe.url("/inbox"));
    for answer in [&first, &done] {
        let location = answer.location();
        assert!(!location.as_str().contains(&code), "{location}");
        for name in ["code", "id_token", "access_token", "refresh_token", "client_secret"] {
            assert_eq!(parameter(&location, name), None, "{location}");
        }
    }
}

#[tokio::test]
async fn the_endpoints_take_get_and_nothing_else() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    for path in ["/auth/login", "/auth/callback", "/auth/logout", "/auth/profile"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = zoe.ask(Ask { method: method.clone(), ..Ask::fetch(path) }).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET"), "{method} {path}");
        }
    }
    assert!(zoe.profile().await.is_some(), "none of it ended the session");
    assert_eq!(zoe.fetch("/auth/nothing").await.status, 404);
    assert_eq!(stage.app.seen().len(), 0, "no app answers below the prefix");
}

#[tokio::test]
async fn the_prefix_can_be_another() {
    let provider = Provider::start_with(&["localhost"], |options| {
        let known = options.redirect_uris[0].replace("/auth/callback", "/.sso/callback");
        options.redirect_uris = vec![known];
    })
    .await;
    let app = App::plain().await;
    let gateway =
        Gateway::with(&provider).auth("prefix = \"/.sso\"").route("/", &app).start().await;
    let zoe = gateway.browser();
    assert_eq!(zoe.log_in("zoe", "/").await.status, 200);
    assert_eq!(zoe.fetch("/.sso/profile").await.status, 200);
    assert_eq!(zoe.fetch("/auth/profile").await.text(), "hello", "that is the app's now");
}
