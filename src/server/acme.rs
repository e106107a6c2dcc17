//! Certificates that the gateway gets and renews by itself (ACME, RFC 8555): when one is due, how it is
//! ordered, and where it is put. From there it is a certificate like any other: the files have changed,
//! and are read again. That a name is ours is shown over the listener without TLS (HTTP-01, section 8.3).

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType,
    Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use super::worker::Handed;
use super::{der, tls};
use crate::clock::Timestamp;
use crate::config::certificate::{CertificateError, is_good_for, load};
use crate::config::{Acme, Certificate};
use crate::lock::lock;
use crate::login::HttpClient;

/// How often it is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After an order that failed, doubled each time; authorities allow five an hour.
const FIRST_PAUSE: Duration = Duration::from_secs(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// How long the authority may take to look at our proofs, and to issue.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(90));

/// What is shown to the authority, by token.
#[derive(Default)]
pub(super) struct Challenges(Mutex<HashMap<String, String>>);

impl Challenges {
    /// What to answer at this path, if it is one of ours.
    pub(super) fn at(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix("/.well-known/acme-challenge/")?;
        lock(&self.0).get(token).cloned()
    }
}

/// What one order shows: no longer than it lasts.
struct Shown<'a> {
    all: &'a Challenges,
    tokens: Vec<String>,
}

