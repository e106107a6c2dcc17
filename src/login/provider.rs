//! The OpenID Provider: what it says of itself and its keys, read again when they seem old. What
//! makes an ID token good is in `login/id_token.rs`, how tokens are got in `login/token_endpoint.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{Request, StatusCode};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use url::Url;

use super::client_authentication::{ClientAuthentication, KeyError};
use super::http_client::{HttpClient, HttpError};
use super::id_token::{self, Expected, Keys, Unverified};
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

/// The provider, one for all workers.
pub struct Provider {
    pub(super) config: config::Provider,
    pub(super) client: HttpClient,
    pub(super) authentication: ClientAuthentication,
    discovered: ArcSwapOption<Discovered>,
    /// When the keys were last asked for.
    keys_read: AtomicU64,
    /// Held by whoever reads the keys again; the others wait for what it finds.
    reading_keys: Mutex<()>,
}

/// What a discovery found.
pub(super) struct Discovered {
    pub(super) metadata: Metadata,
    pub(super) keys: Keys,
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
    /// The key is not published, or not yet where we read it: the token may be good.
    #[error("the ID token is signed with a key that the provider does not publish")]
    NoKey,
}

impl ProviderError {
    /// Whether the provider understood and said no: asking again is of no use.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Status { status, error, .. } => {
                let words = error.as_deref().unwrap_or_default();
                let code = words.split(' ').next().unwrap_or_default();
                status.is_client_error() && REFUSALS.contains(&code)
            }
            Self::IdToken(_) => true,
            _ => false,
        }
    }

    /// Whether the provider could not be asked or did not answer: no word on what was asked.
    pub(super) fn is_outage(&self) -> bool {
        matches!(self, Self::Undiscovered | Self::Call { .. } | Self::Status { .. } | Self::NoKey)
    }
}

/// What the token endpoint answers when the user has to log in again, or may not: RFC 6749, section
/// 5.2; OpenID Connect Core, section 3.1.2.6; and Auth0's own for a user who was blocked.
/// `invalid_client` is the operator's mistake, no verdict on the user's token.
const REFUSALS: [&str; 7] = [
    "invalid_grant",
    "access_denied",
    "unauthorized",
    "login_required",
    "interaction_required",
    "consent_required",
    "mfa_required",
];

impl Provider {
    /// A provider that is not yet discovered. `roots` says whom TLS trusts.
    pub fn new(config: &config::Provider, roots: &rustls::ClientConfig) -> Result<Self, KeyError> {
        Ok(Self {
            client: HttpClient::new(roots, config.issuer_url.scheme() == "http"),
            authentication: ClientAuthentication::new(&config.authentication)?,
            config: config.clone(),
            discovered: ArcSwapOption::empty(),
            keys_read: AtomicU64::new(0),
            reading_keys: Mutex::new(()),
        })
    }

    /// The provider by other settings. What was discovered stays known if the issuer is the same.
    pub fn with(
        &self,
        config: &config::Provider,
        roots: &rustls::ClientConfig,
    ) -> Result<Self, KeyError> {
        let other = Self::new(config, roots)?;
        if self.config.issuer == config.issuer {
            other.discovered.store(self.discovered.load_full());
        }
        Ok(other)
    }

    /// Discovers the provider, unless that was done.
    pub async fn reach(&self) -> Result<(), ProviderError> {
        if self.is_ready() { Ok(()) } else { self.discover().await }
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
        let keys = self.read_keys(&metadata, Timestamp::now()).await?;
        self.discovered.store(Some(Arc::new(Discovered { metadata, keys })));
        Ok(())
    }

    async fn read_keys(&self, metadata: &Metadata, now: Timestamp) -> Result<Keys, ProviderError> {
        self.keys_read.store(now.0, Ordering::Relaxed);
        let document = self.get("keys", &metadata.jwks_uri).await?;
        Keys::parse(&document)
            .map_err(|source| ProviderError::Call { what: "keys", source: source.into() })
    }

    /// What is known after the keys of `known` were not enough: read again, unless somebody has
    /// just done so.
    async fn with_new_keys(
        &self,
        known: &Arc<Discovered>,
        now: Timestamp,
    ) -> Result<Arc<Discovered>, ProviderError> {
        let _one = self.reading_keys.lock().await;
        let current = self.discovered()?;
        let due = self.keys_read.load(Ordering::Relaxed).saturating_add(KEYS_PAUSE);
        if !Arc::ptr_eq(&current, known) || now.0 < due {
            return Ok(current);
        }
        let metadata = current.metadata.clone();
        let keys = self.read_keys(&metadata, now).await?;
        let discovered = Arc::new(Discovered { metadata, keys });
        self.discovered.store(Some(discovered.clone()));
        Ok(discovered)
    }

    /// The claims of an ID token that is good. A key that is not known is looked for once.
    pub(super) async fn verify(
        &self,
        id_token: &str,
        expected: &Expected<'_>,
        now: Timestamp,
    ) -> Result<Map<String, Value>, ProviderError> {
        let verify = |keys: &_| id_token::verify(id_token, keys, &self.config, expected, now);
        self.with_keys(verify, now).await
    }

    /// What `verify` finds with the provider's keys; with newer ones, if it knows none of them.
    pub(super) async fn with_keys<T>(
        &self,
        verify: impl Fn(&Keys) -> Result<T, Unverified>,
        now: Timestamp,
    ) -> Result<T, ProviderError> {
        let discovered = self.discovered()?;
        match verify(&discovered.keys) {
            Err(Unverified::NoKey) => {
                Ok(verify(&self.with_new_keys(&discovered, now).await?.keys)?)
            }
            verified => Ok(verified?),
        }
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
}

impl From<Unverified> for ProviderError {
    fn from(unverified: Unverified) -> Self {
        match unverified {
            Unverified::NoKey => Self::NoKey,
            Unverified::Bad(why) => Self::IdToken(why),
        }
    }
}

/// `error` and `error_description` of an answer, bounded and without control characters.
fn oauth_error(body: &[u8]) -> Option<String> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let whole = format!("{} {}", text("error"), text("error_description"));
    let clean: String = whole.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}

#[cfg(test)]
pub(super) mod tests;
