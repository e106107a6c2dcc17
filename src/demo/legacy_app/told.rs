//! What the app is told: the headers of a request, and the session in one of them. Whoever can
//! reach the app's port can send any header, so nothing in them is taken for well-formed.

use std::borrow::Cow;

use http::HeaderMap;
use serde_json::Value;

/// Characters of a secret that are shown.
const SHOWN_OF_SECRET: usize = 8;

/// The headers of a request, read.
pub(super) struct Told<'a> {
    headers: &'a HeaderMap,
    session: Value,
}

impl<'a> Told<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let session = headers.get("x-session");
        let session = session.and_then(|json| serde_json::from_slice(json.as_bytes()).ok());
        Self { headers, session: session.unwrap_or(Value::Null) }
    }

    /// The session, as `X-Session` has it; null if there is none, or it is no JSON.
    pub(super) fn session(&self) -> &Value {
        &self.session
    }

    /// A member of the session, by its path: `["features", "beta"]`.
    pub(super) fn member(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.session, |value, name| value.get(name))
    }

    /// A member of the session, as it is shown: text as it is, all else as JSON.
    pub(super) fn shown(&self, path: &[&str]) -> Option<String> {
        match self.member(path)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// A header's value; what is not UTF-8 in it is replaced.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
    }

    /// Every line that arrived; secrets shortened.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&'a str, String)> {
        self.headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            let value = match name.as_str() {
                // SECURITY: a page ends up in screenshots and bug reports.
                "authorization" | "proxy-authorization" => shortened(&value),
                "cookie" => value.split(';').map(without_value).collect::<Vec<_>>().join("; "),
                _ => value.into_owned(),
            };
            (name.as_str(), value)
        })
    }
}

/// The scheme and the beginning of the credentials.
fn shortened(authorization: &str) -> String {
    let (scheme, secret) = authorization.split_once(' ').unwrap_or(("", authorization));
    let length = secret.chars().count();
    // Of a short secret nothing is shown: its beginning would be most of it.
    let shown = if length > 4 * SHOWN_OF_SECRET { SHOWN_OF_SECRET } else { 0 };
    let beginning: String = secret.chars().take(shown).collect();
    format!("{scheme} {beginning}… ({length} characters)").trim_start().to_owned()
}

fn without_value(cookie: &str) -> String {
    cookie.split_once('=').map_or("…".to_owned(), |(name, _)| format!("{}=…", name.trim()))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &[u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_session_that_is_no_json_is_none() {
        for json in [&b"{\"theme\":"[..], b"\xff", b"", b"{}{}"] {
            let headers = headers(&[("x-session", json)]);
            assert_eq!(Told::of(&headers).session(), &Value::Null);
            assert_eq!(Told::of(&headers).shown(&["theme"]), None);
        }
    }

    #[test]
    fn a_member_is_shown_by_its_path() {
        let json = br#"{"user":{"name":"Zo\u00eb"},"features":{"beta":true},"n":3,"gone":null}"#;
        let headers = headers(&[("x-session", json)]);
        let told = Told::of(&headers);
        assert_eq!(told.shown(&["user", "name"]).as_deref(), Some("Zoë"));
        assert_eq!(told.shown(&["features", "beta"]).as_deref(), Some("true"));
        assert_eq!(told.shown(&["n"]).as_deref(), Some("3"));
        assert_eq!(told.shown(&["gone"]), None);
        assert_eq!(told.shown(&["n", "deeper"]), None);
    }

    #[test]
    fn no_secret_is_shown_in_full() {
        let long = "Bearer abcdefghijklmnopqrstuvwxyz0123456789";
        let headers = headers(&[
            ("authorization", long.as_bytes()),
            ("authorization", b"Basic c2hvcnQ="),
            ("authorization", b"naked-secret"),
            ("cookie", b"theirs=the-value; other=the-value;flag"),
            ("x-plain", b"the-plain"),
        ]);
        let shown: Vec<_> = Told::of(&headers).lines().map(|(_, value)| value).collect();
        assert_eq!(shown[0], "Bearer abcdefgh… (36 characters)");
        assert_eq!(shown[1], "Basic … (8 characters)");
        assert_eq!(shown[2], "… (12 characters)");
        assert_eq!(shown[3], "theirs=…; other=…; …");
        assert_eq!(shown[4], "the-plain");
    }
}
