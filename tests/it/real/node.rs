//! A server of Node behind the gateway: events, trailers, bodies, and the WebSockets of the npm
//! package `ws`, in `tests/node`.

use std::process::Command;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::authority::authority;
use crate::support::curl::curl;
use crate::support::program::{Program, repository};
use crate::support::wire::{Connection, authority_of};
use crate::support::{Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, free_port, until};

/// A server, behind a route for those who are signed in and a public one.
struct Scene {
    gateway: Gateway,
    server: Program,
    _provider: Provider,
}

impl Scene {
    async fn new() -> Self {
        let port = free_port();
        let mut server = node("server.mjs", &port.to_string());
        server.listens(port).await;
        let url = format!("http://127.0.0.1:{port}");
        let provider = Provider::start().await;
        let mut builder = Gateway::with(&provider).route_to("/live", &[&url], "");
        for path in ["/", "/events", "/echo", "/hints"] {
            let access = if path == "/" { "login" } else { "public" };
            builder = builder.route_to(path, &[&url], &format!("access = {access:?}"));
        }
        Self { gateway: builder.start().await, server, _provider: provider }
    }

    async fn zoe(&self, protocol: Protocol) -> Browser {
        let zoe = self.gateway.browser_over(protocol);
        zoe.log_in("zoe", "/told").await;
        zoe
    }

    fn url(&self, path: &str) -> String {
        self.gateway.url.join(path).unwrap().into()
    }
}

fn node(script: &str, argument: &str) -> Program {
    let package = repository("tests/node");
    assert!(
        package.join("node_modules/ws").exists(),
        "the WebSockets are not installed: npm ci --prefix tests/node, or run tests/run"
    );
    let mut command = Command::new("node");
    command.arg(package.join(script)).arg(argument);
    Program::start(&mut command, "install Debian's nodejs, or run tests/run")
}

