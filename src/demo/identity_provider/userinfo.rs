//! `/userinfo`: what the bearer of an access token may know of its user
//! (OpenID Connect Core, section 5.3).

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, StatusCode};
use serde_json::Value;

use super::authorize::split_scope;
use super::oauth_error::OAuthError;
use super::{IdentityProvider, tokens};
use crate::clock::Timestamp;
use crate::demo::web::{self, Reply};

/// Answers `/userinfo`.
pub(super) fn answer(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    now: Timestamp,
) -> Reply {
    match claims(provider, request.headers(), now) {
        Some(claims) => web::json(StatusCode::OK, &claims),
        None => OAuthError::invalid_token().reply(),
    }
}

fn claims(provider: &IdentityProvider, headers: &HeaderMap, now: Timestamp) -> Option<Value> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let claims = provider.memory().keys.open(tokens::ACCESS_TOKEN, token.trim())?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let issuer = provider.options().issuer.as_str();
    let userinfo = tokens::userinfo_address(issuer);
    let meant = match claims.get("aud")? {
        Value::String(audience) => *audience == userinfo,
        Value::Array(all) => all.iter().any(|audience| audience.as_str() == Some(&userinfo)),
        _ => false,
    };
    let expired = claims.get("exp")?.as_u64()? <= now.0;
    let scope = split_scope(text("scope")?);
    let openid = scope.iter().any(|scope| scope == "openid");
    if expired || !meant || !openid || text("iss") != Some(issuer) {
        return None;
    }
    let user = provider.user(text("sub")?)?;
    Some(tokens::user_claims(provider, &user, &scope).into())
}
