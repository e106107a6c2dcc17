//! Back-channel logout: the provider says, from server to server, that sessions have ended.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::live::{SOON, break_of, close_of, endless, stream, websocket};
use crate::support::gateway::Builder;
use crate::support::redis::Server;
use crate::support::{
    Answer, App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, Reply, Scripted, until,
};

const PATH: &str = "/auth/backchannel-logout";

/// The provider's own call: no cookies, over HTTP/1.1.
async fn tell(gateway: &Gateway, token: &str) -> Answer {
    tell_with(&gateway.browser_over(Protocol::Http1), token).await
}

async fn tell_with(caller: &Browser, token: &str) -> Answer {
    let ask = Ask::new(Method::POST, PATH)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("logout_token={token}"));
    caller.ask(ask).await
}

/// `[session]` of a gateway on this Redis.
fn on(builder: Builder, redis: &Server) -> Builder {
    builder.session(&format!("redis = {{ url = {:?} }}", redis.url()))
}

/// A gateway for each kind of store, with what it needs.
async fn each_store(provider: &Scripted, app: &App) -> Vec<(Gateway, Option<Server>)> {
    let redis = Server::start().await;
    let builder = || Gateway::with(provider).route("/", app);
    let second = on(builder().beside(), &redis).start().await;
    vec![(builder().start().await, None), (second, Some(redis))]
}

/// A new browser in which somebody with these claims is signed in.
async fn signed_in(provider: &Scripted, gateway: &Gateway, claims: Value) -> Browser {
    provider.script().claims = claims;
    let browser = gateway.browser();
    assert_eq!(browser.open("/").await.status, 200);
    browser
}

/// The same browser, at another gateway.
fn at(gateway: &Gateway, browser: &Browser) -> Browser {
    let other = gateway.browser();
    *other.jar() = browser.jar().clone();
    other
}

#[tokio::test]
async fn it_ends_one_sign_in_or_all_of_a_user_and_copied_cookies_too() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    for (gateway, _redis) in each_store(&provider, &app).await {
        let phone = signed_in(&provider, &gateway, json!({ "sid": "phone" })).await;
        let desk = signed_in(&provider, &gateway, json!({ "sid": "desk" })).await;
        let bob = signed_in(&provider, &gateway, json!({ "sub": "auth0|bob" })).await;
        let (copied, also_copied) = (phone.copy(), desk.copy());

        let answer = tell(&gateway, &provider.logout_token(&json!({ "sid": "phone" }))).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, ""));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.set_cookies(), Vec::<&str>::new());
        assert_eq!(copied.profile().await, None);
        let gone = phone.fetch("/").await;
        assert_eq!(gone.status, 401);
        assert!(gone.set_cookie("__Host-session").unwrap().contains("Max-Age=0"));
        assert!(desk.profile().await.is_some() && bob.profile().await.is_some());

        assert_eq!(tell(&gateway, &provider.logout_token(&json!({}))).await.status, 200);
        assert!(desk.profile().await.is_none() && also_copied.profile().await.is_none());
        assert!(bob.profile().await.is_some());
        let counted = "vestibule_logins_total{outcome=\"logged_out_by_provider\"}";
        assert_eq!(gateway.metric(counted).await, 2);
    }
}

#[tokio::test]
async fn a_session_that_began_later_stays() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    for (gateway, _redis) in each_store(&provider, &app).await {
        let before = signed_in(&provider, &gateway, json!({})).await;
        let late = provider.logout_token(&json!({}));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let after = signed_in(&provider, &gateway, json!({})).await;
        assert_eq!(tell(&gateway, &late).await.status, 200);
        assert_eq!(before.profile().await, None);
        assert!(after.profile().await.is_some());
        // She signs in again in the browser that was signed out.
        assert_eq!(before.open("/").await.status, 200);
        assert!(before.profile().await.is_some());
    }
}

#[tokio::test]
async fn an_update_under_way_brings_no_session_back() {
    let provider = Scripted::start().await;
    let app = App::start_later(|seen| async move {
        if seen.path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(700)).await;
            return Reply::new(200).update(r#"{"revived":true}"#);
        }
        Reply::new(200)
    })
    .await;
    for (gateway, _redis) in each_store(&provider, &app).await {
        for protocol in PROTOCOLS {
            // In the second of a logout a new session still counts as one from before.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let zoe = gateway.browser_over(protocol);
            zoe.open("/").await;
            let slow = async {
                let answer = zoe.fetch("/slow").await;
                assert_eq!(answer.status, 200);
                assert_eq!(answer.set_cookie("__Host-session"), None, "{protocol:?}");
            };
            let logout = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let told = tell(&gateway, &provider.logout_token(&json!({}))).await;
                assert_eq!(told.status, 200);
            };
            tokio::join!(slow, logout);
            assert_eq!(zoe.profile().await, None);
            let counted = "vestibule_session_updates_refused_total{reason=\"no_session\"}";
            assert!(gateway.metric(counted).await > 0);
        }
    }
}

