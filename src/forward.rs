//! One exchange with an app: what it is told, what it is not told, and what it says back. It knows
//! sessions only to read them and to see them end; what an app asks to change it takes off the
//! response and hands on.
//!
//! | file | question |
//! |---|---|
//! | `headers` | which fields pass? |
//! | `identity` | what is the app told of the user? |
//! | `forwarded` | what is the app told of the connection? |
//! | `hops` | whom do the proxies before it name? |
//! | `passing` | what is taken off a request's body? |
//! | `interim` | what passes before the response? |
//! | `delivery` | what becomes of a response's body, and of an update in its trailers? |
//! | `lasting` | what goes on when the client has gone? |
//! | `live` | what is open when its session ends? |
//! | `upgrade`, `close_frame` | how does a WebSocket pass, and how does it end? |

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, SET_COOKIE, TE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};

use crate::body::{Body, Incoming};
use crate::config::value::Keys;
use crate::config::{Config, Route};
use crate::error::Failure;
use crate::outbox::Outbox;
use crate::peer::ClientCertificate;
use crate::room::Rooms;
use crate::session::update::UpdateRefused;
use crate::session::{Opened, SessionUpdate, Sessions, cookie};
use crate::upstream::{Directory, Http2Error, Switched, UpstreamError, Upstreams};

mod close_frame;
mod delivery;
mod forwarded;
mod headers;
mod hops;
mod identity;
mod interim;
mod lasting;
mod live;
mod passing;
mod upgrade;

use delivery::{Delivery, Trailers};
use forwarded::Forwarded;
use headers::{Reserved, X_SESSION_UPDATE};
use interim::Allowance;
pub use lasting::Whole;
use lasting::{Broken, Lasting, Orphans};
use live::{Live, Tie};
use passing::Bounds;
use upgrade::Wanted;

/// Bytes up to which a body that never waits ends with its app's answer, whatever becomes of the session:
/// nothing is set up for it.
const SHORT: u64 = 64 * 1024;

/// About as many fields as the gateway adds: the map grows once.
const ADDED: usize = 16;

/// Tells the gateway's own cookies by their names.
pub type OwnCookie = Box<dyn Fn(&[u8]) -> bool>;

/// Forwards the requests of one worker.
pub struct Forward {
    config: Arc<Config>,
    upstreams: Upstreams,
    reserved: Rc<Reserved>,
    forwarded: Forwarded,
    owns_cookie: OwnCookie,
    live: Rc<Live>,
    orphans: Rc<Orphans>,
    rooms: Rc<Rooms>,
}

/// Where a request comes from and goes to.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// The route's index.
    pub route: usize,
    /// The public origin's index.
    pub origin: usize,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// 32 hexadecimal digits.
    pub request_id: &'a str,
    /// The client's own, from the TLS handshake.
    pub certificate: Option<&'a ClientCertificate>,
    /// How the client hears what comes before the response, if it can.
    pub interim: Option<&'a dyn Fn(StatusCode, HeaderMap)>,
}

/// An app's answer: what the browser gets, and what the app asked of the session.
pub struct Answer {
    /// The response, without anything that is not for the browser.
    pub response: Response<Body>,
    /// The update it carried.
    pub update: Option<Result<SessionUpdate, UpdateRefused>>,
}

