//! A restart in which nobody is refused and nobody is cut off: by handing the sockets to the next
//! process, or by a service manager that holds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::reload::edit;
use crate::support::gateway::Builder;
use crate::support::provider::Issuer;
use crate::support::wire::Connection;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Protocol, Reply, Stage, until};

/// Clients that come all the time. Each of them takes nothing but a good answer.
struct Load {
    over: Arc<AtomicBool>,
    /// Of those that connect each time, those that stay, and those without TLS.
    answered: [Arc<AtomicUsize>; 3],
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(gateway: &Gateway) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let answered: [Arc<AtomicUsize>; 3] = Default::default();
        let mut clients = Vec::new();
        for number in 0..8 {
            let (url, plain) = (gateway.url.clone(), gateway.plain_url().clone());
            let repeat = |which: usize| (over.clone(), answered[which].clone());
            let (end, count) = repeat(0);
            let home = url.clone();
            clients.push(tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let new = Connection::open(&home, PROTOCOLS[number % 2]).await.unwrap();
                    let answer = new.ask(&home, Ask::fetch("/")).await.unwrap();
                    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello"));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }));
            let (end, count) = repeat(1);
            clients.push(tokio::spawn(async move {
                let mut kept: Option<Connection> = None;
                while !end.load(Ordering::Relaxed) {
                    let connection = match kept.take() {
                        Some(connection) if connection.is_ready().await => connection,
                        _ => Connection::open(&url, Protocol::Http1).await.unwrap(),
                    };
                    let answer = connection.ask(&url, Ask::fetch("/")).await.unwrap();
                    assert_eq!(answer.status, 200);
                    // What is to be the last answer says so.
                    let last = answer.header("connection") == Some("close");
                    kept = (!last).then_some(connection);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }));
            let (end, count) = repeat(2);
            clients.push(tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    redirected(plain.port().unwrap()).await;
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Self { over, answered, clients }
    }

    /// Waits until every kind of client was answered so often again.
    async fn go_on(&self, times: usize) {
        let now = self.answered.each_ref().map(|count| count.load(Ordering::Relaxed));
        until("clients are answered", async || {
            let grown = self.answered.iter().zip(now);
            let enough = |(count, before): (&Arc<AtomicUsize>, usize)| {
                count.load(Ordering::Relaxed) >= before + times
            };
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            grown.into_iter().all(enough).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

async fn redirected(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 308 "), "{}", String::from_utf8_lossy(&answer));
}

/// A gateway that hands its sockets over, with a page for anybody and what `write` adds.
async fn handing_over(write: impl FnOnce(Builder, &App) -> Builder) -> Stage {
    Stage::before_with(app().await, |builder, app| {
        let builder = builder.server("handover = \"next\"");
        write(builder.route_with("/", app, r#"access = "public""#), app)
    })
    .await
}

/// `/slow` takes a second.
async fn app() -> App {
    App::start_later(|seen| async move {
        if seen.path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Reply::new(200).update(r#"{"slow":{"$add":1}}"#).body("at last");
        }
        Reply::new(200).body("hello")
    })
    .await
}

#[tokio::test]
async fn processes_take_over_from_one_another_and_nobody_notices() {
    let mut stage = handing_over(|builder, app| builder.route("/slow", app)).await;
    let zoe = stage.gateway.browser();
    zoe.log_in("zoe", "/slow").await;
    let load = Load::on(&stage.gateway);
    load.go_on(20).await;
    let mut slow_ones = 1;
    for workers in [2, 3, 1, 2] {
        // Of the process before, which answers it.
        let slow = async {
            let answer = zoe.fetch("/slow").await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "at last"));
            assert!(answer.set_cookie("__Host-session").is_some());
        };
        let next = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            edit(&stage.gateway, |text| {
                let lines = text.lines().map(|line| match line.strip_prefix("workers = ") {
                    Some(_) => format!("workers = {workers}\n"),
                    None => format!("{line}\n"),
                });
                lines.collect()
            });
            let mut before = stage.gateway.start_next();
            let status = before.ended().await;
            assert!(status.success(), "{status}");
            load.go_on(20).await;
        };
        tokio::join!(slow, next);
        assert_eq!(stage.gateway.admin("/readyz").await.status, 200, "the next one answers");
        slow_ones += 1;
        assert_eq!(zoe.profile().await.unwrap()["slow"], slow_ones);
    }
    load.end().await;
    assert!(!stage.gateway.log().contains("cut off"), "{}", stage.gateway.log());
}

#[tokio::test]
async fn a_next_process_that_cannot_serve_leaves_the_one_before_alone() {
    let mut stage = handing_over(|builder, _| builder).await;
    let load = Load::on(&stage.gateway);
    let here = stage.provider.issuer().to_owned();
    edit(&stage.gateway, |text| text.replace(&here, "http://127.0.0.1:1/"));
    let mut before = stage.gateway.start_next();
    assert_eq!(stage.gateway.ended().await.code(), Some(1));
    stage.gateway.logged(&["server.handover", "goes on", "provider"]).await;
    stage.gateway.keep(&mut before);
    load.go_on(20).await;
    edit(&stage.gateway, |text| text.replace("http://127.0.0.1:1/", &here));
    let mut before = stage.gateway.start_next();
    assert!(before.ended().await.success());
    load.go_on(20).await;
    load.end().await;
}

#[tokio::test]
async fn a_service_manager_that_holds_the_sockets_restarts_it_and_nobody_is_refused() {
    let stage = Stage::before_with(app().await, |builder, app| {
        builder
            .file("service_manager.py", include_str!("support/service_manager.py"))
            .launched_by(&["python3", "service_manager.py"])
            .route_with("/", app, r#"access = "public""#)
    })
    .await;
    let load = Load::on(&stage.gateway);
    load.go_on(20).await;
    for restart in 1..=2 {
        stage.gateway.signal("USR1");
        until("it was started again", async || {
            (stage.gateway.output().matches("https ").count() > restart).then_some(())
        })
        .await;
        load.go_on(20).await;
    }
    load.end().await;
    assert!(!stage.gateway.log().contains("cut off"), "{}", stage.gateway.log());
}

#[tokio::test]
async fn a_next_process_that_the_one_before_has_given_up_ends() {
    let mut stage = handing_over(|builder, _| builder).await;
    stage.gateway.kill();
    // In its place: it offers what it has, and stops at nobody's word.
    let path = stage.gateway.directory.path().join("next");
    std::fs::remove_file(&path).unwrap();
    let before = UnixListener::bind(&path).unwrap();
    drop(stage.gateway.start_next());
    let (mut asking, _) = before.accept().await.unwrap();
    asking.write_all(b".").await.unwrap();
    assert_eq!(asking.read_u8().await.unwrap(), b'!');
    drop(asking);
    assert_eq!(stage.gateway.ended().await.code(), Some(1));
    stage.gateway.logged(&["server.handover", "goes on"]).await;
    UnixStream::connect(&path).await.unwrap();
}
