//! Logging out: here at once, then at the provider; and nothing brings the session back.

use serde_json::json;

use crate::support::provider::form;
use crate::support::wire::parameter;
use crate::support::{App, Gateway, PROTOCOLS, Provider, Reply, Scripted, Stage, until};

#[tokio::test]
async fn a_logout_ends_the_session_here_and_at_the_provider() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.gateway.browser_over(protocol);
        zoe.log_in("zoe", "/").await;

        let answer = zoe.page("/auth/logout").await;
        assert_eq!(answer.status, 303);
        assert_eq!(answer.header("clear-site-data"), Some("\"cache\""));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(zoe.cookie("__Host-session"), None);
        let location = answer.location();
        assert_eq!(location.path(), "/oidc/logout");
        assert_eq!(parameter(&location, "id_token_hint").unwrap().split('.').count(), 3);
        let back = parameter(&location, "post_logout_redirect_uri").unwrap();
        assert_eq!(back, zoe.url("/").as_str());

        let after = zoe.follow(answer).await;
        assert!(after.text().contains("<form"), "the provider has forgotten her too");
    }
}

#[tokio::test]
async fn a_logout_goes_where_it_is_told_on_our_own_origin() {
    let stage = Stage::with(|builder, app| {
        builder.auth("after_logout = \"/bye\"").route("/", app).route_with(
            "/bye",
            app,
            r#"access = "public""#,
        )
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let after = zoe.open("/auth/logout").await;
    assert_eq!((after.status.as_u16(), after.url), (200, zoe.url("/bye")));

    let zoe = stage.signed_in("zoe").await;
    let answer = zoe.page("/auth/logout?return_to=/").await;
    assert_eq!(
        answer.location_parameter("post_logout_redirect_uri").unwrap(),
        zoe.url("/").as_str()
    );
}

#[tokio::test]
async fn who_is_not_signed_in_logs_out_without_the_provider() {
    let stage = Stage::new().await;
    let nobody = stage.gateway.browser();
    let answer = nobody.page("/auth/logout?return_to=/x").await;
    assert_eq!((answer.status.as_u16(), answer.location()), (303, nobody.url("/x")));
    assert_eq!(answer.set_cookies(), Vec::<&str>::new());
}

#[tokio::test]
async fn the_refresh_token_is_revoked() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    assert_eq!(zoe.open("/").await.status, 200);
    let given = provider.grants("authorization_code").len();
    assert_eq!(given, 1);

    zoe.page("/auth/logout").await;
    let revoked = until("the token is revoked", async || provider.calls("/revoke").pop()).await;
    let form = form(&revoked);
    assert!(form["token"].starts_with("refresh-"), "{form:?}");
    assert_eq!(form["token_type_hint"], "refresh_token");
}

#[tokio::test]
async fn a_provider_that_is_down_keeps_nobody_signed_in() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let copied = zoe.copy();
    stage.provider.go_down().await;
    let answer = zoe.page("/auth/logout").await;
    assert_eq!(answer.status, 303);
    assert_eq!(zoe.profile().await, None);
    assert_eq!(copied.profile().await, None);
    stage.gateway.logged(&["WARN", "could not be revoked"]).await;
}

#[tokio::test]
async fn auth0_has_a_logout_of_its_own() {
    let provider = Provider::start_with(&["localhost"], |options| {
        options.announce_end_session = false;
    })
    .await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    zoe.log_in("zoe", "/").await;
    let answer = zoe.page("/auth/logout").await;
    let location = answer.location();
    assert_eq!(location.path(), "/v2/logout");
    assert_eq!(parameter(&location, "returnTo").unwrap(), zoe.url("/").as_str());
    assert_eq!(parameter(&location, "client_id").unwrap(), "vestibule-tests");
    assert_eq!(parameter(&location, "id_token_hint"), None);
    assert!(zoe.follow(answer).await.text().contains("<form"));
}

#[tokio::test]
async fn a_provider_without_a_logout_leaves_the_browser_here() {
    let provider = Scripted::start().await;
    let elsewhere = format!("{}token", provider.address());
    provider.script().metadata =
        json!({ "end_session_endpoint": null, "token_endpoint": elsewhere });
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    assert_eq!(zoe.open("/").await.status, 200);
    let answer = zoe.page("/auth/logout").await;
    assert_eq!((answer.status.as_u16(), answer.location()), (303, zoe.url("/")));
    assert_eq!(zoe.profile().await, None);
}