/// Makes the change that a response asks for in its trailers.
pub type Later =
    Box<dyn FnOnce(Result<SessionUpdate, UpdateRefused>) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Forward {
    /// For one worker, whose requests wait in `rooms`.
    pub fn new(
        config: &Arc<Config>,
        directory: &Directory,
        owns_cookie: OwnCookie,
        sessions: Rc<Sessions>,
        outbox: &Arc<Outbox>,
        rooms: Rc<Rooms>,
    ) -> Self {
        Self {
            rooms,
            upstreams: Upstreams::new(directory, outbox),
            reserved: Rc::new(Reserved::new(config)),
            forwarded: Forwarded::new(&config.server),
            config: config.clone(),
            owns_cookie,
            live: Live::new(sessions),
            orphans: Rc::default(),
        }
    }

    /// Who sent the request: the peer, or whom a trusted proxy names.
    pub fn client(&self, peer: IpAddr, fields: &HeaderMap) -> IpAddr {
        self.forwarded.client(peer, fields)
    }

    /// Sends a request to the route's app, for the session if there is one. `whole` is told when
    /// its body has come.
    ///
    /// # Errors
    /// 502 if no upstream can be reached or the exchange breaks, 504 if it is late.
    pub async fn send(
        &self,
        mut request: Request<Incoming>,
        way: Way<'_>,
        opened: Option<&Rc<Opened>>,
        whole: &Whole,
    ) -> Result<Answer, Failure> {
        let Some(route) = self.config.routes.get(way.route) else {
            return Err(bad_gateway(UpstreamError::None));
        };
        let wanted = upgrade::wanted(&mut request);
        let (head, body) = request.into_parts();
        let limits = &self.config.server.limits;
        let bytes = route.body_bytes.or(limits.body_bytes).map(|bytes| bytes as u64);
        let bounds = Bounds { bytes, time: limits.body_time, rooms: &self.rooms };
        let body = passing::to_app(body, &self.reserved, whole, bounds).map_err(Broken::failure)?;
        let request = Request::from_parts(head, body);
        let request = self.prepare(request, route, way, opened, wanted.as_ref());
        let session = opened.filter(|_| route.sticky).map(|opened| opened.session.id.number());
        let allowance = Allowance::default();
        let hear = |status, fields| self.hint(way, &allowance, status, fields);
        let sent = self.upstreams.send(way.route, request, session, &hear).await;
        // The app has no part in it when the request itself breaks off.
        let failed = |error| whole.broken().map_or_else(|| failure(error), Broken::failure);
        let mut response = sent.map_err(failed)?;
        whole.answered();
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let wanted = wanted.filter(|wanted| !switched || wanted.is_agreed(response.headers()));
        let update = take_update(response.headers(), &route.session_update);
        self.clean(response.headers_mut(), way);
        // Which HTTP the app speaks is between it and us (RFC 9110, section 6.2).
        *response.version_mut() = Version::HTTP_11;
        if switched {
            let (Some(wanted), Some(app)) = (wanted, Switched::take(&mut response)) else {
                return Err(bad_gateway(Unasked));
            };
            let opened = opened.filter(|_| route.close_on_session_end);
            let open = opened.map(|opened| self.live.open(opened));
            wanted.switch(&mut response, app, open);
        } else if wanted.is_some_and(|wanted| wanted.is_misread(response.status())) {
            return Err(bad_gateway(NoWebSocket));
        }
        Ok(Answer { response, update })
    }

    /// The response as it goes to the browser, once the update in its header is committed: `later`
    /// commits one in its trailers, and its body ends with the session.
    pub fn deliver(
        &self,
        response: Response<Body>,
        way: Way<'_>,
        opened: Option<&Rc<Opened>>,
        later: impl FnOnce() -> Later,
    ) -> Response<Body> {
        let Some(route) = self.config.routes.get(way.route) else { return response };
        let Body::Stream(body) = response.body() else { return response };
        let length = body.size_hint().exact();
        let tied = opened.filter(|_| route.close_on_session_end);
        if length.is_some_and(|length| tied.is_none() || length <= SHORT) {
            return response;
        }
        // A body of known length has no trailers (RFC 9112, section 6).
        let trailers = length.is_none().then(|| Trailers {
            allowed: route.session_update.clone(),
            later: later(),
            outlast: keeps_updates(route, opened) && !is_event_stream(response.headers()),
        });
        let tie = tied.map(|opened| Tie::new(&self.live, opened));
        let orphans = self.orphans.clone();
        response
            .map(|body| Body::stream(Delivery { body, tie, trailers, committing: None, orphans }))
    }

    /// Awaits an exchange. One that may change a session goes on by itself if the client leaves
    /// once its request is `whole`: the app acts, and what it asks for is kept.
    pub fn see_through<F: Future + 'static>(
        &self,
        exchange: F,
        route: usize,
        opened: Option<&Rc<Opened>>,
        whole: Whole,
    ) -> Lasting<F> {
        let route = self.config.routes.get(route);
        let lasts = route.is_some_and(|route| keeps_updates(route, opened));
        Lasting::new(exchange, whole, lasts.then(|| self.orphans.clone()))
    }

    /// Ends when no exchange goes on without its client.
    pub async fn settled(&self) {
        self.orphans.gone().await;
    }

    /// The request as the app gets it.
    fn prepare(
        &self,
        request: Request<Body>,
        route: &Route,
        way: Way<'_>,
        opened: Option<&Rc<Opened>>,
        wanted: Option<&Wanted>,
    ) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let fields = &mut parts.headers;
        fields.reserve(ADDED);
        let trailers = headers::takes_trailers(fields);
        let believed = self.forwarded.believed(way.peer, fields);
        let token = route.access_token;
        headers::end_hop(fields, |name| {
            self.reserved.holds(name) || (token && name == http::header::AUTHORIZATION)
        });
        cookie::remove(fields, &self.owns_cookie);
        self.forwarded.write(fields, way, believed);
        if let Some(opened) = opened {
            let groups = &self.config.provider.groups_claim;
            let make = |session: &_| identity::lines(session, route, groups).into();
            for (name, value) in opened.lines(way.route, make).iter() {
                fields.insert(name, value.clone());
            }
        }
        if let Some(wanted) = wanted {
            wanted.ask(fields);
        } else if trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
            fields.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        parts.version = Version::HTTP_11;
        parts.uri = origin_form(&parts.uri);
        Request::from_parts(parts, body)
    }

    /// Takes off what is not for the browser.
    fn clean(&self, fields: &mut HeaderMap, way: Way<'_>) {
        headers::unannounce_update(fields);
        headers::end_hop(fields, headers::is_update);
        let ours =
            |line: &HeaderValue| (self.owns_cookie)(cookie::set_cookie_name(line.as_bytes()));
        if fields.get_all(SET_COOKIE).iter().any(ours) {
            let lines: Vec<HeaderValue> = fields.get_all(SET_COOKIE).iter().cloned().collect();
            fields.remove(SET_COOKIE);
            for line in lines {
                // SECURITY: an app must not plant a session.
                if ours(&line) {
                    let request_id = way.request_id;
                    tracing::warn!(
                        request_id,
                        "an app's Set-Cookie named a cookie of the gateway's"
                    );
                } else {
                    fields.append(SET_COOKIE, line);
                }
            }
        }
    }
}

