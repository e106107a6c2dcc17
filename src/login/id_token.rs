//! Whether an ID token is good (OpenID Connect Core, section 3.1.3.7), by the keys that the provider
//! publishes, and whether those keys have signed any other JWT. The one file that knows
//! `openidconnect`; it makes no call and reads no clock.

use std::time::{Duration, UNIX_EPOCH};

use openidconnect::core::{
    CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJsonWebKeyType,
    CoreJwsSigningAlgorithm as Algorithm,
};
use openidconnect::{
    AccessToken, AccessTokenHash, ClaimsVerificationError, ClientId, IssuerUrl, JsonWebKey, Nonce,
    SignatureVerificationError,
};
use serde_json::{Map, Value};

use super::logout_token;
use crate::clock::Timestamp;
use crate::config;

/// How far the provider's clock may be off, in seconds.
pub(super) const LEEWAY: u64 = 60;
/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// Signatures that only the holder of a private key can make. SECURITY: `none` and HS256 are not
/// among them (CVE-2024-33531), whatever a token or the provider says.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RsaSsaPkcs1V15Sha256,
    Algorithm::RsaSsaPkcs1V15Sha384,
    Algorithm::RsaSsaPkcs1V15Sha512,
    Algorithm::RsaSsaPssSha256,
    Algorithm::RsaSsaPssSha384,
    Algorithm::RsaSsaPssSha512,
    Algorithm::EcdsaP256Sha256,
    Algorithm::EcdsaP384Sha384,
    Algorithm::EdDsa,
];

/// The keys that the provider publishes and that can verify a signature.
pub(super) struct Keys(CoreJsonWebKeySet);

/// Why a document is no set of keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("it is no JWKS: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it holds no public key that an ID token could be verified with")]
    Empty,
}

impl Keys {
    /// Reads a JWKS (RFC 7517, section 5). Keys of a kind that is not known are passed over.
    pub(super) fn parse(document: &[u8]) -> Result<Self, KeysError> {
        let keys: CoreJsonWebKeySet = serde_json::from_slice(document)?;
        // SECURITY: who publishes a shared secret has none.
        let public = |key: &&_| *JsonWebKey::key_type(*key) != CoreJsonWebKeyType::Symmetric;
        let keys: Vec<_> = keys.keys().iter().filter(public).cloned().collect();
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(CoreJsonWebKeySet::new(keys))) }
    }

    /// The claims of a JWT (RFC 7519) that one of these keys has signed, whose `typ` is one of
    /// `kinds` or is not said. What the claims say is not looked at.
    pub(super) fn open(
        &self,
        token: &str,
        kinds: &[&str],
    ) -> Result<Map<String, Value>, Unverified> {
        if token.len() > MAX_TOKEN {
            return Err(bad("it is too long"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| bad("it is no JWT"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| bad("it is no JWT"))?;
        let header: Map<String, Value> =
            decoded(header).ok_or_else(|| bad("its header is no JSON object"))?;
        // RFC 7515, section 4.1.11: what must be understood and is not. A `cty` says that the
        // claims are something else (RFC 7519, section 5.2).
        if header.contains_key("crit") || header.contains_key("cty") {
            return Err(bad("its header asks for what is not understood"));
        }
        if !header.get("typ").is_none_or(|kind| is_one_of(kind, kinds)) {
            return Err(bad("it is a token of another kind"));
        }
        let algorithm = header.get("alg").cloned().map(serde_json::from_value::<Algorithm>);
        let algorithm = match algorithm {
            Some(Ok(algorithm)) if ALGORITHMS.contains(&algorithm) => algorithm,
            _ => return Err(bad("its alg is not one that is believed")),
        };
        let signature = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(signature).map_err(bad)?;
        let kid = header.get("kid");
        let mut tried = false;
        for key in self.0.keys() {
            if kid.is_some_and(|kid| kid.as_str() != key.key_id().map(|id| id.as_str())) {
                continue;
            }
            match key.verify_signature(&algorithm, signed.as_bytes(), &signature) {
                Ok(()) => {
                    return decoded(claims).ok_or_else(|| bad("its claims are no JSON object"));
                }
                // A key of another kind or for another use.
                Err(SignatureVerificationError::InvalidKey(_)) => {}
                Err(_) => tried = true,
            }
        }
        Err(if tried { bad("its signature is not the provider's") } else { Unverified::NoKey })
    }
}

/// Whether a `typ` is one of `kinds`, with or without what it leaves out (RFC 7515, section 4.1.9).
fn is_one_of(kind: &Value, kinds: &[&str]) -> bool {
    const LEFT_OUT: &str = "application/";
    let Some(kind) = kind.as_str() else { return false };
    let short = kind
        .split_at_checked(LEFT_OUT.len())
        .filter(|(start, _)| start.eq_ignore_ascii_case(LEFT_OUT))
        .map_or(kind, |(_, rest)| rest);
    kinds.iter().any(|known| known.eq_ignore_ascii_case(short))
}

/// What an ID token is held against, beside what always holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected<'a> {
    /// The nonce of the attempt; none after a refresh.
    pub(super) nonce: Option<&'a str>,
    /// The access token that came with it.
    pub(super) access_token: Option<&'a str>,
    /// `max_age` as it was asked.
    pub(super) max_age: Option<u64>,
    /// `organization` as it was asked.
    pub(super) organization: Option<&'a str>,
    /// The user whose tokens are refreshed.
    pub(super) subject: Option<&'a str>,
}

/// Why an ID token is not good.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// None of the keys has signed it; perhaps one that is newer.
    NoKey,
    /// It must not be believed.
    Bad(String),
}