/// The values of a field, as Node was told them.
fn told(answer: &Value, name: &str) -> Vec<String> {
    let words: Vec<&str> = answer["rawHeaders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let pairs = words.chunks(2).filter(|pair| pair[0].eq_ignore_ascii_case(name));
    pairs.map(|pair| pair[1].to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_node_come_when_they_are_sent() {
    let scene = Scene::new().await;
    for protocol in PROTOCOLS {
        let url = scene.gateway.url.join("/events").unwrap();
        let connection = Connection::open(&url, protocol).await.unwrap();
        let response = connection.start(&url, Ask::fetch("/events")).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        let mut came = Vec::new();
        while let Some(frame) = body.frame().await {
            let event = frame.unwrap().into_data().unwrap();
            // The end of an HTTP/2 stream may be a frame without anything in it.
            if !event.is_empty() {
                came.push((Instant::now(), event));
            }
        }
        let events: Vec<_> = came.iter().map(|(_, event)| &event[..]).collect();
        assert_eq!(events.len(), 4, "{events:?}");
        assert_eq!(events[3], b"data: 3\n\n");
        for pair in came.windows(2) {
            // 200 ms between them: two that come together were held back.
            assert!(pair[1].0 - pair[0].0 > Duration::from_millis(50), "{protocol:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_node_pass_and_an_update_in_them_is_kept() {
    let scene = Scene::new().await;
    for protocol in PROTOCOLS {
        let zoe = scene.zoe(protocol).await;
        let answer = zoe.ask(Ask::fetch("/trailers").header("te", "trailers")).await;
        assert_eq!(answer.text(), "body");
        assert_eq!(answer.header("trailer"), Some("x-checksum"));
        let trailers: Vec<_> =
            answer.trailers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(trailers, [("x-checksum", &b"7"[..])], "{protocol:?}");
        assert_eq!(zoe.profile().await.unwrap()["theme"], "dark");
        let next = zoe.fetch("/told").await.json();
        let session: Value = serde_json::from_str(&told(&next, "x-session")[0]).unwrap();
        assert_eq!(session["theme"], "dark");
        assert_eq!(told(&next, "x-forwarded-user"), ["auth0|zoe"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mebibyte_that_is_posted_comes_back_from_node() {
    let scene = Scene::new().await;
    let body: Vec<u8> = (0..1024 * 1024_usize).map(|at| (at * at % 253).to_le_bytes()[0]).collect();
    for protocol in PROTOCOLS {
        let browser = scene.gateway.browser_over(protocol);
        for _ in 0..3 {
            let answer = browser.ask(Ask::post("/echo", body.clone())).await;
            assert_eq!(answer.status, 200);
            assert!(answer.body == body, "{protocol:?}: {} bytes", answer.body.len());
            assert_eq!(answer.header("x-length"), Some("1048576"));
        }
        let answer = browser.ask(Ask::post("/echo", body.clone()).trailer("x-sum", "9")).await;
        assert!(answer.body == body, "{protocol:?}, in chunks");
        assert_eq!(answer.header("x-length"), Some("none"));
    }
}

/// RFC 9110, section 10.1.1: curl waits for the word as long as it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_told_to_go_on_and_node_gets_all_of_it() {
    let scene = Scene::new().await;
    let directory = scene.gateway.directory.path();
    let [up, down] = ["up", "down"].map(|name| directory.join(name).display().to_string());
    std::fs::write(&up, vec![b'x'; 3_000_000]).unwrap();
    for protocol in ["--http1.1", "--http2"] {
        let data = format!("@{up}");
        let wait = ["--expect100-timeout", "15", "-H", "Expect: 100-continue"];
        let url = scene.url("/echo");
        let post = [protocol, "--data-binary", &data, "-o", &down, &url];
        let said = curl(&scene.gateway, &[&wait[..], &post].concat());
        let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("no {what} in {said}"));
        if protocol == "--http1.1" {
            assert!(at("< HTTP/1.1 100 Continue") < at("< HTTP/1.1 200 OK"));
        }
        assert!(said.contains("sent 3000000\n"), "{said}");
        assert_eq!(std::fs::metadata(&down).unwrap().len(), 3_000_000, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_absolute_form_is_one_in_origin_form_to_node() {
    let scene = Scene::new().await;
    let zoe = scene.zoe(Protocol::Http1).await;
    let cookie = format!("cookie: __Host-session={}", zoe.cookie("__Host-session").unwrap());
    let url = scene.url("/told?a=b");
    let said = curl(
        &scene.gateway,
        &["--http1.1", "-H", &cookie, "--request-target", &url, &scene.url("/elsewhere")],
    );
    let line =
        said.lines().find(|line| line.starts_with("{\"")).unwrap_or_else(|| panic!("{said}"));
    let answer: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&answer["url"], &answer["httpVersion"]), (&json!("/told?a=b"), &json!("1.1")));
    assert_eq!(told(&answer, "host"), [authority_of(&scene.gateway.url)]);
    assert_eq!(told(&answer, "x-forwarded-user"), ["auth0|zoe"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_among_early_hints_is_nobodys() {
    let scene = Scene::new().await;
    for protocol in ["--http1.1", "--http2"] {
        let said = curl(&scene.gateway, &[protocol, &scene.url("/hints")]).to_lowercase();
        assert!(said.contains(" 200") && said.contains("\nfinal\nsent 0\n"), "{said}");
        assert!(!said.contains("x-session-update"), "{said}");
    }
}

/// All that the client of `ws` heard.
async fn talk(scene: &Scene, cookie: Option<&str>) -> Value {
    let url = scene.url("/live").replacen("https", "wss", 1);
    let arguments = json!({ "url": url, "ca": authority().pem, "cookie": cookie });
    let client = node("client.mjs", &arguments.to_string());
    until("the client is done", async || serde_json::from_str(&client.output()).ok()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_of_ws_passes_with_all_that_both_ends_agree_on() {
    let scene = Scene::new().await;
    let zoe = scene.zoe(Protocol::Http1).await;
    let cookie = format!("__Host-session={}", zoe.cookie("__Host-session").unwrap());
    let heard = talk(&scene, Some(&cookie)).await;
    assert_eq!(heard["protocol"], "echo.v2", "{heard}");
    assert_eq!(heard["extensions"], "permessage-deflate");
    assert_eq!(heard["pong"], "are you there?");
    let told = r#"{"user":"auth0|zoe"}"#;
    let messages = json!([told, "Zoë", { "binary": "00ff00" }, "all of it", ""]);
    assert_eq!(heard["messages"], messages, "{heard}");
    assert_eq!((&heard["code"], &heard["reason"]), (&json!(4001), &json!("Zoë, goodbye")));
    until("the server hears of the end", async || {
        scene.server.output().contains("closed 4001").then_some(())
    })
    .await;
    assert_eq!(zoe.profile().await.unwrap()["live"], true, "an update in the handshake");

    assert_eq!(talk(&scene, None).await, json!({ "status": 401 }));
}
