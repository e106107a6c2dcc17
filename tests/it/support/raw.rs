//! A client that sends bytes as they are: for what no HTTP library would send.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::PATIENCE;
use super::gateway::Gateway;
use super::wire::{Protocol, tls};

/// A TLS connection to the gateway.
pub(crate) struct Raw(pub(crate) TlsStream<TcpStream>);

impl Raw {
    /// Connects, for HTTP/1.1.
    pub(crate) async fn open(gateway: &Gateway) -> Self {
        Self::open_as(gateway, "localhost", Protocol::Http1).await
    }

    /// Connects by this server name, for this protocol.
    pub(crate) async fn open_as(gateway: &Gateway, name: &str, protocol: Protocol) -> Self {
        let port = gateway.url.port().unwrap();
        Self(tls(name, port, &[protocol.alpn()]).await.unwrap())
    }

    /// Sends bytes. The gateway may have heard enough before the last one: what it says to that can
    /// still be read.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
        let _ = self.0.flush().await;
    }

    /// Everything until the gateway closes; a panic if it does not.
    pub(crate) async fn read_to_close(&mut self) -> String {
        let (bytes, closed) = self.read_for(PATIENCE, |_| false).await;
        assert!(closed, "the connection stays open after: {bytes}");
        bytes
    }

    /// What comes until it holds `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let (bytes, _) = self.read_for(PATIENCE, |bytes| bytes.contains(end)).await;
        assert!(bytes.contains(end), "no {end:?} in: {bytes}");
        bytes
    }

    /// One response that has a `Content-Length`, on a connection that stays open.
    pub(crate) async fn response(&mut self) -> String {
        let whole = |text: &str| {
            let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            body.len() >= length.map_or(0, |length| length.parse().unwrap())
        };
        let (text, _) = self.read_for(PATIENCE, whole).await;
        assert!(whole(&text), "no whole response in: {text}");
        text
    }

    /// What comes until it is enough, and whether the gateway has closed.
    pub(crate) async fn bytes_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> (Vec<u8>, bool) {
        self.read_bytes(PATIENCE, enough).await
    }

    /// The same, within this time.
    pub(crate) async fn bytes_until_within(
        &mut self,
        time: Duration,
        enough: impl Fn(&[u8]) -> bool,
    ) -> (Vec<u8>, bool) {
        self.read_bytes(time, enough).await
    }

    /// What comes in this time, and whether the gateway has closed.
    pub(crate) async fn bytes_for(&mut self, time: Duration) -> (Vec<u8>, bool) {
        self.read_bytes(time, |_| false).await
    }

    async fn read_for(&mut self, time: Duration, done: impl Fn(&str) -> bool) -> (String, bool) {
        let done = |bytes: &[u8]| done(&String::from_utf8_lossy(bytes));
        let (bytes, closed) = self.read_bytes(time, done).await;
        (String::from_utf8_lossy(&bytes).into_owned(), closed)
    }

    async fn read_bytes(
        &mut self,
        time: Duration,
        done: impl Fn(&[u8]) -> bool,
    ) -> (Vec<u8>, bool) {
        let deadline = tokio::time::Instant::now() + time;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            if done(&bytes) {
                return (bytes, false);
            }
            match tokio::time::timeout_at(deadline, self.0.read(&mut buffer)).await {
                Err(_) => return (bytes, false),
                // A reset, or an end without TLS's farewell, is an end too.
                Ok(Err(_) | Ok(0)) => return (bytes, true),
                Ok(Ok(length)) => bytes.extend(&buffer[..length]),
            }
        }
    }
}

/// Sends a request's bytes on a new connection; what comes until it closes or nothing more does.
pub(crate) async fn exchange(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> String {
    let mut raw = Raw::open(gateway).await;
    raw.send(bytes).await;
    raw.response().await
}

/// The status of a response's text.
#[track_caller]
pub(crate) fn status(response: &str) -> u16 {
    let code = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no response: {response:?}"))
}
