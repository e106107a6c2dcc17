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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<Parameters, u16> {
        let request = http::Request::get(format!("/auth/login?{query}")).body(()).unwrap();
        Parameters::of(&request.into_parts().0).map_err(|failure| failure.status.as_u16())
    }

    #[test]
    fn names_and_values_are_decoded() {
        let parameters = of("return_to=%2Fa%3Fb%3Dc&x=a+b&empty=&bare&%C3%A4=1").unwrap();
        assert_eq!(parameters.get("return_to"), Some("/a?b=c"));
        assert_eq!(parameters.get("x"), Some("a b"));
        assert_eq!(parameters.get("ä"), Some("1"));
        for absent in ["empty", "bare", "none", "RETURN_TO"] {
            assert_eq!(parameters.get(absent), None, "{absent}");
        }
    }

    /// CVE-2023-27496.
    #[test]
    fn a_parameter_that_is_there_twice_is_refused() {
        for query in ["state=a&state=b", "state=a&state=a", "a&a=", "st%61te=a&x=1&state=b"] {
            assert_eq!(of(query).err(), Some(400), "{query}");
        }
    }

    #[test]
    fn a_query_has_bounds() {
        let many = |count: usize| (0..count).map(|at| format!("p{at}=1&")).collect::<String>();
        assert!(of(&many(MOST)).is_ok());
        assert_eq!(of(&many(MOST + 1)).err(), Some(400));
        assert!(of(&format!("code={}", "x".repeat(LONGEST - 4))).is_ok());
        assert_eq!(of(&format!("code={}", "x".repeat(LONGEST - 3))).err(), Some(400));
        assert_eq!(of(&format!("{}=x", "x".repeat(LONGEST))).err(), Some(400));
    }

    #[test]
    fn what_is_no_query_is_one_without_parameters() {
        for query in ["", "&", "&&&=", "%", "%zz=%", "%00=%ff"] {
            assert_eq!(of(query).unwrap().get("state"), None, "{query}");
        }
    }
}
