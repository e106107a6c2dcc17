//! The process: how it starts, how it says what is wrong, how it ends.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{App, Gateway, PROTOCOLS, Provider, Reply, Stage};

/// Runs the binary to its end in a directory.
fn run(directory: &TempDir, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(words)
        .current_dir(directory.path())
        .env_remove("VESTIBULE_SECRET")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn it_prints_where_it_listens_and_ends_well_at_a_signal() {
    for signal in ["TERM", "INT"] {
        let mut stage = Stage::new().await;
        let port = stage.gateway.url.port().unwrap();
        let line = stage.gateway.access_line(&[&format!("127.0.0.1:{port}")]).await;
        assert!(line.contains("https"), "{line}");
        stage.gateway.signal(signal);
        let status = stage.gateway.ended().await;
        assert_eq!(status.code(), Some(0), "{signal}: {}", stage.gateway.log());
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nobody listens any more");
    }
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_its_update_kept() {
    let arrived = Arc::new(Notify::new());
    let release = Arc::new(Notify::new());
    let (at_app, go_on) = (arrived.clone(), release.clone());
    let app = App::start_later(move |seen| {
        let (at_app, go_on) = (at_app.clone(), go_on.clone());
        async move {
            if seen.path() != "/slow" {
                return Reply::new(200);
            }
            at_app.notify_one();
            go_on.notified().await;
            Reply::new(200).update(r#"{"finished":true}"#).body("done")
        }
    })
    .await;
    let provider = Provider::start().await;
    for protocol in PROTOCOLS {
        let mut gateway = Gateway::with(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(protocol);
        zoe.log_in("zoe", "/").await;
        let idle = gateway.browser_over(protocol);
        idle.fetch("/").await;
        let slow = zoe.fetch("/slow");
        let stop = async {
            arrived.notified().await;
            gateway.signal("TERM");
            gateway.logged(&["stopping"]).await;
            release.notify_one();
        };
        let (answer, ()) = tokio::join!(slow, stop);
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "done"));
        assert!(answer.set_cookie("__Host-session").is_some());
        let start = Instant::now();
        assert!(gateway.ended().await.success());
        assert!(start.elapsed() < Duration::from_secs(5), "idle connections hold nothing up");
    }
}

#[tokio::test]
async fn who_takes_too_long_is_not_waited_for() {
    let app = App::start_later(|_| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Reply::new(200)
    })
    .await;
    let provider = Provider::start().await;
    let mut gateway = Gateway::with(&provider)
        .limits("drain_time = \"500ms\"")
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    let url = gateway.url.clone();
    let endless = tokio::spawn(async move {
        let connection =
            crate::support::wire::Connection::open(&url, crate::support::Protocol::Http1).await;
        connection.unwrap().ask(&url, crate::support::Ask::fetch("/")).await.is_err()
    });
    crate::support::until("the app has it", async || app.seen().pop()).await;
    let start = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(endless.await.unwrap(), "its connection has ended");
}

#[tokio::test]
async fn every_error_of_a_file_is_shown_at_once_with_its_place_and_remedy() {
    let directory = TempDir::new().unwrap();
    fs::write(
        directory.path().join("gateway.toml"),
        "[server]\nhttps = \"nonsense\"\ncolour = 1\n\n[provider]\nissuer = \"http://id.example.com/\"\n\
         client_id = \"x\"\nclient_secret = { env = \"NOT_SET_ANYWHERE\" }\n\n[session]\nsecrets = [\"short-secret\"]\n\n\
         [[route]]\npath = \"admin\"\nupstream = \"ftp://x\"\n",
    )
    .unwrap();
    for words in [&["check"][..], &["serve"], &[]] {
        let output = run(&directory, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let errors = text(&output.stderr);
        for place in [
            "gateway.toml:2:",
            "gateway.toml:3:",
            "gateway.toml:6:",
            "gateway.toml:8:",
            "gateway.toml:11:",
            "gateway.toml:14:",
            "gateway.toml:15:",
        ] {
            assert!(errors.contains(place), "{place} in:\n{errors}");
        }
        for word in
            ["server.https", "colour", "NOT_SET_ANYWHERE", "route.path", "route.upstream", "^"]
        {
            assert!(errors.contains(word), "{word} in:\n{errors}");
        }
        assert!(!errors.contains("short-secret"), "a secret is not shown:\n{errors}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let directory = TempDir::new().unwrap();
    let output = run(&directory, &["serve", "-c", "elsewhere.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("elsewhere.toml"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn check_reads_the_file_as_serve_does_and_says_what_it_means() {
    let stage = Stage::with(|builder, app| {
        builder
            .route("/", app)
            .route_with("/admin", app, r#"require = { roles = ["admin"] }"#)
            .route_with("/open", app, "access = \"optional\"\nsession_update = [\"theme\"]")
    })
    .await;
    let output = run(&stage.gateway.directory, &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for word in ["/admin", "roles", "/open", "optional", "theme", stage.app.url.as_str()] {
        assert!(table.contains(word), "{word} in:\n{table}");
    }
    // And certificates, too.
    fs::write(stage.gateway.directory.path().join("localhost.pem"), "x").unwrap();
    let output = run(&stage.gateway.directory, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("localhost.pem"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_second_gateway_on_the_same_address_does_not_start() {
    let stage = Stage::new().await;
    let output = run(&stage.gateway.directory, &["serve"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot listen on 127.0.0.1:"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(stage.gateway.browser().page("/").await.status, 303, "the first goes on");
}

#[tokio::test]
async fn keygen_prints_a_secret_that_can_be_used() {
    let directory = TempDir::new().unwrap();
    let keys: Vec<String> = (0..3).map(|_| text(&run(&directory, &["keygen"]).stdout)).collect();
    assert!(keys[0] != keys[1] && keys[1] != keys[2]);
    for key in &keys {
        let bytes = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(key.trim_end()).unwrap();
        assert_eq!(bytes.len(), 32);
    }
    let secrets = format!("secrets = [{:?}]", keys[0].trim_end());
    let stage = Stage::with(|builder, app| builder.session(&secrets).route("/", app)).await;
    assert!(stage.signed_in("zoe").await.profile().await.is_some());
}

#[tokio::test]
async fn logs_can_be_json() {
    let stage = Stage::with(|builder, app| {
        builder.log("format = \"json\"").route("/", app).route_to(
            "/down",
            &["http://127.0.0.1:1"],
            "",
        )
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    zoe.fetch("/down?x=1").await;
    let line = stage.gateway.access_line(&["/down"]).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["status"], &line["path"]), (&502.into(), &"/down".into()));
    let line = stage.gateway.logged(&["app_unreachable"]).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
}

#[tokio::test]
async fn access_lines_can_be_left_out() {
    let stage = Stage::with(|builder, app| builder.log("access = false").route("/", app)).await;
    let mut gateway = stage.gateway;
    gateway.browser().fetch("/secret-path").await;
    gateway.signal("TERM");
    gateway.ended().await;
    assert!(!gateway.output().contains("secret-path"));
}
