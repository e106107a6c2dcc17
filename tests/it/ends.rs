//! The end of a session where something is late: an answer, a logout, the store itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;

use crate::live::{SOON, break_of, stream};
use crate::support::gateway::Builder;
use crate::support::redis::Server;
use crate::support::{App, Browser, Gateway, PROTOCOLS, Protocol, Provider, Reply, until};

/// An app that answers `/held…` when it is let go on, with this update; everything else at once.
async fn holding(update: &'static str) -> (App, Arc<watch::Sender<bool>>) {
    let open = Arc::new(watch::Sender::new(false));
    let gate = open.clone();
    let app = App::start_later(move |seen| {
        let mut open = gate.subscribe();
        async move {
            if !seen.path().starts_with("/held") {
                return Reply::new(200).body("hello");
            }
            let _ = open.wait_for(|open| *open).await;
            let reply = Reply::new(200).body("late");
            if update.is_empty() { reply } else { reply.update(update) }
        }
    })
    .await;
    (app, open)
}

/// Asks for what is held, and waits until the app has heard of it.
async fn ask_late(browser: &Browser, app: &App) -> tokio::task::JoinHandle<crate::support::Answer> {
    let copy = browser.copy();
    let late = tokio::spawn(async move { copy.fetch("/held").await });
    until("the app is asked", async || (app.last().path() == "/held").then_some(())).await;
    late
}

#[tokio::test]
async fn a_late_answer_to_a_dead_cookie_takes_no_cookie_of_the_next_login() {
    let provider = Provider::start().await;
    let (app, open) = holding("").await;
    let gateway =
        Gateway::with(&provider).route_with("/", &app, "access = \"optional\"").start().await;
    let zoe = gateway.browser();
    zoe.log_in("zoe", "/auth/login").await;
    let dead = zoe.copy();
    zoe.page("/auth/logout").await;
    let late = ask_late(&dead, &app).await;
    zoe.open("/auth/login").await;
    open.send_replace(true);
    let late = late.await.unwrap();
    assert_eq!((late.status.as_u16(), late.set_cookies()), (200, Vec::new()));
    assert!(zoe.profile().await.is_some());
    // What nobody waited for takes it away.
    let prompt = dead.fetch("/auth/profile").await;
    assert_eq!((prompt.status.as_u16(), prompt.set_cookies().len()), (401, 1));
}

/// The head comes when the session is over, and asks for a change of it.
#[tokio::test]
async fn a_stream_that_begins_after_its_sessions_end_ends_too() {
    for protocol in PROTOCOLS {
        let provider = Provider::start().await;
        let open = Arc::new(watch::Sender::new(false));
        let gate = open.clone();
        let app = App::by_hand(move |mut peer| {
            let mut open = gate.subscribe();
            async move {
                let Some(seen) = peer.head().await else { return };
                peer.record(&seen);
                let mut head = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked";
                if seen.path() == "/events" {
                    let _ = open.wait_for(|open| *open).await;
                } else {
                    head = "Content-Length: 0\r\nConnection: close";
                }
                let update = "X-Session-Update: {\"a\":1}";
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n{update}\r\n\r\n");
                peer.write(head).await.unwrap();
                while seen.path() == "/events" && peer.write("7\r\ndata:\n\n\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        })
        .await;
        let gateway = Gateway::with(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(protocol);
        zoe.log_in("zoe", "/").await;
        let copy = zoe.copy();
        let late = tokio::spawn(async move { stream(&copy, protocol, "/events").await });
        until("the app is asked", async || (app.last().path() == "/events").then_some(())).await;
        zoe.page("/auth/logout").await;
        open.send_replace(true);
        let (_connection, mut body) = late.await.unwrap();
        let start = Instant::now();
        break_of(&mut body).await;
        assert!(start.elapsed() < SOON, "{protocol:?}: {:?}", start.elapsed());
    }
}

/// Two gateways on one Redis, behind one provider.
async fn two(provider: &Provider, app: &App, redis: &Server) -> [Gateway; 2] {
    let lines = format!("redis = {{ url = {:?} }}", redis.url());
    let on = |builder: Builder| builder.route("/", app).session(&lines).start();
    [on(Gateway::with(provider)).await, on(Gateway::with(provider).beside()).await]
}

/// What the session is that this browser's cookies bring to another gateway.
async fn elsewhere(browser: &Browser, gateway: &Gateway) -> Option<Value> {
    let there = Browser::at(&gateway.url, Protocol::Http2);
    *there.jar() = browser.jar().clone();
    let answer = there.fetch("/auth/profile").await;
    assert!([200, 401, 503].contains(&answer.status.as_u16()));
    (answer.status != 401).then(|| answer.json())
}

#[tokio::test]
async fn an_app_that_logs_out_while_redis_is_away_is_obeyed() {
    let provider = Provider::start().await;
    let (app, open) = holding("null").await;
    let redis = Server::start().await;
    let [here, there] = two(&provider, &app, &redis).await;
    let zoe = here.browser();
    zoe.log_in("zoe", "/").await;
    assert!(elsewhere(&zoe, &there).await.is_some());
    let late = ask_late(&zoe, &app).await;
    redis.signal("STOP");
    open.send_replace(true);
    let answer = late.await.unwrap();
    redis.signal("CONT");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.set_cookies().len(), 1, "the cookie goes");
    assert_eq!(zoe.fetch("/auth/profile").await.status, 401, "here at once");
    until("it has ended everywhere", async || {
        elsewhere(&zoe, &there).await.is_none().then_some(())
    })
    .await;
    assert_eq!(here.metric("vestibule_session_updates_lost_total").await, 0);
}

#[tokio::test]
async fn a_logout_while_redis_is_away_is_one() {
    let provider = Provider::start().await;
    let (app, redis) = (App::plain().await, Server::start().await);
    let [here, there] = two(&provider, &app, &redis).await;
    let zoe = here.browser();
    zoe.log_in("zoe", "/").await;
    let copied = zoe.copy();
    redis.signal("STOP");
    let answer = zoe.page("/auth/logout").await;
    redis.signal("CONT");
    assert_eq!(answer.status, 303, "{}", answer.text());
    assert_eq!(answer.location().path(), "/oidc/logout", "there too");
    assert_eq!(answer.location_parameter("id_token_hint"), None, "nobody has it");
    assert_eq!(answer.header("clear-site-data"), Some("\"cache\""));
    assert_eq!(zoe.cookie("__Host-session"), None);
    assert_eq!(copied.fetch("/auth/profile").await.status, 401, "here at once");
    until("it has ended everywhere", async || {
        elsewhere(&copied, &there).await.is_none().then_some(())
    })
    .await;
}
