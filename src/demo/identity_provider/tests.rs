//! The provider from outside: requests go in, replies are read. Each step is what a browser or a
//! client does.

use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};
use url::Url;

use super::grants::sha256_text;
use super::keys::tests::KEYS;
use super::*;

mod login;
mod logout;
mod tokens;

const ISSUER: &str = "http://127.0.0.1:9080/";
const CALLBACK: &str = "https://localhost:8443/auth/callback";
const HOME: &str = "https://localhost:8443/";
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters";
const SECRET: &str = "the client's secret";
const NOW: Timestamp = Timestamp(1_800_000_000);
/// What a hostile site would put everywhere (CVE-2021-32792, CVE-2024-21496).
const HOSTILE: &str = "'\"><script>alert(1)</script>";

fn options() -> Options {
    Options {
        redirect_uris: vec![CALLBACK.to_owned()],
        logout_uris: vec![HOME.to_owned()],
        ..Options::new(ISSUER, "vestibule", SECRET)
    }
}

fn provider() -> IdentityProvider {
    IdentityProvider::new(options(), User::samples(), KEYS[0].clone())
}

/// A browser at the provider: it keeps the one cookie.
#[derive(Default)]
struct Browser {
    cookie: Option<String>,
}

/// What a reply was.
struct Seen {
    status: u16,
    location: Option<Url>,
    body: String,
    challenge: Option<String>,
}

impl Seen {
    fn of(reply: Reply) -> Self {
        let (head, body) = reply.into_parts();
        let text = |name| Some(head.headers.get(name)?.to_str().unwrap().to_owned());
        let body = futures_now(body.collect()).unwrap().to_bytes();
        Self {
            status: head.status.as_u16(),
            location: text(LOCATION).map(|location| Url::parse(&location).unwrap()),
            body: String::from_utf8(body.to_vec()).unwrap(),
            challenge: text(http::header::WWW_AUTHENTICATE),
        }
    }

    /// A parameter of the address that the browser is sent to.
    fn parameter(&self, name: &str) -> Option<String> {
        let url = self.location.as_ref()?;
        url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The member `error` of a JSON reply.
    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or("none").to_owned()
    }
}

/// The output of a future that is ready: a body in memory.
fn futures_now<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

impl Browser {
    fn send(
        &mut self,
        provider: &IdentityProvider,
        request: http::request::Builder,
        body: String,
    ) -> Seen {
        let request = match &self.cookie {
            Some(cookie) => request.header(COOKIE, format!("theirs=1; {cookie}")),
            None => request,
        };
        let reply = provider.answer(&request.body(Bytes::from(body)).unwrap(), NOW);
        if let Some(set) = reply.headers().get(SET_COOKIE) {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            let gone = pair.ends_with('=');
            self.cookie = (!gone).then(|| pair.to_owned());
        }
        Seen::of(reply)
    }

    fn get(&mut self, provider: &IdentityProvider, path: &str) -> Seen {
        self.send(provider, Request::get(path), String::new())
    }

    fn post(&mut self, provider: &IdentityProvider, path: &str, form: &[(&str, &str)]) -> Seen {
        self.send(provider, Request::post(path), encode(form))
    }

    /// Signs `user` in on the login page of a request that has `more` parameters; gives the code.
    fn sign_in(
        &mut self,
        provider: &IdentityProvider,
        user: &str,
        more: &[(&str, &str)],
    ) -> String {
        let page = self.post(provider, &authorize(more), &[("user", user)]);
        page.parameter("code").unwrap_or_else(|| panic!("no code: {}", page.body))
    }
}

fn encode(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// The address of a request for a login; `more` replaces what is there, or takes it out if empty.
fn authorize(more: &[(&str, &str)]) -> String {
    let challenge = sha256_text(VERIFIER);
    let mut pairs = vec![
        ("response_type", "code"),
        ("client_id", "vestibule"),
        ("redirect_uri", CALLBACK),
        ("scope", "openid profile email offline_access"),
        ("state", "the state"),
        ("nonce", "the nonce"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    pairs.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    pairs.extend(more.iter().filter(|(_, value)| !value.is_empty()));
    format!("/authorize?{}", encode(&pairs))
}

/// A call of the client, which proves itself in the form.
fn call(provider: &IdentityProvider, path: &str, form: &[(&str, &str)], now: Timestamp) -> Seen {
    let mut form = form.to_vec();
    form.extend([("client_id", "vestibule"), ("client_secret", SECRET)]);
    let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    Seen::of(provider.answer(&request.body(Bytes::from(encode(&form))).unwrap(), now))
}

fn redeem(provider: &IdentityProvider, code: &str) -> Seen {
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
    ];
    call(provider, "/oauth/token", &form, NOW)
}

fn refresh(provider: &IdentityProvider, token: &str) -> Seen {
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
    call(provider, "/oauth/token", &form, NOW)
}

/// The tokens of a fresh login.
fn log_in(provider: &IdentityProvider, user: &str, more: &[(&str, &str)]) -> Value {
    let code = Browser::default().sign_in(provider, user, more);
    redeem(provider, &code).json()
}

fn userinfo(provider: &IdentityProvider, token: &str, now: Timestamp) -> Seen {
    let request = Request::get("/userinfo").header(AUTHORIZATION, format!("Bearer {token}"));
    Seen::of(provider.answer(&request.body(Bytes::new()).unwrap(), now))
}

/// The claims of a JWT that one of the published keys signed.
fn claims(provider: &IdentityProvider, typ: &str, jwt: &Value) -> Map<String, Value> {
    provider.memory().keys.open(typ, jwt.as_str().unwrap()).unwrap()
}
