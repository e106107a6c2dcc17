//! gateway.toml read again while serving: at a signal or when it changes, without a request being
//! lost; and what is wrong changes nothing.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::json;

use crate::live::{endless, websocket};
use crate::support::field::Field;
use crate::support::provider::Issuer;
use crate::support::redis::Server;
use crate::support::wire::Connection;
use crate::support::{
    App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, Raw, Reply, Stage, join_all, raw,
    until,
};

pub(crate) const APPLIED: &str = "vestibule_config_reloads_total{outcome=\"applied\"}";
pub(crate) const REFUSED: &str = "vestibule_config_reloads_total{outcome=\"refused\"}";

/// Changes the file, as an editor does: another in its place.
pub(crate) fn edit(gateway: &Gateway, change: impl FnOnce(String) -> String) {
    let path = gateway.directory.path().join("gateway.toml");
    let text = change(fs::read_to_string(&path).unwrap());
    fs::write(path.with_extension("new"), text).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

/// Adds a route at the end of the file.
fn add_route(gateway: &Gateway, path: &str, app: &App, access: &str) {
    let url = &app.url;
    edit(gateway, |text| {
        text + &format!("[[route]]\npath = {path:?}\nupstream = {url:?}\naccess = {access:?}\n")
    });
}

/// Sends SIGHUP and waits until that came to something.
pub(crate) async fn reload(gateway: &Gateway, outcome: &str) {
    let before = gateway.metric(outcome).await;
    gateway.signal("HUP");
    until(&format!("{outcome} grows"), async || {
        (gateway.metric(outcome).await > before).then_some(())
    })
    .await;
}

async fn public() -> Stage {
    Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await
}

#[tokio::test]
async fn fifty_reloads_under_load_lose_no_request_and_no_connection() {
    let stage = public().await;
    let gateway = &stage.gateway;
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..64)
        .map(|number| {
            let (url, over, asked) = (gateway.url.clone(), over.clone(), asked.clone());
            tokio::spawn(async move {
                let connection = Connection::open(&url, PROTOCOLS[number % 2]).await.unwrap();
                while !over.load(Ordering::Relaxed) {
                    let answer = connection.ask(&url, Ask::fetch("/")).await.unwrap();
                    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello"));
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let other = App::start(|_| Reply::new(200).body("other")).await;
    let old = Connection::open(&gateway.url, Protocol::Http2).await.unwrap();
    for number in 0..50 {
        let path = format!("/{number}");
        add_route(gateway, &path, &other, "public");
        reload(gateway, APPLIED).await;
        let url = gateway.url.join(&path).unwrap();
        let new = Connection::open(&gateway.url, PROTOCOLS[number % 2]).await.unwrap();
        for connection in [&old, &new] {
            let answer = connection.ask(&url, Ask::fetch(&path)).await.unwrap();
            assert_eq!(answer.text(), "other", "{path} is not in force");
        }
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 64 * 50, "{asked:?}");
    assert_eq!(gateway.metric(REFUSED).await, 0);
    let counted = gateway.metric("vestibule_requests_total{route=\"/\",status=\"200\"}").await;
    assert_eq!(counted, asked.load(Ordering::Relaxed) as u64, "counted on across reloads");
    assert_eq!(gateway.metric("vestibule_requests_total{route=\"/49\",status=\"200\"}").await, 2);
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_every_error_is_logged() {
    let stage = public().await;
    let gateway = &stage.gateway;
    let since = gateway.metric("vestibule_config_timestamp_seconds").await;
    assert!(since > 1_700_000_000);
    edit(gateway, |text| {
        text.replace("[auth]", "[auth]\ncolour = 1\nafter_logout = \"bye\"")
            .replace("access = \"public\"", "access = \"pubic\"")
            + "[[route]]\npath = \"/new\"\nupstream = \"ftp://x\"\n"
    });
    reload(gateway, REFUSED).await;
    for words in [
        ["unknown key", "auth.colour"],
        ["gateway.toml:", "auth.after_logout"],
        ["route.access", "public"],
        ["route.upstream", "remedy"],
        ["errors=4", "stays in force"],
    ] {
        gateway.logged(&["ERROR", words[0], words[1]]).await;
    }
    assert_eq!(gateway.browser().fetch("/new").await.text(), "hello", "the old routes serve");
    assert_eq!(gateway.metric(APPLIED).await, 0);
    assert_eq!(gateway.metric("vestibule_config_timestamp_seconds").await, since);
}

#[tokio::test]
async fn what_only_a_start_can_change_is_refused_by_name() {
    let stage = public().await;
    let gateway = &stage.gateway;
    add_route(gateway, "/new", &stage.app, "api");
    edit(gateway, |text| {
        let text = text.replace("workers = 2", "workers = 3");
        text.replace("[auth]", "[session.redis]\nurl = \"redis://127.0.0.1:1\"\n[auth]")
    });
    let https = format!("https = \"127.0.0.1:{}\"", gateway.url.port().unwrap());
    edit(gateway, |text| text.replace(&https, "https = \"127.0.0.1:1\""));
    reload(gateway, REFUSED).await;
    for key in ["server.https", "server.workers", "session.redis"] {
        gateway.logged(&["ERROR", key, "restart"]).await;
    }
    assert_eq!(gateway.browser().fetch("/new").await.status, 200, "nor is the rest taken");
}

#[tokio::test]
async fn a_change_is_seen_without_a_signal_also_in_what_the_file_names() {
    let stage = public().await;
    let gateway = &stage.gateway;
    let at = |name: &str| gateway.directory.path().join(name);
    // A file that names what is not there is wrong, until it is there.
    edit(gateway, |text| text.replace("{ file = \"secret\" }", "{ file = \"secret.new\" }"));
    add_route(gateway, "/new", &stage.app, "api");
    until("the file is refused", async || (gateway.metric(REFUSED).await > 0).then_some(())).await;
    gateway.logged(&["ERROR", "secret.new", "session.secrets"]).await;
    assert_eq!(gateway.browser().fetch("/new").await.status, 200);
    fs::copy(at("secret"), at("secret.new")).unwrap();
    until("it is taken", async || (gateway.metric(APPLIED).await > 0).then_some(())).await;
    assert_eq!(gateway.browser().fetch("/new").await.status, 401);
    // It is not read again and again.
    let refused = gateway.metric(REFUSED).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = (gateway.metric(APPLIED).await, gateway.metric(REFUSED).await);
    assert_eq!(counts, (1, refused));
}

#[tokio::test]
async fn what_is_under_way_goes_on_to_its_end() {
    let app = endless().await;
    let slow = App::start_later(|seen| async move {
        if seen.path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Reply::new(200).body(seen.body.len().to_string()).update(r#"{"slow":true}"#)
    })
    .await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider).route("/", &app).route("/slow", &slow).start().await;
    for protocol in PROTOCOLS {
        let zoe = gateway.browser_over(protocol);
        zoe.log_in("zoe", "/").await;
        let mut socket = websocket(&zoe, "/ws").await;
        let connection = Connection::open(&gateway.url, protocol).await.unwrap();
        let cookie = format!("__Host-session={}", zoe.cookie("__Host-session").unwrap());
        let events = Ask::fetch("/events").header("cookie", &cookie);
        let url = gateway.url.join("/events").unwrap();
        let mut events = connection.start(&url, events).await.unwrap();
        let answer = zoe.ask(Ask::post("/slow", vec![b'x'; 1 << 20]));
        let meanwhile = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // Its route is not there any more when it is answered.
            edit(&gateway, |text| text.replace("path = \"/slow\"", "path = \"/other\""));
            reload(&gateway, APPLIED).await;
        };
        let (answer, ()) = tokio::join!(answer, meanwhile);
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "1048576"));
        assert_eq!(zoe.profile().await.unwrap()["slow"], json!(true), "its update is kept");
        for _ in 0..20 {
            assert!(socket.next().await.unwrap().unwrap().is_text());
            assert!(events.body_mut().frame().await.unwrap().unwrap().is_data());
        }
        // What is open still ends with its session.
        zoe.page("/auth/logout").await;
        until("the WebSocket ends", async || {
            socket.next().await.is_none_or(|message| message.is_err()).then_some(())
        })
        .await;
        edit(&gateway, |text| text.replace("path = \"/other\"", "path = \"/slow\""));
        reload(&gateway, APPLIED).await;
    }
}

#[tokio::test]
async fn a_new_secret_seals_and_the_old_one_opens_as_long_as_it_is_named() {
    let stage = Stage::new().await;
    let (gateway, zoe) = (&stage.gateway, stage.signed_in("zoe").await);
    fs::write(gateway.directory.path().join("fresh"), "another secret, also long enough.").unwrap();
    let secrets = |list: &str| {
        edit(gateway, |text| {
            let lines = text.lines().map(|line| match line.strip_prefix("secrets = ") {
                Some(_) => format!("secrets = {list}\n"),
                None => format!("{line}\n"),
            });
            lines.collect()
        });
    };
    secrets(r#"[{ file = "fresh" }, { file = "secret" }]"#);
    reload(gateway, APPLIED).await;
    let old = stage.gateway.browser();
    *old.jar() = zoe.jar().clone();
    assert!(zoe.profile().await.is_some());
    stage.update(&zoe, r#"{"a":1}"#).await;
    secrets(r#"[{ file = "fresh" }]"#);
    reload(gateway, APPLIED).await;
    assert_eq!(zoe.profile().await.unwrap()["a"], 1, "its cookie was sealed with the new one");
    assert!(old.profile().await.is_none());
}

#[tokio::test]
async fn a_session_that_ended_before_stays_ended() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let copy = stage.gateway.browser();
    *copy.jar() = zoe.jar().clone();
    zoe.page("/auth/logout").await;
    add_route(&stage.gateway, "/new", &stage.app, "login");
    reload(&stage.gateway, APPLIED).await;
    assert!(copy.profile().await.is_none());
}

#[tokio::test]
async fn a_login_under_way_is_finished_after_it() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let login_page = browser.open("/auth/login").await;
    add_route(&stage.gateway, "/new", &stage.app, "login");
    reload(&stage.gateway, APPLIED).await;
    browser.submit(&login_page, &[("user", "zoe")]).await;
    assert!(browser.profile().await.is_some());
}

#[tokio::test]
async fn limits_and_logs_are_those_of_the_new_file() {
    let stage = public().await;
    let gateway = &stage.gateway;
    let mut before = Raw::open(gateway).await;
    let request = format!(
        "GET /seen HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        (0..20).map(|n| format!("X-{n}: 1\r\n")).collect::<String>()
    );
    before.send(&request).await;
    assert_eq!(raw::status(&before.response().await), 200);
    gateway.access_line(&["/seen"]).await;
    edit(gateway, |text| {
        text.replace("[server.limits]", "[server.limits]\nheaders = 10\nconnections = 3")
            .replace("[log]", "[log]\nformat = \"json\"\nlevel = \"debug\"")
    });
    reload(gateway, APPLIED).await;
    before.send(&request).await;
    assert_eq!(raw::status(&before.response().await), 431, "also on a connection that was open");
    let line = gateway.access_line(&["{", "/seen", "431"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["status"], 431);
    let line = gateway.logged(&["{", "in force"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["level"], "INFO");

    let others = join_all((0..2).map(|_| Raw::open(gateway))).await;
    let fourth = tokio::time::timeout(Duration::from_millis(500), Raw::open(gateway)).await;
    assert!(fourth.is_err(), "three connections, and no more");
    drop(others);
    edit(gateway, |text| text.replace("[log]", "[log]\naccess = false"));
    reload(gateway, APPLIED).await;
    Raw::open(gateway).await.send(request.replace("/seen", "/unseen")).await;
    gateway.browser().fetch("/unseen").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!gateway.output().contains("/unseen"));
}

#[tokio::test]
async fn another_provider_is_reached_before_it_is_taken() {
    let (first, second) = (Provider::start().await, Provider::start().await);
    let app = App::plain().await;
    let gateway = Gateway::with(&first).route("/", &app).start().await;
    let (here, there) = (first.issuer().to_owned(), second.issuer().to_owned());
    edit(&gateway, |text| text.replace(&here, "http://127.0.0.1:1/"));
    reload(&gateway, REFUSED).await;
    gateway.logged(&["ERROR", "provider", "cannot be reached"]).await;
    assert!(gateway.browser().open("/").await.url.as_str().starts_with(&here));
    edit(&gateway, |text| text.replace("http://127.0.0.1:1/", &there));
    reload(&gateway, APPLIED).await;
    assert!(gateway.browser().open("/").await.url.as_str().starts_with(&there));
    // What is no other issuer is taken while it is away.
    second.go_down().await;
    edit(&gateway, |text| text.replace("[provider]", "[provider]\nscopes = [\"openid\", \"x\"]"));
    reload(&gateway, APPLIED).await;
    let sent = gateway.browser().page("/").await;
    assert_eq!(sent.location_parameter("scope").as_deref(), Some("openid x"));
}

#[tokio::test]
async fn the_listener_without_tls_knows_the_new_addresses() {
    let stage = public().await;
    let port = stage.gateway.url.port().unwrap();
    let url = format!("https://localhost:{port}");
    edit(&stage.gateway, |text| text.replace(&url, &format!("https://localhost:{}", port + 1)));
    reload(&stage.gateway, APPLIED).await;
    let sent = stage.gateway.plain("/x").await;
    assert_eq!(sent.location().as_str(), format!("https://localhost:{}/x", port + 1));
}

#[tokio::test]
async fn sessions_in_redis_go_on_with_what_other_gateways_say_of_them() {
    let redis = Server::start().await;
    let field = Field::new(2, "", Some(&redis.toml())).await;
    let zoe = field.signed_in(Protocol::Http2).await;
    let copy = zoe.copy();
    // Another way to say which Redis: it is reached and listened to anew.
    let [first, second] = field.gateways.as_slice() else { panic!() };
    edit(first, |text| {
        text.replace(
            "[session.redis]\n",
            "[session.redis]\nusername = \"default\"\npassword = \"any\"\n",
        )
    });
    reload(first, APPLIED).await;
    zoe.fetch("/set/1").await;
    for profile in field.profiles(&zoe).await {
        assert_eq!(profile.unwrap()["k1"], 1);
    }
    let elsewhere = Browser::at(&second.url, Protocol::Http2);
    *elsewhere.jar() = zoe.jar().clone();
    elsewhere.page("/auth/logout").await;
    assert_eq!(copy.profile().await, None, "it has ended there, and so here");
    assert_eq!(first.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_provider_that_does_not_answer_holds_up_neither_requests_nor_the_end() {
    let mut stage = public().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = format!("http://{}/", silent.local_addr().unwrap());
    let here = stage.provider.issuer().to_owned();
    edit(&stage.gateway, |text| text.replace(&here, &there));
    stage.gateway.signal("HUP");
    let (_held, _) = silent.accept().await.unwrap();
    assert_eq!(stage.gateway.browser().fetch("/").await.status, 200);
    assert_eq!(stage.gateway.admin("/healthz").await.status, 200);
    let start = Instant::now();
    stage.gateway.signal("TERM");
    assert!(stage.gateway.ended().await.success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_hundred_reloads_leave_nothing_behind() {
    let app = endless().await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route("/", &app)
        .route_with("/open", &app, "access = \"public\"")
        .start()
        .await;
    let zoe = gateway.browser_over(Protocol::Http1);
    zoe.log_in("zoe", "/").await;
    let _socket = websocket(&zoe, "/ws").await;
    let held = || {
        let descriptors = format!("/proc/{}/fd", gateway.pid());
        let tasks = format!("/proc/{}/task", gateway.pid());
        [descriptors, tasks].map(|path| fs::read_dir(path).unwrap().count())
    };
    let round = async |from: usize| {
        for number in from..from + 50 {
            edit(&gateway, |text| {
                let lines = text.lines().filter(|line| !line.starts_with("# round"));
                lines
                    .chain([format!("# round {number}").as_str()])
                    .map(|l| format!("{l}\n"))
                    .collect()
            });
            reload(&gateway, APPLIED).await;
            assert_eq!(zoe.fetch("/open/x").await.status, 200);
        }
    };
    round(0).await;
    let (before, resident) = (held(), gateway.resident());
    round(50).await;
    until("connections to apps of before are closed", async || {
        held().iter().zip(before).all(|(now, before)| *now <= before + 5).then_some(())
    })
    .await;
    let grown = gateway.resident().saturating_sub(resident);
    assert!(grown < 8 * 1024, "{grown} KiB for 50 reloads");
}
