//! The two small listeners without TLS: one sends browsers to https, one answers operators. Neither
//! ever forwards anything.

use std::convert::Infallible;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::accept::accept;
use super::acme::Challenges;
use super::proxy_protocol;
use super::worker::Handed;
use crate::body::Body;
use crate::error::Failure;
use crate::observe::admin::{self, Readiness};
use crate::observe::metrics::Metrics;
use crate::page;
use crate::route::{Routes, misdirected};

/// Connections of operators at once.
const ADMIN_CONNECTIONS: usize = 64;

/// How long a connection may be idle, and a head on its way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends every request to the same address over https, but for an authority's that looks whether a
/// name is ours (RFC 8555, section 8.3).
pub(super) fn redirect(
    listener: StdListener,
    permits: Arc<Semaphore>,
    handed: watch::Receiver<Handed>,
    challenges: Arc<Challenges>,
    stopped: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let now = handed.clone();
    let proxies = move || {
        let generation = now.borrow().generation.clone();
        let server = &generation.config().server;
        server.proxy_protocol.http.then(|| server.trusted_proxies.clone())
    };
    serve(listener, permits, stopped, proxies, move |head| {
        if let Some(proof) = challenges.at(head.uri.path()) {
            let mut response = Response::new(Body::from(proof));
            let kind = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            return response;
        }
        let generation = handed.borrow().generation.clone();
        to_https(&generation.routes, head).unwrap_or_else(|failure| {
            page::render(&failure, head.headers.get(http::header::ACCEPT), &head.method, "-")
        })
    })
}

/// Answers `/healthz`, `/readyz` and `/metrics`.
pub(super) fn admin(
    listener: StdListener,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
    ready: impl Fn() -> Readiness + 'static,
) -> JoinHandle<()> {
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    serve(listener, permits, stopped, || None, move |head| admin::answer(head, ready(), &metrics))
}

/// Serves on a task of its own, which ends when the listener is stopped and nobody is connected.
fn serve(
    listener: StdListener,
    permits: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
    proxies: impl Fn() -> Option<Vec<IpNet>> + 'static,
    answer: impl Fn(&Parts) -> Response<Body> + 'static,
) -> JoinHandle<()> {
    let answer = Rc::new(answer);
    tokio::task::spawn_local(async move {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "a listener could not be used"),
        };
        // Nothing is ever sent: it closes when the last connection has ended.
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let serve = move |mut stream: TcpStream, peer, permit| {
            let alive = alive.clone();
            let (answer, proxies) = (answer.clone(), proxies());
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request.into_parts().0);
                async { Ok::<_, Infallible>(response) }
            });
            tokio::task::spawn_local(async move {
                if let Some(trusted) = proxies {
                    let header = proxy_protocol::client(&mut stream, peer, &trusted);
                    match tokio::time::timeout(PATIENCE, header).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => return drop(error.told(peer)),
                        Err(_) => return,
                    }
                }
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                // Who breaks off here wants no answer.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                drop((permit, alive));
            });
        };
        accept(listener, permits, stopped, serve).await;
        let _ = ended.recv().await;
    })
}

/// 308: the method and the body stay what they were (RFC 9110, section 15.4.9).
fn to_https(routes: &Routes, head: &Parts) -> Result<Response<Body>, Failure> {
    let origin = routes.origin_at(routes.origin(head)?).ok_or_else(misdirected)?;
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = if path.starts_with('/') { path } else { "/" };
    let location = HeaderValue::try_from(format!("{origin}{path}")).map_err(|_| misdirected())?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}
