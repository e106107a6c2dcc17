//! The session: who owns which part of it, how long it lives, what refreshes do to it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    App, Ask, Gateway, PROTOCOLS, Provider, Reply, Scripted, Stage, join_all, until,
};
use vestibule::demo::identity_provider::User;

#[tokio::test]
async fn what_an_app_puts_over_the_user_is_seen_by_apps_and_decides_nothing() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/admin", app, r#"require = { roles = ["admin"] }"#)
    })
    .await;
    let bob = stage.signed_in("bob").await;
    let update = json!({ "user": {
        "nickname": "Al", "email": "zoe@example.com", "roles": ["admin"], "groups": ["admins"],
    }});
    stage.update(&bob, update.to_string()).await;

    bob.fetch("/").await;
    let seen = stage.app.last();
    let session = seen.session().unwrap();
    assert_eq!(session["user"]["nickname"], "Al");
    assert_eq!(session["user"]["roles"], json!(["admin"]));
    assert_eq!(session["user"]["sub"], "auth0|bob");
    assert_eq!(seen.header("x-forwarded-user").unwrap(), "auth0|bob");
    assert_eq!(seen.header("x-forwarded-email").unwrap(), "bob@example.com");
    assert_eq!(seen.header("x-forwarded-preferred-username").unwrap(), "bob");
    assert_eq!(seen.header("x-forwarded-groups").unwrap(), "staff");
    let count = stage.app.seen().len();
    assert_eq!(bob.page("/admin").await.status, 403);
    assert_eq!(stage.app.seen().len(), count, "the app behind the rule hears nothing");
}

