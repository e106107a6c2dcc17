//! Updates that come late: in the trailers of a response, or after its client has gone.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::field::{OLD, secrets};
use crate::support::jar::From;
use crate::support::redis::Server;
use crate::support::wire::Connection;
use crate::support::{
    Answer, App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Raw, Reply, Stage, free_port, until,
};

/// Asks with the browser's cookies on a connection of its own, and is not there for the answer
/// when the task is aborted.
async fn on_its_own(browser: &Browser, protocol: Protocol, ask: Ask) -> JoinHandle<()> {
    let url = browser.url(&ask.target);
    let cookies = browser.jar().line(&url, From::SameSite).unwrap();
    let connection = Connection::open(&url, protocol).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.start(&url, ask.header("cookie", cookies)).await;
    })
}

/// Waits until an app that is told the session on `/` is told this of one of its members.
async fn sees(browser: &Browser, app: &App, member: &str, expected: &serde_json::Value) {
    until(&format!("the session's {member} is {expected}"), async || {
        browser.fetch("/").await;
        (&app.last().session()?[member] == expected).then_some(())
    })
    .await;
}

/// How long an access line says that its app took, in microseconds.
fn upstream_time(line: &str) -> Option<u128> {
    line.split_once(" upstream=")?.1.split_once("us ")?.0.parse().ok()
}

/// A gateway with one route to the app, and what stores its sessions: cookies, or this Redis.
async fn stage(app: App, redis: Option<&Server>) -> Stage {
    Stage::before_with(app, |builder, app| match redis {
        Some(server) => builder.route("/", app).session(&kept_in(server)),
        None => builder.route("/", app),
    })
    .await
}

/// The lines of `[session]` and of what follows.
fn kept_in(server: &Server) -> String {
    format!("{}\n[session.redis]\n{}", secrets(&[OLD]), server.toml())
}