/// CVE-2024-21492 (caddy-security), SDK #561: a copied cookie outlived the logout.
#[tokio::test]
async fn a_cookie_copied_before_the_logout_is_dead_after_it() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let thief = zoe.copy();
        assert!(thief.profile().await.is_some());
        zoe.page("/auth/logout").await;
        assert_eq!(thief.profile().await, None);
        assert_eq!(thief.fetch("/").await.status, 401);
        assert_eq!(thief.cookies("__Host-session"), Vec::<String>::new(), "and it is deleted");
    }
}

#[tokio::test]
async fn another_session_of_the_same_user_lives_on() {
    let stage = Stage::new().await;
    let laptop = stage.signed_in("zoe").await;
    let phone = stage.signed_in("zoe").await;
    laptop.page("/auth/logout").await;
    assert_eq!(laptop.profile().await, None);
    assert!(phone.profile().await.is_some());
}

/// CVE-2025-55162 (Envoy): a cookie was deleted without the attributes it was set with, and stayed.
#[tokio::test]
async fn every_part_of_a_large_session_is_deleted_as_it_was_set() {
    let stage = Stage::with(|builder, app| {
        builder
            .session("cookie = { name = \"__Secure-s\", domain = \"example.test\" }")
            .only_host("app.example.test")
            .route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    let draft: String =
        (0..7000).map(|at| char::from(b'a' + u8::try_from(at * at % 26).unwrap())).collect();
    stage.update(&zoe, json!({ "draft": draft }).to_string()).await;
    let parts = zoe.cookies("__Secure-s");
    assert!(parts.len() >= 3, "{parts:?}");

    let answer = zoe.page("/auth/logout").await;
    for part in &parts {
        let line = answer.set_cookie(part).unwrap();
        for attribute in
            ["; Path=/", "; Secure", "; HttpOnly", "; Max-Age=0", "; Domain=example.test"]
        {
            assert!(line.contains(attribute), "{attribute} in {line}");
        }
    }
    assert_eq!(zoe.cookies("__Secure-s"), Vec::<String>::new());
}

/// SDK #2335.
#[tokio::test]
async fn a_touch_under_way_at_logout_does_not_revive_the_session() {
    let arrived = std::sync::Arc::new(tokio::sync::Notify::new());
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let (at_app, go_on) = (arrived.clone(), release.clone());
    let app = App::start_later(move |seen| {
        let (at_app, go_on) = (at_app.clone(), go_on.clone());
        async move {
            if seen.path() == "/slow" {
                at_app.notify_one();
                go_on.notified().await;
            }
            Reply::new(200)
        }
    })
    .await;
    let stage = Stage::before_with(app, |builder, app| {
        builder.session("inactivity = \"10s\"").route("/", app)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    // A tenth of the inactivity period: the next request writes the session's last use down.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let slow = async {
        let answer = zoe.fetch("/slow").await;
        let set = answer.set_cookie("__Host-session").filter(|line| !line.contains("Max-Age=0"));
        assert_eq!(set, None, "no cookie of a session that has ended");
    };
    let logout = async {
        arrived.notified().await;
        zoe.page("/auth/logout").await;
        release.notify_one();
    };
    tokio::join!(slow, logout);
    assert_eq!(zoe.profile().await, None);
}

/// The answer to a request from before a logout must not delete the cookie of the login after it.
#[tokio::test]
async fn a_late_answer_leaves_the_next_login_alone() {
    let arrived = std::sync::Arc::new(tokio::sync::Notify::new());
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let (at_app, go_on) = (arrived.clone(), release.clone());
    let app = App::start_later(move |seen| {
        let (at_app, go_on) = (at_app.clone(), go_on.clone());
        async move {
            if seen.path() == "/slow" {
                at_app.notify_one();
                go_on.notified().await;
                return Reply::new(200).update(r#"{"late":true}"#);
            }
            Reply::new(200)
        }
    })
    .await;
    let stage = Stage::before(app).await;
    let zoe = stage.signed_in("zoe").await;
    let slow = zoe.fetch("/slow");
    let meanwhile = async {
        arrived.notified().await;
        let login_page = zoe.open("/auth/logout").await;
        assert_eq!(zoe.submit(&login_page, &[("user", "bob")]).await.status, 200);
        release.notify_one();
    };
    tokio::join!(slow, meanwhile);
    let profile = zoe.profile().await.expect("bob is signed in");
    assert_eq!((&profile["user"]["sub"], profile.get("late")), (&json!("auth0|bob"), None));
}
