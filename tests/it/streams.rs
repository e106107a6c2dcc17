//! What is special of a request that is a stream of HTTP/2 (RFC 9113).

use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use tokio::sync::Notify;

use crate::support::app::Peer;
use crate::support::wire::tls;
use crate::support::{App, Gateway, PATIENCE, Provider, Reply};

async fn open(app: &App) -> (Provider, Gateway, SendRequest<Bytes>) {
    let provider = Provider::start().await;
    let gateway =
        Gateway::with(&provider).route_with("/", app, r#"access = "public""#).start().await;
    let stream = tls("localhost", gateway.url.port().unwrap(), &[b"h2"]).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    (provider, gateway, sender)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it does not come")
}

/// RFC 9113, section 5.4.2: who resets a stream wants nothing of it any more; others go on.
#[tokio::test]
async fn a_request_that_its_client_resets_is_given_up_at_its_app() {
    let (asked, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell_asked, tell_gone) = (asked.clone(), gone.clone());
    let app = App::by_hand(move |mut peer: Peer| {
        let (asked, gone) = (tell_asked.clone(), tell_gone.clone());
        async move {
            let Some(seen) = peer.head().await else { return };
            if seen.path() == "/other" {
                gone.notified().await;
                gone.notify_one();
                let _ = peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                return;
            }
            if seen.path() == "/begun" {
                let _ = peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun").await;
            }
            asked.notify_one();
            // The rest of a request, if it had any, and the end.
            while !peer.some().await.is_empty() {}
            gone.notify_one();
        }
    })
    .await;
    let (_provider, gateway, mut sender) = open(&app).await;
    for (method, path) in [("GET", "/silent"), ("GET", "/begun"), ("POST", "/half")] {
        let request = |path: &str| {
            let url = gateway.url.join(path).unwrap();
            Request::builder().method(method).uri(url.as_str()).body(()).unwrap()
        };
        let (other, mut rest) = sender.send_request(request("/other"), false).unwrap();
        let (response, mut stream) = sender.send_request(request(path), method == "GET").unwrap();
        if method == "POST" {
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
        }
        within(asked.notified()).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
        within(gone.notified()).await;
        gone.notify_one();
        rest.send_data(Bytes::new(), true).unwrap();
        assert_eq!(within(other).await.unwrap().status(), 200);
        within(gone.notified()).await;
    }
}

/// RFC 9110, sections 6.6.1 and 8.6: an app that says neither does not speak for the gateway.
#[tokio::test]
async fn every_response_has_its_date_and_a_short_one_its_length() {
    let app = App::start(|seen| match seen.path() {
        "/dated" => Reply::new(200).header("Date", "Sun, 06 Nov 1994 08:49:37 GMT").body("hello"),
        _ => Reply::new(200).body("hello"),
    })
    .await;
    let (_provider, gateway, mut sender) = open(&app).await;
    for (path, status, old) in [("/", 200, false), ("/dated", 200, true), ("/auth/x", 404, false)] {
        let url = gateway.url.join(path).unwrap();
        let request = Request::get(url.as_str()).body(()).unwrap();
        let response = within(sender.send_request(request, true).unwrap().0).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        let date = response.headers()["date"].to_str().unwrap();
        assert!(date.ends_with(" GMT") && date.contains(" 1994 ") == old, "{path}: {date}");
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let mut body = response.into_body();
        let mut read = 0;
        while let Some(piece) = within(body.data()).await {
            read += piece.unwrap().len();
        }
        assert_eq!(length, read, "{path}");
    }
}