/// The claims of an ID token that `keys` verify, that is for this client and now.
pub(super) fn verify(
    id_token: &str,
    keys: &Keys,
    config: &config::Provider,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<Map<String, Value>, Unverified> {
    let client_id = ClientId::new(config.client_id.clone());
    let issuer = IssuerUrl::new(config.issuer.clone()).map_err(bad)?;
    let latest = UNIX_EPOCH
        .checked_add(Duration::from_secs(now.0.saturating_sub(LEEWAY)))
        .ok_or_else(|| bad("the time is beyond all bounds"))?;
    // Other audiences are let through here: `azp` says whether the token is for us, below.
    let verifier = CoreIdTokenVerifier::new_public_client(client_id, issuer, keys.0.clone())
        .set_allowed_algs(ALGORITHMS)
        .set_other_audience_verifier_fn(|_| true)
        .set_time_fn(move || latest.into());
    let token = parse(id_token).map_err(bad)?;
    let nonce = |found: Option<&Nonce>| match (expected.nonce, found) {
        (None, _) => Ok(()),
        (Some(asked), Some(found)) if found.secret() == asked => Ok(()),
        _ => Err("it is not that of this login".to_owned()),
    };
    let standard = token.claims(&verifier, nonce).map_err(|error| match error {
        ClaimsVerificationError::SignatureVerification(
            SignatureVerificationError::NoMatchingKey,
        ) => Unverified::NoKey,
        error => bad(error),
    })?;
    if let (Some(hash), Some(access_token)) = (standard.access_token_hash(), expected.access_token)
    {
        let algorithm = token.signing_alg().map_err(bad)?;
        let key = token.signing_key(&verifier).map_err(bad)?;
        let access_token = AccessToken::new(access_token.to_owned());
        let found = AccessTokenHash::from_token(&access_token, algorithm, key).map_err(bad)?;
        if found != *hash {
            return Err(bad("at_hash is that of another access token"));
        }
    }
    let claims = payload(id_token).ok_or_else(|| bad("its claims are no JSON object"))?;
    check(&claims, &config.client_id, expected, now).map_err(bad)?;
    Ok(claims)
}

/// The reason goes to the log: bounded, and without what could drive a terminal.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(super) fn bad(error: impl ToString) -> Unverified {
    Unverified::Bad(error.to_string().chars().filter(|c| !c.is_control()).take(300).collect())
}

fn parse(id_token: &str) -> Result<CoreIdToken, String> {
    if id_token.len() > MAX_TOKEN {
        return Err("it is too long".to_owned());
    }
    id_token.parse().map_err(|error: serde_json::Error| error.to_string())
}

/// The claims as they were signed; the signature was checked before.
fn payload(id_token: &str) -> Option<Map<String, Value>> {
    decoded(id_token.split('.').nth(1)?)
}

fn decoded(part: &str) -> Option<Map<String, Value>> {
    let json = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(part).ok()?;
    serde_json::from_slice(&json).ok()
}

/// What `openidconnect` leaves to its user.
fn check(
    claims: &Map<String, Value>,
    client_id: &str,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<(), &'static str> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let time = |name: &str| claims.get(name).and_then(Value::as_f64);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 have 31 bits")]
    let now = now.0 as f64;
    #[expect(clippy::cast_precision_loss, reason = "a minute")]
    let leeway = LEEWAY as f64;
    // SECURITY: one that says nothing of its kind must not pass for an ID token at a refresh, where
    // no nonce is asked.
    if logout_token::is_one(claims) {
        return Err("it is a logout token");
    }
    // Section 3.1.3.7, numbers 3 to 5: who the token was issued for.
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    match text("azp") {
        Some(azp) if azp != client_id => return Err("azp names another client"),
        None if several => return Err("it has several audiences and no azp"),
        _ => {}
    }
    if time("exp").is_none_or(|exp| now >= exp + leeway) {
        return Err("it has expired");
    }
    if time("iat").is_none_or(|iat| iat > now + leeway) {
        return Err("it was issued in the future");
    }
    if time("nbf").is_some_and(|nbf| nbf > now + leeway) {
        return Err("it is not yet good");
    }
    if let Some(max_age) = expected.max_age {
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
        let latest = max_age as f64 + leeway;
        if time("auth_time").is_none_or(|auth_time| now - auth_time > latest) {
            return Err("the user proved who they are longer ago than max_age allows");
        }
    }
    if let Some(asked) = expected.organization {
        // SECURITY: Auth0's ids begin so, and no name does: an organization must not pass for
        // another by a name that looks like the other's id.
        let by_name = !asked.starts_with("org_")
            && text("org_name").is_some_and(|name| name.eq_ignore_ascii_case(asked));
        if !by_name && text("org_id") != Some(asked) {
            return Err("it is not for the organization that was asked");
        }
    }
    if expected.subject.is_some_and(|subject| text("sub") != Some(subject)) {
        return Err("it is for another user");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
