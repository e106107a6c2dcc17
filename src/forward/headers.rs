//! Which fields pass: a client never sends what only the gateway may say, and what concerns one
//! connection ends with it (RFC 9110, section 7.6.1). It knows names, no values of a session.

use ahash::RandomState;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT,
    HOST, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::collections::HashSet;

use crate::config::Config;

/// What an app returns to change the session.
pub(super) const X_SESSION_UPDATE: HeaderName = HeaderName::from_static(UPDATE);
const UPDATE: &str = "x-session-update";

/// What one connection's two ends say to each other. `Expect` is among it: the gateway itself
/// answers it when it begins to read the body.
const HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
    HeaderName::from_static("http2-settings"),
];

/// Folded names that begin so are the gateway's. `X-Session-Update` and `X-Session` are among them.
const PREFIXES: [&[u8]; 3] = [b"x-client-cert-", b"x-forwarded-", b"x-session"];
/// Folded names that are the gateway's, or that legacy apps believe as if they were. `Proxy` is
/// what CGI programs read as `HTTP_PROXY` (CVE-2016-5385).
const NAMES: [&[u8]; 8] = [
    b"forwarded",
    b"proxy",
    b"traceparent",
    b"tracestate",
    b"x-original-url",
    b"x-real-ip",
    b"x-request-id",
    b"x-rewrite-url",
];

/// The names that the gateway may set, on any route: removed from what every client sends.
pub(super) struct Reserved {
    names: HashSet<Box<[u8]>, RandomState>,
    /// The first bytes of all of them: most names are judged by this alone.
    first: [bool; 256],
}

impl Reserved {
    /// The names of section "what upstreams receive" and those that any route configures.
    pub(super) fn new(config: &Config) -> Self {
        let configured = config.routes.iter().flat_map(|route| &route.headers);
        Self::of(configured.map(|(name, _)| name.clone()))
    }

    fn of(configured: impl IntoIterator<Item = HeaderName>) -> Self {
        let configured = configured.into_iter().map(|name| folded(name.as_str().as_bytes()));
        let names: HashSet<_, _> = NAMES.into_iter().map(Box::from).chain(configured).collect();
        let mut first = [false; 256];
        for name in names.iter().map(AsRef::as_ref).chain(PREFIXES) {
            if let Some(slot) = name.first().and_then(|byte| first.get_mut(usize::from(*byte))) {
                *slot = true;
            }
        }
        Self { names, first }
    }

    /// Whether a field of this name is the gateway's own, in any spelling.
    ///
    // SECURITY: a CGI environment makes one variable of `X-Forwarded-User`, `X_Forwarded_User` and
    // `X.Forwarded.User` (CVE-2025-64484, CVE-2026-54763, GHSA-rf44): compare what they fold to.
    pub(super) fn holds(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        let first = name.first().and_then(|byte| self.first.get(usize::from(*byte)));
        first.is_some_and(|first| *first) && {
            let name = folded(name);
            self.names.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        }
    }

    /// Takes every reserved field off a request's trailers, and what may only stand before a body
    /// (RFC 9110, section 6.5.1): an app that merges the two would believe it.
    pub(super) fn strip(&self, trailers: &mut HeaderMap) {
        remove(trailers, |name| {
            self.holds(name) || HOP.contains(name) || BEFORE_A_BODY.contains(name)
        });
    }
}

/// What frames or routes a request, or says whose it is.
const BEFORE_A_BODY: [HeaderName; 6] =
    [AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, CONTENT_ENCODING];

/// Whether an app may have meant an update with a field of this name. Only one spelling is one, but
/// none is for the browser.
pub(super) fn is_update(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    name.len() == UPDATE.len() && *folded(name) == *UPDATE.as_bytes()
}

/// Takes updates, in any spelling, off a response's trailers.
pub(super) fn strip_updates(trailers: &mut HeaderMap) {
    remove(trailers, is_update);
}

/// Takes updates off what a response announces as trailers (RFC 9110, section 6.6.2).
pub(super) fn unannounce_update(fields: &mut HeaderMap) {
    let update = |name: &[u8]| HeaderName::from_bytes(name).is_ok_and(|name| is_update(&name));
    if !fields.get_all(TRAILER).into_iter().flat_map(list).any(update) {
        return;
    }
    let names: Vec<&[u8]> =
        fields.get_all(TRAILER).into_iter().flat_map(list).filter(|name| !update(name)).collect();
    let rest = HeaderValue::from_bytes(&names.join(&b", "[..]));
    fields.remove(TRAILER);
    if let Ok(rest) = rest
        && !rest.is_empty()
    {
        fields.insert(TRAILER, rest);
    }
}

/// The name as a CGI environment sees it; field names are in lower case already.
fn folded(name: &[u8]) -> Box<[u8]> {
    name.iter().map(|byte| if byte.is_ascii_alphanumeric() { *byte } else { b'-' }).collect()
}

/// Takes off what concerns the connection alone, the fields that `Connection` names among it, and
/// what `also` picks, in one pass. It runs before the gateway adds its own, so that no client can
/// remove those (CVE-2024-45410, CVE-2022-31813).
pub(super) fn end_hop(fields: &mut HeaderMap, also: impl Fn(&HeaderName) -> bool) {
    for name in nominated(fields) {
        fields.remove(name);
    }
    remove(fields, |name| HOP.contains(name) || also(name));
}

