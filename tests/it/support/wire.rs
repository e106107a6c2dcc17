//! One exchange: what is asked, a connection that asks it over HTTP/1.1 or HTTP/2, what comes back.
//! It keeps no cookies and follows no redirects.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::PATIENCE;
use super::authority::authority;

/// The body of a request.
pub(crate) type Sent = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// A protocol to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

impl Protocol {
    /// Its name in the TLS handshake.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// A path of the browser's home, or a whole URL.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Ask {
    /// Without any header.
    pub(crate) fn new(method: Method, target: &str) -> Self {
        let (headers, trailers) = (HeaderMap::new(), HeaderMap::new());
        Self { method, target: target.to_owned(), headers, body: Bytes::new(), trailers }
    }

    /// A page that somebody opens, with the fields that browsers send (Fetch Metadata).
    pub(crate) fn page(target: &str) -> Self {
        Self::new(Method::GET, target)
            .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-dest", "document")
            .header("upgrade-insecure-requests", "1")
    }

    /// What a script of the page fetches.
    pub(crate) fn fetch(target: &str) -> Self {
        Self::new(Method::GET, target)
            .header("accept", "*/*")
            .header("sec-fetch-mode", "cors")
            .header("sec-fetch-dest", "empty")
    }

    /// What a script of the page sends.
    pub(crate) fn post(target: &str, body: impl Into<Bytes>) -> Self {
        let ask = Self { method: Method::POST, ..Self::fetch(target) };
        ask.header("content-type", "application/json").body(body)
    }

    /// With one more header line.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).unwrap());
        self
    }

    /// With this body.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more trailer; HTTP/1.1 announces it (RFC 9110, section 6.6.2).
    pub(crate) fn trailer(mut self, name: &str, value: &str) -> Self {
        let field = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.trailers.append(field, HeaderValue::from_str(value).unwrap());
        self.header("trailer", name)
    }

    fn into_body(self) -> Sent {
        if self.trailers.is_empty() {
            return Full::new(self.body).boxed();
        }
        Trailed { body: Some(self.body), trailers: Some(self.trailers) }.boxed()
    }
}

/// A body of no announced length, and its trailers.
struct Trailed {
    body: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Trailed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = self.body.take().map(Frame::data);
        let frame = frame.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }
}

/// What comes back, whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Where from.
    pub(crate) url: Url,
    /// The addresses that redirected here.
    pub(crate) hops: Vec<Url>,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    /// Reads a response to its end.
    pub(crate) async fn read(url: Url, response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Self {
            url,
            hops: Vec::new(),
            status: head.status,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// The one line of a header; none, or more than one, is nothing.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.get_all(name).iter();
        let first = lines.next()?;
        assert!(lines.next().is_none(), "several lines of {name}");
        first.to_str().ok()
    }

    /// The lines of `Set-Cookie`, in order.
    pub(crate) fn set_cookies(&self) -> Vec<&str> {
        self.headers.get_all(SET_COOKIE).iter().map(|line| line.to_str().unwrap()).collect()
    }

    /// The `Set-Cookie` line of this cookie.
    pub(crate) fn set_cookie(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.split_once('=').is_some_and(|(found, _)| found == name);
        self.set_cookies().into_iter().find(named)
    }

    /// Where it redirects to.
    #[track_caller]
    pub(crate) fn location(&self) -> Url {
        let location = self.headers.get(LOCATION);
        let location = location.unwrap_or_else(|| panic!("no redirect: {}", self.status));
        self.url.join(location.to_str().unwrap()).unwrap()
    }

    /// The value of a parameter of where it redirects to.
    #[track_caller]
    pub(crate) fn location_parameter(&self, name: &str) -> Option<String> {
        parameter(&self.location(), name)
    }

    /// Whether the body says it is HTML.
    pub(crate) fn is_html(&self) -> bool {
        let kind = self.headers.get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
    }
}

