//! OpenID Providers beside the gateway: the embedded one, as people meet it, and a scripted one that
//! can lie, fail and be slow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::{Url, form_urlencoded};
use vestibule::clock::Timestamp;
use vestibule::demo::identity_provider::{IdentityProvider, Options, SigningKey, User};

use super::app::{App, Reply, Seen};
use super::free_port;
use super::wire::parameter;

/// The gateway at every provider.
pub(crate) const CLIENT: &str = "vestibule-tests";
/// Its secret.
pub(crate) const SECRET: &str = "a client secret of the tests";

/// Whom a gateway can be configured with.
pub(crate) trait Issuer {
    /// For `provider.issuer`.
    fn issuer(&self) -> &str;
    /// The port at which it expects the gateway.
    fn gateway_port(&self) -> u16;
}

/// The embedded provider. Whoever types a name into its page is that user.
pub(crate) struct Provider {
    issuer: String,
    gateway_port: u16,
    /// To change users, keys and grants.
    pub(crate) inner: Arc<IdentityProvider>,
    task: Mutex<JoinHandle<()>>,
}

impl Provider {
    /// Starts one with its sample users: Zoë, who has every role, and Bob, who has none.
    pub(crate) async fn start() -> Self {
        Self::start_with(&["localhost"], |_| {}).await
    }

    /// Starts one for a gateway of these hosts, with other options.
    pub(crate) async fn start_with(hosts: &[&str], change: impl FnOnce(&mut Options)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/", listener.local_addr().unwrap());
        let gateway_port = free_port();
        let mut options = Options::new(&issuer, CLIENT, SECRET);
        for host in hosts {
            let origin = format!("https://{host}:{gateway_port}");
            options.redirect_uris.push(format!("{origin}/auth/callback"));
            options.logout_uris.push(format!("{origin}/"));
            options.logout_uris.push(format!("{origin}/bye"));
        }
        change(&mut options);
        let inner = Arc::new(IdentityProvider::new(options, User::samples(), key()));
        let task = Mutex::new(serve(&inner, listener));
        Self { issuer, gateway_port, inner, task }
    }

    /// Nobody answers at its address any more.
    pub(crate) async fn go_down(&self) {
        self.task.lock().unwrap().abort();
        while !self.task.lock().unwrap().is_finished() {
            tokio::task::yield_now().await;
        }
    }

    /// It answers again.
    pub(crate) async fn come_back(&self) {
        let address = Url::parse(&self.issuer).unwrap().socket_addrs(|| None).unwrap()[0];
        let listener = TcpListener::bind(address).await.unwrap();
        *self.task.lock().unwrap() = serve(&self.inner, listener);
    }
}

impl Issuer for Provider {
    fn issuer(&self) -> &str {
        &self.issuer
    }

    fn gateway_port(&self) -> u16 {
        self.gateway_port
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.lock().unwrap().abort();
    }
}

fn serve(inner: &Arc<IdentityProvider>, listener: TcpListener) -> JoinHandle<()> {
    let inner = inner.clone();
    tokio::spawn(async move {
        inner.serve(listener).await;
    })
}

/// One key for all: making it takes a while.
fn key() -> SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::generate().unwrap()).clone()
}

/// A provider whose every answer a test can change. It shows no page: whoever comes is signed in.
pub(crate) struct Scripted {
    issuer: String,
    gateway_port: u16,
    app: App,
    script: Arc<Mutex<Script>>,
}

