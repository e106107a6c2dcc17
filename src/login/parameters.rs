//! The query of a request to the gateway itself: bounded, each parameter once.

use http::StatusCode;
use http::request::Parts;

use crate::error::Failure;

/// Parameters in one query.
const MOST: usize = 40;
/// The longest value, in bytes; a code of some providers has more than a thousand.
const LONGEST: usize = 4096;

/// Decoded names and values.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a request's query.
    ///
    /// # Errors
    /// 400 for too many, too long ones, or one that is there twice (RFC 6749, section 3.1;
    /// CVE-2023-27496).
    pub(super) fn of(request: &Parts) -> Result<Self, Failure> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (name, value) in
            url::form_urlencoded::parse(request.uri.query().unwrap_or("").as_bytes())
        {
            let twice = found.iter().any(|(known, _)| *known == name);
            if found.len() >= MOST || name.len() + value.len() > LONGEST || twice {
                return Err(bad_request());
            }
            found.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(found))
    }

    /// A parameter's value; one without a value counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        (!value.is_empty()).then_some(value)
    }
}

/// 400: the query is not what the endpoint takes.
pub(super) fn bad_request() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "bad_request",
        "This address is incomplete or has been altered. Go back to the app and try again.",
    )
}
