//! The OpenID Provider: what it says of itself, its keys, and whether an ID token is good. The one
//! file that knows `openidconnect`. How its endpoints are called is in `login/token_endpoint.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{Request, StatusCode};
use openidconnect::core::{
    CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm as Algorithm,
};
use openidconnect::{
    AccessToken, AccessTokenHash, ClaimsVerificationError, ClientId, IssuerUrl, Nonce,
    SignatureVerificationError,
};
use serde_json::{Map, Value};
use url::Url;

use super::client_authentication::{ClientAuthentication, KeyError};
use super::http_client::{HttpClient, HttpError};
use super::metadata::{Metadata, MetadataError};
use crate::clock::Timestamp;
use crate::config;

/// Metadata and keys are read anew after this time even if nothing seems wrong.
const REREAD: Duration = Duration::from_secs(3600);
/// The first wait after a failed discovery; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Keys are not read again for an unknown `kid` before this many seconds have passed: tokens with
/// made-up ones must not become calls.
const KEYS_PAUSE: u64 = 10;
/// How far the provider's clock may be off, in seconds.
const LEEWAY: u64 = 60;
/// The longest ID token that is looked at, in bytes.
const MAX_ID_TOKEN: usize = 16 * 1024;

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

/// The provider, one for all workers.
pub struct Provider {
    pub(super) config: config::Provider,
    pub(super) client: HttpClient,
    pub(super) authentication: ClientAuthentication,
    discovered: ArcSwapOption<Discovered>,
    /// When the keys were last asked for.
    keys_read: AtomicU64,
}

/// What a discovery found.
pub(super) struct Discovered {
    pub(super) metadata: Metadata,
    keys: CoreJsonWebKeySet,
}

/// Why the provider could not help.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Nothing has been discovered yet.
    #[error("the provider has not been reached since the gateway started")]
    Undiscovered,
    /// A call brought no answer.
    #[error("{what}: {source}")]
    Call {
        /// Which call.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A call was answered with another status than 200.
    #[error("{what}: answered {status}{}", error.as_deref().map(|e| format!(" {e}")).unwrap_or_default())]
    Status {
        /// Which call.
        what: &'static str,
        /// The status.
        status: StatusCode,
        /// The OAuth error code and description (RFC 6749, section 5.2).
        error: Option<String>,
    },
    /// An answer is not what the protocol says.
    #[error("{0}")]
    Malformed(&'static str),
    /// A token that must not be believed.
    #[error("the ID token is not good: {0}")]
    IdToken(String),
}

impl ProviderError {
    /// Whether the provider understood and said no: asking again is of no use.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Status { status, error, .. } => {
                let code = error.as_deref().unwrap_or_default();
                // `invalid_client` is the operator's mistake, no verdict on the user's token.
                status.is_client_error() && code.starts_with("invalid_grant")
            }
            Self::IdToken(_) => true,
            _ => false,
        }
    }
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

impl Provider {
    /// A provider that is not yet discovered. `roots` says whom TLS trusts.
    pub fn new(config: &config::Provider, roots: &rustls::ClientConfig) -> Result<Self, KeyError> {
        Ok(Self {
            client: HttpClient::new(roots, config.issuer_url.scheme() == "http"),
            authentication: ClientAuthentication::new(&config.authentication)?,
            config: config.clone(),
            discovered: ArcSwapOption::empty(),
            keys_read: AtomicU64::new(0),
        })
    }

    /// Whether logins are possible: the provider was reached once, and its keys are known.
    pub fn is_ready(&self) -> bool {
        self.discovered.load().is_some()
    }

