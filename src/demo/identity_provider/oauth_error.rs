//! The errors that the endpoints for clients answer with, as JSON (RFC 6749, section 5.2). What
//! the login page says to people is elsewhere.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::keys::KeyError;
use crate::demo::web::{self, ParametersRefused, Reply};

/// An error of the token, revocation or userinfo endpoint. Its sentences hold no input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OAuthError {
    status: StatusCode,
    code: &'static str,
    description: &'static str,
    challenge: Option<&'static str>,
}

impl OAuthError {
    /// 400 `invalid_request`: a parameter is missing or malformed.
    pub(super) fn invalid_request(description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", description)
    }

    /// 400 `invalid_grant`: the code or refresh token is not good, or no longer.
    pub(super) fn invalid_grant(description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_grant", description)
    }

    /// 401 `invalid_client`: the client did not say who it is, or lied.
    pub(super) fn invalid_client() -> Self {
        let error = Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "The client's id or secret is wrong.",
        );
        // RFC 6749, section 5.2: the challenge names the scheme that the client may use.
        Self { challenge: Some("Basic realm=\"demo\""), ..error }
    }

    /// 401 `invalid_token` (RFC 6750, section 3.1).
    pub(super) fn invalid_token() -> Self {
        let error = Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_token",
            "The access token is missing, expired or not ours.",
        );
        Self { challenge: Some("Bearer error=\"invalid_token\""), ..error }
    }

    /// 400 with another code.
    pub(super) fn other(code: &'static str, description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, description)
    }

    /// The JSON document that says so.
    pub(super) fn reply(self) -> Reply {
        let body = json!({ "error": self.code, "error_description": self.description });
        let mut reply = web::json(self.status, &body);
        if let Some(challenge) = self.challenge {
            reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        reply
    }

    fn new(status: StatusCode, code: &'static str, description: &'static str) -> Self {
        Self { status, code, description, challenge: None }
    }

    #[cfg(test)]
    pub(super) fn code(self) -> &'static str {
        self.code
    }
}

impl From<KeyError> for OAuthError {
    fn from(_: KeyError) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "server_error", "The provider could not sign or draw random bytes.")
    }
}

impl From<ParametersRefused> for OAuthError {
    fn from(refused: ParametersRefused) -> Self {
        Self::invalid_request(match refused {
            ParametersRefused::TooLarge => "The parameters are too long or too many.",
            ParametersRefused::Repeated => "A parameter was given twice.",
        })
    }
}
