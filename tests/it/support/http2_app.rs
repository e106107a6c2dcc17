//! A scripted app that speaks HTTP/2: over clear text with prior knowledge, or over TLS in the
//! protocol that the handshake has settled on.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::authority::authority;
use super::wire::Stream;

/// The app. It ends with its value.
pub(crate) struct Http2App {
    /// For `route.upstream`.
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// A request as it arrived, with its body and its trailers.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: http::request::Parts,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Http2Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Http2Reply {
    /// `200`, with this body.
    pub(crate) fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// Of this status.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = StatusCode::from_u16(status).unwrap();
        self
    }

    /// With one more field.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).unwrap();
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    /// With one more trailer.
    pub(crate) fn trailer(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).unwrap();
        self.trailers.append(HeaderName::from_static(name), value);
        self
    }
}

type Answer = Arc<dyn Fn(&Seen) -> Http2Reply + Send + Sync>;

/// The app's end of a WebSocket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Talk = Arc<dyn Fn(Socket) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How it answers.
#[derive(Clone)]
struct Serve {
    answer: Answer,
    /// What it does with a WebSocket, if it takes any (RFC 8441).
    talk: Option<Talk>,
    log: Arc<Mutex<Vec<Seen>>>,
}

impl Http2App {
    /// Over clear text.
    pub(crate) async fn start(
        answer: impl Fn(&Seen) -> Http2Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Arc::new(answer), None).await
    }

    /// The same with WebSockets: `talk` has each that is answered with a success.
    pub(crate) async fn with_websockets<F: Future<Output = ()> + Send + 'static>(
        over_tls: bool,
        answer: impl Fn(&Seen) -> Http2Reply + Send + Sync + 'static,
        talk: impl Fn(Socket) -> F + Send + Sync + 'static,
    ) -> Self {
        let tls = over_tls.then(|| acceptor(&[b"h2"]));
        let talk: Talk = Arc::new(move |socket| Box::pin(talk(socket)));
        Self::serve(tls, Arc::new(answer), Some(talk)).await
    }

    /// As `localhost` over TLS, in one of these protocols.
    pub(crate) async fn over_tls(
        protocols: &[&[u8]],
        answer: impl Fn(&Seen) -> Http2Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(acceptor(protocols)), Arc::new(answer), None).await
    }

    async fn serve(tls: Option<TlsAcceptor>, answer: Answer, talk: Option<Talk>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match tls {
            None => format!("http://127.0.0.1:{port}"),
            Some(_) => format!("https://localhost:{port}"),
        };
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let serve = Serve { answer, talk, log: seen.clone() };
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(accept(stream, tls.clone(), serve.clone()));
            }
        });
        Self { url, seen, connections, task }
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The newest request.
    #[track_caller]
    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("the app got no request")
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Http2App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(protocols: &[&[u8]]) -> TlsAcceptor {
    let mut tls = rustls::ServerConfig::clone(&authority().server("localhost"));
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(tls))
}

async fn accept(stream: TcpStream, tls: Option<TlsAcceptor>, serve: Serve) {
    let Some(tls) = tls else { return talk(stream, true, serve).await };
    let Ok(stream) = tls.accept(stream).await else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    talk(stream, http2, serve).await;
}

async fn talk(stream: impl Stream, http2: bool, serve: Serve) {
    let websockets = serve.talk.is_some();
    let service = service_fn(move |request: Request<Incoming>| {
        let serve = serve.clone();
        async move { serve.answer(request).await }
    });
    let io = TokioIo::new(stream);
    // How it ends is the gateway's business.
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        if websockets {
            builder.enable_connect_protocol();
        }
        let _ = builder.serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

impl Serve {
    async fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> hyper::Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible> + use<>>>
    {
        let asked = request.extensions().get::<Protocol>().is_some();
        let upgrade = asked.then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        // What comes on a WebSocket is no body.
        let (body, trailers) = if asked {
            (Bytes::new(), HeaderMap::new())
        } else {
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            (collected.to_bytes(), trailers)
        };
        let seen = Seen { head, body, trailers };
        self.log.lock().unwrap().push(seen.clone());
        let Http2Reply { status, headers, body, trailers } = (self.answer)(&seen);
        if let (Some(upgrade), Some(talk), true) = (upgrade, &self.talk, status.is_success()) {
            let talk = talk.clone();
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let io = TokioIo::new(upgraded);
                talk(WebSocketStream::from_raw_socket(io, Role::Server, None).await).await;
            });
        }
        let after = (!trailers.is_empty()).then_some(Ok::<_, Infallible>(trailers));
        let body = Full::new(body).with_trailers(std::future::ready(after));
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}