    /// Discovers the provider, retrying until it answers, and again every hour. Never ends.
    pub async fn stay_discovered(&self) {
        let mut wait = FIRST_WAIT;
        loop {
            match self.discover().await {
                Ok(()) => {
                    if wait > FIRST_WAIT {
                        tracing::info!(issuer = self.config.issuer, "the provider is there again");
                    }
                    wait = FIRST_WAIT;
                    tokio::time::sleep(REREAD).await;
                }
                Err(error) => {
                    let issuer = &self.config.issuer;
                    tracing::warn!(issuer, %error, again_in = ?wait, "the provider cannot be read");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// What was discovered.
    pub(super) fn discovered(&self) -> Result<Arc<Discovered>, ProviderError> {
        self.discovered.load_full().ok_or(ProviderError::Undiscovered)
    }

    async fn discover(&self) -> Result<(), ProviderError> {
        // OpenID Connect Discovery 1.0, section 4.1: after the issuer without its final slash.
        let issuer = self.config.issuer.trim_end_matches('/');
        let url = Url::parse(&format!("{issuer}/.well-known/openid-configuration"))
            .map_err(|_| ProviderError::Malformed("provider.issuer is no URL"))?;
        let document = self.get("discovery", &url).await?;
        let wrong = |source: MetadataError| ProviderError::Call {
            what: "discovery",
            source: source.into(),
        };
        let metadata =
            Metadata::parse(&document, &self.config.issuer, &self.client).map_err(wrong)?;
        let keys = self.read_keys(&metadata).await?;
        self.discovered.store(Some(Arc::new(Discovered { metadata, keys })));
        Ok(())
    }

    async fn read_keys(&self, metadata: &Metadata) -> Result<CoreJsonWebKeySet, ProviderError> {
        self.keys_read.store(Timestamp::now().0, Ordering::Relaxed);
        let document = self.get("keys", &metadata.jwks_uri).await?;
        serde_json::from_slice(&document)
            .map_err(|source| ProviderError::Call { what: "keys", source: source.into() })
    }

    async fn get(&self, what: &'static str, url: &Url) -> Result<Vec<u8>, ProviderError> {
        let request = Request::get(url.as_str())
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|_| ProviderError::Malformed("an address that cannot be asked"))?;
        self.call(what, request).await
    }

    /// The body of a 200; anything else is an error.
    pub(super) async fn call(
        &self,
        what: &'static str,
        request: Request<Vec<u8>>,
    ) -> Result<Vec<u8>, ProviderError> {
        let answer = self.client.call(request).await;
        let answer = answer
            .map_err(|source: HttpError| ProviderError::Call { what, source: source.into() })?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        Err(ProviderError::Status { what, status: head.status, error: oauth_error(&body) })
    }

    /// The claims of an ID token that is good (OpenID Connect Core, section 3.1.3.7). A key that is
    /// not known is looked for once.
    pub(super) async fn verify(
        &self,
        id_token: &str,
        expected: &Expected<'_>,
        now: Timestamp,
    ) -> Result<Map<String, Value>, ProviderError> {
        let discovered = self.discovered()?;
        match self.verify_with(&discovered.keys, id_token, expected, now) {
            Err(Unverified::NoKey) if self.may_read_keys(now) => {
                let metadata = discovered.metadata.clone();
                let keys = self.read_keys(&metadata).await?;
                let verified = self.verify_with(&keys, id_token, expected, now);
                self.discovered.store(Some(Arc::new(Discovered { metadata, keys })));
                verified.map_err(Unverified::into)
            }
            verified => verified.map_err(Unverified::into),
        }
    }

    fn may_read_keys(&self, now: Timestamp) -> bool {
        let read = self.keys_read.load(Ordering::Relaxed);
        let due = now.0 >= read.saturating_add(KEYS_PAUSE);
        let swap = |read| {
            self.keys_read.compare_exchange(read, now.0, Ordering::Relaxed, Ordering::Relaxed)
        };
        due && swap(read).is_ok()
    }

    fn verify_with(
        &self,
        keys: &CoreJsonWebKeySet,
        id_token: &str,
        expected: &Expected<'_>,
        now: Timestamp,
    ) -> Result<Map<String, Value>, Unverified> {
        let client_id = ClientId::new(self.config.client_id.clone());
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(bad)?;
        // Other audiences are let through here: `azp` says whether the token is for us, below.
        let verifier = CoreIdTokenVerifier::new_public_client(client_id, issuer, keys.clone())
            .set_allowed_algs(ALGORITHMS)
            .set_other_audience_verifier_fn(|_| true);
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
        if let (Some(hash), Some(access_token)) =
            (standard.access_token_hash(), expected.access_token)
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
        check(&claims, &self.config.client_id, expected, now).map_err(bad)?;
        Ok(claims)
    }
}

enum Unverified {
    NoKey,
    Bad(String),
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn bad(error: impl ToString) -> Unverified {
    Unverified::Bad(error.to_string())
}

impl From<Unverified> for ProviderError {
    fn from(unverified: Unverified) -> Self {
        match unverified {
            Unverified::NoKey => Self::IdToken("no known key has signed it".to_owned()),
            Unverified::Bad(why) => Self::IdToken(why),
        }
    }
}

fn parse(id_token: &str) -> Result<CoreIdToken, String> {
    if id_token.len() > MAX_ID_TOKEN {
        return Err("it is too long".to_owned());
    }
    id_token.parse().map_err(|error: serde_json::Error| error.to_string())
}

/// The claims as they were signed; the signature was checked before.
fn payload(id_token: &str) -> Option<Map<String, Value>> {
    let text = id_token.split('.').nth(1)?;
    let json = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok()?;
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
        let same = text("org_id") == Some(asked)
            || text("org_name").is_some_and(|name| name.eq_ignore_ascii_case(asked));
        if !same {
            return Err("it is not for the organization that was asked");
        }
    }
    if expected.subject.is_some_and(|subject| text("sub") != Some(subject)) {
        return Err("it is for another user");
    }
    Ok(())
}

/// `error` and `error_description` of an answer, bounded and without control characters.
fn oauth_error(body: &[u8]) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let whole = format!("{} {}", text("error"), text("error_description"));
    let clean: String = whole.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}
