//! One exchange with an app: what it is told, what it is not told, and what it says back. It knows
//! sessions only to read them; what an app asks to change it takes off the response and hands on.
//!
//! | file | question |
//! |---|---|
//! | `headers` | which fields pass? |
//! | `identity` | what is the app told of the user? |
//! | `forwarded` | what is the app told of the connection? |
//! | `passing` | what is taken off bodies and their trailers? |
//! | `upgrade` | how does a WebSocket pass? |

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, SET_COOKIE, TE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;

use crate::body::Body;
use crate::config::{Config, Route};
use crate::error::Failure;
use crate::session::update::UpdateRefused;
use crate::session::{Opened, SessionUpdate, cookie};
use crate::upstream::{UpstreamError, Upstreams};

mod forwarded;
mod headers;
mod identity;
mod passing;
mod upgrade;

use forwarded::Forwarded;
use headers::{Reserved, X_SESSION_UPDATE};

/// Tells the gateway's own cookies by their names.
pub type OwnCookie = Box<dyn Fn(&[u8]) -> bool>;

/// Forwards the requests of one worker.
pub struct Forward {
    config: Arc<Config>,
    upstreams: Upstreams,
    reserved: Rc<Reserved>,
    forwarded: Forwarded,
    owns_cookie: OwnCookie,
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
}

/// An app's answer: what the browser gets, and what the app asked of the session.
pub struct Answer {
    /// The response, without anything that is not for the browser.
    pub response: Response<Body>,
    /// The update it carried.
    pub update: Option<Result<SessionUpdate, UpdateRefused>>,
}

impl Forward {
    /// For one worker.
    pub fn new(
        config: &Arc<Config>,
        tls: &Arc<rustls::ClientConfig>,
        owns_cookie: OwnCookie,
    ) -> Self {
        Self {
            upstreams: Upstreams::new(&config.routes, &config.server.limits, tls),
            reserved: Rc::new(Reserved::new(config)),
            forwarded: Forwarded::new(&config.server),
            config: config.clone(),
            owns_cookie,
        }
    }

    /// Who sent the request: the peer, or whom a trusted proxy names.
    pub fn client(&self, peer: IpAddr, fields: &HeaderMap) -> IpAddr {
        self.forwarded.client(peer, fields)
    }

    /// Sends a request to the route's app, for the session if there is one.
    ///
    /// # Errors
    /// 502 if no upstream can be reached or the exchange breaks, 504 if it is late.
    pub async fn send(
        &self,
        mut request: Request<Incoming>,
        way: Way<'_>,
        opened: Option<&Opened>,
    ) -> Result<Answer, Failure> {
        let Some(route) = self.config.routes.get(way.route) else {
            return Err(bad_gateway(UpstreamError::None));
        };
        let browser = upgrade::wanted(&request).then(|| hyper::upgrade::on(&mut request));
        let request = self.prepare(request, route, way, opened, browser.is_some());
        let mut response = self.upstreams.send(way.route, request).await.map_err(failure)?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let agreed = switched && upgrade::agreed(response.headers());
        let update = take_update(response.headers_mut(), route);
        self.clean(response.headers_mut(), way);
        // Which HTTP the app speaks is between it and us (RFC 9110, section 6.2).
        *response.version_mut() = Version::HTTP_11;
        if switched {
            let Some(browser) = browser.filter(|_| agreed) else {
                return Err(bad_gateway(Unasked));
            };
            upgrade::join(browser, &mut response);
            upgrade::write(response.headers_mut());
        }
        Ok(Answer { response: response.map(passing::to_browser), update })
    }

    /// The request as the app gets it.
    fn prepare(
        &self,
        request: Request<Incoming>,
        route: &Route,
        way: Way<'_>,
        opened: Option<&Opened>,
        upgraded: bool,
    ) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let fields = &mut parts.headers;
        let body = passing::to_app(body, &self.reserved);
        // hyper takes a GET of unknown length for one without a body, unless it is told.
        let chunked = matches!(body, Body::Stream(_)) && !fields.contains_key(CONTENT_LENGTH);
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
        if chunked {
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if upgraded {
            upgrade::write(fields);
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

/// What the app asks of the session.
fn take_update(
    fields: &mut HeaderMap,
    route: &Route,
) -> Option<Result<SessionUpdate, UpdateRefused>> {
    let lines = fields.get_all(X_SESSION_UPDATE);
    let update = lines.iter().next().is_some();
    update.then(|| SessionUpdate::parse(lines, &route.session_update))
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

fn failure(error: UpstreamError) -> Failure {
    match error {
        UpstreamError::Late { .. } => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "app_timeout",
            "The app took too long to answer. Try again in a moment.",
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
