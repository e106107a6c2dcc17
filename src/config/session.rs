//! `[session]` and its cookie: from the file to [`Session`].

use std::sync::Arc;

use super::address::{domain, host_matches};
use super::parse::{Wrong, cookie_name};
use super::redis::redis;
use super::routes::Surroundings;
use super::secrets::session_secret;
use super::table::{Item, Table, flag};
use super::{Cookie, SameSite, Session};

/// The table.
pub(super) fn session(t: &mut Table<'_>, around: &Surroundings) -> Option<Session> {
    let secrets = t.required("secrets", r#"write secrets = [{ env = "VESTIBULE_SECRET" }]"#, |i| {
        if !i.is_list() {
            // SECURITY: most likely the secret itself.
            i.mask();
        }
        i.some(session_secret)
    });
    // Browsers keep no cookie longer than 400 days (RFC 6265bis, section 5.5).
    let absolute = t.key("absolute", "'3d'", |i| i.time("1s", "400d"));
    let inactivity = t.key("inactivity", "'1d'", |i| match i.as_flag() {
        Some(false) => Some(None),
        Some(true) => i.other_than("a duration, or false"),
        None => i.time("1s", "400d").map(Some),
    });
    let cookie = t.key("cookie", "{}", |i| i.table(|t| cookie(t, around)));
    let redis = t.optional("redis", |i| i.table(redis));
    if t.has("redis") && redis.is_none() {
        return None;
    }
    let inactivity = inactivity?;
    if inactivity.zip(absolute).is_some_and(|(inactivity, absolute)| inactivity > absolute) {
        t.warn(
            "inactivity",
            Wrong::new("is longer than absolute, and so without effect", "write less, or false"),
        );
    }
    Some(Session {
        secrets: secrets?,
        absolute: absolute?,
        inactivity,
        cookie: cookie?,
        redis: redis.map(Arc::new),
    })
}

fn cookie(t: &mut Table<'_>, around: &Surroundings) -> Option<Cookie> {
    let name = t.key("name", "'__Host-session'", |i| i.parse(cookie_name));
    let same_site = t.key("same_site", "'lax'", |i| {
        i.choice(&[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)])
    });
    let domain = t.optional("domain", |i| cookie_domain(i, around));
    let transient = t.key("transient", "false", flag);
    // Browsers read the prefix without regard to case (RFC 6265bis, section 4.1.3.2).
    let host_only =
        name.as_ref().is_some_and(|name| name.to_ascii_lowercase().starts_with("__host-"));
    if host_only && t.has("domain") {
        return t.wrong(
            "domain",
            Wrong::new(
                "cannot go with a name that starts with __Host-",
                r#"write name = "__Secure-session", or leave domain out"#,
            ),
        );
    }
    if same_site == Some(SameSite::None) {
        t.warn(
            "same_site",
            Wrong::new(
                "lets other sites send requests as the user",
                r#"write "lax" unless the app lives in other sites' frames"#,
            ),
        );
    }
    Some(Cookie { name: name?, same_site: same_site?, domain, transient: transient? })
}

fn cookie_domain(item: &Item<'_>, around: &Surroundings) -> Option<String> {
    let domain = item.parse(domain)?;
    if !domain.contains('.') || domain.starts_with('.') {
        return item.wrong(Wrong::new(
            "is no domain that a cookie can have",
            "write it without a dot in front: example.com",
        ));
    }
    let outside =
        around.public_urls.iter().flatten().find(|origin| !host_matches(&origin.host, &domain));
    if let Some(origin) = outside {
        let message = format!("is not the domain of the public host {}", origin.host);
        return item
            .wrong(Wrong::new(message, "name a domain that all of server.public_urls are in"));
    }
    Some(domain)
}
