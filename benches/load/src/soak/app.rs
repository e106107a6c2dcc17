//! The app behind the gateway under soak: says whose request it has read and which, sends bytes that
//! only this request gets, sends uploads back, counts in the session, and echoes over WebSockets. It
//! is stopped at any moment, and keeps nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::content::Content;
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

/// Serves `address` until the process is stopped.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    runtime()?.block_on(async move {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("the app cannot serve {address}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(connection(stream));
        }
    })
}

async fn connection(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .with_upgrades();
    // The gateway may close it whenever it likes.
    let _ = serving.await;
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
    match (request.method(), request.uri().path()) {
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
