//! The calls at the provider's endpoints: a code or a refresh token for new tokens, userinfo,
//! revocation. Each answer becomes an identity and tokens, or an error.

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;
use url::Url;
use url::form_urlencoded::Serializer;

use super::client_authentication::SecretPlace;
use super::id_token::Expected;
use super::provider::{Discovered, Provider, ProviderError};
use crate::clock::Timestamp;
use crate::session::{Identity, Session, Tokens};

/// The longest token that is kept, in bytes.
const MAX_TOKEN: usize = 8 * 1024;
/// The longest scope that is kept, in bytes.
const MAX_SCOPE: usize = 1024;
/// An access token that is said to live longer is one of which nothing is known: ten years.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A token is refreshed this long before it expires, or a quarter of its life, if that is less.
const REFRESH_BEFORE: Duration = Duration::from_secs(30);

/// Claims about the token, not about the user: they are not kept.
const OF_THE_TOKEN: [&str; 9] =
    ["nonce", "at_hash", "c_hash", "s_hash", "exp", "iat", "nbf", "jti", "azp"];
/// Claims that userinfo cannot say otherwise: the signed token does.
const OF_THE_ID_TOKEN: [&str; 9] =
    ["iss", "sub", "aud", "sid", "org_id", "org_name", "auth_time", "acr", "amr"];

/// RFC 6749, section 5.1, and OpenID Connect Core, section 3.1.3.3.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<String>,
    token_type: Option<String>,
    id_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<Value>,
    scope: Option<String>,
}

impl TokenResponse {
    fn parse(body: &[u8]) -> Result<Self, ProviderError> {
        let mut response: Self = serde_json::from_slice(body)
            .map_err(|_| ProviderError::Malformed("the token endpoint's answer is not JSON"))?;
        let Self { access_token, token_type, id_token, refresh_token, scope, .. } = &mut response;
        for token in [access_token, id_token, refresh_token] {
            // Some providers write an empty text for what there is not.
            token.take_if(|token| token.is_empty());
            if token.as_ref().is_some_and(|token| token.len() > MAX_TOKEN || !visible(token)) {
                return Err(ProviderError::Malformed("a token is too long or no plain text"));
            }
        }
        // The session can do without it, and should not grow by it.
        scope.take_if(|scope| scope.len() > MAX_SCOPE || !visible(scope));
        // SECURITY: RFC 6749, section 7.1: a token of a kind that is not understood is not used.
        if token_type.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(ProviderError::Malformed("the access token is no bearer token"));
        }
        Ok(response)
    }

    /// How long the access token lives, if the answer says so in a way that can be true.
    fn life(&self) -> Option<Duration> {
        let seconds = match self.expires_in.as_ref()? {
            Value::Number(number) => number.as_f64(),
            // Some providers write the number as text.
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let life = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        life.filter(|life| (Duration::from_secs(1)..=LONGEST_LIFE).contains(life))
    }
}

