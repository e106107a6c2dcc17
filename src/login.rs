//! The gateway's own endpoints, where a session begins and ends, and the refresh of its tokens. It
//! never sees an upstream.
//!
//! | file | question |
//! |---|---|
//! | `begin` | how is a browser sent to the provider? |
//! | `callback` | is the provider's answer good? |
//! | `logout` | how does a session end, here and there? |
//! | `backchannel`, `logout_token` | what if the provider ends it? |
//! | `refresh` | how do many requests share one refresh? |
//! | `pace` | how often may one client begin? |
//! | `attempt` | what is remembered of a login under way? |
//! | `parameters` | what did the query say? |
//! | `return_to` | where does the browser go afterwards? |
//! | `provider` | who is the provider, and which are its keys? |
//! | `id_token` | is an ID token good? |
//! | `token_endpoint`, `metadata`, `client_authentication`, `http_client` | how is it called? |

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use crate::body::{Body, BodyError};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::config::value::Origin;
use crate::error::Failure;
use crate::observe::metrics::WorkerMetrics;
use crate::session::{Sealer, Sessions, Unavailable, Visit};

mod attempt;
mod backchannel;
mod begin;
mod callback;
mod client_authentication;
mod http_client;
mod id_token;
mod logout;
mod logout_token;
mod metadata;
mod pace;
mod parameters;
pub mod provider;
pub mod refresh;
mod return_to;
mod token_endpoint;

pub use client_authentication::KeyError;
pub use http_client::HttpClient;
pub use pace::Pace;
pub use provider::{Provider, ProviderError};
pub use refresh::Refreshes;

/// An endpoint under `auth.prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Starts a login.
    Login,
    /// Takes the provider's answer.
    Callback,
    /// Ends the session.
    Logout,
    /// Shows the session.
    Profile,
    /// Takes the provider's word that sessions have ended.
    BackchannelLogout,
}

impl Endpoint {
    /// The endpoint of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "login" => Some(Self::Login),
            "callback" => Some(Self::Callback),
            "logout" => Some(Self::Logout),
            "profile" => Some(Self::Profile),
            "backchannel-logout" => Some(Self::BackchannelLogout),
            _ => None,
        }
    }

    /// Whether it is a browser's, whose session it looks at.
    pub fn looks_at_session(self) -> bool {
        self != Self::BackchannelLogout
    }
}

/// Logins, as one worker serves them.
pub struct Login {
    config: Arc<Config>,
    provider: Arc<Provider>,
    sealer: Arc<Sealer>,
    sessions: Rc<Sessions>,
    refreshes: Arc<Refreshes>,
    pace: Arc<Pace>,
    metrics: Rc<WorkerMetrics>,
}

/// What all workers share.
#[derive(Clone)]
pub struct Parties {
    /// The configuration.
    pub config: Arc<Config>,
    /// The provider.
    pub provider: Arc<Provider>,
    /// Seals attempts.
    pub sealer: Arc<Sealer>,
    /// Refreshes under way.
    pub refreshes: Arc<Refreshes>,
    /// Logins begun lately.
    pub pace: Arc<Pace>,
}

/// One request to the gateway itself.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Its head.
    pub request: &'a Parts,
    /// The public origin it is for.
    pub origin: &'a Origin,
    /// When it came.
    pub now: Timestamp,
}

impl Login {
    /// For one worker.
    pub fn new(parties: Parties, sessions: Rc<Sessions>, metrics: Rc<WorkerMetrics>) -> Self {
        let Parties { config, provider, sealer, refreshes, pace } = parties;
        Self { config, provider, sealer, sessions, refreshes, pace, metrics }
    }

    /// Whether this client may begin to log in now.
    ///
    /// # Errors
    /// 429 for who did so too often.
    pub fn admit(&self, client: IpAddr) -> Result<(), Failure> {
        self.pace.admit(client, self.config.server.limits.client_logins)
    }

    /// Serves an endpoint. Only one looks at the body.
    ///
    /// # Errors
    /// A page of its own, for whatever is wrong with the request, the answer or the provider.
    pub async fn serve<B>(
        &self,
        endpoint: Endpoint,
        asked: Asked<'_>,
        body: B,
        visit: &mut Visit,
    ) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>>,
    {
        let only = match endpoint {
            Endpoint::BackchannelLogout => Method::POST,
            _ => Method::GET,
        };
        let method = &asked.request.method;
        if *method != only && (method != Method::HEAD || endpoint != Endpoint::Profile) {
            return Ok(method_not_allowed(&only));
        }
        match endpoint {
            Endpoint::Login => self.login(asked),
            // Boxed: they are rare and large, and room for them would be held by every connection.
            Endpoint::Callback => Box::pin(self.callback(asked, visit)).await,
            Endpoint::Logout => Box::pin(self.logout(asked, visit)).await,
            Endpoint::Profile => self.profile(visit),
            Endpoint::BackchannelLogout => {
                Box::pin(self.backchannel_logout(asked.request, body, asked.now)).await
            }
        }
    }

    /// Whether a cookie of this name is one of an attempt's.
    pub fn owns_cookie(name: &[u8]) -> bool {
        name.starts_with(attempt::COOKIE_PREFIX.as_bytes())
    }

    /// What apps see of the session, as JSON; never a token (CVE-2024-39315).
    fn profile(&self, visit: &Visit) -> Result<Response<Body>, Failure> {
        let session = visit.session().ok_or_else(|| self.login_required())?;
        let json = serde_json::to_vec(&session.view()).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// The answer to what needs a session and cannot be sent to log in: 401, and where to. It
    /// starts no attempt. Where to come back to is for the page that asked to add: it is not what
    /// its script asked for.
    pub fn login_required(&self) -> Failure {
        let mut failure =
            Failure::new(StatusCode::UNAUTHORIZED, "login_required", "Please sign in first.");
        failure.login_url = Some(format!("{}/login", self.config.auth.prefix));
        failure
    }
}

/// 303: whatever the method was, the browser goes there with GET (RFC 9110, section 15.4.4).
fn see_other(location: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SEE_OTHER;
    // Every location here is an URL that was parsed or a path that was checked: visible ASCII.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn method_not_allowed(only: &Method) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let allow = if *only == Method::POST { "POST" } else { "GET" };
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The store of sessions is away: nobody knows whether there is a session.
pub fn sessions_unavailable(cause: Unavailable) -> Failure {
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "sessions_unavailable",
        "It cannot be looked up who you are right now. Try again in a moment.",
    )
    .because(cause)
    .retry_after(std::time::Duration::from_secs(2))
}

fn provider_unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "provider_unavailable",
        "The sign-in service cannot be reached. Try again in a moment.",
    )
    .because(cause)
    .retry_after(std::time::Duration::from_secs(5))
}

#[cfg(test)]
mod tests;
