//! How a user of the soak gets to the gateway: a connection of HTTP/1.1 of its own, one of HTTP/2
//! shared with others, or a WebSocket. It knows nothing of what is said.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use http::request::Builder;
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::app::SOCKET_PATH;
use super::browser::Upload;
use crate::client::{Target, trusting};
use crate::origin::{SOCKET_ACCEPT, SOCKET_KEY};

/// A connection of HTTP/2, or none.
type Shared = Rc<Mutex<Option<http2::SendRequest<Upload>>>>;

/// A way to the gateway.
pub(super) struct Wire {
    target: Target,
    kind: Kind,
}

enum Kind {
    Http1(RefCell<Option<http1::SendRequest<Upload>>>),
    Http2(Shared),
}

impl Wire {
    /// A connection of its own.
    pub(super) fn http1(target: &Target) -> Self {
        Self { target: target.clone(), kind: Kind::Http1(RefCell::default()) }
    }

    /// So many that share one.
    pub(super) fn http2(target: &Target, users: usize) -> Vec<Self> {
        let shared = Shared::default();
        let one = || Self { target: target.clone(), kind: Kind::Http2(shared.clone()) };
        std::iter::repeat_with(one).take(users).collect()
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Http1(_) => "HTTP/1.1",
            Kind::Http2(_) => "HTTP/2",
        }
    }

    /// How an answer over it is counted.
    pub(super) fn answered(&self) -> &'static str {
        match self.kind {
            Kind::Http1(_) => "of the right ones, over HTTP/1.1",
            Kind::Http2(_) => "of the right ones, over HTTP/2",
        }
    }

    /// Bytes of a body that are sent at once, at least.
    pub(super) fn smallest_piece(&self) -> usize {
        match self.kind {
            Kind::Http1(_) => 1,
            Kind::Http2(_) => 2048,
        }
    }

    /// A request as the protocol writes it.
    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        let (host, request) = (self.target.authority(), Request::builder().method(method));
        match self.kind {
            Kind::Http1(_) => request.uri(path).header("host", host),
            Kind::Http2(_) => request.uri(format!("https://{host}{path}")).version(Version::HTTP_2),
        }
    }

    /// Sends it, over a new connection if there is none.
    pub(super) async fn send(&self, request: Request<Upload>) -> Result<Response<Incoming>> {
        match &self.kind {
            Kind::Http1(own) => {
                let kept = own.borrow_mut().take().filter(|kept| !kept.is_closed());
                let mut sender = if let Some(sender) = kept {
                    sender
                } else {
                    let stream = TokioIo::new(self.connect(b"http/1.1").await?);
                    let (sender, connection) = http1::handshake(stream).await?;
                    tokio::task::spawn_local(connection);
                    sender
                };
                sender.ready().await?;
                let response = sender.send_request(request);
                *own.borrow_mut() = Some(sender);
                Ok(response.await?)
            }
            Kind::Http2(shared) => {
                let mut sender = self.shared(shared).await?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    async fn shared(&self, shared: &Shared) -> Result<http2::SendRequest<Upload>> {
        let mut shared = shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(self.connect(b"h2").await?);
        let (sender, connection) = http2::handshake(Local, stream).await?;
        tokio::task::spawn_local(connection);
        Ok(shared.insert(sender).clone())
    }

    /// After a failure: a connection of its own is not used again.
    pub(super) fn close(&self) {
        if let Kind::Http1(own) = &self.kind {
            own.borrow_mut().take();
        }
    }

    /// Within a request: over HTTP/2 its stream was reset with it.
    pub(super) fn give_up(&self) {
        self.close();
    }

    async fn connect(&self, protocol: &[u8]) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.target.address).await.context("no connection")?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(trusting(protocol)?));
        let stream = connector.connect("localhost".try_into()?, stream).await;
        stream.context("the handshake failed")
    }

    /// A WebSocket over a connection of its own (RFC 6455, section 4.1).
    pub(super) async fn websocket(&mut self, cookie: &str) -> Result<Socket> {
        let mut stream = self.connect(b"http/1.1").await?;
        let host = self.target.authority();
        let request = format!(
            "GET {SOCKET_PATH} HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\n\
             Cookie: {cookie}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {SOCKET_KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.context("the handshake breaks off")?);
            ensure!(head.len() < 16 * 1024, "the handshake does not end");
        }
        let head = String::from_utf8_lossy(&head);
        if !head.starts_with("HTTP/1.1 101 ") || !head.contains(SOCKET_ACCEPT) {
            bail!("a WebSocket is refused: {head}");
        }
        Ok(Socket(stream))
    }
}

/// An open WebSocket.
pub(super) struct Socket(TlsStream<TcpStream>);

impl Socket {
    /// A short message, masked with the byte 0x55.
    pub(super) async fn say(&mut self, message: &[u8]) -> Result<()> {
        self.frame(0x81, message).await
    }

    async fn frame(&mut self, kind: u8, message: &[u8]) -> Result<()> {
        let length = 0x80 | u8::try_from(message.len())?;
        let mut frame = vec![kind, length, 0x55, 0x55, 0x55, 0x55];
        frame.extend(message.iter().map(|byte| byte ^ 0x55));
        Ok(self.0.write_all(&frame).await?)
    }

    /// The next message.
    pub(super) async fn hear(&mut self) -> Result<String> {
        let kind = self.0.read_u8().await?;
        ensure!(kind == 0x81, "a frame of the kind {kind:#x}");
        let mut message = vec![0; self.0.read_u8().await?.into()];
        self.0.read_exact(&mut message).await?;
        Ok(String::from_utf8(message)?)
    }

    /// Says good-bye; whether it is said back.
    pub(super) async fn close(&mut self) -> Result<bool> {
        self.frame(0x88, &1000_u16.to_be_bytes()).await?;
        Ok(self.0.read_u8().await? == 0x88)
    }
}

/// Runs a connection's tasks on this thread.
#[derive(Clone)]
pub(super) struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