impl Shown<'_> {
    fn show(&mut self, token: &str, proof: &str) {
        lock(&self.all.0).insert(token.to_owned(), proof.to_owned());
        self.tokens.push(token.to_owned());
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        for token in &self.tokens {
            all.remove(token);
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, Error)]
enum OrderError {
    #[error(transparent)]
    Acme(#[from] instant_acme::Error),
    #[error("the authority does not take HTTP-01")]
    NoHttp01,
    #[error("the authority did not take our proofs: {0}")]
    Refused(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is no account: {source}")]
    Account { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Gets and renews what the configuration in force says, as long as there is one.
pub(super) async fn keep(mut handed: watch::Receiver<Handed>, challenges: Arc<Challenges>) {
    let mut failures: HashMap<PathBuf, Failure> = HashMap::new();
    loop {
        let config = handed.borrow_and_update().generation.config().clone();
        forget(&mut failures, &config.server.certificates, Timestamp::now());
        if let Some(acme) = &config.server.acme {
            for certificate in &config.server.certificates {
                let paused = failures.get(&certificate.cert).is_some_and(Failure::is_fresh);
                if paused || !is_due(certificate, Timestamp::now()) {
                    continue;
                }
                let names = certificate.acme.join(", ");
                match order(acme, certificate, &challenges).await {
                    Ok(()) => {
                        tracing::info!(names, "a certificate was issued");
                        failures.remove(&certificate.cert);
                    }
                    Err(error) => {
                        let failure = failures.entry(certificate.cert.clone()).or_default();
                        let again_in = failure.again();
                        tracing::error!(names, %error, ?again_in, "a certificate was not issued");
                    }
                }
            }
        }
        let next = failures.values().map(|failure| failure.until).min();
        let next = next.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
        tokio::select! {
            () = tokio::time::sleep_until(next.max(Instant::now() + Duration::from_secs(1))) => {}
            changed = handed.changed() => if changed.is_err() { return },
        }
    }
}

/// An order that failed, until when it is not tried again.
struct Failure {
    until: Instant,
    pause: Duration,
}

impl Default for Failure {
    fn default() -> Self {
        Self { until: Instant::now(), pause: FIRST_PAUSE }
    }
}

impl Failure {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }

    /// It failed: when it is tried again.
    fn again(&mut self) -> Duration {
        let pause = self.pause;
        self.until = Instant::now() + pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// Forgets failures of what somebody else has put right meanwhile, or nobody asks for any more: they
/// would never be tried again, and be due for ever.
fn forget(failures: &mut HashMap<PathBuf, Failure>, certificates: &[Certificate], now: Timestamp) {
    failures.retain(|cert, _| {
        certificates.iter().any(|certificate| certificate.cert == *cert && is_due(certificate, now))
    });
}

/// Whether a certificate of ours is not there, lacks a name, or has less than a third of its time left.
fn is_due(certificate: &Certificate, now: Timestamp) -> bool {
    if certificate.acme.is_empty() {
        return false;
    }
    let Ok(certified) = load(certificate) else { return true };
    let leaf = certified.cert.first().and_then(|leaf| der::body(leaf));
    let Some((from, until)) = leaf.map(|body| body.validity) else { return true };
    let renew_at = until.0.saturating_sub(until.since(from).as_secs() / 3);
    now.0 >= renew_at || !certificate.acme.iter().all(|name| is_good_for(&certified, name))
}

async fn order(
    acme: &Acme,
    certificate: &Certificate,
    challenges: &Challenges,
) -> Result<(), OrderError> {
    let account = account(acme).await?;
    let names: Vec<Identifier> = certificate.acme.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    let mut shown = Shown { all: challenges, tokens: Vec::new() };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let challenge = authorization.challenge(ChallengeType::Http01);
        let mut challenge = challenge.ok_or(OrderError::NoHttp01)?;
        let proof = challenge.key_authorization();
        shown.show(&challenge.token, proof.as_str());
        challenge.set_ready().await?;
    }
    match order.poll_ready(&PATIENCE).await? {
        OrderStatus::Ready | OrderStatus::Valid => {}
        _ => return Err(OrderError::Refused(why(&mut order).await)),
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    put(certificate, &chain, &key)
}

/// What the authority says of the proofs it did not take.
async fn why(order: &mut instant_acme::Order) -> String {
    let mut problems = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let errors = authorization.challenges.iter().filter_map(|one| one.error.as_ref());
        problems.extend(errors.map(ToString::to_string));
    }
    problems.join("; ")
}

/// The account as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

/// The account at the authority, made at the first order.
async fn account(acme: &Acme) -> Result<Account, OrderError> {
    let path = &acme.account;
    let http = || Ok::<_, OrderError>(Box::new(Http::new(acme)?));
    match fs::read(path) {
        Ok(bytes) => {
            let kept: Kept = serde_json::from_slice(&bytes)
                .map_err(|source| OrderError::Account { path: path.clone(), source })?;
            if kept.directory == acme.directory {
                let builder = Account::builder_with_http(http()?);
                return Ok(builder.from_credentials(kept.credentials).await?);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OrderError::File { path: path.clone(), source }),
    }
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let builder = Account::builder_with_http(http()?);
    let (account, credentials) = builder.create(&new, acme.directory.clone(), None).await?;
    let kept = Kept { directory: acme.directory.clone(), credentials };
    let text = serde_json::to_vec(&kept)
        .map_err(|source| OrderError::Account { path: path.clone(), source })?;
    replace(path, &text)?;
    Ok(account)
}

/// Puts a chain and its key where they are looked for, if they fit.
fn put(certificate: &Certificate, chain: &str, key: &str) -> Result<(), OrderError> {
    let beside = |path: &Path| path.with_extension("issued");
    // Two extensions that are alike would make one file of them.
    let fresh = Certificate {
        cert: beside(&certificate.cert).with_added_extension("pem"),
        key: beside(&certificate.key).with_added_extension("key"),
        acme: Vec::new(),
    };
    replace(&fresh.cert, chain.as_bytes())?;
    replace(&fresh.key, key.as_bytes())?;
    let checked = load(&fresh);
    if checked.is_ok() {
        for (from, to) in [(&fresh.key, &certificate.key), (&fresh.cert, &certificate.cert)] {
            fs::rename(from, to).map_err(|source| OrderError::File { path: to.clone(), source })?;
        }
    }
    checked.map(|_| ()).map_err(OrderError::from)
}

/// Writes a file that nobody else may read, in the place of one that is there.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), OrderError> {
    let write = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let fresh = path.with_added_extension("new");
        let _ = fs::remove_file(&fresh);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| OrderError::File { path: path.to_owned(), source })
}

/// The gateway's own client, as the protocol's library wants one.
struct Http(Arc<HttpClient>);

impl Http {
    fn new(acme: &Acme) -> Result<Self, rustls::Error> {
        Ok(Self(Arc::new(HttpClient::new(&*tls::roots_and(&acme.authorities)?, false))))
    }
}

impl instant_acme::HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(head, body.to_bytes().to_vec());
            let answer = client.call(request).await;
            let answer = answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            Ok(answer.map(|body| Full::new(Bytes::from(body))).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_shown_as_long_as_the_order_lasts() {
        let challenges = Challenges::default();
        let mut shown = Shown { all: &challenges, tokens: Vec::new() };
        shown.show("token", "token.thumbprint");
        let at = |path: &str| challenges.at(path);
        assert_eq!(at("/.well-known/acme-challenge/token").as_deref(), Some("token.thumbprint"));
        for path in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/other", "/token"]
        {
            assert_eq!(at(path), None);
        }
        drop(shown);
        assert_eq!(at("/.well-known/acme-challenge/token"), None);
    }

    #[test]
    fn a_certificate_is_due_when_it_is_not_there_lacks_a_name_or_has_a_third_of_its_time_left() {
        let directory = tempfile::tempdir().unwrap();
        let mut certificate = Certificate {
            cert: directory.path().join("a.pem"),
            key: directory.path().join("a.key"),
            acme: vec!["a.example".to_owned()],
        };
        let day = |day: u64| Timestamp(day * 86_400);
        assert!(is_due(&certificate, day(20_000)));
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 11, 25);
        params.not_after = rcgen::date_time_ymd(2027, 2, 23);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        put(&certificate, &made.pem(), &key.serialize_pem()).unwrap();
        assert!(!is_due(&certificate, day(20_782)) && !is_due(&certificate, day(20_841)));
        assert!(is_due(&certificate, day(20_842)), "60 of 90 days have passed");
        certificate.acme.push("b.example".to_owned());
        assert!(is_due(&certificate, day(20_782)));
        certificate.acme.clear();
        assert!(!is_due(&certificate, day(30_000)), "it is somebody else's");
    }

    #[test]
    fn a_failure_is_remembered_as_long_as_its_certificate_is_due() {
        let directory = tempfile::tempdir().unwrap();
        let certificate = Certificate {
            cert: directory.path().join("a.pem"),
            key: directory.path().join("a.key"),
            acme: vec!["a.example".to_owned()],
        };
        let cert = certificate.cert.clone();
        let other = directory.path().join("removed.pem");
        let mut failures = HashMap::from([(cert, Failure::default()), (other, Failure::default())]);
        let certificates = [certificate];
        forget(&mut failures, &certificates, Timestamp::now());
        assert_eq!(failures.keys().collect::<Vec<_>>(), [&certificates[0].cert]);
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        put(&certificates[0], &made.cert.pem(), &made.signing_key.serialize_pem()).unwrap();
        forget(&mut failures, &certificates, Timestamp::now());
        assert!(failures.is_empty(), "somebody has put it right");
    }

    #[test]
    fn what_does_not_fit_does_not_replace_what_is_there() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let certificate = Certificate {
            cert: directory.path().join("new/a.pem"),
            key: directory.path().join("new/a.key"),
            acme: vec!["a.example".to_owned()],
        };
        let make = || rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        put(&certificate, &one.cert.pem(), &one.signing_key.serialize_pem()).unwrap();
        assert!(put(&certificate, &one.cert.pem(), &other.signing_key.serialize_pem()).is_err());
        assert!(load(&certificate).is_ok());
        let mode = fs::metadata(&certificate.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else may read the key");
    }
}
