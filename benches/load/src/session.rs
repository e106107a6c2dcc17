//! The session cookie of the user who sends the load: a real one, sealed under the gateway's own
//! secret, so that the gateway has to open it, hold it against its rules, and tell the app of it.

use anyhow::{Context, Result};
use serde_json::json;
use vestibule::clock::Timestamp;
use vestibule::config::value::Secret;
use vestibule::session::{Identity, Purpose, Sealer, Session, SessionId, Tokens};

/// The cookie's default name.
pub(crate) const NAME: &str = "__Host-session";
/// Who is signed in.
pub(crate) const SUBJECT: &str = "auth0|6650a1f2c3d4e5f601234567";
/// The ID token is as long as makes the cookie 1.1 KB: that of a usual session.
const ID_TOKEN: usize = 330;

/// A `Cookie` field: the session, which was just used, behind another cookie of the app's. No
/// touch is due for hours, so that the gateway's answers need no `Set-Cookie`.
pub(crate) fn cookie(secret: &str, issuer: &str) -> Result<String> {
    let now = Timestamp::now();
    let (identity, tokens) = login(issuer)?;
    let session = Session {
        id: SessionId::random().context("the machine gives no random bytes")?,
        version: 1,
        created_at: now,
        touched_at: now,
        identity,
        data: serde_json::Map::from_iter([("theme".to_owned(), json!("dark"))]),
        tokens,
    };
    let sealer = Sealer::new(&[Secret::new(secret)]);
    let sealed = sealer.seal(Purpose::Session, NAME, &serde_json::to_vec(&session)?)?;
    Ok(format!("theme=dark; {NAME}={sealed}"))
}

/// What the provider says at a login.
pub(crate) fn login(issuer: &str) -> Result<(Identity, Tokens)> {
    let claims = json!({
        "iss": issuer,
        "sub": SUBJECT,
        "aud": "benchmark",
        "sid": "Wf3nJ5kQ9s7LZr0vXy2bAg1cDe4hTiUo",
        "name": "Zoë Quill",
        "nickname": "zoe",
        "email": "zoe.quill@example.com",
        "email_verified": true,
        "groups": ["editors", "staff"],
    });
    let tokens = Tokens {
        id_token: "x".repeat(ID_TOKEN),
        access_token: Some("a".repeat(32)),
        refresh_token: Some("v1.".to_owned() + &"r".repeat(43)),
        expires_at: None,
        refresh_at: None,
        scope: None,
    };
    Ok((Identity::new(claims.as_object().cloned().unwrap_or_default())?, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_has_the_size_of_a_usual_session() {
        let cookie = cookie("0123456789abcdef0123456789abcdef", "http://127.0.0.1:9/").unwrap();
        assert!((1080..1160).contains(&cookie.len()), "{}", cookie.len());
    }
}