/// What a [`Scripted`] provider answers.
pub(crate) struct Script {
    /// Over the claims of the next ID tokens; `null` takes a claim away.
    pub(crate) claims: Value,
    /// Over the members of the JOSE header.
    pub(crate) header: Value,
    /// Over the members of the token endpoint's answers.
    pub(crate) tokens: Value,
    /// Over the members of the discovery document.
    pub(crate) metadata: Value,
    /// What `/userinfo` says, if discovery is told to name it.
    pub(crate) userinfo: Value,
    /// Over the parameters that it sends the browser back with.
    pub(crate) callback: Value,
    /// Signs in place of the key that it publishes.
    pub(crate) signature: Option<Sign>,
    /// The endpoint's path and the status it answers with in place of everything else.
    pub(crate) broken: Option<(&'static str, u16)>,
    /// How long the token endpoint takes.
    pub(crate) slowness: Duration,
    /// The key, and its name in the JWKS.
    pub(crate) key: Key,
    codes: HashMap<String, Login>,
    count: usize,
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

struct Login {
    nonce: Option<String>,
    challenge: Option<String>,
}

impl Scripted {
    /// Starts one that does everything right, for the user `auth0|zoe`.
    pub(crate) async fn start() -> Self {
        let script = Arc::new(Mutex::new(Script {
            claims: json!({}),
            header: json!({}),
            tokens: json!({}),
            metadata: json!({}),
            userinfo: json!({}),
            callback: json!({}),
            signature: None,
            broken: None,
            slowness: Duration::ZERO,
            key: Key::new("first"),
            codes: HashMap::new(),
            count: 0,
        }));
        let shared = script.clone();
        let app = App::start_later(move |seen| {
            let slow = seen.path() == "/oauth/token";
            let wait = if slow { shared.lock().unwrap().slowness } else { Duration::ZERO };
            let shared = shared.clone();
            async move {
                tokio::time::sleep(wait).await;
                let host = seen.header("host").unwrap();
                shared.lock().unwrap().answer(&seen, &format!("http://{host}/"))
            }
        })
        .await;
        Self { issuer: format!("{}/", app.url), gateway_port: free_port(), app, script }
    }

    /// To change what it answers.
    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Its own address, with a slash at the end.
    pub(crate) fn address(&self) -> &str {
        &self.issuer
    }

    /// Every call of this path.
    pub(crate) fn calls(&self, path: &str) -> Vec<Seen> {
        self.app.seen().into_iter().filter(|seen| seen.path() == path).collect()
    }

    /// Every call of the token endpoint with this grant type.
    pub(crate) fn grants(&self, kind: &str) -> Vec<Seen> {
        let calls = self.calls("/oauth/token").into_iter();
        calls.filter(|seen| form(seen).get("grant_type").is_some_and(|it| it == kind)).collect()
    }
}

impl Issuer for Scripted {
    fn issuer(&self) -> &str {
        &self.issuer
    }

    fn gateway_port(&self) -> u16 {
        self.gateway_port
    }
}

/// The parameters of a form that was sent.
pub(crate) fn form(seen: &Seen) -> HashMap<String, String> {
    form_urlencoded::parse(&seen.body).into_owned().collect()
}

impl Script {
    fn answer(&mut self, seen: &Seen, issuer: &str) -> Reply {
        if let Some((path, status)) = self.broken
            && path == seen.path()
        {
            return Reply::new(status).body("it is broken");
        }
        match seen.path() {
            "/.well-known/openid-configuration" => json_reply(&self.discovery(issuer)),
            "/jwks" => json_reply(&json!({ "keys": [self.key.jwk()] })),
            "/authorize" => self.authorize(seen, issuer),
            "/oauth/token" | "/token" => self.token(seen, issuer),
            "/userinfo" => json_reply(&self.userinfo),
            "/logout" | "/revoke" => Reply::new(200),
            _ => Reply::new(404),
        }
    }

    fn discovery(&self, issuer: &str) -> Value {
        let at = |path: &str| format!("{issuer}{path}");
        changed(
            json!({
                "issuer": issuer,
                "authorization_endpoint": at("authorize"),
                "token_endpoint": at("oauth/token"),
                "jwks_uri": at("jwks"),
                "end_session_endpoint": at("logout"),
                "revocation_endpoint": at("revoke"),
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
            &self.metadata,
        )
    }

    fn authorize(&mut self, seen: &Seen, issuer: &str) -> Reply {
        let url = Url::parse(issuer).unwrap().join(&seen.target).unwrap();
        let (nonce, challenge) = (parameter(&url, "nonce"), parameter(&url, "code_challenge"));
        self.count += 1;
        let code = format!("code-{}", self.count);
        self.codes.insert(code.clone(), Login { nonce, challenge });
        let mut back = Url::parse(&parameter(&url, "redirect_uri").unwrap()).unwrap();
        let state = parameter(&url, "state");
        let answer = changed(json!({ "code": code, "state": state }), &self.callback);
        let pairs = answer.as_object().unwrap().iter();
        back.query_pairs_mut()
            .extend_pairs(pairs.map(|(name, value)| (name, value.as_str().unwrap())));
        Reply::new(302).header("Location", back.as_str())
    }

    fn token(&mut self, seen: &Seen, issuer: &str) -> Reply {
        let form = form(seen);
        let error = || Reply::new(400).body(r#"{"error":"invalid_grant"}"#);
        let nonce = match form.get("grant_type").map(String::as_str) {
            Some("authorization_code") => {
                let login = form.get("code").and_then(|code| self.codes.remove(code));
                let Some(Login { nonce, challenge }) = login else { return error() };
                let verifier = form.get("code_verifier").map(String::as_str).unwrap_or_default();
                if challenge.is_some_and(|challenge| challenge != sha256(verifier)) {
                    return error();
                }
                nonce
            }
            Some("refresh_token") => None,
            _ => return error(),
        };
        self.count += 1;
        let count = self.count;
        let tokens = json!({
            "id_token": self.id_token(issuer, nonce.as_deref()),
            "access_token": format!("access-{count}"),
            "refresh_token": format!("refresh-{count}"),
            "token_type": "Bearer",
            "expires_in": 3600,
        });
        json_reply(&changed(tokens, &self.tokens))
    }

    fn id_token(&self, issuer: &str, nonce: Option<&str>) -> String {
        let now = Timestamp::now().0;
        let mut claims = json!({
            "iss": issuer, "aud": CLIENT, "sub": "auth0|zoe", "nickname": "zoe",
            "iat": now, "exp": now + 3600,
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let claims = changed(claims, &self.claims);
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": self.key.kid });
        let header = changed(header, &self.header);
        let part = |value: &Value| BASE64URL.encode_to_string(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = match &self.signature {
            Some(sign) => sign(signed.as_bytes()),
            None => self.key.sign(signed.as_bytes()),
        };
        format!("{signed}.{}", BASE64URL.encode_to_string(signature))
    }
}

/// An ECDSA key on P-256 (RFC 7518, section 3.4).
pub(crate) struct Key {
    pub(crate) kid: String,
    pair: EcdsaKeyPair,
}

impl Key {
    pub(crate) fn new(kid: &str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self { kid: kid.to_owned(), pair }
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec()
    }

    /// The public key: the point, uncompressed.
    pub(crate) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.public()[1..].split_at(32);
        let (x, y) = (BASE64URL.encode_to_string(x), BASE64URL.encode_to_string(y));
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": x, "y": y,
        })
    }
}

/// `value` with the members of `over`; `null` takes a member away.
fn changed(value: Value, over: &Value) -> Value {
    let Value::Object(mut members) = value else { return value };
    for (name, value) in over.as_object().unwrap_or(&Map::new()) {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    Value::Object(members)
}

fn json_reply(value: &Value) -> Reply {
    Reply::new(200).header("Content-Type", "application/json").body(value.to_string())
}

fn sha256(text: &str) -> String {
    BASE64URL.encode_to_string(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
}
