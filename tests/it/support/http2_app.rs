//! A scripted app that speaks HTTP/2: over clear text with prior knowledge, or over TLS in the
//! protocol that the handshake has settled on.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

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
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Http2Reply {
    /// `200`, with this body.
    pub(crate) fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
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

impl Http2App {
    /// Over clear text.
    pub(crate) async fn start(
        answer: impl Fn(&Seen) -> Http2Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, Arc::new(answer)).await
    }

    /// As `localhost` over TLS, in one of these protocols.
    pub(crate) async fn over_tls(
        protocols: &[&[u8]],
        answer: impl Fn(&Seen) -> Http2Reply + Send + Sync + 'static,
    ) -> Self {
        let mut tls = rustls::ServerConfig::clone(&authority().server("localhost"));
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Self::serve(Some(TlsAcceptor::from(Arc::new(tls))), Arc::new(answer)).await
    }

    async fn serve(tls: Option<TlsAcceptor>, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match tls {
            None => format!("http://127.0.0.1:{port}"),
            Some(_) => format!("https://localhost:{port}"),
        };
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (log, count) = (seen.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (tls, answer, log) = (tls.clone(), answer.clone(), log.clone());
                tasks.spawn(accept(stream, tls, answer, log));
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

async fn accept(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    answer: Answer,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    let Some(tls) = tls else { return talk(stream, true, answer, log).await };
    let Ok(stream) = tls.accept(stream).await else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    talk(stream, http2, answer, log).await;
}

async fn talk(stream: impl Stream, http2: bool, answer: Answer, log: Arc<Mutex<Vec<Seen>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, log) = (answer.clone(), log.clone());
        async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            let seen = Seen { head, body: collected.to_bytes(), trailers };
            log.lock().unwrap().push(seen.clone());
            let Http2Reply { headers, body, trailers } = answer(&seen);
            let after = (!trailers.is_empty()).then_some(Ok::<_, Infallible>(trailers));
            let body = Full::new(body).with_trailers(std::future::ready(after));
            let mut response = Response::new(body);
            *response.headers_mut() = headers;
            Ok::<_, hyper::Error>(response)
        }
    });
    let io = TokioIo::new(stream);
    // How it ends is the gateway's business.
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}
