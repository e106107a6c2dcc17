//! The app behind the gateway under soak: says whose request it has read and which, sends bytes that
//! only this request gets, sends uploads back, counts in the session, and echoes over WebSockets. It
//! is stopped at any moment, and keeps nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::content::Content;
use super::wire::Local;
use crate::origin::SOCKET_ACCEPT;
use crate::session::runtime;

/// Which request: sent by the client, sent back.
pub(super) const NONCE: HeaderName = HeaderName::from_static("soak-nonce");
/// Whose request it is, as the gateway said.
pub(super) const USER: HeaderName = HeaderName::from_static("soak-user");
/// What the session has counted, as the gateway said.
pub(super) const COUNT: HeaderName = HeaderName::from_static("soak-count");
/// A body of this many bytes is wanted.
pub(super) const LENGTH: HeaderName = HeaderName::from_static("soak-length");
/// Counts in the session.
pub(super) const UPDATE_PATH: &str = "/soak/update";
/// Sends the body back.
pub(super) const UPLOAD_PATH: &str = "/soak/upload";
/// Becomes a WebSocket.
pub(super) const SOCKET_PATH: &str = "/soak/socket";
/// Bytes of a piece of a body.
const PIECE: usize = 16 * 1024;

/// Serves `address` until the process is stopped, in HTTP/1.1 and HTTP/2, over clear text and over
/// TLS: what a connection begins with says which. The certificate is in `directory`.
pub(crate) fn serve(address: SocketAddr, directory: &Path) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(directory)?));
    runtime()?.block_on(async move {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("the app cannot serve {address}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(accept(stream, acceptor.clone()));
        }
    })
}

fn tls(directory: &Path) -> Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(directory.join("certificate.pem"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem"))?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// Finds out what is spoken. How it ends is the gateway's business.
async fn accept(stream: TcpStream, acceptor: TlsAcceptor) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut first = [0; 3];
    while stream.peek(&mut first).await.ok()? < first.len() {
        if stream.peek(&mut first).await.ok()? == 0 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match &first {
        // A handshake, of TLS 1.0 to 1.3 (RFC 8446, section 5.1).
        [22, 3, _] => {
            let stream = acceptor.accept(stream).await.ok()?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            connection(stream, http2).await;
        }
        first => connection(stream, first == b"PRI").await,
    }
    Some(())
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) {
    let (stream, service) = (TokioIo::new(stream), service_fn(answer));
    // The gateway may close it whenever it likes.
    if http2 {
        let mut server = hyper::server::conn::http2::Builder::new(Local);
        // Who goes away resets a stream. hyper ends the connection, and what others have asked for on
        // it, when twenty of those wait for a busy machine.
        server.max_pending_accept_reset_streams(Some(10_000));
        let _ = server.serve_connection(stream, service).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(stream, service).with_upgrades().await;
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let told = |name: &str| request.headers().get(name).cloned();
    let nonce = told(NONCE.as_str()).unwrap_or(HeaderValue::from_static("none"));
    let user = told("x-forwarded-user").unwrap_or(HeaderValue::from_static("nobody"));
    let mut response = Response::new(Answer::Nothing);
    let headers = response.headers_mut();
    headers.insert(COUNT, counted(request.headers()));
    headers.insert(NONCE, nonce.clone());
    headers.insert(USER, user.clone());
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let number = text(&nonce).parse().unwrap_or_default();
    let path = request.uri().path();
    let path = path.find("/soak/").and_then(|start| path.get(start..)).unwrap_or_default();
    match (request.method(), path) {
        (&Method::GET, SOCKET_PATH) => {
            tokio::task::spawn_local(socket(hyper::upgrade::on(&mut request), text(&user)));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(SOCKET_ACCEPT));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        (&Method::POST, UPLOAD_PATH) => match request.into_body().collect().await {
            Ok(body) => *response.body_mut() = Answer::Whole(Some(body.to_bytes())),
            Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
        },
        (&Method::POST, UPDATE_PATH) => {
            let update = HeaderValue::from_static(r#"{"n":{"$add":1}}"#);
            headers.insert("x-session-update", update);
        }
        (_, path) => {
            let length = request.headers().get(LENGTH).map(text).and_then(|it| it.parse().ok());
            let content = Content::new(&text(&user), number, length.unwrap_or_default());
            let of_known_length = !path.ends_with("/chunked");
            *response.body_mut() = Answer::Content { content, of_known_length };
        }
    }
    Ok(response)
}

/// What the session has counted so far.
fn counted(headers: &HeaderMap) -> HeaderValue {
    let session = headers.get("x-session").map(HeaderValue::as_bytes).unwrap_or_default();
    let session: serde_json::Value = serde_json::from_slice(session).unwrap_or_default();
    HeaderValue::from(session.get("n").and_then(serde_json::Value::as_u64).unwrap_or(0))
}

/// A body.
enum Answer {
    Nothing,
    Whole(Option<Bytes>),
    Content { content: Content, of_known_length: bool },
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Nothing => None,
            Self::Whole(bytes) => bytes.take(),
            Self::Content { content, .. } => (content.left() > 0).then(|| content.take(PIECE)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing | Self::Whole(None) => true,
            Self::Whole(Some(_)) => false,
            Self::Content { content, of_known_length } => *of_known_length && content.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Content { content, of_known_length: true } => {
                SizeHint::with_exact(content.left() as u64)
            }
            Self::Content { .. } => SizeHint::default(),
        }
    }
}

/// Sends each short message back behind the user's name (RFC 6455, section 5.2).
async fn socket(upgrade: hyper::upgrade::OnUpgrade, user: String) -> Option<()> {
    let mut stream = TokioIo::new(upgrade.await.ok()?);
    loop {
        let mut start = [0; 6];
        stream.read_exact(&mut start).await.ok()?;
        let [kind, length, mask @ ..] = start;
        let mut message = vec![0; usize::from(length & 0x7f)];
        stream.read_exact(&mut message).await.ok()?;
        message.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let closes = kind == 0x88;
        let payload = if closes { message } else { [user.as_bytes(), b" ", &message].concat() };
        let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126)?;
        let frame = [&[kind, length][..], &payload].concat();
        stream.write_all(&frame).await.ok()?;
        // RFC 6455, section 5.5.1.
        if closes {
            return None;
        }
    }
}
