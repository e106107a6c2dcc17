//! A logout that comes from the provider itself, from server to server (OpenID Connect Back-Channel
//! Logout 1.0): its token is checked, then the sessions end. No browser takes part: no cookie is
//! looked at, and none is set.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::provider::ProviderError;
use super::{Login, logout_token, provider_unavailable, sessions_unavailable};
use crate::body::{Body, BodyError};
use crate::clock::Timestamp;
use crate::error::Failure;
use crate::observe::metrics::LoginOutcome;
use crate::session::LogoutRefused;

/// The longest form, in bytes: a token and little else.
const LONGEST: usize = 64 * 1024;
/// How long the form may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

impl Login {
    /// `POST backchannel-logout`. An empty 200 says that the sessions have ended (section 2.7).
    pub(super) async fn backchannel_logout<B>(
        &self,
        request: &Parts,
        body: B,
        now: Timestamp,
    ) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>>,
    {
        let token = token(&read(request, body).await?)?;
        let config = &self.config.provider;
        let verify = |keys: &_| logout_token::verify(&token, keys, config, now);
        let logout = self.provider.with_keys(verify, now).await.map_err(unverified)?;
        self.sessions.end_all(&logout, now).await.map_err(|refused| match refused {
            LogoutRefused::Replayed => refusal("the logout token was obeyed before"),
            LogoutRefused::Unavailable(cause) => sessions_unavailable(cause),
        })?;
        self.metrics.login(LoginOutcome::LoggedOutByProvider);
        let mut response = Response::new(Body::Empty);
        // Section 2.8.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// The form, whole and within its bounds.
async fn read<B>(request: &Parts, body: B) -> Result<Bytes, Failure>
where
    B: http_body::Body<Data = Bytes, Error: Into<BodyError>>,
{
    const FORM: &[u8] = b"application/x-www-form-urlencoded";
    let kind = request.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    if !kind.trim_ascii().eq_ignore_ascii_case(FORM) {
        return Err(refusal("it is no form"));
    }
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, LONGEST).collect());
    match body.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(Failure {
            status: if error.is::<LengthLimitError>() {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            },
            ..refusal(error)
        }),
        Err(_) => Err(Failure {
            status: StatusCode::REQUEST_TIMEOUT,
            ..refusal("the form did not come in time")
        }),
    }
}

/// The one `logout_token` of a form; what else it holds is ignored (section 2.5).
fn token(form: &[u8]) -> Result<String, Failure> {
    let mut tokens = url::form_urlencoded::parse(form).filter(|(name, _)| name == "logout_token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        _ => Err(refusal("the form holds no logout token, or several")),
    }
}

fn unverified(error: ProviderError) -> Failure {
    match error {
        ProviderError::IdToken(why) => refusal(format!("the logout token is not good: {why}")),
        ProviderError::NoKey => {
            refusal("the logout token is signed with a key that the provider does not publish")
        }
        error => provider_unavailable(error),
    }
}

/// Section 2.8: 400 and `invalid_request`. Why, the log knows.
fn refusal(cause: impl Into<BodyError>) -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "invalid_request",
        "This is no logout that can be carried out here.",
    )
    .because(cause)
}

#[cfg(test)]
mod tests;
