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
    let names = [SEC_PURPOSE, PURPOSE, X_PURPOSE, X_MOZ];
    names.iter().flat_map(|name| fields.get_all(name)).any(|value| {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        ["prefetch", "prerender", "preview"].iter().any(|word| text.contains(word))
    })
}

const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
const PURPOSE: HeaderName = HeaderName::from_static("purpose");
const X_PURPOSE: HeaderName = HeaderName::from_static("x-purpose");
const X_MOZ: HeaderName = HeaderName::from_static("x-moz");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sample;
    use http::Request;
    use serde_json::json;

    fn route(access: Access, require: &[(&str, &[&str])]) -> Route {
        let rule = |(claim, any_of): &(&str, &[&str])| Requirement {
            claim: (*claim).to_owned(),
            any_of: any_of.iter().map(ToString::to_string).collect(),
        };
        Route { access, require: require.iter().map(rule).collect(), ..sample::route() }
    }

    fn identity(more: &Value) -> Identity {
        let mut claims = json!({"iss": "i", "sub": "auth0|zoe"}).as_object().unwrap().clone();
        claims.extend(more.as_object().unwrap().clone());
        Identity::new(claims).unwrap()
    }

    #[test]
    fn who_is_not_signed_in_is_let_in_where_anyone_is() {
        for (access, verdict) in [
            (Access::Login, Verdict::SignIn),
            (Access::Api, Verdict::SignIn),
            (Access::Optional, Verdict::Allow),
            (Access::Public, Verdict::Allow),
        ] {
            // A rule cannot be met by nobody, and nobody is not told of it.
            assert_eq!(judge(&route(access, &[("roles", &["admin"])]), None), verdict);
            let route = route(access, &[]);
            assert_eq!(judge(&route, None), verdict);
            assert_eq!(judge(&route, Some(&identity(&json!({})))), Verdict::Allow);
            assert_eq!(access.looks_at_session(), access != Access::Public);
        }
    }

    #[test]
    fn a_rule_is_met_by_a_whole_claim_or_a_whole_element() {
        let route = route(Access::Login, &[("roles", &["admin", "7", "true"])]);
        for (claim, met) in [
            (json!("admin"), true),
            (json!(["user", "admin"]), true),
            (json!(7), true),
            (json!([7]), true),
            (json!(true), true),
            (json!("Admin"), false),
            (json!("admin "), false),
            (json!("admin,user"), false),
            (json!("administrator"), false),
            (json!(["admins"]), false),
            (json!([["admin"]]), false),
            (json!({"admin": true}), false),
            (json!([{"name": "admin"}]), false),
            (json!([]), false),
            (json!(""), false),
            (json!(7.5), false),
            (json!(false), false),
            (json!(null), false),
        ] {
            let verdict = if met { Verdict::Allow } else { Verdict::Forbid };
            assert_eq!(
                judge(&route, Some(&identity(&json!({"roles": claim})))),
                verdict,
                "{claim}"
            );
        }
        assert_eq!(judge(&route, Some(&identity(&json!({})))), Verdict::Forbid, "no such claim");
        assert_eq!(judge(&route, Some(&identity(&json!({"Roles": "admin"})))), Verdict::Forbid);
    }

    /// CVE-2026-40574.
    #[test]
    fn an_address_with_two_signs_matches_no_rule_for_either() {
        let rules: [&[&str]; 3] =
            [&["corp.com", "@corp.com"], &["evil@corp.com"], &["a@corp.com", "a@evil"]];
        for any_of in rules {
            let route = route(Access::Login, &[("email", any_of)]);
            let user = identity(&json!({"email": "a@evil@corp.com"}));
            assert_eq!(judge(&route, Some(&user)), Verdict::Forbid);
        }
    }

    #[test]
    fn every_rule_must_be_met() {
        let route = route(Access::Api, &[("roles", &["admin"]), ("org_id", &["o1", "o2"])]);
        for (claims, verdict) in [
            (json!({"roles": ["admin"], "org_id": "o2"}), Verdict::Allow),
            (json!({"roles": ["admin"], "org_id": "o3"}), Verdict::Forbid),
            (json!({"roles": ["admin"]}), Verdict::Forbid),
            (json!({"org_id": "o1"}), Verdict::Forbid),
        ] {
            assert_eq!(judge(&route, Some(&identity(&claims))), verdict, "{claims}");
        }
    }

    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    fn navigates(method: &str, lines: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/page");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        is_navigation(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_browser_that_opens_a_page_navigates() {
        let modern = [
            ("accept", BROWSER),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
            ("sec-fetch-user", "?1"),
            ("upgrade-insecure-requests", "1"),
        ];
        assert!(navigates("GET", &modern));
        // Older ones, and those behind a filter, do not say how they fetch.
        assert!(navigates("GET", &[("accept", BROWSER)]));
        assert!(navigates("GET", &[("accept", "text/html")]));
    }

    /// nextjs-auth0 #1761, oauth2-proxy #1393.
    #[test]
    fn what_cannot_show_a_login_page_does_not_navigate() {
        for (method, lines) in [
            ("GET", vec![]),
            ("GET", vec![("accept", "*/*")]),
            ("GET", vec![("accept", "application/json")]),
            ("GET", vec![("accept", "application/json, text/html;q=0.5")]),
            ("GET", vec![("accept", "image/avif,image/webp,*/*")]),
            ("GET", vec![("accept", "text/event-stream")]),
            ("GET", vec![("accept", BROWSER), ("sec-fetch-mode", "cors")]),
            ("GET", vec![("accept", BROWSER), ("sec-fetch-mode", "no-cors")]),
            ("GET", vec![("accept", BROWSER), ("sec-fetch-mode", "same-origin")]),
            ("GET", vec![("accept", BROWSER), ("sec-fetch-mode", "websocket")]),
            ("GET", vec![("accept", BROWSER), ("x-requested-with", "XMLHttpRequest")]),
            ("GET", vec![("accept", BROWSER), ("upgrade", "websocket")]),
            ("GET", vec![("accept", BROWSER), ("sec-purpose", "prefetch")]),
            ("GET", vec![("accept", BROWSER), ("sec-purpose", "prefetch;prerender")]),
            ("GET", vec![("accept", BROWSER), ("sec-purpose", "Prerender")]),
            ("GET", vec![("accept", BROWSER), ("purpose", "prefetch")]),
            ("GET", vec![("accept", BROWSER), ("x-purpose", "preview")]),
            ("GET", vec![("accept", BROWSER), ("x-moz", "prefetch")]),
            ("POST", vec![("accept", BROWSER), ("sec-fetch-mode", "navigate")]),
            ("HEAD", vec![("accept", BROWSER)]),
            ("OPTIONS", vec![("accept", BROWSER)]),
            ("PUT", vec![("accept", BROWSER)]),
        ] {
            assert!(!navigates(method, &lines), "{method} {lines:?}");
        }
    }
}
