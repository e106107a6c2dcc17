//! Where the browser goes after login or logout. It owns the one type that says "a path on our own
//! origin", and knows nothing of requests, sessions or the provider.
//!
//! SECURITY: open redirects (CVE-2020-5233, CVE-2020-11053, CVE-2020-4037, CVE-2021-32786,
//! CVE-2022-23527). A value of this type cannot point elsewhere, in a browser's reading or in that
//! of a party behind it that decodes the path once more.

use serde::{Deserialize, Serialize};
use url::{Position, Url};

use crate::config::value::Origin;
use crate::digits::hex;

/// The longest that is kept, in bytes: five attempts of this size fit a request head.
const LIMIT: usize = 2_000;

/// Stands for our own origin while a path is taken apart; never sent anywhere.
const ANY_ORIGIN: &str = "https://gateway.invalid/";

/// A path on our own origin, with its query and fragment; ASCII, at most 2,000 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub(super) struct ReturnTo(String);

impl ReturnTo {
    /// Never fails: whatever is not plainly a path on our own origin becomes `/`.
    pub(super) fn parse(text: &str) -> Self {
        plain_path(text).map_or_else(Self::default, Self)
    }

    /// The same path, or `/` where it lies at or below `prefix`: a return to `logout` would sign
    /// the user out again, and one to `login` would never end.
    #[must_use]
    pub(super) fn outside(self, prefix: &str) -> Self {
        let path = self.0.split(['?', '#']).next().unwrap_or_default();
        let decoded = percent_decode(path.as_bytes());
        let inside = decoded
            .strip_prefix(prefix.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
        if inside { Self::default() } else { self }
    }

    /// The path, ready for a `Location` field.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as a URL on `origin`.
    pub(super) fn on(&self, origin: &Origin) -> String {
        format!("{origin}{}", self.0)
    }
}

impl Default for ReturnTo {
    fn default() -> Self {
        Self("/".to_owned())
    }
}

impl From<String> for ReturnTo {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

/// The path as a browser would ask for it, if every reading of it stays on our origin.
fn plain_path(text: &str) -> Option<String> {
    // SECURITY: browsers drop tabs and line ends from a URL and read `\` as `/`.
    if text.len() > LIMIT || text.contains(|c: char| c.is_control() || c == '\\') {
        return None;
    }
    let path = text.split(['?', '#']).next()?;
    if !path.starts_with('/') || misleads(path.as_bytes()) {
        return None;
    }
    let base = Url::parse(ANY_ORIGIN).ok()?;
    let url = base.join(text).ok()?;
    if url.origin() != base.origin() || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let plain = &url[Position::BeforePath..];
    let plain_path = plain.split(['?', '#']).next()?;
    (plain.len() <= LIMIT && !misleads(plain_path.as_bytes())).then(|| plain.to_owned())
}

/// Whether a path, as written or decoded up to three times more, holds what some party reads as
/// the start of an authority: `//`, `\`, or a control character that is dropped on the way.
fn misleads(path: &[u8]) -> bool {
    let mut path = path.to_vec();
    for _ in 0..4 {
        let hidden = |byte: &u8| *byte == b'\\' || byte.is_ascii_control();
        if path.windows(2).any(|pair| pair == b"//") || path.iter().any(hidden) {
            return true;
        }
        let decoded = percent_decode(&path);
        if decoded == path {
            return false;
        }
        path = decoded;
    }
    // Still not at rest: nobody encodes a path five times in good faith.
    true
}

/// RFC 3986, section 2.1; a bad escape stays as it is.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let escape = match after {
            [high, low, tail @ ..] if first == b'%' => {
                hex(*high).zip(hex(*low)).map(|(high, low)| (high << 4 | low, tail))
            }
            _ => None,
        };
        match escape {
            Some((byte, tail)) => {
                decoded.push(byte);
                rest = tail;
            }
            None => decoded.push(first),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        Origin { host: "app.example.com".to_owned(), port: 443 }
    }

