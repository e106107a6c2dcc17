//! The example of three gateways on one Redis behind HAProxy, started by its own script.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::authority::authority;
use crate::support::program::{Program, repository};
use crate::support::provider::{CLIENT, Issuer, SECRET};
use crate::support::{App, Ask, Browser, Protocol, Provider, Reply, free_port, until};

/// How many updates are sent at once.
const UPDATES: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn three_gateways_behind_a_load_balancer_are_one_to_a_browser() {
    let provider = Provider::start().await;
    let app = App::start(|seen| match seen.path().strip_prefix("/set/") {
        Some(key) => Reply::new(200).update(json!({key: 1, "sum": {"$add": 1}}).to_string()),
        None => Reply::new(200).body(seen.header("x-session").unwrap_or_default()),
    })
    .await;
    let directory = tempfile::TempDir::new().unwrap();
    let pair = authority().issue(&["localhost"]);
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    fs::write(&cert, pair.cert).unwrap();
    fs::write(&key, pair.key).unwrap();
    let public = provider.gateway_port();
    let ports: Vec<_> =
        std::iter::once(public).chain((0..7).map(|_| free_port())).map(|p| p.to_string()).collect();
    let mut command = Command::new("bash");
    command
        .arg(repository("examples/three-gateways/run"))
        .env("ISSUER", provider.issuer())
        .env("CLIENT_ID", CLIENT)
        .env("CLIENT_SECRET", SECRET)
        .env("APP", &app.url)
        .env("PORTS", ports.join(" "))
        .env("CERT", cert)
        .env("KEY", key)
        .env("VESTIBULE", env!("CARGO_BIN_EXE_vestibule"));
    let mut program = Program::start(&mut command, "there is always bash");
    for admin in ports.iter().skip(3).step_by(2) {
        program.listens(admin.parse().unwrap()).await;
        until("the gateway is ready", async || ready(admin).await.then_some(())).await;
    }
    program.listens(public).await;

    let home = format!("https://localhost:{public}").parse().unwrap();
    let zoe = Browser::at(&home, Protocol::Http1);
    zoe.log_in("zoe", "/").await;
    let mut sent = Vec::new();
    for number in 0..UPDATES {
        // A browser of its own has connections of its own, and so another gateway.
        let other = zoe.copy();
        sent.push(tokio::spawn(async move {
            other.ask(Ask::page(&format!("/set/k{number}"))).await.status
        }));
    }
    for answer in sent {
        assert_eq!(answer.await.unwrap(), 200);
    }
    for _ in 0..6 {
        let seen: serde_json::Value =
            serde_json::from_str(&zoe.copy().page("/").await.text()).unwrap();
        assert_eq!(seen["sum"], UPDATES);
        assert!((0..UPDATES).all(|number| seen[format!("k{number}")] == 1), "{seen}");
    }
    let copied = zoe.copy();
    zoe.page("/auth/logout").await;
    for _ in 0..6 {
        assert_eq!(copied.copy().page("/").await.status, 303, "a copied cookie is dead everywhere");
    }
    program.terminate(Duration::from_secs(10));
}

/// What a gateway says of itself at its admin port.
async fn ready(admin: &str) -> bool {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{admin}")).await.unwrap();
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.is_ok_and(|_| answer.starts_with("HTTP/1.0 200"))
}