/// A parameter of an URL's query.
pub(crate) fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

/// Either side of TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A TLS connection to a port of loopback, whatever the host is called.
pub(crate) async fn tls(
    host: &str,
    port: u16,
    protocols: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(authority().client(protocols));
    let name = ServerName::try_from(host.to_owned()).unwrap();
    connector.connect(name, stream).await
}

/// A connection that asks.
#[derive(Clone)]
pub(crate) struct Connection(Arc<tokio::sync::Mutex<Sender>>, Protocol);

enum Sender {
    Http1(http1::SendRequest<Sent>),
    Http2(http2::SendRequest<Sent>),
}

impl Connection {
    /// Connects to where `url` leads, on loopback; over TLS if it says https.
    pub(crate) async fn open(url: &Url, protocol: Protocol) -> std::io::Result<Self> {
        let port = url.port_or_known_default().unwrap();
        if url.scheme() == "https" {
            let stream = tls(url.host_str().unwrap(), port, &[protocol.alpn()]).await?;
            return Self::over(stream, protocol).await.map_err(std::io::Error::other);
        }
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, Protocol::Http1).await.map_err(std::io::Error::other)
    }

    /// Speaks over a stream that is there.
    pub(crate) async fn over(
        stream: impl Stream,
        protocol: Protocol,
    ) -> Result<Self, hyper::Error> {
        let io = TokioIo::new(stream);
        let sender = match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_headers(2_000)
                    .title_case_headers(false)
                    .handshake(io)
                    .await?;
                tokio::spawn(connection.with_upgrades());
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) =
                    http2::Builder::new(TokioExecutor::new()).handshake(io).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        };
        Ok(Self(Arc::new(tokio::sync::Mutex::new(sender)), protocol))
    }

    /// Whether it can take a request now.
    pub(crate) async fn is_ready(&self) -> bool {
        match &mut *self.0.lock().await {
            Sender::Http1(sender) => !sender.is_closed() && sender.ready().await.is_ok(),
            Sender::Http2(sender) => !sender.is_closed() && sender.ready().await.is_ok(),
        }
    }

    /// Asks and gives the response's head, its body yet to come.
    pub(crate) async fn start(
        &self,
        url: &Url,
        ask: Ask,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let mut request = Request::builder().method(ask.method.clone());
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        request = match self.1 {
            Protocol::Http2 if url.scheme() == "https" => request.uri(url.as_str()),
            _ => {
                let named = ask.headers.contains_key("host");
                let request = request.uri(path);
                if named { request } else { request.header("host", authority_of(url)) }
            }
        };
        let mut request = request.body(()).unwrap();
        request.headers_mut().extend(ask.headers.clone());
        if !request.headers().contains_key(ACCEPT) {
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
        }
        let request = request.map(|()| ask.into_body());
        // Waiting is not under the lock: on HTTP/2 many wait at once.
        let mut sender = self.0.lock().await;
        match &mut *sender {
            Sender::Http1(http1) => {
                let response = http1.send_request(request);
                drop(sender);
                response.await
            }
            Sender::Http2(http2) => {
                let response = http2.send_request(request);
                drop(sender);
                response.await
            }
        }
    }

    /// One exchange.
    pub(crate) async fn ask(&self, url: &Url, ask: Ask) -> Result<Answer, hyper::Error> {
        self.ask_within(PATIENCE, url, ask).await
    }

    /// One exchange, in this time.
    pub(crate) async fn ask_within(
        &self,
        patience: Duration,
        url: &Url,
        ask: Ask,
    ) -> Result<Answer, hyper::Error> {
        let exchange = async {
            let response = self.start(url, ask).await?;
            Answer::read(url.clone(), response).await
        };
        let late = || panic!("no answer within {patience:?}: {url}");
        tokio::time::timeout(patience, exchange).await.unwrap_or_else(|_| late())
    }
}

/// The host and port of an URL.
pub(crate) fn authority_of(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}