impl Provider {
    /// Takes a code in (OpenID Connect Core, section 3.1.3).
    pub(super) async fn redeem(
        &self,
        code: &str,
        verifier: &str,
        redirect_uri: &str,
        expected: Expected<'_>,
        now: Timestamp,
    ) -> Result<(Identity, Tokens), ProviderError> {
        let discovered = self.discovered()?;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", verifier),
        ];
        let response = self.tokens("the token endpoint", &discovered, &form, now).await?;
        let id_token = response.id_token.clone();
        let id_token = id_token.ok_or(ProviderError::Malformed("there is no ID token"))?;
        let expected = Expected { access_token: response.access_token.as_deref(), ..expected };
        let claims = self.verify(&id_token, &expected, now).await?;
        let token = response.access_token.as_deref();
        let claims = self.with_userinfo(&discovered, claims, token).await?;
        Ok((identity(claims)?, kept(response, id_token, None, now)))
    }

    /// New tokens for a session (OpenID Connect Core, section 12).
    ///
    /// With them the old refresh token may be spent. So if what comes after fails for want of the
    /// provider, the new tokens are kept, and of the claims those that are known.
    pub(super) async fn refresh(
        &self,
        session: &Session,
        refresh_token: &str,
        now: Timestamp,
    ) -> Result<(Identity, Tokens), ProviderError> {
        let discovered = self.discovered()?;
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
        let response = self.tokens("the token endpoint", &discovered, &form, now).await?;
        let access_token = response.access_token.as_deref();
        let access_token = access_token.ok_or(ProviderError::Malformed("there is no new token"))?;
        let expected = Expected {
            access_token: Some(access_token),
            subject: Some(session.identity.subject()),
            ..Expected::default()
        };
        let known = session.identity.claims();
        let mut told = (known.clone(), session.tokens.id_token.clone());
        if let Some(id_token) = &response.id_token {
            match self.verify(id_token, &expected, now).await {
                Ok(claims) => told = (claims, id_token.clone()),
                Err(error) if error.is_outage() => {
                    tracing::warn!(%error, "a refreshed ID token could not be verified");
                }
                Err(error) => return Err(error),
            }
        }
        let (claims, id_token) = told;
        let claims = match self.with_userinfo(&discovered, claims.clone(), Some(access_token)).await
        {
            Err(error) if error.is_outage() => {
                tracing::warn!(%error, "userinfo could not be read again");
                let mut all = known.clone();
                all.extend(claims);
                all
            }
            claims => claims?,
        };
        Ok((identity(claims)?, kept(response, id_token, Some(refresh_token), now)))
    }

    /// Makes a refresh token worthless (RFC 7009), where the provider can.
    pub(super) async fn revoke(
        &self,
        refresh_token: &str,
        now: Timestamp,
    ) -> Result<(), ProviderError> {
        let discovered = self.discovered()?;
        let Some(url) = &discovered.metadata.revocation_endpoint else { return Ok(()) };
        let form = [("token", refresh_token), ("token_type_hint", "refresh_token")];
        let request = self.post(&discovered, url, &form, now)?;
        self.call("the revocation endpoint", request).await.map(drop)
    }

    async fn tokens(
        &self,
        what: &'static str,
        discovered: &Discovered,
        form: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<TokenResponse, ProviderError> {
        let request = self.post(discovered, &discovered.metadata.token_endpoint, form, now)?;
        TokenResponse::parse(&self.call(what, request).await?)
    }

    fn post(
        &self,
        discovered: &Discovered,
        url: &Url,
        form: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<Request<Vec<u8>>, ProviderError> {
        let in_form = discovered.metadata.wants_secret_in_form();
        let place = if in_form { SecretPlace::Form } else { SecretPlace::Header };
        let mut body = Serializer::new(String::new());
        body.extend_pairs(form);
        let proof = self
            .authentication
            .prove(&mut body, &self.config.client_id, place, &self.config.issuer, now)
            .map_err(|source| ProviderError::Call { what: "proof", source: source.into() })?;
        let mut request = Request::post(url.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(body.finish().into_bytes())
            .map_err(|_| ProviderError::Malformed("an address that cannot be asked"))?;
        if let Some(proof) = proof {
            request.headers_mut().insert(AUTHORIZATION, proof);
        }
        Ok(request)
    }

    /// The claims with those of userinfo (OpenID Connect Core, section 5.3).
    async fn with_userinfo(
        &self,
        discovered: &Discovered,
        mut claims: Map<String, Value>,
        access_token: Option<&str>,
    ) -> Result<Map<String, Value>, ProviderError> {
        if let (Some(url), Some(token)) = (&discovered.metadata.userinfo_endpoint, access_token) {
            let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| ProviderError::Malformed("the access token fits no header"))?;
            bearer.set_sensitive(true);
            let request = Request::get(url.as_str())
                .header(AUTHORIZATION, bearer)
                .header(ACCEPT, "application/json")
                .body(Vec::new())
                .map_err(|_| ProviderError::Malformed("an address that cannot be asked"))?;
            let body = self.call("userinfo", request).await?;
            let more: Map<String, Value> = serde_json::from_slice(&body)
                .map_err(|_| ProviderError::Malformed("userinfo is no JSON object"))?;
            // SECURITY: section 5.3.2: another subject's claims are not this user's.
            if more.get("sub") != claims.get("sub") {
                return Err(ProviderError::Malformed("userinfo is about another user"));
            }
            let fixed = |name: &String| OF_THE_ID_TOKEN.contains(&name.as_str());
            claims.extend(more.into_iter().filter(|(name, _)| !fixed(name)));
        }
        Ok(claims)
    }
}

/// The claims that are about the user.
fn identity(mut claims: Map<String, Value>) -> Result<Identity, ProviderError> {
    claims.retain(|name, _| !OF_THE_TOKEN.contains(&name.as_str()));
    Identity::new(claims).map_err(|source| ProviderError::IdToken(source.to_string()))
}

/// The tokens as a session keeps them. A refresh token that was not replaced stays good (RFC 6749,
/// section 6).
fn kept(
    response: TokenResponse,
    id_token: String,
    refresh_token: Option<&str>,
    now: Timestamp,
) -> Tokens {
    let life = response.life();
    let refresh_token = response.refresh_token.or_else(|| refresh_token.map(str::to_owned));
    Tokens {
        id_token,
        access_token: response.access_token,
        expires_at: life.map(|life| now.plus(life)),
        refresh_at: life
            .filter(|_| refresh_token.is_some())
            .map(|life| now.plus(life.saturating_sub(REFRESH_BEFORE.min(life / 4)))),
        refresh_token,
        scope: response.scope,
    }
}

/// RFC 6749, appendix A.12: tokens are visible ASCII.
fn visible(token: &str) -> bool {
    token.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

#[cfg(test)]
mod tests;
