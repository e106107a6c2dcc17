//! Whether a logout token is good (OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6), and
//! whose sessions it ends. It makes no call, reads no clock, and does not know which were seen before.

use std::time::Duration;

use serde_json::{Map, Value};

use super::id_token::{Keys, LEEWAY, Unverified, bad};
use crate::clock::Timestamp;
use crate::config;
use crate::session::{Logout, Whose};

/// The member of `events` that makes a token a logout token (section 2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// What a `typ` may say. SECURITY: that of an access token (RFC 9068) or of another event is not
/// among them (section 4).
const KINDS: [&str; 2] = ["logout+jwt", "JWT"];
/// The longest `jti`, `sid` or `sub`, in bytes.
const LONGEST: usize = 1024;

/// Whether claims are those of a logout token.
pub(super) fn is_one(claims: &Map<String, Value>) -> bool {
    claims.get("events").is_some_and(|events| events.get(EVENT).is_some())
}

/// The logout that a token tells of, if `keys` verify it and it is for this client and now.
pub(super) fn verify(
    token: &str,
    keys: &Keys,
    config: &config::Provider,
    now: Timestamp,
) -> Result<Logout, Unverified> {
    let claims = keys.open(token, &KINDS)?;
    check(&claims, config, now).map_err(bad)?;
    logout(&claims).map_err(bad)
}

/// Section 2.6, numbers 3 to 7, but for what `logout` needs anyway.
fn check(
    claims: &Map<String, Value>,
    config: &config::Provider,
    now: Timestamp,
) -> Result<(), &'static str> {
    if claims.get("iss").and_then(Value::as_str) != Some(&config.issuer) {
        return Err("its iss is not the provider's");
    }
    let for_us = match claims.get("aud") {
        Some(Value::String(one)) => *one == config.client_id,
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(&config.client_id)),
        _ => false,
    };
    if !for_us {
        return Err("its aud is another client");
    }
    if time(claims, "exp").is_none_or(|exp| now.0 >= exp.0.saturating_add(LEEWAY)) {
        return Err("it has expired");
    }
    if time(claims, "iat").is_none_or(|iat| iat.0 > now.0.saturating_add(LEEWAY)) {
        return Err("it was issued in the future");
    }
    if claims.contains_key("nbf")
        && time(claims, "nbf").is_none_or(|nbf| nbf.0 > now.0.saturating_add(LEEWAY))
    {
        return Err("it is not yet good");
    }
    // SECURITY: an ID token of the same provider is for a browser's eyes too: it ends no session.
    if claims.contains_key("nonce") {
        return Err("it has a nonce");
    }
    match claims.get("events").and_then(|events| events.get(EVENT)) {
        Some(Value::Object(_)) => Ok(()),
        _ => Err("it tells of no logout"),
    }
}

fn logout(claims: &Map<String, Value>) -> Result<Logout, &'static str> {
    let text = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if (1..=LONGEST).contains(&text.len()) => Ok(Some(text.clone())),
        Some(_) => Err("its jti, sid or sub is no text that can be used"),
    };
    let (sub, sid) = (text("sub")?, text("sid")?);
    Ok(Logout {
        name: text("jti")?.ok_or("it has no jti")?,
        issuer: text("iss")?.ok_or("it has no iss")?,
        // Section 2.4: with a `sid`, the sessions of that one sign-in at the provider.
        whose: match (sid, sub) {
            (Some(sid), _) => Whose::SignIn(sid),
            (None, Some(sub)) => Whose::User(sub),
            (None, None) => return Err("it has neither sid nor sub"),
        },
        issued_at: time(claims, "iat").ok_or("it has no iat")?,
        expires: time(claims, "exp").ok_or("it has no exp")?.plus(Duration::from_secs(LEEWAY)),
    })
}

/// A `NumericDate` (RFC 7519, section 2), cut to whole seconds.
fn time(claims: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    let seconds = Duration::try_from_secs_f64(claims.get(name)?.as_f64()?).ok()?;
    Some(Timestamp(seconds.as_secs()))
}

#[cfg(test)]
pub(super) mod tests;
