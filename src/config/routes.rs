//! `[[route]]`: from the file to [`Route`], with what its keys mean for each other and for the
//! rest of the file.

use std::collections::BTreeSet;

use http::HeaderName;

use super::address::{host, path};
use super::parse::{Wrong, claim_path, header_name};
use super::server::body_bytes;
use super::table::{Item, Table, filled, flag};
use super::upstream::{health, upstreams};
use super::value::{ClaimPath, Keys, Origin};
use super::{Access, Requirement, Route};

/// What a route is held against; `None` where that itself is wrong.
#[derive(Default)]
pub(super) struct Surroundings {
    /// `server.public_urls`
    pub(super) public_urls: Option<Vec<Origin>>,
    /// Whether there is a `server.client_certificates`.
    pub(super) asks_clients: bool,
    /// `auth.prefix`
    pub(super) prefix: Option<String>,
}

/// All routes; no two for the same host and path.
pub(super) fn routes(item: &Item<'_>, around: &Surroundings) -> Option<Vec<Route>> {
    let mut seen = BTreeSet::new();
    item.tables(|t| {
        let route = route(t, around)?;
        if !seen.insert((route.host.clone(), route.path.clone())) {
            return t.wrong(
                "path",
                Wrong::new(
                    "is the path of an earlier route too",
                    "leave one of the two routes out",
                ),
            );
        }
        Some(route)
    })
}

/// A route that wants what no client is asked for would answer nobody.
fn certified(t: &Table<'_>, wanted: bool, around: &Surroundings) -> Option<bool> {
    if wanted && !around.asks_clients {
        let message = "wants a certificate that no client is asked for";
        let remedy = "write [server.client_certificates], or leave it out";
        return t.wrong("client_certificate", Wrong::new(message, remedy));
    }
    Some(wanted)
}

fn route(t: &mut Table<'_>, around: &Surroundings) -> Option<Route> {
    let host = t.optional("host", |i| public_host(i, around));
    let path = t.required("path", r#"write path = "/""#, |i| free_path(i, around));
    let upstream = t.required("upstream", r#"write upstream = "http://127.0.0.1:9000""#, upstreams);
    let sticky = t.key("sticky", "false", flag);
    let health = t.optional("health", |i| i.table(health));
    let access = t.key("access", "'login'", access);
    let require = t.key("require", "{}", |i| i.entries(requirement));
    let headers = t.key("headers", "{}", headers);
    let session_update = t.key("session_update", "true", |i| keys(i, &["internal", "tokenSet"]));
    let session_header = t.key("session_header", "true", |i| keys(i, &[]));
    let access_token = t.key("access_token", "false", flag);
    let client_certificate = t.key("client_certificate", "false", flag);
    let close_on_session_end = t.key("close_on_session_end", "true", flag);
    let body_bytes = t.optional("body_bytes", body_bytes);

    fits_access(t, access?, access_token, sticky)?;
    if host.is_none() && t.has("host") {
        // Without it the route would look like another one, for any host.
        return None;
    }
    Some(Route {
        host,
        path: path?,
        upstream: upstream?,
        sticky: sticky?,
        health,
        access: access?,
        require: require?,
        headers: headers?,
        session_update: session_update?,
        session_header: session_header?,
        access_token: access_token?,
        client_certificate: certified(t, client_certificate?, around)?,
        close_on_session_end: close_on_session_end?,
        body_bytes,
    })
}

/// SECURITY: who writes `require` believes that others are kept out. Where anyone may in, it
/// would not do that.
fn fits_access(
    t: &Table<'_>,
    access: Access,
    access_token: Option<bool>,
    sticky: Option<bool>,
) -> Option<()> {
    let anyone = match access {
        Access::Login | Access::Api => return Some(()),
        Access::Optional => r#"has no effect with access = "optional", which lets anyone in"#,
        Access::Public => {
            r#"has no effect with access = "public", which does not look at the session"#
        }
    };
    let remedy = r#"write access = "login" or "api", or leave this out"#;
    let mut fits = Some(());
    if t.has("require") {
        fits = t.wrong("require", Wrong::new(anyone, remedy));
    }
    if access == Access::Public && t.has("headers") {
        fits = t.wrong("headers", Wrong::new(anyone, remedy));
    }
    if access == Access::Public && access_token == Some(true) {
        fits = t.wrong("access_token", Wrong::new(anyone, remedy));
    }
    if access == Access::Public && sticky == Some(true) {
        let remedy = r#"write access = "optional", "login" or "api", or leave this out"#;
        fits = t.wrong("sticky", Wrong::new(anyone, remedy));
    }
    fits
}

fn public_host(item: &Item<'_>, around: &Surroundings) -> Option<String> {
    let host = item.parse(host)?;
    match &around.public_urls {
        Some(origins) if !origins.iter().any(|origin| origin.host == host) => {
            item.wrong(Wrong::new(
                "is no public host",
                format!(r#"add "https://{host}" to server.public_urls"#),
            ))
        }
        _ => Some(host),
    }
}

fn free_path(item: &Item<'_>, around: &Surroundings) -> Option<String> {
    let path = item.parse(path)?;
    let below = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match &around.prefix {
        Some(prefix) if below(prefix) => item.wrong(Wrong::new(
            format!("lies under auth.prefix, {prefix}, which the gateway answers itself"),
            "choose another path, or another auth.prefix",
        )),
        _ => Some(path),
    }
}

fn access(item: &Item<'_>) -> Option<Access> {
    item.choice(&[
        ("login", Access::Login),
        ("api", Access::Api),
        ("optional", Access::Optional),
        ("public", Access::Public),
    ])
}

fn requirement(claim: &str, item: &Item<'_>) -> Option<Requirement> {
    if claim.is_empty() || claim.chars().any(char::is_control) {
        return item.wrong_name(Wrong::new("names no claim", r#"write { roles = ["admin"] }"#));
    }
    let value =
        |item: &Item<'_>| item.as_flag().map_or_else(|| filled(item), |on| Some(on.to_string()));
    let any_of = if item.is_list() { item.some(value)? } else { vec![value(item)?] };
    Some(Requirement { claim: claim.to_owned(), any_of })
}

fn headers(item: &Item<'_>) -> Option<Vec<(HeaderName, ClaimPath)>> {
    let mut seen = BTreeSet::new();
    item.entries(|name, item| {
        let header = match header_name(name) {
            // Names differ by more than their case (RFC 9110, section 5.1).
            Ok(header) if !seen.insert(header.as_str().to_owned()) => {
                item.wrong_name(Wrong::new("names a header twice", "leave one of the two out"))
            }
            Ok(header) => Some(header),
            Err(wrong) => item.wrong_name(wrong),
        };
        let source = item.parse(claim_path);
        Some((header?, source?))
    })
}

/// `true`, `false` or names, none of which is `reserved`.
fn keys(item: &Item<'_>, reserved: &[&str]) -> Option<Keys> {
    match item.as_flag() {
        Some(true) => return Some(Keys::All),
        Some(false) => return Some(Keys::None),
        None if !item.is_list() => return item.other_than("true, false, or a list of keys"),
        None => {}
    }
    let keys = item.some(|item| {
        let key = filled(item)?;
        if reserved.contains(&key.as_str()) {
            return item.wrong(Wrong::new("is a key that no app can change", "leave it out"));
        }
        Some(key)
    })?;
    Some(Keys::Only(keys.into_iter().collect()))
}
