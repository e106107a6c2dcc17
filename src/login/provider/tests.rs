//! Discovery and keys against a provider that is a small server of the test's own, which can be
//! made to fail.

use std::collections::HashMap;
use std::sync::Mutex as Lock;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::id_token::tests::{Signer, claims};
use super::*;
use crate::config::sample;

/// One request that a [`Stub`] was sent.
#[derive(Clone, Debug)]
pub(in crate::login) struct Asked {
    /// `/path?query`
    pub(in crate::login) target: String,
    /// The field lines, names in lower case.
    pub(in crate::login) head: String,
    /// The body.
    pub(in crate::login) body: String,
}

#[derive(Default)]
struct Script {
    answers: HashMap<String, (u16, String)>,
    asked: Vec<Asked>,
}

/// A provider of the test's own, on loopback.
#[derive(Clone)]
pub(in crate::login) struct Stub {
    /// The issuer.
    pub(in crate::login) issuer: String,
    script: Arc<Lock<Script>>,
}

impl Stub {
    /// One that can be discovered and publishes the keys of `signers`.
    pub(in crate::login) async fn start(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/", listener.local_addr().unwrap());
        let stub = Self { issuer, script: Arc::default() };
        stub.answer("/.well-known/openid-configuration", 200, &stub.metadata());
        stub.publish(signers);
        let script = stub.script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone()));
            }
        });
        stub
    }

    pub(in crate::login) fn metadata(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.issuer);
        json!({
            "issuer": self.issuer,
            "authorization_endpoint": at("authorize"),
            "token_endpoint": at("token"),
            "jwks_uri": at("keys"),
            "userinfo_endpoint": at("userinfo"),
            "revocation_endpoint": at("revoke"),
        })
    }

    pub(in crate::login) fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
        self.answer("/keys", 200, &json!({"keys": keys}));
    }

    pub(in crate::login) fn answer(&self, path: &str, status: u16, body: &Value) {
        self.answer_text(path, status, &body.to_string());
    }

    pub(in crate::login) fn answer_text(&self, path: &str, status: u16, body: &str) {
        let mut script = self.script.lock().unwrap();
        script.answers.insert(path.to_owned(), (status, body.to_owned()));
    }

    /// The requests for `path` so far.
    pub(in crate::login) fn asked(&self, path: &str) -> Vec<Asked> {
        let script = self.script.lock().unwrap();
        script.asked.iter().filter(|asked| asked.target == path).cloned().collect()
    }

    /// The gateway's side, not yet discovered.
    pub(in crate::login) fn client(&self) -> Provider {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Provider::new(&sample::provider(&self.issuer), &roots).unwrap()
    }

    /// The gateway's side, discovered.
    pub(in crate::login) async fn discovered(&self) -> Provider {
        let client = self.client();
        client.discover().await.unwrap();
        client
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Lock<Script>>) {
    let mut bytes = Vec::new();
    let (head, body_start) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break (String::from_utf8_lossy(&bytes[..end]).into_owned(), end + 4);
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while bytes.len() < body_start + length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let body = String::from_utf8_lossy(&bytes[body_start..]).into_owned();
    let (status, text) = {
        let mut script = script.lock().unwrap();
        script.asked.push(Asked { target: target.clone(), head, body });
        script.answers.get(&target).cloned().unwrap_or((404, String::new()))
    };
    let length = text.len();
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{text}");
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// A time at which keys may be read again.
fn later() -> Timestamp {
    Timestamp::now().plus(Duration::from_secs(KEYS_PAUSE + 1))
}

async fn verify(provider: &Provider, token: &str, now: Timestamp) -> Result<(), ProviderError> {
    let expected = Expected { nonce: Some("n-1"), ..Expected::default() };
    provider.verify(token, &expected, now).await.map(drop)
}

#[tokio::test]
async fn a_provider_is_ready_once_its_metadata_and_its_keys_are_known() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let provider = stub.client();
    let (now, token) = (Timestamp::now(), signer.sign(&claims(&stub.issuer, Timestamp::now())));
    assert!(!provider.is_ready());
    assert!(matches!(verify(&provider, &token, now).await, Err(ProviderError::Undiscovered)));
    provider.discover().await.unwrap();
    assert!(provider.is_ready());
    verify(&provider, &token, now).await.unwrap();
    let asked = stub.asked("/keys").remove(0);
    assert!(asked.head.starts_with("GET /keys HTTP/1.1\r\n") && asked.body.is_empty());
}

#[tokio::test]
async fn a_provider_that_says_nonsense_is_not_ready() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let good = stub.metadata();
    let mut documents =
        vec![(500, "{}".to_owned()), (200, "<html>".to_owned()), (302, good.to_string())];
    for (member, value) in [
        ("issuer", "https://evil.example/"),
        ("token_endpoint", "http://192.0.2.1/token"),
        ("jwks_uri", "file:///etc/passwd"),
    ] {
        let mut document = good.clone();
        document[member] = value.into();
        documents.push((200, document.to_string()));
    }
    for (status, text) in documents {
        stub.answer_text("/.well-known/openid-configuration", status, &text);
        let provider = stub.client();
        assert!(provider.discover().await.is_err(), "{status} {text}");
        assert!(!provider.is_ready());
    }
    stub.answer("/.well-known/openid-configuration", 200, &good);
    for (status, keys) in [(500, "{}"), (200, "{\"keys\":[]}"), (200, "keys")] {
        stub.answer_text("/keys", status, keys);
        assert!(stub.client().discover().await.is_err(), "{status} {keys}");
    }
}

