//! gRPC through the gateway, with a server and a client that we did not write: the npm package
//! `@grpc/grpc-js`, in `tests/grpc`.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::authority::authority;
use crate::support::program::{Program, repository};
use crate::support::{Ask, Stage, free_port, until};

const COOKIE: &str = "__Host-session";

/// A server, behind a route of this access.
struct Scene {
    server: Program,
    stage: Stage,
}

impl Scene {
    async fn new() -> Self {
        let port = free_port();
        let mut server = node("server.mjs", &port.to_string());
        server.listens(port).await;
        let stage = Stage::with(|builder, _| {
            let upstream = format!("{{ url = 'http://127.0.0.1:{port}', protocol = 'http2' }}");
            builder
                .limits("response_time = \"1s\"")
                .route_written("/", &upstream, r#"access = "api""#)
                .route_to("/down.Echo", &["http://127.0.0.1:1"], r#"access = "api""#)
                .route_written("/roles.Echo", &upstream, "require = { roles = 'admin' }")
        })
        .await;
        Self { server, stage }
    }

    /// All calls, with this cookie.
    async fn calls(&self, cookie: Option<&str>) -> Value {
        let port = self.stage.gateway.url.port().unwrap();
        let arguments = json!({
            "address": format!("localhost:{port}"), "ca": authority().pem, "cookie": cookie,
        });
        let client = node("client.mjs", &arguments.to_string());
        until("the client is done", async || serde_json::from_str(&client.output()).ok()).await
    }

    async fn cookie_of(&self, user: &str) -> String {
        let browser = self.stage.signed_in(user).await;
        format!("{COOKIE}={}", browser.cookie(COOKIE).unwrap())
    }
}

fn node(script: &str, argument: &str) -> Program {
    let package = repository("tests/grpc");
    assert!(
        package.join("node_modules/@grpc/grpc-js").exists(),
        "gRPC is not installed: npm ci --prefix tests/grpc, or run tests/run"
    );
    let mut command = Command::new("node");
    command.arg(package.join(script)).arg(argument);
    Program::start(&mut command, "install Debian's nodejs, or run tests/run")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_every_kind_pass_with_their_metadata_and_statuses() {
    let scene = Scene::new().await;
    let cookie = scene.cookie_of("zoe").await;
    let all = scene.calls(Some(&cookie)).await;

    let unary = &all["unary"];
    assert_eq!(unary["response"]["echo"], json!({ "hello": "Zoë" }));
    assert_eq!(unary["response"]["told"]["user"], json!(["auth0|zoe"]), "{all}");
    assert_eq!(unary["response"]["told"]["cookie"], json!([]), "the gateway's own cookie");
    assert_eq!(unary["trailers"]["x-checksum"], "7");

    let fail = &all["fail"];
    assert_eq!((&fail["code"], &fail["details"]), (&json!(9), &json!("Zoë is not ready: 100%")));
    assert_eq!(all["unimplemented"]["code"], 12, "as the server says");

    let count = &all["count"];
    assert_eq!((&count["got"], &count["code"]), (&json!([0, 1, 2, 3, 4]), &json!(0)));
    assert!(count["spread"].as_u64().unwrap() > 250, "each message comes when it is sent: {count}");
    assert_eq!(all["large"]["got"].as_array().unwrap().len(), 20);
    assert_eq!(all["sum"], json!({ "sum": 5050, "bytes": 2_000_000 }));
    let heard: Vec<u64> = (0..10).collect();
    assert_eq!(all["chat"], json!({ "heard": heard, "code": 0 }));

    assert_eq!(all["cancelled"]["code"], 1);
    until("the server hears of it", async || {
        scene.server.output().contains("cancelled").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_in_trailing_metadata_is_applied_and_nobody_else_is_told() {
    let scene = Scene::new().await;
    let cookie = scene.cookie_of("zoe").await;
    let all = scene.calls(Some(&cookie)).await;
    let update = &all["update"];
    assert_eq!(update["trailers"]["x-checksum"], "7");
    assert_eq!(update["trailers"]["x-session-update"], Value::Null, "{update}");
    let session = all["after"]["response"]["told"]["session"][0].as_str().unwrap();
    let session: Value = serde_json::from_str(session).unwrap();
    assert_eq!(session["theme"], "dark");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_gateway_has_to_say_is_a_status_of_grpc() {
    let scene = Scene::new().await;
    let all = scene.calls(None).await;
    for call in ["unary", "fail", "count", "sum", "chat"] {
        assert_eq!(all[call]["code"], 16, "{call}: {all}");
    }
    assert!(!all["unary"]["details"].as_str().unwrap().is_empty());

    let bob = scene.stage.signed_in("bob").await;
    let call = |path: &str| Ask::post(path, "").header("te", "trailers").body("\0\0\0\0\0");
    for (path, status, logged) in
        [("/down.Echo/Unary", "14", "502"), ("/roles.Echo/Unary", "7", "403")]
    {
        let mut ask = call(path);
        ask.headers.insert("content-type", "application/grpc+proto".parse().unwrap());
        let answer = bob.ask(ask).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("grpc-status"), Some(status));
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        assert!(answer.body.is_empty() && answer.header("grpc-message").is_some());
        // The numbers and the log call it by its HTTP name.
        scene.stage.gateway.access_line(&[&format!(" {logged} "), path]).await;
        // Anyone else gets what anyone gets.
        assert_eq!(bob.ask(call(path)).await.status.as_str(), logged);
    }
}
