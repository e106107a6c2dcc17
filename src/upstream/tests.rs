//! Upstreams of the test's own, most of them hostile: scripts on a socket, that close, stall, lie
//! and send too much.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::*;
use crate::body::BodyError;
use crate::config::upstream::Upstream;
use crate::config::{Limits, Route, sample};

/// Runs a test where connections can be served.
async fn local<T>(test: impl Future<Output = T>) -> T {
    let test = timeout(Duration::from_secs(30), test);
    Box::pin(tokio::task::LocalSet::new().run_until(test)).await.unwrap()
}

/// An upstream whose every connection is served by `serve`, which is told how many came before.
async fn listen<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream, usize) -> F + 'static,
) -> (UpstreamUrl, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Rc::new(Cell::new(0));
    let counted = count.clone();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = counted.replace(counted.get() + 1);
            spawn_local(serve(stream, number));
        }
    });
    (UpstreamUrl::Http { host: "127.0.0.1".to_owned(), port }, count)
}

/// An upstream that takes requests without bodies and answers each with the same bytes.
async fn answering(bytes: impl Into<Vec<u8>>) -> (UpstreamUrl, Rc<Cell<usize>>) {
    let bytes: Rc<[u8]> = bytes.into().into();
    listen(move |mut stream, _| {
        let bytes = bytes.clone();
        async move {
            let mut rest = Vec::new();
            while head(&mut stream, &mut rest).await.is_some() {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// The next request's head; `rest` keeps what was read beyond it.
async fn head(stream: &mut (impl AsyncRead + Unpin), rest: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let after = rest.split_off(end + 4);
            return Some(String::from_utf8(std::mem::replace(rest, after)).unwrap());
        }
        if stream.read_buf(rest).await.ok()? == 0 {
            return None;
        }
    }
}

/// `200` with a body of known length.
fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn path_of(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

fn deaf(_: StatusCode, _: HeaderMap) {}

fn roots() -> rustls::RootCertStore {
    rustls::RootCertStore::empty()
}

fn with(urls: Vec<UpstreamUrl>, limits: &Limits, roots: rustls::RootCertStore) -> Upstreams {
    of(urls.into_iter().map(Upstream::from).collect(), limits, roots)
}

fn of(upstream: Vec<Upstream>, limits: &Limits, roots: rustls::RootCertStore) -> Upstreams {
    let route = Route { upstream, ..sample::route() };
    let directory = Directory::new(&[route], limits, &client_tls(roots), None).unwrap();
    Upstreams::new(&directory, &Arc::default())
}

fn client_tls(roots: rustls::RootCertStore) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(tls)
}

fn to(url: &UpstreamUrl) -> Upstreams {
    let limits = Limits { response_time: Duration::from_secs(5), ..sample::limits() };
    with(vec![url.clone()], &limits, roots())
}

fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("host", "app.example");
    request.body(body).unwrap()
}

async fn get(upstreams: &Upstreams, path: &str) -> Result<String, String> {
    let response = upstreams.send(0, request("GET", path, Body::Empty), None, &deaf).await;
    text(response.map_err(|error| format!("{error}: {error:?}"))?).await
}

async fn text(response: Response<Body>) -> Result<String, String> {
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

/// A body whose pieces the test sends one by one.
struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn streaming() -> (mpsc::UnboundedSender<Bytes>, Body) {
    let (feed, pieces) = mpsc::unbounded_channel();
    (feed, Body::stream(Pieces(pieces)))
}

mod exchange;
mod hostile;
mod http2;
mod names;
mod reuse;