#[tokio::test]
async fn what_was_discovered_stays_when_a_later_reading_fails() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let provider = stub.discovered().await;
    stub.answer_text("/.well-known/openid-configuration", 503, "");
    assert!(provider.discover().await.is_err());
    stub.answer("/.well-known/openid-configuration", 200, &stub.metadata());
    stub.answer_text("/keys", 503, "");
    assert!(provider.discover().await.is_err());
    let token = signer.sign(&claims(&stub.issuer, Timestamp::now()));
    verify(&provider, &token, Timestamp::now()).await.unwrap();
}

#[tokio::test]
async fn a_provider_that_is_down_at_first_is_asked_again() {
    let stub = Stub::start(&[&Signer::new("k1")]).await;
    stub.answer_text("/.well-known/openid-configuration", 503, "");
    let provider = Arc::new(stub.client());
    let staying = provider.clone();
    let task = tokio::spawn(async move { staying.stay_discovered().await });
    while stub.asked("/.well-known/openid-configuration").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!provider.is_ready());
    stub.answer("/.well-known/openid-configuration", 200, &stub.metadata());
    tokio::time::timeout(Duration::from_secs(5), async {
        while !provider.is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    task.abort();
}

#[tokio::test]
async fn a_new_key_is_found_and_the_old_one_stays_good_while_it_is_published() {
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    let stub = Stub::start(&[&old]).await;
    let provider = stub.discovered().await;
    stub.publish(&[&new, &old]);
    let now = later();
    for signer in [&new, &old] {
        verify(&provider, &signer.sign(&claims(&stub.issuer, now)), now).await.unwrap();
    }
    assert_eq!(stub.asked("/keys").len(), 2);
}

#[tokio::test]
async fn made_up_keys_do_not_become_calls() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let provider = stub.discovered().await;
    let made_up = Signer::new("k2").sign(&claims(&stub.issuer, Timestamp::now()));
    let soon = Timestamp::now();
    for now in [soon, soon, later(), later(), later()] {
        let refused = verify(&provider, &made_up, now).await;
        assert!(matches!(refused, Err(ProviderError::NoKey)), "{refused:?}");
    }
    // The discovery, and one more after the pause.
    assert_eq!(stub.asked("/keys").len(), 2);
}

#[tokio::test]
async fn of_many_logins_after_a_rotation_one_reads_the_keys_and_all_succeed() {
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    let stub = Stub::start(&[&old]).await;
    let provider = Arc::new(stub.discovered().await);
    stub.publish(&[&new]);
    let now = later();
    let token = new.sign(&claims(&stub.issuer, now));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (provider, token) = (provider.clone(), token.clone());
            tokio::spawn(async move { verify(&provider, &token, now).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(stub.asked("/keys").len(), 2);
}

#[tokio::test]
async fn keys_that_cannot_be_read_again_leave_the_known_ones_good() {
    let (known, new) = (Signer::new("k1"), Signer::new("k2"));
    let stub = Stub::start(&[&known]).await;
    let provider = stub.discovered().await;
    stub.answer_text("/keys", 500, "");
    let now = later();
    let refused = verify(&provider, &new.sign(&claims(&stub.issuer, now)), now).await.unwrap_err();
    assert!(matches!(refused, ProviderError::Status { .. }), "{refused:?}");
    assert!(!refused.is_refusal(), "it is no word on the user");
    verify(&provider, &known.sign(&claims(&stub.issuer, now)), now).await.unwrap();
}

#[tokio::test]
async fn a_bad_token_is_a_refusal_and_reads_no_keys() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let provider = stub.discovered().await;
    let foreign = Signer::new("k1").sign(&claims(&stub.issuer, later()));
    let refused = verify(&provider, &foreign, later()).await.unwrap_err();
    assert!(refused.is_refusal(), "{refused}");
    assert_eq!(stub.asked("/keys").len(), 1);
}

#[test]
fn a_refusal_is_a_word_on_the_user_and_nothing_else() {
    let status = |status: u16, error: Option<&str>| ProviderError::Status {
        what: "the token endpoint",
        status: StatusCode::from_u16(status).unwrap(),
        error: error.map(str::to_owned),
    };
    for (error, is_refusal) in [
        (status(400, Some("invalid_grant")), true),
        (status(403, Some("invalid_grant Unknown or invalid refresh token.")), true),
        (status(401, Some("unauthorized user is blocked")), true),
        (status(400, Some("interaction_required AADSTS50076")), true),
        (status(400, Some("invalid_grants")), false),
        (status(400, Some("invalid_client")), false),
        (status(401, Some("invalid_client invalid_grant")), false),
        (status(400, Some("invalid_request")), false),
        (status(429, Some("too_many_requests")), false),
        (status(400, None), false),
        (status(500, Some("invalid_grant")), false),
        (ProviderError::Undiscovered, false),
        (ProviderError::NoKey, false),
        (ProviderError::Malformed("x"), false),
        (ProviderError::IdToken("x".to_owned()), true),
    ] {
        assert_eq!(error.is_refusal(), is_refusal, "{error}");
    }
}

#[test]
fn what_a_provider_says_of_an_error_is_bounded_and_clean() {
    let said = |text: &str| oauth_error(text.as_bytes());
    let plain = r#"{"error":"invalid_grant","error_description":"it\u001b[31m is\r\nold"}"#;
    assert_eq!(said(plain).unwrap(), "invalid_grant it[31m isold");
    assert_eq!(said(r#"{"error":"x"}"#).unwrap(), "x");
    let long = json!({"error": "e", "error_description": "ä".repeat(100_000)}).to_string();
    assert_eq!(said(&long).unwrap().chars().count(), 200);
    for none in ["", "[]", "<html>", "{}", r#"{"error":7}"#, r#"{"error":""}"#] {
        assert_eq!(said(none), None, "{none}");
    }
}
