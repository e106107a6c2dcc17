//! What an app is told of the user: the identity headers, the session as JSON, the access token.
//! They are made once for a session and a route, and sent with every request. A value that a header
//! cannot carry faithfully is left out and logged; none is ever altered.

use std::io;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::Route;
use crate::config::value::{ClaimPath, Keys, Owner};
use crate::session::Session;

/// The app-visible session above this many bytes is not sent.
const LARGEST_SESSION: usize = 8 * 1024;

const USER: HeaderName = HeaderName::from_static("x-forwarded-user");
const EMAIL: HeaderName = HeaderName::from_static("x-forwarded-email");
const PREFERRED_USERNAME: HeaderName = HeaderName::from_static("x-forwarded-preferred-username");
const GROUPS: HeaderName = HeaderName::from_static("x-forwarded-groups");
const SESSION: HeaderName = HeaderName::from_static("x-session");
const SESSION_OMITTED: HeaderName = HeaderName::from_static("x-session-omitted");

/// Every line that tells a route's app of the user.
pub(super) fn lines(
    session: &Session,
    route: &Route,
    groups_claim: &str,
) -> Vec<(HeaderName, HeaderValue)> {
    let claim = |name| session.identity.claim(name);
    let name = claim("preferred_username").or_else(|| claim("nickname"));
    let mut lines: Vec<(HeaderName, Option<HeaderValue>)> = vec![
        (USER, field(&USER, session.identity.subject())),
        (EMAIL, verified_email(session).and_then(|email| one(&EMAIL, email))),
        (PREFERRED_USERNAME, name.and_then(|name| one(&PREFERRED_USERNAME, name))),
        (GROUPS, claim(groups_claim).and_then(|groups| joined(&GROUPS, groups))),
        session_line(session, &route.session_header),
    ];
    for (name, path) in &route.headers {
        let value = read(session, path);
        lines.push((name.clone(), value.and_then(|value| joined(name, value))));
    }
    if route.access_token
        && let Some(token) = &session.tokens.access_token
    {
        let mut value = field(&AUTHORIZATION, &format!("Bearer {token}"));
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        lines.push((AUTHORIZATION, value));
    }
    lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// An address that the provider says is not verified could be anybody's.
fn verified_email(session: &Session) -> Option<&Value> {
    let verified = session.identity.claim("email_verified");
    let refuted = verified == Some(&Value::Bool(false)) || verified == Some(&Value::from("false"));
    session.identity.claim("email").filter(|_| !refuted)
}

/// `X-Session`, or the word that it was too large.
fn session_line(session: &Session, seen: &Keys) -> (HeaderName, Option<HeaderValue>) {
    if *seen == Keys::None {
        return (SESSION, None);
    }
    let view: Map<_, _> = session.view().into_iter().filter(|(key, _)| seen.allow(key)).collect();
    let json = ascii(&view);
    if json.len() > LARGEST_SESSION {
        let bytes = json.len();
        tracing::warn!(bytes, "a session is too large for X-Session and was left out");
        return (SESSION_OMITTED, Some(HeaderValue::from_static("too-large")));
    }
    (SESSION, HeaderValue::try_from(json).ok())
}

/// What a configured path leads to. SECURITY: `user.…` reads the identity alone, whatever apps
/// have put over it in the data.
fn read<'s>(session: &'s Session, path: &ClaimPath) -> Option<&'s Value> {
    let (first, rest) = path.members.split_first()?;
    let top = match path.owner {
        Owner::User => session.identity.claims(),
        Owner::Session => &session.data,
    };
    rest.iter().try_fold(top.get(first)?, |value, member| value.get(member))
}

/// A list with commas between its elements; anything else by itself.
fn joined(name: &HeaderName, value: &Value) -> Option<HeaderValue> {
    let Value::Array(elements) = value else { return one(name, value) };
    let texts: Vec<String> = elements.iter().filter_map(|element| text(name, element)).collect();
    // SECURITY: an element with a comma would be read as two.
    let (whole, left_out): (Vec<&str>, Vec<&str>) =
        texts.iter().map(String::as_str).partition(|text| !text.contains(',') && carries(text));
    if !left_out.is_empty() {
        tracing::warn!(header = %name, left_out = left_out.len(), "elements that no list can carry");
    }
    field(name, &whole.join(","))
}