#[tokio::test]
async fn what_is_open_closes_within_a_second_on_every_gateway() {
    let provider = Scripted::start().await;
    let app = endless().await;
    let redis = Server::start().await;
    let cookies = Gateway::with(&provider).route("/", &app).start().await;
    let here = on(Gateway::with(&provider).beside().route("/", &app), &redis).start().await;
    let there = on(Gateway::with(&provider).beside().route("/", &app), &redis).start().await;
    for (told, other) in [(&cookies, &cookies), (&here, &there)] {
        let zoe = signed_in(&provider, told, json!({ "sid": "s1" })).await;
        let bob = signed_in(&provider, told, json!({ "sub": "auth0|bob", "sid": "s2" })).await;
        let elsewhere = at(other, &zoe);
        let mut socket = websocket(&elsewhere, "/ws").await;
        let mut silent = websocket(&zoe, "/silent").await;
        let mut his = websocket(&at(other, &bob), "/ws").await;
        let (_connection, mut events) = stream(&elsewhere, Protocol::Http2, "/events").await;

        let token = provider.logout_token(&json!({ "sid": "s1" }));
        assert_eq!(tell(told, &token).await.status, 200);
        let ended = Instant::now();
        let (first, second, ()) =
            tokio::join!(close_of(&mut socket), close_of(&mut silent), break_of(&mut events));
        assert_eq!((first.0, second.0), (CloseCode::Policy, CloseCode::Policy));
        assert!(ended.elapsed() < SOON, "{:?}", ended.elapsed());
        for _ in 0..20 {
            assert_eq!(his.next().await.unwrap().unwrap(), Message::text("word"), "his goes on");
        }
    }
}

#[tokio::test]
async fn gateways_on_one_redis_obey_as_one() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let redis = Server::start().await;
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let builder = Gateway::with(&provider).beside().route("/", &app);
        gateways.push(on(builder, &redis).start().await);
    }
    let zoe = signed_in(&provider, &gateways[0], json!({ "sid": "s1" })).await;
    let there = at(&gateways[1], &zoe);
    assert!(there.profile().await.is_some());
    let token = provider.logout_token(&json!({ "sid": "s1" }));
    assert_eq!(tell(&gateways[1], &token).await.status, 200);
    assert_eq!(zoe.copy().profile().await, None);
    assert_eq!(there.profile().await, None);
    for gateway in &gateways {
        assert_eq!(tell(gateway, &token).await.status, 400, "it was obeyed");
    }
}

#[tokio::test]
async fn a_redis_that_is_away_is_told_when_it_is_back() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let redis = Server::start().await;
    let gateway = on(Gateway::with(&provider).route("/", &app), &redis).start().await;
    let zoe = signed_in(&provider, &gateway, json!({})).await;
    let token = provider.logout_token(&json!({}));
    redis.signal("STOP");
    let refused = tell(&gateway, &token).await;
    redis.signal("CONT");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"], "sessions_unavailable");
    // Nobody says it again.
    until("the session has ended", async || {
        (zoe.fetch("/auth/profile").await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_not_good_ends_nothing_and_is_logged_once() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = signed_in(&provider, &gateway, json!({})).await;
    let good = provider.logout_token(&json!({}));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let unsigned = format!("{signed}.");
    let id_token = id_token_of(&zoe, &gateway).await;
    for (token, why) in [
        (unsigned, "signature"),
        (provider.logout_token(&json!({ "aud": "other" })), "aud"),
        (provider.logout_token(&json!({ "nonce": "n" })), "nonce"),
        (provider.logout_token(&json!({ "exp": 1 })), "expired"),
        (id_token, "logout token is not good"),
    ] {
        let refused = tell(&gateway, &token).await;
        assert_eq!(refused.status, 400, "{why}");
        assert_eq!(refused.json()["error"], "invalid_request");
        assert_eq!(refused.header("cache-control"), Some("no-store"));
        assert!(!refused.text().contains(why), "the reason is for the log alone");
        let id = refused.json()["request_id"].as_str().unwrap().to_owned();
        let line = gateway.logged(&[&id]).await;
        assert!(line.contains(why), "{line}");
        assert_eq!(gateway.log().matches(&id).count(), 1);
        assert!(!gateway.log().contains(token.rsplit_once('.').unwrap().0), "no token in a log");
    }
    assert!(zoe.profile().await.is_some());
    // Whatever cookies come along: none is looked at, none is set.
    let told = tell_with(&zoe, &good).await;
    assert_eq!((told.status.as_u16(), told.set_cookies().len()), (200, 0));
    assert_eq!(zoe.profile().await, None);
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS] {
        let refused = zoe.ask(Ask::new(method, PATH)).await;
        assert_eq!(refused.status, 405);
        assert_eq!(refused.header("allow"), Some("POST"));
    }
}

/// The ID token that the gateway got for this browser: it sends it along when it logs out.
async fn id_token_of(browser: &Browser, gateway: &Gateway) -> String {
    let copy = at(gateway, browser);
    let other = signed_in_again(&copy).await;
    other.location_parameter("id_token_hint").unwrap()
}

/// Logs in anew and out again, so that the first session stays.
async fn signed_in_again(browser: &Browser) -> Answer {
    browser.forget("__Host-session");
    browser.open("/").await;
    browser.page("/auth/logout").await
}

#[tokio::test]
async fn a_sign_in_is_known_after_refreshes_that_do_not_name_it() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    provider.script().tokens = json!({ "expires_in": 1 });
    let gateway =
        Gateway::with(&provider).route_with("/", &app, "access_token = true").start().await;
    let zoe = signed_in(&provider, &gateway, json!({ "sid": "s1" })).await;
    provider.script().claims = json!({});
    zoe.fetch("/").await;
    until("it is refreshed", async || {
        zoe.fetch("/").await;
        (!provider.grants("refresh_token").is_empty()).then_some(())
    })
    .await;
    assert!(zoe.profile().await.is_some());
    let token = provider.logout_token(&json!({ "sid": "s1" }));
    assert_eq!(tell(&gateway, &token).await.status, 200);
    assert_eq!(zoe.profile().await, None);
}

#[tokio::test]
async fn a_logout_that_the_embedded_provider_would_sign_is_understood() {
    let provider = Provider::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    zoe.log_in("zoe", "/").await;
    assert!(zoe.profile().await.is_some());
    assert_eq!(tell(&gateway, &provider.logout_token("auth0|zoe")).await.status, 200);
    assert_eq!(zoe.profile().await, None);
}
