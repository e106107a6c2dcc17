//! Whole exchanges, byte for byte: a browser's connection, the forwarding, and an app of the
//! test's own.

use std::cell::RefCell;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::*;
use crate::body::BodyError;
use crate::config::sample;
use crate::config::value::{ClaimPath, Owner, UpstreamUrl};
use crate::session::memory::Bounds;
use crate::session::tests::session;
use crate::session::{Memory, Sealer};

/// One worker that forwards everything to one app.
struct Scene {
    forward: Rc<Forward>,
    opened: Option<Rc<Opened>>,
    /// What the app was sent, one connection after another.
    sent: Rc<RefCell<String>>,
    update: Rc<RefCell<Option<Result<SessionUpdate, UpdateRefused>>>>,
}

impl Scene {
    /// An app that answers every head that ends with these bytes.
    async fn new(answer: &str, change: impl FnOnce(&mut Route)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Rc::<RefCell<String>>::default();
        let (heard, answer) = (sent.clone(), answer.to_owned());
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (heard, answer) = (heard.clone(), answer.clone());
                spawn_local(async move {
                    let mut bytes = Vec::new();
                    while stream.read_buf(&mut bytes).await.is_ok_and(|length| length > 0) {
                        heard.borrow_mut().push_str(&String::from_utf8_lossy(&bytes));
                        let whole = std::mem::take(&mut bytes);
                        if whole.windows(4).any(|four| four == b"\r\n\r\n") {
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        let mut config = sample::config();
        let route = &mut config.routes[0];
        route.upstream = vec![UpstreamUrl::Http { host: "127.0.0.1".to_owned(), port }.into()];
        change(route);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let own = Box::new(|name: &[u8]| name == b"__Host-session");
        let sealer = Arc::new(Sealer::new(&config.session.secrets));
        let memory = Arc::new(Memory::new(Bounds::default()));
        let sessions = Rc::new(Sessions::new(&config.session, sealer, memory));
        let directory =
            Directory::new(&config.routes, &config.server.limits, &Arc::new(tls), None).unwrap();
        let (outbox, rooms) = (Arc::default(), Rc::new(Rooms::new(100)));
        let forward = Forward::new(&Arc::new(config), &directory, own, sessions, &outbox, rooms);
        let opened = Some(Rc::new(Opened::new(Arc::new(session()))));
        Self { forward: Rc::new(forward), opened, sent, update: Rc::default() }
    }

    /// The browser's end of a connection.
    fn connect(&self) -> DuplexStream {
        let (browser, here) = tokio::io::duplex(1024 * 1024);
        let (forward, opened) = (self.forward.clone(), self.opened.clone());
        let kept = self.update.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let request = request.map(Incoming::from);
            let (forward, opened, kept) = (forward.clone(), opened.clone(), kept.clone());
            async move {
                let peer = [192, 0, 2, 1].into();
                let request_id = "0123456789abcdef0123456789abcdef";
                let (certificate, interim) = (None, None);
                let way = Way { route: 0, origin: 0, peer, request_id, certificate, interim };
                let whole = Whole::of(request.body());
                match forward.send(request, way, opened.as_ref(), &whole).await {
                    Ok(answer) => {
                        *kept.borrow_mut() = answer.update;
                        let kept = kept.clone();
                        let later = || -> Later {
                            Box::new(move |update| {
                                Box::pin(async move { *kept.borrow_mut() = Some(update) })
                            })
                        };
                        let response = answer.response;
                        Ok::<_, BodyError>(forward.deliver(response, way, opened.as_ref(), later))
                    }
                    Err(failure) => {
                        let mut response = Response::new(Body::from(failure.code));
                        *response.status_mut() = failure.status;
                        Ok(response)
                    }
                }
            }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(here), service);
        spawn_local(connection.with_upgrades());
        browser
    }

    /// Sends these lines on a connection of their own, and reads the answer to its end.
    async fn exchange(&self, request: &str) -> String {
        let mut browser = self.connect();
        browser.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(Ok(length)) =
            tokio::time::timeout(patience, browser.read_buf(&mut bytes)).await
        {
            if length == 0 {
                break;
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The values of a field that the app was sent.
    fn values(&self, name: &str) -> Vec<String> {
        let sent = self.sent.borrow();
        let lines = sent.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned()).collect()
    }
}

async fn local(test: impl Future<Output = ()>) {
    Box::pin(tokio::task::LocalSet::new().run_until(test)).await;
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_app_is_told_what_the_gateway_says_and_not_what_the_client_says() {
    local(async {
        let scene = Scene::new(OK, |route| {
            let path = ClaimPath { owner: Owner::User, members: vec!["nickname".to_owned()] };
            route.headers = vec![("x-nick".parse().unwrap(), path)];
        })
        .await;
        let got = scene
            .exchange(
                "GET /a%20b?c=d HTTP/1.1\r\nhost: APP.example:1\r\nX-Forwarded-User: root\r\n\
                 X_Forwarded_User: root\r\nx.forwarded.email: root\r\nX-Nick: root\r\nx_nick: root\r\n\
                 X-Session: {}\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nProxy: evil\r\n\
                 Connection: close, X-Forwarded-User, X-Session, X-Nick\r\nCookie: a=1; __Host-session=s; b=2\r\n\
                 Authorization: Basic YTpi\r\nX-Own: kept\r\n\r\n",
            )
            .await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nok"), "{got}");
        let sent = scene.sent.borrow().clone();
        assert!(sent.starts_with("GET /a%20b?c=d HTTP/1.1\r\n"), "{sent}");
        assert!(!sent.contains("root") && !sent.contains("6.6.6.6") && !sent.contains("evil"), "{sent}");
        for (name, value) in [
            ("host", "app.example"),
            ("x-forwarded-user", "auth0|zoe"),
            ("x-forwarded-email", "zoe@example.com"),
            ("x-nick", "zoe"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "app.example"),
            ("x-forwarded-proto", "https"),
            ("cookie", "a=1; b=2"),
            ("authorization", "Basic YTpi"),
            ("x-own", "kept"),
        ] {
            assert_eq!(scene.values(name), [value], "{name}");
        }
        assert_eq!(scene.values("x-session").len(), 1);
        assert_eq!(scene.values("connection"), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn an_app_that_gets_the_access_token_gets_no_other_and_without_a_session_none() {
    local(async {
        let request =
            "GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer junk\r\nconnection: close\r\n\r\n";
        let mut scene = Scene::new(OK, |route| route.access_token = true).await;
        scene.exchange(request).await;
        assert_eq!(scene.values("authorization"), ["Bearer at"]);
        scene.sent.borrow_mut().clear();
        scene.opened = None;
        scene.exchange(request).await;
        assert_eq!(scene.values("authorization"), Vec::<String>::new());
        assert_eq!(scene.values("x-forwarded-user"), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn an_update_is_taken_off_the_response_and_no_spelling_of_it_reaches_the_browser() {
    local(async {
        let answer = "HTTP/1.1 404 Not Found\r\nX-Session-Update: {\"a\":1}\r\nx-session-update: {\"b\":2}\r\n\
                      X_Session_Update: {\"c\":3}\r\nx.session.update: {}\r\nX-Other: kept\r\n\
                      Set-Cookie: a=1\r\nSet-Cookie: __Host-session=planted; Path=/\r\nSet-Cookie: b=2\r\n\
                      Connection: keep-alive, X-Session-Update\r\nKeep-Alive: timeout=5\r\ncontent-length: 0\r\n\r\n";
        let scene = Scene::new(answer, |_| {}).await;
        let got = scene.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let lower = got.to_ascii_lowercase();
        assert!(!lower.contains("update") && !lower.contains("planted"), "{got}");
        assert!(!lower.contains("keep-alive"), "{got}");
        assert!(lower.contains("x-other: kept"), "{got}");
        let cookies: Vec<_> = lower.lines().filter(|line| line.starts_with("set-cookie")).collect();
        assert_eq!(cookies, ["set-cookie: a=1", "set-cookie: b=2"]);
        assert!(matches!(*scene.update.borrow(), Some(Ok(_))), "{got}");
    })
    .await;
}

#[tokio::test]
async fn an_update_that_cannot_be_is_told_and_one_that_is_not_there_is_none() {
    local(async {
        for (line, update) in [("x-session-update: nonsense\r\n", true), ("", false)] {
            let answer = format!("HTTP/1.1 200 OK\r\n{line}content-length: 0\r\n\r\n");
            let scene = Scene::new(&answer, |_| {}).await;
            scene.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            let found = scene.update.borrow();
            assert_eq!(found.is_some(), update);
            assert!(!matches!(*found, Some(Ok(_))));
        }
    })
    .await;
}

#[tokio::test]
async fn trailers_pass_in_both_directions_without_what_is_the_gateways() {
    local(async {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
                      trailer: x-sum, x-session-update, x_session_update\r\n\r\n2\r\nok\r\n0\r\n\
                      x-sum: 7\r\nx-session-update: {\"a\":1}\r\nX_Session_Update: {}\r\n\r\n";
        let scene = Scene::new(answer, |_| {}).await;
        let got = scene
            .exchange(
                "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close\r\n\
                 transfer-encoding: chunked\r\ntrailer: x-sum, x-forwarded-user, x_session, authorization\r\n\r\n\
                 4\r\nbody\r\n0\r\nx-sum: 5\r\nx-forwarded-user: root\r\nx_session: root\r\n\
                 authorization: root\r\n\r\n",
            )
            .await;
        assert!(got.contains("x-sum: 7\r\n"), "{got}");
        assert!(!got.contains("{\"a\":1}") && !got.contains("pdate: {}"), "{got}");
        let sent = scene.sent.borrow();
        assert!(sent.contains("4\r\nbody\r\n0\r\n") && sent.contains("x-sum: 5\r\n"), "{sent}");
        assert!(!sent.contains("root"), "{sent}");
        assert!(sent.contains("te: trailers\r\n") && sent.contains("connection: te\r\n"), "{sent}");
    })
    .await;
}

const SWITCH: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-version: 13\r\nsec-websocket-key: k\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_with_its_update_and_its_bytes() {
    local(async {
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\
                      Sec-WebSocket-Accept: x\r\nX-Session-Update: {\"a\":1}\r\n\r\nhello";
        let scene = Scene::new(answer, |_| {}).await;
        let got = scene.exchange(SWITCH).await;
        assert!(got.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{got}");
        assert!(got.contains("upgrade: websocket\r\n") && got.contains("connection: upgrade\r\n"), "{got}");
        assert!(got.ends_with("\r\n\r\nhello"), "{got}");
        assert!(!got.contains("pdate: "), "{got}");
        assert!(matches!(*scene.update.borrow(), Some(Ok(_))));
        let sent = scene.sent.borrow();
        assert!(sent.contains("upgrade: websocket\r\n"), "{sent}");
        assert!(sent.contains("x-forwarded-user: auth0|zoe\r\n"), "{sent}");
    })
    .await;
}

#[tokio::test]
async fn an_app_switches_to_what_was_asked_for_and_to_nothing_else() {
    local(async {
        let to = |protocol: &str| {
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{protocol}\r\nsmuggled"
            )
        };
        let plain = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        for (request, protocol) in [
            (plain, "Upgrade: websocket\r\n"),
            (plain, ""),
            (SWITCH, "Upgrade: h2c\r\n"),
            (SWITCH, ""),
        ] {
            let scene = Scene::new(&to(protocol), |_| {}).await;
            let got = scene.exchange(request).await;
            assert!(got.starts_with("HTTP/1.1 502 "), "{protocol}: {got}");
            assert!(!got.contains("smuggled"), "{got}");
        }
    })
    .await;
}

/// h2c smuggling.
#[tokio::test]
async fn no_other_upgrade_is_passed_on() {
    local(async {
        for lines in [
            "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            "connection: close\r\nupgrade: websocket\r\n",
            "connection: Upgrade\r\nupgrade: TLS/1.0\r\n",
        ] {
            let scene = Scene::new(OK, |_| {}).await;
            let got = scene.exchange(&format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n")).await;
            assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
            let sent = scene.sent.borrow().to_ascii_lowercase();
            assert!(!sent.contains("upgrade") && !sent.contains("http2-settings"), "{sent}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_app_that_is_down_broken_or_late_has_a_failure_of_its_own() {
    local(async {
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let down = Scene::new(OK, |route| route.upstream = sample::route().upstream).await;
        let broken = Scene::new("nonsense\r\n\r\n", |_| {}).await;
        let two =
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        let ambiguous = Scene::new(two, |_| {}).await;
        for scene in [down, broken, ambiguous] {
            let got = scene.exchange(request).await;
            assert!(got.starts_with("HTTP/1.1 502 ") && got.ends_with("app_unreachable"), "{got}");
        }
        let upstream = UpstreamUrl::Unix("/x".into());
        let late = failure(UpstreamError::Late { upstream, limit: Duration::from_secs(1) });
        assert_eq!((late.status.as_u16(), late.code), (504, "app_timeout"));
    })
    .await;
}

#[tokio::test]
async fn a_request_without_a_body_gets_none_and_one_of_unknown_length_is_chunked() {
    local(async {
        let scene = Scene::new(OK, |_| {}).await;
        scene.exchange("DELETE /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(!scene.sent.borrow().contains("transfer-encoding"), "{}", scene.sent.borrow());
        scene.sent.borrow_mut().clear();
        let request = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\n\
                       transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        scene.exchange(request).await;
        let sent = scene.sent.borrow();
        assert!(
            sent.contains("transfer-encoding: chunked\r\n") && sent.contains("2\r\nhi\r\n"),
            "{sent}"
        );
        assert!(!sent.contains("expect"), "{sent}");
    })
    .await;
}

/// CVE-2026-88009.
#[tokio::test]
async fn an_absolute_target_is_sent_in_origin_form() {
    local(async {
        let scene = Scene::new(OK, |_| {}).await;
        let request = "GET https://app.example/x?y HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\n\r\n";
        scene.exchange(request).await;
        assert!(scene.sent.borrow().starts_with("GET /x?y HTTP/1.1\r\n"), "{}", scene.sent.borrow());
    })
    .await;
}
