//! Who may have a route. Pure: it reads the route and the identity, never the data that apps put
//! into the session.

use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use serde_json::Value;

use crate::config::{Access, Requirement, Route};
use crate::page;
use crate::session::Identity;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded.
    Allow,
    /// There is nobody signed in, and somebody must be.
    SignIn,
    /// The user lacks a claim.
    Forbid,
}

impl Access {
    /// Whether the session matters for this route at all.
    pub fn looks_at_session(self) -> bool {
        self != Self::Public
    }
}

/// Judges a request for `route` by who asks.
pub fn judge(route: &Route, identity: Option<&Identity>) -> Verdict {
    match (route.access, identity) {
        (Access::Public | Access::Optional, _) => Verdict::Allow,
        (Access::Login | Access::Api, None) => Verdict::SignIn,
        (Access::Login | Access::Api, Some(identity)) => {
            let met = |rule: &Requirement| is_met(rule, identity);
            if route.require.iter().all(met) { Verdict::Allow } else { Verdict::Forbid }
        }
    }
}

/// The whole claim, or one whole element of it, equals one of the values: `a@evil@corp.com` is no
/// address of corp.com (CVE-2026-40574).
fn is_met(rule: &Requirement, identity: &Identity) -> bool {
    let equals = |value: &Value| match value {
        Value::String(text) => rule.any_of.contains(text),
        Value::Bool(_) | Value::Number(_) => rule.any_of.contains(&value.to_string()),
        _ => false,
    };
    match identity.claim(&rule.claim) {
        Some(Value::Array(elements)) => elements.iter().any(equals),
        Some(value) => equals(value),
        None => false,
    }
}

/// Whether a browser is opening a page, which a login may take the place of. A script, a form's
/// POST, a WebSocket or a prefetch would get a login page for an answer it cannot read.
pub fn is_navigation(request: &Parts) -> bool {
    let fields = &request.headers;
    let is = |name: &HeaderName, word: &str| fields.get(name).is_some_and(|value| value == word);
    request.method == Method::GET
        && !fields.contains_key(http::header::UPGRADE)
        && !fields.contains_key(&X_REQUESTED_WITH)
        && (is(&SEC_FETCH_MODE, "navigate") || !fields.contains_key(&SEC_FETCH_MODE))
        && !is_prefetch(fields)
        && page::prefers_html(fields.get(ACCEPT))
}

/// `Sec-Purpose: prefetch` (Fetch), and what was sent before there was a standard.
fn is_prefetch(fields: &HeaderMap) -> bool {
    [SEC_PURPOSE, PURPOSE, X_MOZ].iter().filter_map(|name| fields.get(name)).any(|value| {
        value.to_str().is_ok_and(|text| text.contains("prefetch") || text.contains("preview"))
    })
}

const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
const PURPOSE: HeaderName = HeaderName::from_static("purpose");
const X_MOZ: HeaderName = HeaderName::from_static("x-moz");