fn remove(fields: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let found: Vec<HeaderName> = fields.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in found {
        fields.remove(name);
    }
}

/// The fields that `Connection` names, but for those that frame or route the message: without
/// them it would be another message.
fn nominated(fields: &HeaderMap) -> Vec<HeaderName> {
    let options = fields.get_all(CONNECTION).into_iter().flat_map(list);
    options
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH].contains(name))
        .collect()
}

/// The elements of a comma-separated field.
pub(super) fn list(field: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    field.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether the client takes trailers (RFC 9110, section 10.1.4).
pub(super) fn takes_trailers(fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(TE).into_iter().flat_map(list);
    codings.any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reserved() -> Reserved {
        Reserved::of([
            HeaderName::from_static("x-user-plan"),
            HeaderName::from_static("remote_user"),
        ])
    }

    fn fields(names: &[&str]) -> HeaderMap {
        let field =
            |name: &&str| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("v"));
        names.iter().map(field).collect()
    }

    fn names(fields: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    /// CVE-2025-64484, CVE-2026-54763, CVE-2026-52845, GHSA-rf44.
    #[test]
    fn every_spelling_of_a_reserved_name_is_stripped() {
        let mut all = fields(&[
            "X-Forwarded-User",
            "x_forwarded_email",
            "X.Forwarded.Groups",
            "x-forwarded_for",
            "X-Session",
            "x_session_update",
            "X_Client.Cert-subject",
            "x-client-cert-fingerprint",
            "x.session",
            "X-SESSION-OMITTED",
            "forwarded",
            "x_user_plan",
            "Remote-User",
            "x-request-id",
            "traceparent",
            "Proxy",
            "x-real_ip",
            "accept",
            "x-requested-with",
            "x-sess",
            "forwarded-by",
            "user-agent",
            "remote",
        ]);
        end_hop(&mut all, |name| reserved().holds(name));
        let kept = ["accept", "forwarded-by", "remote", "user-agent", "x-requested-with", "x-sess"];
        assert_eq!(names(&all), kept);
    }

    #[test]
    fn what_concerns_the_connection_ends_with_it() {
        let mut all = fields(&[
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
            "expect",
            "proxy-authorization",
            "x-private",
            "accept",
            "host",
            "content-length",
        ]);
        for options in ["close, X-Private", "host, Content-Length", "\"no name\", ,"] {
            all.append(CONNECTION, HeaderValue::from_static(options));
        }
        end_hop(&mut all, |_| false);
        assert_eq!(names(&all), ["accept", "content-length", "host"]);
    }

    /// CVE-2026-88004.
    #[test]
    fn a_trailer_says_nothing_that_a_header_may_not_or_that_belongs_before_the_body() {
        let mut all = fields(&[
            "x_forwarded_user",
            "x-session",
            "x.user.plan",
            "authorization",
            "cookie",
            "host",
            "content-length",
            "transfer-encoding",
            "te",
            "connection",
            "grpc-status",
            "x-checksum",
        ]);
        reserved().strip(&mut all);
        assert_eq!(names(&all), ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn an_update_is_known_in_every_spelling() {
        for name in ["X-Session-Update", "x_session_update", "X.SESSION.update", "x~session|update"]
        {
            assert!(is_update(&name.parse().unwrap()), "{name}");
        }
        for name in ["x-session-updat", "x-session-updates", "x-session", "y-session-update"] {
            assert!(!is_update(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn an_update_is_not_announced() {
        let mut all = HeaderMap::new();
        all.append(TRAILER, HeaderValue::from_static("Server-Timing, X-Session-Update"));
        all.append(TRAILER, HeaderValue::from_static("x_session_update,Digest"));
        unannounce_update(&mut all);
        assert_eq!(all.get_all(TRAILER).iter().collect::<Vec<_>>(), ["Server-Timing, Digest"]);
        all.insert(TRAILER, HeaderValue::from_static("X-Session-Update"));
        unannounce_update(&mut all);
        assert!(all.is_empty());
    }

    proptest! {
        #[test]
        fn no_name_that_folds_to_a_reserved_one_survives(
            base in prop::sample::select(vec![
                "x-forwarded-user", "x-forwarded-anything", "x-session", "x-session-update",
                "x-client-cert-subject",
                "forwarded", "x-request-id", "x-user-plan", "remote_user", "x-original-url",
            ]),
            marks in prop::collection::vec(prop::sample::select(b"-_.!~^|#$%&'*+`".to_vec()), 32),
            upper in prop::collection::vec(any::<bool>(), 32),
        ) {
            let mut marks = marks.into_iter();
            let name: Vec<u8> = base.bytes().zip(upper).map(|(byte, upper)| match byte {
                b'-' | b'_' => marks.next().unwrap(),
                byte if upper => byte.to_ascii_uppercase(),
                byte => byte,
            }).collect();
            let name = HeaderName::from_bytes(&name).unwrap();
            prop_assert!(reserved().holds(&name), "{name}");
        }
    }
}