async fn keep_what_trailers_say(redis: Option<&Server>) {
    for protocol in PROTOCOLS {
        let app = App::start(|seen| match seen.path() {
            "/set" => Reply::new(200)
                .header("Trailer", "Server-Timing, X-Session-Update")
                .body("set")
                .trailer("X-Session-Update", r#"{"theme":"dark"}"#)
                .trailer("Server-Timing", "db;dur=1")
                .trailer("x_session_update", r#"{"theme":"light"}"#),
            "/end" => Reply::new(200).body("bye").trailer("X-Session-Update", "null"),
            _ => Reply::new(200),
        })
        .await;
        let stage = stage(app, redis).await;
        let zoe = stage.signed_in_over("zoe", protocol).await;

        let answer: Answer = zoe.ask(Ask::fetch("/set").header("te", "trailers")).await;
        assert_eq!(answer.text(), "set");
        assert_eq!(answer.header("trailer"), Some("Server-Timing"));
        let names: Vec<_> = answer.trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["server-timing"], "{protocol:?}");
        assert!(answer.set_cookies().is_empty(), "its head had gone");

        let next = zoe.fetch("/").await;
        assert_eq!(stage.app.last().session().unwrap()["theme"], "dark");
        // The newer cookie comes later; a ticket is as good as it was.
        assert_eq!(next.set_cookie("__Host-session").is_some(), redis.is_none());
        assert!(stage.gateway.metric("vestibule_session_updates_applied_total").await == 1);

        zoe.fetch("/end").await;
        assert_eq!(zoe.fetch("/").await.status, 401);
    }
}

#[tokio::test]
async fn an_update_in_a_trailer_is_kept_and_the_browser_is_told_nothing_of_it() {
    keep_what_trailers_say(None).await;
}

#[tokio::test]
async fn an_update_in_a_trailer_is_kept_in_redis() {
    keep_what_trailers_say(Some(&Server::start().await)).await;
}

#[tokio::test]
async fn a_bad_update_in_a_trailer_is_refused_like_one_in_the_header() {
    let app = App::start(|seen| match seen.path() {
        "/json" => Reply::new(200).body("x").trailer("X-Session-Update", "{"),
        "/key" => Reply::new(200).body("x").trailer("X-Session-Update", r#"{"theme":1}"#),
        _ => Reply::new(200),
    })
    .await;
    let stage = Stage::before_with(app, |builder, app| {
        builder.route("/", app).route_with("/key", app, "session_update = [\"other\"]").route_with(
            "/json/open",
            app,
            "access = \"public\"",
        )
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    for (path, reason) in [("/json", "not_json"), ("/key", "key_not_allowed")] {
        assert_eq!(zoe.fetch(path).await.text(), "x");
        let route = if path == "/key" { "/key" } else { "/" };
        stage.gateway.logged(&["refused", reason, &format!("route=\"{route}\"")]).await;
        let metric = format!("vestibule_session_updates_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(stage.gateway.metric(&metric).await, 1, "{reason}");
    }
    zoe.fetch("/").await;
    assert!(stage.app.last().session().unwrap().get("theme").is_none());
}

async fn keep_what_comes_too_late(redis: Option<&Server>) {
    const CLIENTS: usize = 50;
    for protocol in PROTOCOLS {
        let (answer, held) = watch::channel(false);
        let app = App::start_later(move |seen| {
            let mut held = held.clone();
            async move {
                if seen.path() == "/" {
                    return Reply::new(200);
                }
                held.wait_for(|answer| *answer).await.unwrap();
                let reply = Reply::new(201);
                match seen.path() {
                    "/head" => reply.update(r#"{"n":{"$add":1}}"#),
                    _ => reply.body("x").trailer("X-Session-Update", r#"{"n":{"$add":1}}"#),
                }
            }
        })
        .await;
        let stage = stage(app, redis).await;
        let zoe = stage.signed_in("zoe").await;

        let before = stage.app.seen().len();
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let ask = match number % 3 {
                0 => Ask::fetch("/head"),
                1 => Ask::post("/head", "a body"),
                _ => Ask::fetch("/trailer"),
            };
            clients.push(on_its_own(&zoe, protocol, ask).await);
        }
        until("the app was asked by all", async || {
            (stage.app.seen().len() == before + CLIENTS).then_some(())
        })
        .await;
        assert!(clients.iter().all(|client| !client.is_finished()), "all are waiting");
        clients.iter().for_each(JoinHandle::abort);
        until("the gateway knows that they have left", async || {
            (stage.gateway.metric("vestibule_open_connections").await <= 1).then_some(())
        })
        .await;
        let left = Instant::now();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let alone = left.elapsed().as_micros();
        answer.send_replace(true);

        sees(&zoe, &stage.app, "n", &json!(CLIENTS)).await;
        let times = until("each request has its line", async || {
            let output = stage.gateway.output();
            let lines = output.lines().filter(|line| line.contains(" 201 "));
            let times: Vec<u128> = lines.filter_map(upstream_time).collect();
            (times.len() == CLIENTS).then_some(times)
        })
        .await;
        assert!(times.iter().all(|time| *time >= alone), "{times:?} us, {alone} of them alone");
    }
}

#[tokio::test]
async fn slow_updates_whose_clients_have_left_are_all_kept() {
    keep_what_comes_too_late(None).await;
}

#[tokio::test]
async fn slow_updates_whose_clients_have_left_are_all_kept_in_redis() {
    keep_what_comes_too_late(Some(&Server::start().await)).await;
}

/// Late as they are, another gateway sees them as soon as their response has ended.
#[tokio::test]
async fn an_update_in_a_trailer_is_seen_on_another_gateway_at_once() {
    let server = Server::start().await;
    let app = App::start(|seen| match seen.path() {
        "/set" => Reply::new(200).body("x").trailer("X-Session-Update", r#"{"n":{"$add":1}}"#),
        _ => Reply::new(200),
    })
    .await;
    let here = stage(app, Some(&server)).await;
    let there = Gateway::with(&here.provider).port(free_port()).route("/", &here.app);
    let there = there.session(&kept_in(&server)).start().await;
    for protocol in PROTOCOLS {
        let zoe = here.signed_in_over("zoe", protocol).await;
        let elsewhere = Browser::at(&there.url, protocol);
        *elsewhere.jar() = zoe.jar().clone();
        for round in 1..=20 {
            let (one, other) = if round % 2 == 0 { (&zoe, &elsewhere) } else { (&elsewhere, &zoe) };
            assert_eq!(one.fetch("/set").await.text(), "x");
            assert_eq!(other.profile().await.unwrap()["n"], round, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_whose_client_has_left_is_never_sent_on_as_if_it_were_whole() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = App::by_hand(move |mut peer| {
        let tell = tell.clone();
        async move {
            while let Some(mut seen) = peer.head().await {
                if seen.path() == "/" {
                    peer.record(&seen);
                    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                    continue;
                }
                tell.send("asked").unwrap();
                let whole = peer.body(&mut seen).await.is_some();
                tell.send(if whole { "whole" } else { "broken off" }).unwrap();
                return;
            }
        }
    })
    .await;
    let stage = Stage::before(app).await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let cookies = zoe.jar().line(&zoe.url("/"), From::SameSite).unwrap();
    for framing in
        ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let host = crate::support::wire::authority_of(&stage.gateway.url);
        let mut raw = Raw::open(&stage.gateway).await;
        let head = format!("POST /up HTTP/1.1\r\nHost: {host}\r\nCookie: {cookies}\r\n{framing}");
        raw.send(head).await;
        assert_eq!(told.recv().await, Some("asked"));
        drop(raw);
        assert_eq!(told.recv().await, Some("broken off"), "{framing}");
    }
}