#[tokio::test]
async fn a_route_requires_a_claim() {
    let stage = Stage::with(|builder, app| {
        builder
            .route("/", app)
            .route_with("/admin", app, r#"require = { roles = ["admin", "root"] }"#)
            .route_with("/both", app, r#"require = { roles = "admin", groups = "staff" }"#)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let bob = stage.signed_in("bob").await;
    for path in ["/admin", "/admin/x", "/both"] {
        assert_eq!(zoe.page(path).await.status, 200, "{path}");
        let refused = bob.page(path).await;
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.is_html());
        assert_eq!(bob.fetch(path).await.json()["error"], "forbidden");
    }
    assert_eq!(bob.page("/").await.status, 200);
}

/// CVE-2024-39315 (Pomerium): the page about the user showed tokens.
#[tokio::test]
async fn the_profile_and_the_session_that_apps_see_hold_no_token() {
    let provider = Scripted::start().await;
    provider.script().tokens =
        json!({ "access_token": "SECRET-ACCESS", "refresh_token": "SECRET-REFRESH" });
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    let profile = zoe.fetch("/auth/profile").await;
    assert_eq!(profile.status, 200);
    assert_eq!(profile.header("content-type"), Some("application/json"));
    assert_eq!(profile.header("cache-control"), Some("no-store"));
    assert_eq!(profile.json()["user"]["sub"], "auth0|zoe");
    let seen = app.last();
    for secret in ["SECRET-ACCESS", "SECRET-REFRESH", "eyJ"] {
        assert!(!profile.text().contains(secret), "{secret}");
        assert!(!seen.holds(secret), "{secret}");
    }
    let nobody = gateway.browser().fetch("/auth/profile").await;
    assert_eq!((nobody.status.as_u16(), &nobody.json()["error"]), (401, &json!("login_required")));
}

/// GHSA-f24x-5g9q-753f (oauth2-proxy): session fixation.
#[tokio::test]
async fn a_login_over_a_planted_session_gives_a_new_one_and_ends_the_old() {
    let stage = Stage::new().await;
    let attacker = stage.signed_in("bob").await;
    stage.update(&attacker, r#"{"planted":true}"#).await;
    let planted = attacker.cookie("__Host-session").unwrap();

    let victim = stage.gateway.browser();
    victim.set_cookie("__Host-session", &planted);
    let login_page = victim.open("/auth/login").await;
    victim.submit(&login_page, &[("user", "zoe")]).await;

    let profile = victim.profile().await.unwrap();
    assert_eq!((&profile["user"]["sub"], profile.get("planted")), (&json!("auth0|zoe"), None));
    assert_ne!(victim.cookie("__Host-session").unwrap(), planted);
    assert_eq!(attacker.profile().await, None, "the planted one is dead");
}

#[tokio::test]
async fn a_new_login_drops_what_apps_have_stored() {
    let stage = Stage::new().await;
    let zoe = stage.gateway.browser();
    zoe.log_in("zoe", "/").await;
    stage.update(&zoe, r#"{"cart":[1],"user":{"nickname":"Al"}}"#).await;
    let copied = zoe.copy();
    // The provider still knows her: no page is shown.
    assert_eq!(zoe.open("/auth/login").await.status, 200);
    let profile = zoe.profile().await.unwrap();
    assert_eq!(profile.get("cart"), None);
    assert_eq!(profile["user"]["nickname"], "zoe");
    assert_eq!(copied.profile().await, None);
}

/// A scripted provider whose access tokens need a refresh at once, and a route that wants one.
async fn refreshing(
    routes: impl FnOnce(crate::support::gateway::Builder, &App) -> crate::support::gateway::Builder,
) -> (Scripted, App, Gateway) {
    let provider = Scripted::start().await;
    provider.script().tokens = json!({ "expires_in": 1 });
    let app = App::plain().await;
    let gateway = routes(Gateway::with(&provider), &app).start().await;
    (provider, app, gateway)
}

#[tokio::test]
async fn an_access_token_is_refreshed_on_the_request_that_needs_it() {
    let (provider, app, gateway) = refreshing(|builder, app| {
        builder.route("/", app).route_with("/token", app, "access_token = true")
    })
    .await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    assert_eq!(app.last().header("authorization"), None, "only where the route says so");
    assert_eq!(provider.grants("refresh_token").len(), 0);

    provider.script().tokens = json!({ "expires_in": 3600 });
    let answer = zoe.fetch("/token").await;
    assert_eq!(answer.status, 200);
    let first = app.last().header("authorization").unwrap();
    assert!(first.starts_with("Bearer access-"), "{first}");
    assert_eq!(provider.grants("refresh_token").len(), 1);
    assert!(answer.set_cookie("__Host-session").is_some());

    zoe.fetch("/token").await;
    assert_eq!(app.last().header("authorization").unwrap(), first);
    assert_eq!(provider.grants("refresh_token").len(), 1, "the new one is still good");
}

/// SDK #2149, oauth2-proxy #1992: five requests, five refreshes; with rotation the user was out.
#[tokio::test]
async fn many_requests_with_an_expired_token_make_one_refresh() {
    for protocol in PROTOCOLS {
        let (provider, app, gateway) =
            refreshing(|builder, app| builder.route_with("/", app, "access_token = true")).await;
        let zoe = gateway.browser_over(protocol);
        // The login itself comes back to a page that needs the token.
        zoe.page("/auth/profile").await;
        let callback = zoe.open("/auth/login?return_to=/auth/profile").await;
        assert_eq!(callback.hops.len(), 3, "{:?}", callback.hops);
        let before = provider.grants("refresh_token").len();
        {
            let mut script = provider.script();
            script.tokens = json!({ "expires_in": 3600 });
            script.slowness = Duration::from_millis(200);
        }
        let answers = join_all((0..12).map(|_| zoe.fetch("/"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        assert_eq!(provider.grants("refresh_token").len(), before + 1);
        let tokens: std::collections::BTreeSet<_> =
            app.seen().iter().rev().take(12).map(|seen| seen.header("authorization")).collect();
        assert_eq!(tokens.len(), 1, "all have the new token: {tokens:?}");
    }
}

/// SDK #161, #2629: a refresh erased what the app had stored under `user`.
#[tokio::test]
async fn what_apps_stored_survives_a_refresh_and_the_claims_are_new() {
    let (provider, app, gateway) = refreshing(|builder, app| {
        builder.route("/", app).route_with("/token", app, "access_token = true")
    })
    .await;
    provider.script().claims = json!({ "nickname": "zoe", "plan": "free" });
    let zoe = gateway.browser();
    zoe.open("/").await;
    app.say(Reply::new(200).update(r#"{"theme":"dark","user":{"nickname":"Al"}}"#));
    zoe.fetch("/").await;
    app.say(Reply::new(200));

    provider.script().claims = json!({ "nickname": "zoë", "plan": "paid" });
    zoe.fetch("/token").await;
    let profile = zoe.profile().await.unwrap();
    assert_eq!(profile["theme"], "dark");
    assert_eq!(profile["user"]["nickname"], "Al");
    assert_eq!(profile["user"]["plan"], "paid");
    assert_eq!(app.last().header("x-forwarded-preferred-username").unwrap(), "zoë");
}

/// CVE-2021-41230 (Pomerium): the claims from before went on deciding.
#[tokio::test]
async fn a_decision_after_a_refresh_is_made_by_the_new_claims() {
    let (provider, app, gateway) = refreshing(|builder, app| {
        builder
            .route_with("/token", app, "access_token = true\nrequire = { roles = \"admin\" }")
            .route("/", app)
    })
    .await;
    provider.script().claims = json!({ "roles": ["admin"] });
    let zoe = gateway.browser();
    zoe.open("/").await;
    provider.script().claims = json!({ "roles": [] });
    let seen = app.seen().len();
    assert_eq!(zoe.fetch("/token").await.status, 403, "already on the request that refreshes");
    assert_eq!(app.seen().len(), seen);
}

#[tokio::test]
async fn a_refresh_token_that_the_provider_refuses_ends_the_session() {
    let (provider, app, gateway) = refreshing(|builder, app| {
        builder.route("/", app).route_with("/token", app, "access_token = true")
    })
    .await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    provider.script().claims = json!({ "sub": "auth0|somebody-else" });
    let seen = app.seen().len();
    assert_eq!(zoe.fetch("/token").await.status, 401, "a token for another user is no token");
    assert_eq!(zoe.profile().await, None);
    assert_eq!(app.seen().len(), seen);
}

#[tokio::test]
async fn a_provider_that_is_down_fails_only_requests_that_need_a_new_token() {
    let (provider, _app, gateway) = refreshing(|builder, app| {
        builder.route("/", app).route_with("/token", app, "access_token = true")
    })
    .await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    // Past the token's end.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    provider.script().broken = Some(("/oauth/token", 500));
    let failed = zoe.page("/token").await;
    assert_eq!(failed.status, 503);
    assert!(failed.headers.contains_key("retry-after"));
    assert_eq!(zoe.fetch("/").await.status, 200);
    assert!(zoe.profile().await.is_some(), "the session lives on");

    provider.script().broken = None;
    provider.script().tokens = json!({ "expires_in": 3600 });
    assert_eq!(zoe.fetch("/token").await.status, 200);
}

#[tokio::test]
async fn a_session_ends_after_its_absolute_time_whatever_happens() {
    let stage = Stage::with(|builder, app| {
        builder.session("absolute = \"3s\"").session("inactivity = \"2s\"").route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let start = std::time::Instant::now();
    let mut updates = 0;
    // Used and changed all the time.
    while stage.update(&zoe, json!({ "n": updates }).to_string()).await.status == 200 {
        updates += 1;
        // The last one may come with its end.
        let left = zoe.jar().get("__Host-session").and_then(|cookie| cookie.expires);
        let end = start + Duration::from_secs(4);
        assert!(left.is_none_or(|left| left <= end), "no update makes the cookie live longer");
        assert!(start.elapsed() < Duration::from_secs(6), "it does not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    assert!(updates > 3);
    assert_eq!(zoe.profile().await, None);
}

#[tokio::test]
async fn a_session_that_is_used_lives_and_one_that_is_not_ends() {
    let stage =
        Stage::with(|builder, app| builder.session("inactivity = \"2s\"").route("/", app)).await;
    let used = stage.signed_in("zoe").await;
    let unused = stage.signed_in("bob").await;
    // A copy keeps the cookie whose `Max-Age` is up.
    let cookie = unused.cookie("__Host-session").unwrap();
    for _ in 0..7 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(used.fetch("/").await.status, 200);
    }
    assert_eq!(unused.fetch("/").await.status, 401, "its browser has forgotten the cookie");
    unused.set_cookie("__Host-session", &cookie);
    let answer = unused.fetch("/").await;
    assert_eq!(answer.status, 401, "and it would not help to keep it");
    assert!(answer.set_cookie("__Host-session").unwrap().contains("Max-Age=0"));
}

#[tokio::test]
async fn most_responses_carry_no_cookie() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    for _ in 0..20 {
        let answer = zoe.fetch("/").await;
        assert_eq!(answer.set_cookies(), Vec::<&str>::new());
        assert_eq!(answer.header("cache-control"), None, "caching stays the app's business");
    }
}

#[tokio::test]
async fn a_restart_loses_nothing_that_is_in_the_cookies() {
    let mut stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, r#"{"theme":"dark"}"#).await;
    let before = zoe.profile().await.unwrap();
    stage.gateway.restart().await;
    let again = zoe.copy();
    assert_eq!(again.profile().await.unwrap(), before);
    stage.update(&again, r#"{"theme":"light"}"#).await;
    assert_eq!(again.profile().await.unwrap()["theme"], "light");
}

#[tokio::test]
async fn a_new_first_secret_seals_and_the_old_one_still_opens() {
    let old = "an old secret of the tests, long enough";
    let secrets = |list: &[&str]| format!("secrets = {list:?}");
    let mut stage =
        Stage::with(|builder, app| builder.session(&secrets(&[old])).route("/", app)).await;
    let zoe = stage.signed_in("zoe").await;
    let file = stage.gateway.directory.path().join("gateway.toml");
    let write = |list: &[&str]| {
        let text = std::fs::read_to_string(&file).unwrap();
        let (before, rest) = text.split_once("secrets = ").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        std::fs::write(&file, format!("{before}{}\n{after}", secrets(list))).unwrap();
    };
    let new = "a new secret of the tests, long enough.";
    write(&[new, old]);
    stage.gateway.restart().await;
    let zoe = zoe.copy();
    assert!(zoe.profile().await.is_some(), "sealed with the old one");
    stage.update(&zoe, r#"{"a":1}"#).await;
    write(&[new]);
    stage.gateway.restart().await;
    let zoe = zoe.copy();
    assert_eq!(zoe.profile().await.unwrap()["a"], 1, "sealed anew with the new one");
    write(&[old]);
    stage.gateway.restart().await;
    assert_eq!(zoe.copy().profile().await, None);
}

#[tokio::test]
async fn an_end_at_the_provider_shows_at_the_next_refresh() {
    let provider = Provider::start_with(&["localhost"], |options| {
        options.access_token_life = Duration::from_secs(1);
    })
    .await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route("/", &app)
        .route_with("/token", &app, "access_token = true")
        .start()
        .await;
    let zoe = gateway.browser();
    zoe.log_in("zoe", "/").await;
    assert_eq!(zoe.fetch("/token").await.status, 200);
    let mut claims = User::samples().remove(0).claims;
    claims.insert("nickname".to_owned(), "Zoë the Second".into());
    provider.inner.put_user(User::new("auth0|zoe", claims));
    until("the claims are new", async || {
        zoe.fetch("/token").await;
        let profile = zoe.profile().await?;
        (profile["user"]["nickname"] == "Zoë the Second").then_some(())
    })
    .await;
    provider.inner.end_user("auth0|zoe");
    until("the session is over", async || (zoe.fetch("/token").await.status == 401).then_some(()))
        .await;
    assert_eq!(zoe.profile().await, None);
}

/// CVE-2026-71324 and its kin: one user's answer for another.
#[tokio::test(flavor = "multi_thread")]
async fn users_at_once_get_each_their_own() {
    let app = App::start(|seen| {
        let user = seen.header("x-forwarded-user").unwrap_or_default();
        let nonce = seen.target.clone();
        Reply::new(200)
            .update(json!({ "me": user, "n": { "$add": 1 } }).to_string())
            .body(format!("{user} {nonce}"))
    })
    .await;
    let stage = Stage::before(app).await;
    let mut users = Vec::new();
    for name in ["zoe", "bob", "ada"] {
        for protocol in PROTOCOLS {
            let browser = stage.gateway.browser_over(protocol);
            browser.log_in(name, "/").await;
            let sub = browser.profile().await.unwrap()["user"]["sub"].as_str().unwrap().to_owned();
            users.push((browser, sub));
        }
    }
    let stories = users.iter().enumerate().map(|(index, (browser, sub))| async move {
        for round in 0..25 {
            let path = format!("/{index}/{round}");
            if round % 5 == 4 {
                // Gives up half way.
                let exchange = browser.ask(Ask::fetch(&path));
                let _ = tokio::time::timeout(Duration::from_micros(300), exchange).await;
            }
            let answer = browser.fetch(&path).await;
            assert_eq!(answer.text(), format!("{sub} {path}"));
            let profile = browser.profile().await.unwrap();
            assert_eq!((&profile["me"], &profile["user"]["sub"]), (&json!(sub), &json!(sub)));
        }
    });
    join_all(stories).await;
}

#[tokio::test]
async fn a_route_may_see_all_some_or_nothing_of_the_session() {
    let stage = Stage::with(|builder, app| {
        builder
            .route("/", app)
            .route_with("/some", app, r#"session_header = ["theme", "missing"]"#)
            .route_with("/none", app, "session_header = false")
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, r#"{"theme":"dark","cart":[1]}"#).await;
    zoe.fetch("/").await;
    let all = stage.app.last().session().unwrap();
    assert_eq!(
        (&all["theme"], &all["cart"], &all["user"]["sub"]),
        (&json!("dark"), &json!([1]), &json!("auth0|zoe"))
    );
    zoe.fetch("/some").await;
    assert_eq!(stage.app.last().session(), Some(json!({ "theme": "dark" })));
    zoe.fetch("/none").await;
    let seen = stage.app.last();
    assert_eq!(seen.as_cgi("x-session"), Vec::<String>::new());
    assert_eq!(seen.header("x-forwarded-user").unwrap(), "auth0|zoe");
}

#[tokio::test]
async fn a_session_that_is_too_large_for_a_header_is_left_out_and_said_so() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let update = json!({ "a": "x".repeat(8 * 1024) });
    stage.update(&zoe, update.to_string()).await;
    zoe.fetch("/").await;
    let seen = stage.app.last();
    assert_eq!(seen.header("x-session"), None);
    assert_eq!(seen.header("x-session-omitted").unwrap(), "too-large");
    assert_eq!(seen.header("x-forwarded-user").unwrap(), "auth0|zoe");
    stage.gateway.logged(&["WARN", "too large for X-Session"]).await;
    let theirs: Value = zoe.profile().await.unwrap();
    assert_eq!(theirs["a"].as_str().unwrap().len(), 8 * 1024);
}
