//! One call at the provider, or at the authority that certifies us: HTTP/1.1 over TLS, a connection of its own, bounded in time and size.
//! It follows no redirect and knows nothing of OpenID Connect.
//!
//! Such calls are rare (a login, a refresh, an hourly reread), so no connection is kept.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

/// From the first name lookup to the last byte of the answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Of an answer's body, in bytes. Key sets and tokens are a hundredth of it.
const BODY_LIMIT: usize = 1024 * 1024;

/// Calls whom it is told to, but nobody else than https servers.
pub struct HttpClient {
    tls: TlsConnector,
    plain: bool,
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not https, and not http on loopback for an issuer that is http on loopback.
    #[error("this address is not one that may be called: {0}")]
    Address(String),
    /// No connection, or no TLS on it.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke or did not speak HTTP.
    #[error("the exchange broke off: {0}")]
    Exchange(#[source] hyper::Error),
    /// The body broke off or is over 1 MiB.
    #[error("the answer cannot be read: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No complete answer in 10 seconds.
    #[error("no answer within 10 seconds")]
    Late,
}

impl HttpClient {
    /// `plain` allows http on loopback, for a development provider.
    pub fn new(roots: &rustls::ClientConfig, plain: bool) -> Self {
        let mut roots = roots.clone();
        roots.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tls: TlsConnector::from(Arc::new(roots)), plain }
    }

    /// Whether `url` is one that may be called, or that a browser may be sent to.
    pub(super) fn allows(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => url.has_host(),
            // SECURITY: a discovery document that names `http` would have the client secret and
            // the codes travel readable.
            "http" => self.plain && is_loopback(url),
            _ => false,
        }
    }

    /// Sends `request` and reads the whole answer, whatever its status.
    pub async fn call(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, HttpError> {
        let exchange = self.call_without_limit(request);
        tokio::time::timeout(TIME_LIMIT, exchange).await.unwrap_or(Err(HttpError::Late))
    }

    async fn call_without_limit(
        &self,
        request: Request<Vec<u8>>,
    ) -> Result<Response<Vec<u8>>, HttpError> {
        let refused = || HttpError::Address(request.uri().to_string());
        let url = Url::parse(&request.uri().to_string()).map_err(|_| refused())?;
        if !self.allows(&url) {
            return Err(refused());
        }
        let host = url.host().ok_or_else(refused)?;
        let port = url.port_or_known_default().ok_or_else(refused)?;
        let request =
            origin_form(request, &url).ok_or_else(|| HttpError::Address(url.to_string()))?;

        let tcp = connect(&host, port).await.map_err(HttpError::Connect)?;
        // The request goes out in one piece and its answer is waited for.
        tcp.set_nodelay(true).map_err(HttpError::Connect)?;
        if url.scheme() == "http" {
            return exchange(tcp, request).await;
        }
        let tls = match server_name(&host) {
            Ok(name) => self.tls.connect(name, tcp).await,
            Err(error) => Err(error),
        };
        exchange(tls.map_err(HttpError::Connect)?, request).await
    }
}

/// Whether a URL names this machine and cannot name another.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

async fn connect(host: &Host<&str>, port: u16) -> io::Result<TcpStream> {
    match host {
        Host::Domain(name) => TcpStream::connect((*name, port)).await,
        Host::Ipv4(address) => TcpStream::connect((*address, port)).await,
        Host::Ipv6(address) => TcpStream::connect((*address, port)).await,
    }
}

fn server_name(host: &Host<&str>) -> io::Result<ServerName<'static>> {
    match host {
        Host::Domain(name) => ServerName::try_from((*name).to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
        Host::Ipv4(address) => Ok(ServerName::from(IpAddr::from(*address))),
        Host::Ipv6(address) => Ok(ServerName::from(IpAddr::from(*address))),
    }
}

/// The request with its target in origin form (RFC 9112, section 3.2.1) and a `Host` field.
fn origin_form(request: Request<Vec<u8>>, url: &Url) -> Option<Request<Full<Bytes>>> {
    let mut request = request.map(|body| Full::new(Bytes::from(body)));
    let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    let host = url.host_str()?;
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    request.headers_mut().insert(HOST, HeaderValue::try_from(authority).ok()?);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("vestibule"));
    Some(request)
}

/// One request and its answer; the connection lives no longer than this.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Vec<u8>>, HttpError> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::Exchange)?;
    let answer = async {
        let (head, body) =
            sender.send_request(request).await.map_err(HttpError::Exchange)?.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return HttpError::Body("it is over 1 MiB".into());
            }
            HttpError::Body(error)
        })?;
        Ok(Response::from_parts(head, body.to_bytes().into()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        // The connection may end before the last bytes that it read are taken.
        _ = &mut connection => answer.await,
        answer = &mut answer => answer,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::login) fn client(plain: bool) -> HttpClient {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        HttpClient::new(&roots, plain)
    }

    fn allows(plain: bool, url: &str) -> bool {
        client(plain).allows(&Url::parse(url).unwrap())
    }

    #[test]
    fn http_is_for_a_loopback_provider_alone() {
        assert!(allows(false, "https://id.example.com/token"));
        assert!(!allows(false, "http://id.example.com/token"));
        assert!(!allows(false, "http://localhost:9/token"));
        assert!(!allows(true, "http://id.example.com/token"));
        assert!(!allows(true, "http://localhost.example.com/token"));
        for loopback in ["http://localhost:9/", "http://127.0.0.1:9/", "http://[::1]:9/"] {
            assert!(allows(true, loopback));
        }
        assert!(!allows(true, "file:///etc/passwd"));
    }

    async fn answer(bytes: Vec<u8>) -> Result<Response<Vec<u8>>, HttpError> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/path?query=1", listener.local_addr().unwrap());
        let server = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).await.unwrap();
            stream.write_all(&bytes).await.ok();
            drop(stream);
            String::from_utf8_lossy(&head[..length]).into_owned()
        };
        let request = Request::get(&url).body(Vec::new()).unwrap();
        let client = client(true);
        let (head, response) = tokio::join!(server, client.call(request));
        assert!(head.starts_with("GET /path?query=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{head}");
        response
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end() {
        let response =
            answer(b"HTTP/1.1 404 Not Found\r\n\r\nnothing here".to_vec()).await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(response.body(), b"nothing here");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let bytes =
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(answer(bytes.to_vec()).await.unwrap().status(), 302);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        bytes.resize(bytes.len() + BODY_LIMIT + 1, b' ');
        assert!(matches!(answer(bytes).await, Err(HttpError::Body(_))));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec();
        assert!(answer(bytes).await.is_err());
        assert!(answer(Vec::new()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_never_answers_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let request = Request::get(&url).body(Vec::new()).unwrap();
        assert!(matches!(client(true).call(request).await, Err(HttpError::Late)));
    }
}