    #[test]
    fn what_points_elsewhere_becomes_the_root() {
        for hostile in [
            "/\\evil",
            "//evil",
            "///evil",
            "/%09/evil",
            "/%0b/\\evil",
            "/./\\evil",
            "/%5cevil",
            "/%5Cevil",
            "/%255cevil",
            "/%25255cevil",
            "/%2fevil",
            "/%2f/evil",
            "/.//evil",
            "/a/..//evil",
            "/%2e/%2fevil",
            "/\t/evil",
            "/\n/evil",
            "\t//evil",
            "https://evil/",
            "https:/evil",
            "https:evil",
            "https://evil\\@app.example.com/",
            "https://app.example.com/",
            "javascript:alert(1)",
            "data:text/html,x",
            "@evil",
            ".evil",
            "evil",
            "?next=/a",
            "#a",
            "",
            "/\u{7f}/evil",
            "/\u{85}/evil",
            "/%00",
        ] {
            assert_eq!(ReturnTo::parse(hostile).as_str(), "/", "{hostile:?}");
        }
    }

    #[test]
    fn a_path_on_our_origin_is_kept() {
        for path in [
            "/",
            "/inbox/7?sort=date&to=a%2Fb#last",
            "/search?next=https://other.example/%5c//x",
            "/a%20b",
            "/~me/@you",
            "/a:b",
        ] {
            assert_eq!(ReturnTo::parse(path).as_str(), path);
        }
    }

    #[test]
    fn a_path_becomes_what_a_browser_would_ask_for() {
        assert_eq!(ReturnTo::parse("/café?q=ü").as_str(), "/caf%C3%A9?q=%C3%BC");
        assert_eq!(ReturnTo::parse("/a/../b/./c").as_str(), "/b/c");
    }

    #[test]
    fn a_path_that_is_too_long_becomes_the_root() {
        let longest = format!("/{}", "a".repeat(LIMIT - 1));
        assert_eq!(ReturnTo::parse(&longest).as_str(), longest);
        assert_eq!(ReturnTo::parse(&format!("{longest}a")).as_str(), "/");
        // It grows while it is encoded.
        assert_eq!(ReturnTo::parse(&format!("/{}", "é".repeat(LIMIT / 3))).as_str(), "/");
    }

    #[test]
    fn a_return_to_the_gateways_own_endpoints_becomes_the_root() {
        for loops in ["/auth", "/auth/logout", "/auth/login?x=1", "/%61uth/logout", "/a/../auth/x"]
        {
            assert_eq!(ReturnTo::parse(loops).outside("/auth").as_str(), "/", "{loops}");
        }
        for outside in ["/author", "/my/auth/logout", "/?/auth/logout"] {
            assert_eq!(ReturnTo::parse(outside).outside("/auth").as_str(), outside);
        }
    }

    #[test]
    fn what_was_sealed_is_read_with_the_same_care() {
        let read: ReturnTo = serde_json::from_str("\"//evil\"").unwrap();
        assert_eq!(read.as_str(), "/");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_string_leaves_the_origin(text in any::<String>()) {
            stays(&text)?;
        }

        #[test]
        fn no_string_of_dangerous_parts_leaves_the_origin(
            text in "/(/|\\\\|\\.|%2e|%2f|%5c|%09|%25|%|\t|\n|@|:|evil|https:|\\?|#){0,12}"
        ) {
            stays(&text)?;
        }
    }

    fn stays(text: &str) -> Result<(), TestCaseError> {
        let target = ReturnTo::parse(text);
        prop_assert!(http::HeaderValue::from_str(target.as_str()).is_ok());
        prop_assert!(target.as_str().len() <= LIMIT);
        let ours = Url::parse(&origin().to_string()).unwrap();
        let resolved = ours.join(target.as_str()).unwrap();
        prop_assert_eq!(resolved.origin(), ours.origin());
        prop_assert_eq!(Url::parse(&target.on(&origin())).unwrap(), resolved);
        let decoded = percent_decode(target.as_str().as_bytes());
        if let Ok(decoded) = String::from_utf8(decoded)
            && let Ok(resolved) = ours.join(&decoded)
        {
            prop_assert_eq!(resolved.origin(), ours.origin());
        }
        // Reading it again changes nothing: what is sealed comes back as it was.
        prop_assert_eq!(ReturnTo::parse(target.as_str()), target);
        Ok(())
    }
}