/// What the app asks of the session; the fields are taken off by who calls.
fn take_update(fields: &HeaderMap, allowed: &Keys) -> Option<Result<SessionUpdate, UpdateRefused>> {
    let lines = fields.get_all(X_SESSION_UPDATE);
    let update = lines.iter().next().is_some();
    update.then(|| SessionUpdate::parse(lines, allowed))
}

/// Whether what the app asks of the session could be granted.
fn keeps_updates(route: &Route, opened: Option<&Rc<Opened>>) -> bool {
    opened.is_some() && route.session_update != Keys::None
}

/// A stream without an end: nothing is to be had from it once nobody listens.
fn is_event_stream(fields: &HeaderMap) -> bool {
    let kind = fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// The target's path and query, byte for byte as they were matched.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        Some(path) if uri.scheme().is_some() || uri.authority().is_some() => {
            Uri::from(path.clone())
        }
        _ => uri.clone(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the app switched to a protocol that was not asked for")]
struct Unasked;

#[derive(Debug, thiserror::Error)]
#[error("the app was asked for a WebSocket, and answered without one")]
struct NoWebSocket;

fn failure(error: UpstreamError) -> Failure {
    match error {
        UpstreamError::Late { .. } => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "app_timeout",
            "The app took too long to answer. Try again in a moment.",
        )
        .because(error),
        UpstreamError::Http2 { source: Http2Error::Handshake, .. } => Failure::new(
            StatusCode::BAD_REQUEST,
            "bad_handshake",
            "The request does not ask for a WebSocket as it should.",
        )
        .because(error),
        error => bad_gateway(error),
    }
}

fn bad_gateway(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(
        StatusCode::BAD_GATEWAY,
        "app_unreachable",
        "The app did not answer. Try again in a moment.",
    )
    .because(cause)
}

#[cfg(test)]
mod tests;
