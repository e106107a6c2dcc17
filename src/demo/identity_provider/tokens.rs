//! What the tokens say: the ID token (OpenID Connect Core, section 2) and the access token
//! (RFC 9068). It knows nothing of HTTP, and grants nothing: what was granted is handed in.

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::IdentityProvider;
use super::grants::{Grant, random_text, sha256_text};
use super::oauth_error::OAuthError;
use super::users::User;
use crate::clock::Timestamp;

/// The members of a token response (RFC 6749, section 5.1).
pub(super) type Response = Map<String, Value>;

/// Claims that are the protocol's own; a user's claims of these names are left out.
const PROTOCOL: [&str; 12] = [
    "iss",
    "sub",
    "aud",
    "azp",
    "exp",
    "iat",
    "nbf",
    "nonce",
    "auth_time",
    "sid",
    "at_hash",
    "jti",
];

/// The media type of an access token.
pub(super) const ACCESS_TOKEN: &str = "at+jwt";
/// The media type of an ID token.
pub(super) const ID_TOKEN: &str = "JWT";

/// The tokens for a grant, without a refresh token; with an ID token if `openid` was granted.
pub(super) fn issue(
    provider: &IdentityProvider,
    grant: &Grant,
    nonce: Option<String>,
    now: Timestamp,
) -> Result<Response, OAuthError> {
    let user = provider.user(&grant.sub);
    let user = user.ok_or(OAuthError::invalid_grant("The user is not known any more."))?;
    let options = provider.options();
    let key = provider.memory().keys.current();
    let access_token = key.sign(ACCESS_TOKEN, &access_claims(provider, grant, now)?)?;
    let mut response = object(json!({
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": options.access_token_life.as_secs(),
        "scope": grant.scope.join(" "),
    }));
    if grant.has("openid") {
        let mut claims = id_claims(provider, &user, grant, now);
        claims.insert("at_hash".to_owned(), left_half(&access_token).into());
        if let Some(nonce) = nonce {
            claims.insert("nonce".to_owned(), nonce.into());
        }
        response.insert("id_token".to_owned(), key.sign(ID_TOKEN, &claims)?.into());
    }
    Ok(response)
}

/// What may be said of a user under these scopes.
pub(super) fn user_claims(
    provider: &IdentityProvider,
    user: &User,
    scope: &[String],
) -> Map<String, Value> {
    let mut claims = user.released(&provider.options().issuer, scope);
    claims.retain(|name, _| !PROTOCOL.contains(&name.as_str()));
    claims.insert("sub".to_owned(), user.sub.as_str().into());
    claims
}

/// Where userinfo is, which is also its name as an audience.
pub(super) fn userinfo_address(issuer: &str) -> String {
    format!("{issuer}userinfo")
}

fn id_claims(
    provider: &IdentityProvider,
    user: &User,
    grant: &Grant,
    now: Timestamp,
) -> Map<String, Value> {
    let options = provider.options();
    let mut claims = user_claims(provider, user, &grant.scope);
    claims.extend(object(json!({
        "iss": options.issuer,
        "aud": options.client_id,
        "iat": now,
        "exp": now.plus(options.id_token_life),
        "auth_time": grant.auth_time,
        "sid": grant.sid,
    })));
    claims.extend(organization_claims(grant));
    claims
}

/// RFC 9068, section 2.2.
fn access_claims(
    provider: &IdentityProvider,
    grant: &Grant,
    now: Timestamp,
) -> Result<Map<String, Value>, OAuthError> {
    let options = provider.options();
    let userinfo = userinfo_address(&options.issuer);
    let audience = match &grant.audience {
        Some(api) => json!([api, userinfo]),
        None => json!(userinfo),
    };
    let mut claims = object(json!({
        "iss": options.issuer,
        "sub": grant.sub,
        "aud": audience,
        "azp": options.client_id,
        "client_id": options.client_id,
        "iat": now,
        "exp": now.plus(options.access_token_life),
        "scope": grant.scope.join(" "),
        "jti": random_text()?,
    }));
    claims.extend(organization_claims(grant));
    Ok(claims)
}

/// Auth0's claims for a login to an organization, which may be asked for by id or by name.
fn organization_claims(grant: &Grant) -> Map<String, Value> {
    let Some(asked) = &grant.organization else { return Map::new() };
    if asked.starts_with("org_") {
        return object(json!({ "org_id": asked }));
    }
    let name = asked.to_lowercase();
    let id: String = sha256_text(&name).chars().filter(char::is_ascii_alphanumeric).collect();
    let id = id.get(..16).unwrap_or(&id);
    object(json!({ "org_id": format!("org_{id}"), "org_name": name }))
}

/// `at_hash` for RS256 (OpenID Connect Core, section 3.1.3.6).
fn left_half(access_token: &str) -> String {
    let hash = digest(&SHA256, access_token.as_bytes());
    BASE64URL.encode_to_string(hash.as_ref().get(..16).unwrap_or_default())
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