fn one(name: &HeaderName, value: &Value) -> Option<HeaderValue> {
    field(name, &text(name, value)?)
}

/// A scalar as text, an object as JSON; `null` is nothing.
fn text(name: &HeaderName, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => {
            tracing::warn!(header = %name, "a value that is neither text nor a list was left out");
            None
        }
    }
}

/// The text as UTF-8, if the app would read exactly this text.
fn field(name: &HeaderName, text: &str) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    let value = HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| carries(text));
    if value.is_none() {
        tracing::warn!(header = %name, "a value that no header can carry was left out");
    }
    value
}

/// SECURITY: a control character could end the line or vanish on the way; white space at either end
/// does vanish (RFC 9110, section 5.5), and one user would be read as another.
fn carries(text: &str) -> bool {
    !text.chars().any(char::is_control) && text.trim() == text
}

/// JSON in which every character outside of printable ASCII is escaped: one line in any language
/// reads it, whatever it thinks of UTF-8 in headers.
fn ascii(value: &Map<String, Value>) -> Vec<u8> {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Ascii);
    // Writing a map with string keys to memory does not fail.
    let _ = value.serialize(&mut serializer);
    json
}

struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|character| !matches!(character, ' '..='~')) {
            let (plain, other) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = other.chars();
            let mut units = [0; 2];
            for unit in characters.next().unwrap_or_default().encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sample;
    use crate::session::Identity;
    use crate::session::tests::session;
    use serde_json::json;

    fn route() -> Route {
        sample::route()
    }

    fn with(claims: &Value) -> Session {
        let mut all = session().identity.claims().clone();
        all.extend(claims.as_object().unwrap().clone());
        Session { identity: Identity::new(all).unwrap(), ..session() }
    }

    fn sent(session: &Session, route: &Route, name: &str) -> Option<String> {
        let lines = lines(session, route, "groups");
        let mut values = lines.iter().filter(|(n, _)| n.as_str() == name).map(|(_, value)| value);
        let value = values.next().map(|v| String::from_utf8(v.as_bytes().to_vec()).unwrap());
        assert!(values.next().is_none(), "{name} twice");
        value
    }

    #[test]
    fn the_identity_headers_are_the_claims() {
        let user = with(&json!({"groups": ["a", "b"], "preferred_username": "Zoë"}));
        let sent = |name| sent(&user, &route(), name);
        assert_eq!(sent("x-forwarded-user").unwrap(), "auth0|zoe");
        assert_eq!(sent("x-forwarded-email").unwrap(), "zoe@example.com");
        assert_eq!(sent("x-forwarded-preferred-username").unwrap(), "Zoë");
        assert_eq!(sent("x-forwarded-groups").unwrap(), "a,b");
        assert_eq!(sent("authorization"), None);
        let plain = session();
        let name = lines(&plain, &route(), "groups");
        assert!(name.contains(&(PREFERRED_USERNAME, HeaderValue::from_static("zoe"))));
    }

    #[test]
    fn an_email_that_is_not_verified_is_not_sent() {
        for (verified, is_sent) in [
            (json!(true), true),
            (json!(null), true),
            (json!(false), false),
            (json!("false"), false),
        ] {
            let user = with(&json!({"email_verified": verified}));
            assert_eq!(sent(&user, &route(), "x-forwarded-email").is_some(), is_sent, "{verified}");
        }
    }

    #[test]
    fn a_group_that_holds_a_comma_is_left_out() {
        let user =
            with(&json!({"groups": ["a", "b,admin", "c\r\nX-Forwarded-User: root", "d", 5]}));
        assert_eq!(sent(&user, &route(), "x-forwarded-groups").unwrap(), "a,d,5");
        let alone = with(&json!({"groups": "one"}));
        assert_eq!(sent(&alone, &route(), "x-forwarded-groups").unwrap(), "one");
    }

    #[test]
    fn a_claim_that_a_header_cannot_carry_is_never_written() {
        for text in ["a\r\nb", "a\nb", "a\0", "a\tb", "\u{7f}", "\u{85}", " a", "a\u{a0}", ""] {
            let user =
                with(&json!({"preferred_username": text, "sub": text.to_owned() + "|x\u{1}"}));
            assert_eq!(sent(&user, &route(), "x-forwarded-preferred-username"), None, "{text:?}");
            assert_eq!(sent(&user, &route(), "x-forwarded-user"), None, "{text:?}");
        }
    }

    #[test]
    fn the_session_is_one_line_of_ascii_that_reads_back() {
        let mut user = with(&json!({"name": "Zo\u{eb} \u{1f600}\u{7f}\"\\\n\u{1}"}));
        user.data = json!({"theme": "dark"}).as_object().unwrap().clone();
        let text = sent(&user, &route(), "x-session").unwrap();
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
        assert!(text.contains(r"Zo\u00eb \ud83d\ude00\u007f"), "{text}");
        assert_eq!(serde_json::from_str::<Map<_, _>>(&text).unwrap(), user.view());
    }

    #[test]
    fn a_large_session_is_left_out_with_a_word() {
        let mut user = session();
        user.data.insert("big".to_owned(), "x".repeat(LARGEST_SESSION).into());
        assert_eq!(sent(&user, &route(), "x-session"), None);
        assert_eq!(sent(&user, &route(), "x-session-omitted").unwrap(), "too-large");
    }

    #[test]
    fn a_route_sees_only_the_keys_it_may() {
        let mut user = session();
        user.data = json!({"theme": "dark", "other": 1}).as_object().unwrap().clone();
        let only = Keys::Only(["theme".to_owned()].into());
        let some = Route { session_header: only, ..route() };
        assert_eq!(sent(&user, &some, "x-session").unwrap(), r#"{"theme":"dark"}"#);
        let none = Route { session_header: Keys::None, ..route() };
        assert_eq!(sent(&user, &none, "x-session"), None);
    }

    #[test]
    fn a_path_into_the_user_reads_the_identity_not_what_apps_put_over_it() {
        let mut user = with(&json!({"org_id": "o1", "teams": {"x": ["a", "b"]}}));
        user.data = json!({"user": {"org_id": "evil"}, "plan": {"level": 3}, "on": true})
            .as_object()
            .unwrap()
            .clone();
        let path = |owner, members: &[&str]| ClaimPath {
            owner,
            members: members.iter().map(ToString::to_string).collect(),
        };
        let name = HeaderName::from_static;
        let headers = vec![
            (name("x-org"), path(Owner::User, &["org_id"])),
            (name("x-teams"), path(Owner::User, &["teams", "x"])),
            (name("x-level"), path(Owner::Session, &["plan", "level"])),
            (name("x-on"), path(Owner::Session, &["on"])),
            (name("x-object"), path(Owner::Session, &["plan"])),
            (name("x-none"), path(Owner::Session, &["none", "x"])),
        ];
        let route = Route { headers, ..route() };
        assert_eq!(sent(&user, &route, "x-org").unwrap(), "o1");
        assert_eq!(sent(&user, &route, "x-teams").unwrap(), "a,b");
        assert_eq!(sent(&user, &route, "x-level").unwrap(), "3");
        assert_eq!(sent(&user, &route, "x-on").unwrap(), "true");
        assert_eq!(sent(&user, &route, "x-object"), None);
        assert_eq!(sent(&user, &route, "x-none"), None);
    }

    #[test]
    fn the_access_token_is_sent_where_the_route_says_so() {
        let route = Route { access_token: true, ..route() };
        assert_eq!(sent(&session(), &route, "authorization").unwrap(), "Bearer at");
    }
}
