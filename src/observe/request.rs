//! What is found out of one request on its way, and who is told of it in the end: the numbers and
//! the access log. It decides nothing.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use ring::digest::{SHA256, digest};

use super::access::{AccessLine, AccessLog};
use super::metrics::{RouteLabel, WorkerMetrics};
use crate::config::value::Origin;
use crate::config::{Config, Route};
use crate::error::Failure;
use crate::session::Opened;

/// A request's id: 32 hexadecimal digits, also the trace's id (W3C Trace Context, section 3.2.2.3).
#[derive(Clone, Copy)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn of(halves: [u64; 2]) -> Self {
        let mut digits = [b'0'; 32];
        let bytes = halves.into_iter().flat_map(u64::to_be_bytes);
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            }
        }
        Self(digits)
    }
}

/// One worker's ids: no two alike, none zero. They are names, not secrets.
pub struct RequestIds {
    /// Tells this worker, and this start of it, from every other.
    worker: u64,
    next: Cell<u64>,
}

impl Default for RequestIds {
    fn default() -> Self {
        let random = || ahash::RandomState::new().hash_one(Instant::now());
        Self { worker: random() | 1, next: Cell::new(random()) }
    }
}

impl RequestIds {
    /// The next one.
    pub fn next(&self) -> RequestId {
        // SplitMix64: a bijection, so that no id comes twice before 2^64 have passed.
        let state = self.next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        RequestId::of([self.worker, (mixed ^ (mixed >> 31)).max(1)])
    }
}

/// What routes and origins are called in logs and numbers.
pub struct Names {
    routes: Vec<String>,
    origins: Vec<String>,
}

impl Names {
    /// The names of a configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            routes: config.routes.iter().map(route_name).collect(),
            origins: config.server.public_urls.iter().map(Origin::authority).collect(),
        }
    }

    /// What a request's route is called.
    pub fn route(&self, label: RouteLabel) -> &str {
        match label {
            RouteLabel::Route(index) => self.routes.get(index).map_or("none", String::as_str),
            RouteLabel::Auth => "auth",
            RouteLabel::None => "none",
        }
    }
}

/// `/path`, or `host/path` for a route of one host.
pub fn route_name(route: &Route) -> String {
    format!("{}{}", route.host.as_deref().unwrap_or_default(), route.path)
}

/// One request.
pub struct Seen {
    /// Its id.
    pub id: RequestId,
    /// Its method.
    pub method: Method,
    /// What it accepts, for a page of the gateway's own.
    pub accept: Option<HeaderValue>,
    /// Whether a client of gRPC sent it, who reads no pages.
    pub is_grpc: bool,
    /// The public origin's index, once it is known.
    pub origin: Option<usize>,
    /// Its route, once it is known.
    pub route: RouteLabel,
    /// How long the app took, if it was asked.
    pub upstream: Option<Duration>,
    /// Who asks.
    pub client: IpAddr,
    uri: Uri,
    started: Instant,
}

impl Seen {
    /// A request's head has come.
    pub fn begin<B>(request: &Request<B>, client: IpAddr, id: RequestId) -> Self {
        Self {
            id,
            method: request.method().clone(),
            accept: request.headers().get(ACCEPT).cloned(),
            is_grpc: is_grpc(request),
            origin: None,
            route: RouteLabel::None,
            upstream: None,
            uri: request.uri().clone(),
            client,
            started: Instant::now(),
        }
    }

    /// The one place where a failure is logged. What has no cause to tell is in the access line
    /// already.
    pub fn log_failure(&self, failure: &Failure) {
        let Some(cause) = &failure.cause else { return };
        let (request_id, status, code) = (self.id.as_str(), failure.status.as_u16(), failure.code);
        let cause = Causes(cause.as_ref());
        if failure.status.is_server_error() {
            tracing::warn!(request_id, status, code, %cause, "a request failed");
        } else {
            tracing::info!(request_id, status, code, %cause, "a request was refused");
        }
    }

    /// The response is on its way.
    pub fn end(
        &self,
        status: StatusCode,
        opened: Option<&Rc<Opened>>,
        names: &Names,
        metrics: &WorkerMetrics,
        log: Option<&AccessLog>,
    ) {
        let total = self.started.elapsed();
        metrics.request(self.route, status, total, self.upstream);
        let Some(log) = log else { return };
        let host = self.origin.and_then(|origin| names.origins.get(origin));
        log.write(&AccessLine {
            request_id: self.id.as_str(),
            method: self.method.as_str(),
            host: host.map_or("-", String::as_str),
            path: self.uri.path(),
            route: names.route(self.route),
            status: status.as_u16(),
            user: opened.map(|opened| opened.log_name.get_or_init(|| log_name(opened)).as_str()),
            client: self.client,
            total,
            upstream: self.upstream,
        });
    }
}

/// Tells of a request that nobody could read: what came before its end was no HTTP, or too much.
pub fn tell_unreadable(
    status: StatusCode,
    client: IpAddr,
    id: RequestId,
    metrics: &WorkerMetrics,
    log: Option<&AccessLog>,
) {
    metrics.unreadable(status);
    let Some(log) = log else { return };
    log.write(&AccessLine {
        request_id: id.as_str(),
        method: "-",
        host: "-",
        path: "-",
        route: "none",
        status: status.as_u16(),
        user: None,
        client,
        total: Duration::ZERO,
        upstream: None,
    });
}

/// Every call of gRPC is a POST over HTTP/2; gRPC-Web, whose content type begins alike, is not meant.
fn is_grpc<B>(request: &Request<B>) -> bool {
    if request.method() != Method::POST || request.version() != Version::HTTP_2 {
        return false;
    }
    let kind = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// The first 16 hexadecimal digits of the SHA-256 of `sub`: who knows the user finds their lines,
/// who reads the log does not learn the user.
fn log_name(opened: &Opened) -> String {
    let digest = digest(&SHA256, opened.session.identity.subject().as_bytes());
    let mut name = String::with_capacity(16);
    for byte in digest.as_ref().iter().take(8) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// An error with its causes, each once: some errors name their source themselves.
struct Causes<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let next = cause.to_string();
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            source = cause.source();
        }
        formatter.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_requests_have_one_id() {
        let (one, other) = (RequestIds::default(), RequestIds::default());
        let ids: HashSet<String> = (0..10_000)
            .flat_map(|_| [one.next(), other.next()])
            .map(|id| id.as_str().to_owned())
            .collect();
        assert_eq!(ids.len(), 20_000);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn an_id_is_its_number_in_hexadecimal() {
        let id = RequestId::of([0x0123_4567_89ab_cdef, 0xff]);
        assert_eq!(id.as_str(), "0123456789abcdef00000000000000ff");
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner(#[source] std::num::ParseIntError);
        let error = Outer(Inner("x".parse::<u8>().unwrap_err()));
        assert_eq!(Causes(&error).to_string(), "outer: inner: invalid digit found in string");
    }
}
