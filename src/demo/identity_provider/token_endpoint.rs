//! `/oauth/token` and `/oauth/revoke`: what the client calls itself, with its secret
//! (RFC 6749, sections 4.1.3 and 6; RFC 7009). What the tokens say is written elsewhere.

use bytes::Bytes;
use http::{Request, StatusCode};

use super::authorize::split_scope;
use super::oauth_error::OAuthError;
use super::{IdentityProvider, client, tokens};
use crate::clock::Timestamp;
use crate::demo::web::{self, Parameters, Reply};

/// Answers `/oauth/token`.
pub(super) fn answer(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    now: Timestamp,
) -> Reply {
    let form = client::form(request, provider.options());
    let response = form.and_then(|form| match form.get("grant_type") {
        Some("authorization_code") => redeem(provider, &form, now),
        Some("refresh_token") => refresh(provider, &form, now),
        Some(_) => Err(OAuthError::other(
            "unsupported_grant_type",
            "Only authorization_code and refresh_token are supported.",
        )),
        None => Err(OAuthError::invalid_request("grant_type is missing.")),
    });
    match response {
        Ok(response) => web::json(StatusCode::OK, &response.into()),
        Err(error) => error.reply(),
    }
}

/// Answers `/oauth/revoke`. RFC 7009, section 2.2: a token that is not known is no error.
pub(super) fn revoke(provider: &IdentityProvider, request: &Request<Bytes>) -> Reply {
    let form = match client::form(request, provider.options()) {
        Ok(form) => form,
        Err(error) => return error.reply(),
    };
    let Some(token) = form.get("token") else {
        return OAuthError::invalid_request("token is missing.").reply();
    };
    provider.memory().grants.revoke(token);
    web::text(StatusCode::OK, "")
}

fn redeem(
    provider: &IdentityProvider,
    form: &Parameters,
    now: Timestamp,
) -> Result<tokens::Response, OAuthError> {
    let code = form.get("code").ok_or(OAuthError::invalid_request("code is missing."))?;
    let redirect_uri = form.get("redirect_uri").unwrap_or_default();
    let verifier = form.get("code_verifier").unwrap_or_default();
    let redeemed = provider.memory().grants.redeem(code, redirect_uri, verifier, now)?;
    let mut response = tokens::issue(provider, &redeemed.grant, redeemed.nonce, now)?;
    if let Some(token) = redeemed.refresh_token {
        response.insert("refresh_token".to_owned(), token.into());
    }
    Ok(response)
}

fn refresh(
    provider: &IdentityProvider,
    form: &Parameters,
    now: Timestamp,
) -> Result<tokens::Response, OAuthError> {
    let token = form.get("refresh_token");
    let token = token.ok_or(OAuthError::invalid_request("refresh_token is missing."))?;
    let scope = form.get("scope").map(split_scope);
    let (grant, next) = provider.memory().grants.refresh(token, scope.as_deref(), now)?;
    // OpenID Connect Core, section 12.2: an ID token of a refresh has no nonce.
    let mut response = tokens::issue(provider, &grant, None, now)?;
    response.insert("refresh_token".to_owned(), next.into());
    Ok(response)
}
