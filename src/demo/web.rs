//! A small HTTP/1.1 server for what is answered from memory: a request with its whole body goes
//! in, a reply comes out. Also parameters, cookies and escaping, as both halves of the demo need
//! them. It knows neither OpenID Connect nor the sample app, and never sees TLS.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use url::form_urlencoded;

/// What a handler gives back.
pub(super) type Reply = Response<Full<Bytes>>;

/// Connections at once; the next one waits to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// Bytes of a request's body; more is 413.
const MAX_BODY: usize = 64 * 1024;
/// Header fields of a request: the gateway passes 100 of the browser's on and adds its own.
const MAX_HEADERS: usize = 200;
/// Bytes of a request's head.
const MAX_HEAD: usize = 256 * 1024;
/// How long a head, and then a body, may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a query or a form.
const MAX_PARAMETER_BYTES: usize = 16 * 1024;
/// Parameters in a query or a form.
const MAX_PARAMETERS: usize = 64;

/// Serves `listener` until the future is dropped, which also ends its connections.
pub(super) async fn serve<F>(listener: TcpListener, answer: F) -> Infallible
where
    F: Fn(&Request<Bytes>) -> Reply + Clone + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve_connection(stream, answer.clone()));
            }
            // Out of file descriptors, mostly: a pause lets some come free.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A page of HTML that runs no script and loads nothing from elsewhere.
pub(super) fn page(status: StatusCode, html: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(html)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // No `form-action`: browsers apply it to the redirect after a form too, and a login ends with
    // a redirect to the gateway's origin.
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; \
             base-uri 'none'; frame-ancestors 'none'",
        ),
    );
    reply
}

/// A reply without a body that sends the browser to `location`; 500 if it cannot be written to a
/// header.
pub(super) fn redirect(status: StatusCode, location: &str) -> Reply {
    let Ok(location) = HeaderValue::from_str(location) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "That address cannot be redirected to.");
    };
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply.headers_mut().insert(LOCATION, location);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// A JSON document that no cache keeps (RFC 6749, section 5.1).
pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(value.to_string())));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// One sentence of plain text.
pub(super) fn text(status: StatusCode, sentence: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from_static(sentence.as_bytes())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// 405 with the methods that would have done.
pub(super) fn method_not_allowed(allow: &'static str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "This page takes other methods.");
    reply.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allow));
    reply
}

/// The parameters of a query or a form, each at most once, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters(Vec<(String, String)>);

/// Why a query or a form was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParametersRefused {
    #[error("The request's parameters are too long or too many.")]
    TooLarge,
    #[error("A parameter was given twice.")]
    Repeated,
}

impl Parameters {
    /// Decodes `application/x-www-form-urlencoded` text.
    pub(super) fn parse(encoded: &[u8]) -> Result<Self, ParametersRefused> {
        if encoded.len() > MAX_PARAMETER_BYTES {
            return Err(ParametersRefused::TooLarge);
        }
        let mut found: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(encoded) {
            if found.len() == MAX_PARAMETERS {
                return Err(ParametersRefused::TooLarge);
            }
            // RFC 6749, section 3.1: no parameter more than once.
            if found.iter().any(|(known, _)| *known == name) {
                return Err(ParametersRefused::Repeated);
            }
            found.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(found))
    }

    /// The parameters of a request's query.
    pub(super) fn of_query<B>(request: &Request<B>) -> Result<Self, ParametersRefused> {
        Self::parse(request.uri().query().unwrap_or_default().as_bytes())
    }

    /// A parameter's value; one without a value counts as absent (RFC 6749, section 3.1).
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        (!value.is_empty()).then_some(value)
    }

    /// The same parameters as a query.
    pub(super) fn encode(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }
}

/// A cookie of the request; the first of that name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(http::header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim_start().split_once('='))
        .find_map(|(known, value)| (known == name).then_some(value))
}

/// Text as it is written into HTML, in content and in double-quoted attributes.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        // SECURITY: markup in a parameter, a header or a name stays text (cross-site scripting).
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let (plain, special) = rest.split_at(at);
            formatter.write_str(plain)?;
            formatter.write_str(match special.as_bytes().first() {
                Some(b'&') => "&amp;",
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'"') => "&quot;",
                _ => "&#39;",
            })?;
            rest = special.get(1..).unwrap_or_default();
        }
        formatter.write_str(rest)
    }
}

async fn serve_connection<F>(stream: TcpStream, answer: F)
where
    F: Fn(&Request<Bytes>) -> Reply + Clone + Send + Sync + 'static,
{
    // Without it the second write of a reply can wait for the peer's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(collect_and_answer(request, &answer).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the demo broke");
    }
}

async fn collect_and_answer<F>(request: Request<Incoming>, answer: &F) -> Reply
where
    F: Fn(&Request<Bytes>) -> Reply,
{
    let (head, body) = request.into_parts();
    let reads_nothing = head.method == Method::GET || head.method == Method::HEAD;
    let body = if reads_nothing {
        Bytes::new()
    } else {
        match tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(_)) => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large or broke off.");
            }
            Err(_) => {
                return text(StatusCode::REQUEST_TIMEOUT, "The form took too long to arrive.");
            }
        }
    };
    answer(&Request::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        let hostile = "'\"><script>alert(1)</script>&amp; Zoë";
        assert_eq!(
            Escaped(hostile).to_string(),
            "&#39;&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp; Zoë"
        );
    }

    #[test]
    fn a_repeated_parameter_is_refused() {
        assert_eq!(Parameters::parse(b"a=1&b=2&a=1"), Err(ParametersRefused::Repeated));
        assert!(Parameters::parse(b"a=1&A=1").is_ok());
    }

    #[test]
    fn parameters_are_bounded() {
        let many: String = (0..=MAX_PARAMETERS).map(|index| format!("p{index}=1&")).collect();
        assert_eq!(Parameters::parse(many.as_bytes()), Err(ParametersRefused::TooLarge));
        let long = format!("a={}", "x".repeat(MAX_PARAMETER_BYTES));
        assert_eq!(Parameters::parse(long.as_bytes()), Err(ParametersRefused::TooLarge));
    }

    #[test]
    fn a_parameter_without_a_value_counts_as_absent() {
        let parameters = Parameters::parse(b"a=&b=%C3%AB+x").unwrap();
        assert_eq!(parameters.get("a"), None);
        assert_eq!(parameters.get("b"), Some("ë x"));
        assert_eq!(Parameters::parse(parameters.encode().as_bytes()), Ok(parameters));
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(http::header::COOKIE, HeaderValue::from_static("not_mine=1; mine=a=b"));
        headers.append(http::header::COOKIE, HeaderValue::from_static("other=2"));
        assert_eq!(cookie(&headers, "mine"), Some("a=b"));
        assert_eq!(cookie(&headers, "other"), Some("2"));
        assert_eq!(cookie(&headers, "min"), None);
    }
}
