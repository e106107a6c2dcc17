//! One refresh for all gateways of a Redis, whatever becomes of the one that makes it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::redis::Server;
use crate::support::{App, Browser, Gateway, Reply, Scripted, join_all, until};

struct Scene {
    provider: Scripted,
    app: App,
    gateways: Vec<Gateway>,
    redis: Server,
    /// Zoë, signed in, at each gateway.
    zoe: Vec<Browser>,
}

impl Scene {
    /// Gateways on one Redis, and a session whose access token lives `life` seconds.
    async fn new(gateways: usize, life: u64) -> Self {
        let provider = Scripted::start().await;
        provider.script().tokens = json!({ "expires_in": life });
        let (app, redis) = (App::plain().await, Server::start().await);
        let mut all = Vec::new();
        for _ in 0..gateways {
            let builder = Gateway::with(&provider)
                .beside()
                .session(&format!("redis = {{ url = {:?} }}", redis.url()))
                .route("/", &app)
                .route_with("/token", &app, "access_token = true");
            all.push(builder.start().await);
        }
        let first = all[0].browser();
        assert_eq!(first.open("/").await.status, 200);
        app.say(Reply::new(200).update(r#"{"theme":"dark"}"#));
        first.fetch("/").await;
        app.say(Reply::new(200).body("hello"));
        let zoe = all.iter().map(|gateway| {
            let browser = gateway.browser();
            *browser.jar() = first.jar().clone();
            browser
        });
        let zoe = zoe.collect();
        Self { provider, app, gateways: all, redis, zoe }
    }

    /// With a token that has expired.
    async fn expired(gateways: usize) -> Self {
        let scene = Self::new(gateways, 1).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        scene.provider.script().tokens = json!({ "expires_in": 3600 });
        scene
    }

    fn slow(&self, millis: u64) {
        self.provider.script().slowness = Duration::from_millis(millis);
    }

    fn refreshes(&self) -> usize {
        self.provider.grants("refresh_token").len()
    }

    /// So many requests at once, dealt out to all gateways; their statuses.
    async fn ask(&self, requests: usize) -> BTreeSet<u16> {
        let browsers = self.zoe.iter().cycle().take(requests);
        let asked = browsers.map(|zoe| async { zoe.fetch("/token").await.status.as_u16() });
        join_all(asked).await.into_iter().collect()
    }

    async fn data_survives(&self) {
        for zoe in &self.zoe {
            assert_eq!(zoe.profile().await.unwrap()["theme"], "dark");
        }
    }
}

#[tokio::test]
async fn a_hundred_requests_at_three_gateways_make_one_refresh() {
    let scene = Scene::expired(3).await;
    scene.slow(300);
    let before = scene.app.seen().len();
    assert_eq!(scene.ask(100).await, [200].into());
    assert_eq!(scene.refreshes(), 1);
    let seen = scene.app.seen();
    let tokens: BTreeSet<_> = seen[before..].iter().map(|s| s.header("authorization")).collect();
    assert_eq!((seen.len() - before, tokens.len()), (100, 1), "all have the new one: {tokens:?}");
    scene.data_survives().await;
}

#[tokio::test]
async fn a_refresh_that_takes_longer_than_a_lease_is_still_the_only_one() {
    let scene = Scene::expired(2).await;
    scene.slow(7000);
    assert_eq!(scene.ask(10).await, [200].into());
    assert_eq!(scene.refreshes(), 1);
}

#[tokio::test]
async fn a_gateway_that_is_killed_while_it_refreshes_is_replaced() {
    let scene = Scene::expired(2).await;
    scene.slow(60_000);
    let dying = scene.zoe[0].copy();
    let dying = tokio::spawn(async move { dying.fetch("/token").await });
    until("the provider is asked", async || (scene.refreshes() == 1).then_some(())).await;
    scene.gateways[0].signal("KILL");
    dying.abort();
    scene.slow(0);
    let start = Instant::now();
    let answer = scene.zoe[1].fetch("/token").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(scene.refreshes(), 2);
    assert_eq!(scene.zoe[1].profile().await.unwrap()["theme"], "dark");
}

#[tokio::test]
async fn a_provider_that_is_down_is_asked_once_and_costs_no_session() {
    let scene = Scene::expired(3).await;
    scene.slow(500);
    scene.provider.script().broken = Some(("/oauth/token", 500));
    assert_eq!(scene.ask(30).await, [503].into());
    assert_eq!(scene.refreshes(), 1);
    scene.data_survives().await;
    scene.provider.script().broken = None;
    scene.slow(0);
    until("it is refreshed", async || {
        (scene.zoe[2].fetch("/token").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(scene.ask(9).await, [200].into());
    assert_eq!(scene.refreshes(), 2);
}

#[tokio::test]
async fn a_refusal_ends_the_session_once_on_every_gateway() {
    let scene = Scene::expired(3).await;
    scene.slow(300);
    scene.provider.script().broken = Some(("/oauth/token", 403));
    assert_eq!(scene.ask(30).await, [503].into(), "a 403 without a word is no refusal");
    scene.data_survives().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    scene.provider.script().broken = None;
    scene.provider.script().claims = json!({ "sub": "auth0|somebody-else" });
    let before = scene.refreshes();
    assert_eq!(scene.ask(30).await, [401].into());
    assert_eq!(scene.refreshes(), before + 1);
    for zoe in &scene.zoe {
        assert_eq!(zoe.profile().await, None);
    }
}

/// A gateway lost its lease over a slow provider, and another one got new tokens meanwhile.
#[tokio::test]
async fn a_refusal_of_a_token_that_was_replaced_meanwhile_ends_nothing() {
    let scene = Scene::expired(2).await;
    scene.slow(2500);
    let late = scene.zoe[0].copy();
    let late = tokio::spawn(async move { late.fetch("/token").await.status });
    until("the provider is asked", async || (scene.refreshes() == 1).then_some(())).await;
    scene.slow(0);
    let [lease] = scene.redis.keys("vestibule:*:lease").await.try_into().unwrap();
    let _: i64 = scene.redis.ask(&["DEL", &lease]).await;
    assert_eq!(scene.zoe[1].fetch("/token").await.status, 200);
    assert_eq!(scene.refreshes(), 2);
    scene.provider.script().claims = json!({ "sub": "auth0|somebody-else" });
    assert_eq!(late.await.unwrap(), 200, "with the tokens that the other one has");
    scene.gateways[0].logged(&["a refresh token that had been replaced"]).await;
    scene.data_survives().await;
}

/// The refusal comes while another one has the lease: it may have new tokens in a moment.
#[tokio::test]
async fn a_refusal_to_a_gateway_without_the_lease_ends_nothing() {
    let scene = Scene::expired(1).await;
    scene.slow(2500);
    let late = scene.zoe[0].copy();
    let late = tokio::spawn(async move { late.fetch("/token").await.status });
    until("the provider is asked", async || (scene.refreshes() == 1).then_some(())).await;
    let [lease] = scene.redis.keys("vestibule:*:lease").await.try_into().unwrap();
    let () = scene.redis.ask(&["SET", &lease, "another", "PX", "9000"]).await;
    scene.provider.script().claims = json!({ "sub": "auth0|somebody-else" });
    assert_eq!(late.await.unwrap(), 503);
    scene.data_survives().await;
}

#[tokio::test]
async fn while_the_token_is_good_nobody_waits_long_for_a_slow_provider() {
    let scene = Scene::new(2, 16).await;
    // It is refreshed a quarter of its life before its end.
    tokio::time::sleep(Duration::from_millis(12_100)).await;
    scene.provider.script().tokens = json!({ "expires_in": 3600 });
    scene.slow(2500);
    let start = Instant::now();
    assert_eq!(scene.ask(20).await, [200].into());
    assert!(start.elapsed() < Duration::from_millis(2000), "{:?}", start.elapsed());
    let old = scene.app.last().header("authorization").unwrap();
    let start = Instant::now();
    assert_eq!(scene.ask(20).await, [200].into());
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    until("the new token is there", async || {
        scene.zoe[1].fetch("/token").await;
        (scene.app.last().header("authorization").unwrap() != old).then_some(())
    })
    .await;
    assert_eq!(scene.refreshes(), 1);
    scene.data_survives().await;
}

#[tokio::test]
async fn a_failed_refresh_is_not_tried_again_at_once_while_the_token_is_good() {
    let provider = Scripted::start().await;
    provider.script().tokens = json!({ "expires_in": 16 });
    let app = App::plain().await;
    let gateway =
        Gateway::with(&provider).route_with("/", &app, "access_token = true").start().await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    tokio::time::sleep(Duration::from_millis(12_100)).await;
    provider.script().broken = Some(("/oauth/token", 500));
    for _ in 0..10 {
        assert_eq!(zoe.fetch("/").await.status, 200);
    }
    assert_eq!(provider.grants("refresh_token").len(), 1);
}

#[tokio::test]
async fn a_gateway_that_stops_keeps_what_it_was_given() {
    let mut scene = Scene::expired(2).await;
    scene.slow(1500);
    let leaving = scene.zoe[0].copy();
    let leaving = tokio::spawn(async move { leaving.fetch("/token").await });
    until("the provider is asked", async || (scene.refreshes() == 1).then_some(())).await;
    leaving.abort();
    let _ = leaving.await;
    scene.gateways[0].signal("TERM");
    let status = scene.gateways[0].ended().await;
    assert!(status.success(), "{status}");
    assert_eq!(scene.zoe[1].fetch("/token").await.status, 200);
    assert_eq!(scene.refreshes(), 1, "the other gateway found the new tokens");
}
