//! The endpoints as a browser meets them, with a provider of the test's own.

use std::collections::HashMap;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, Request};
use serde_json::{Value, json};
use url::Url;

use super::id_token::tests::{Signer, claims};
use super::provider::tests::Stub;
use super::*;
use crate::config::sample;
use crate::observe::metrics::Metrics;
use crate::session::Memory;
use crate::session::memory::Bounds;

/// A browser, and the gateway's endpoints that it asks.
struct Scene {
    login: Login,
    stub: Stub,
    signer: Signer,
    origin: Origin,
    jar: HashMap<String, String>,
}

/// What the browser gets.
struct Got {
    status: u16,
    location: String,
    fields: HeaderMap,
}

impl Got {
    /// One parameter of the address that the browser is sent to.
    fn sent(&self, name: &str) -> Option<String> {
        let url = Url::parse(&self.location).unwrap();
        let mut values = url.query_pairs().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.into_owned());
        assert!(values.next().is_none(), "{name} twice in {url}");
        value
    }
}

impl Scene {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let signer = Signer::new("k1");
        let stub = Stub::start(&[&signer]).await;
        stub.answer("/userinfo", 200, &json!({"sub": "auth0|zoe"}));
        stub.answer_text("/revoke", 200, "");
        let provider = stub.discovered().await;
        Self::with(provider, stub, signer, change)
    }

    fn with(
        provider: Provider,
        stub: Stub,
        signer: Signer,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = sample::config();
        config.provider = sample::provider(&stub.issuer);
        change(&mut config);
        let sealer = Arc::new(Sealer::new(&config.session.secrets));
        let memory = Arc::new(Memory::new(Bounds::default()));
        let metrics = Rc::new(Metrics::new(vec![], memory.clone()).worker());
        let sessions = Rc::new(Sessions::new(&config.session, sealer.clone(), memory));
        let origin = config.server.public_urls[0].clone();
        let parties = Parties {
            config: Arc::new(config),
            provider: Arc::new(provider),
            sealer,
            refreshes: Arc::default(),
            pace: Arc::default(),
        };
        let login = Login::new(parties, sessions, metrics);
        Self { login, stub, signer, origin, jar: HashMap::new() }
    }

    /// One request, as the gateway serves it.
    async fn ask(&mut self, endpoint: Endpoint, query: &str) -> Result<Got, Failure> {
        let pairs: Vec<_> =
            self.jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::get(format!("/auth/x?{query}")).header(COOKIE, pairs.join("; "));
        let (request, ()) = request.body(()).unwrap().into_parts();
        let now = Timestamp::now();
        let asked = Asked { request: &request, origin: &self.origin, now };
        let mut visit = self.login.sessions.load(&request.headers, now).await.unwrap();
        let mut response = self.login.serve(endpoint, asked, Body::Empty, &mut visit).await?;
        self.login.sessions.answer(&visit, response.headers_mut(), now);
        for line in response.headers().get_all(SET_COOKIE) {
            let line = cookie::Cookie::parse(line.to_str().unwrap().to_owned()).unwrap();
            if line.max_age() == Some(cookie::time::Duration::ZERO) {
                self.jar.remove(line.name());
            } else {
                self.jar.insert(line.name().to_owned(), line.value().to_owned());
            }
        }
        let location = response.headers().get(LOCATION);
        Ok(Got {
            status: response.status().as_u16(),
            location: location.map_or("", |value| value.to_str().unwrap()).to_owned(),
            fields: response.headers().clone(),
        })
    }

    /// The status of a request that fails.
    async fn fails(&mut self, endpoint: Endpoint, query: &str) -> (u16, &'static str) {
        match self.ask(endpoint, query).await {
            Ok(got) => panic!("{} {}", got.status, got.location),
            Err(failure) => (failure.status.as_u16(), failure.code),
        }
    }

    /// The provider gives out tokens for the login that `begun` began.
    fn agrees(&self, begun: &Got, more: &Value) {
        let mut claims = claims(&self.stub.issuer, Timestamp::now());
        claims["nonce"] = begun.sent("nonce").unwrap().into();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = json!({
            "access_token": "at-1", "token_type": "Bearer", "expires_in": 3600,
            "refresh_token": "rt-1", "id_token": self.signer.sign(&claims),
        });
        self.stub.answer("/token", 200, &answer);
    }

    /// A whole login.
    async fn sign_in(&mut self, query: &str, claims: &Value) -> Result<Got, Failure> {
        let begun = self.ask(Endpoint::Login, query).await?;
        self.agrees(&begun, claims);
        let state = begun.sent("state").unwrap();
        self.ask(Endpoint::Callback, &format!("code=c&state={state}")).await
    }

    async fn is_signed_in(&mut self) -> bool {
        self.ask(Endpoint::Profile, "").await.is_ok()
    }
}

async fn local(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_login_asks_the_provider_for_a_code_and_proves_it_later() {
    let mut scene = Scene::new(|config| {
        config.provider.audience = Some("https://api.example/".to_owned());
    })
    .await;
    let got = scene.ask(Endpoint::Login, "return_to=/x").await.unwrap();
    assert_eq!(got.status, 303);
    assert!(got.location.starts_with(&format!("{}authorize?", scene.stub.issuer)));
    assert_eq!(got.fields["cache-control"], "no-store");
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "client"),
        ("redirect_uri", "https://app.example/auth/callback"),
        ("scope", "openid profile"),
        ("code_challenge_method", "S256"),
        ("audience", "https://api.example/"),
    ] {
        assert_eq!(got.sent(name).as_deref(), Some(value));
    }
    let again = scene.ask(Endpoint::Login, "return_to=/x").await.unwrap();
    for name in ["state", "nonce", "code_challenge"] {
        let (one, other) = (got.sent(name).unwrap(), again.sent(name).unwrap());
        assert!(one.len() >= 22 && one != other, "{name}");
    }
    assert_eq!(scene.jar.len(), 2, "each attempt has a cookie of its own");
}

#[tokio::test]
async fn what_a_link_asks_of_the_provider_is_passed_on_and_nothing_else() {
    let mut scene = Scene::new(|_| {}).await;
    let query = "screen_hint=signup&connection=ldap&organization=org_1&invitation=i&login_hint=z%40x\
                 &prompt=login&max_age=60&acr_values=a+b&ui_locales=de&evil=1&scope=admin\
                 &redirect_uri=https%3A%2F%2Fevil.example&client_id=evil&state=s&nonce=n&request=r";
    let got = scene.ask(Endpoint::Login, query).await.unwrap();
    for (name, value) in [
        ("screen_hint", "signup"),
        ("connection", "ldap"),
        ("organization", "org_1"),
        ("invitation", "i"),
        ("login_hint", "z@x"),
        ("prompt", "login"),
        ("max_age", "60"),
        ("acr_values", "a b"),
        ("ui_locales", "de"),
        ("client_id", "client"),
        ("scope", "openid profile"),
        ("redirect_uri", "https://app.example/auth/callback"),
    ] {
        assert_eq!(got.sent(name).as_deref(), Some(value), "{name}");
    }
    assert!(!got.location.contains("evil") && got.sent("request").is_none(), "{}", got.location);
    assert_ne!(got.sent("state").as_deref(), Some("s"));
}

#[tokio::test]
async fn what_cannot_be_passed_on_is_refused() {
    let mut scene = Scene::new(|_| {}).await;
    let long = format!("login_hint={}", "x".repeat(513));
    for query in
        ["connection=a%0ab", "prompt=%00", "max_age=soon", "max_age=-1", "prompt=a&prompt=b", &long]
    {
        assert_eq!(scene.fails(Endpoint::Login, query).await, (400, "bad_request"), "{query}");
    }
    assert!(scene.jar.is_empty(), "no attempt was begun");
}

#[tokio::test]
async fn what_the_configuration_fixes_a_link_cannot_change() {
    let fix = |config: &mut Config| {
        let fixed = [("organization", "org_1"), ("max_age", "60"), ("resource", "r")];
        config.provider.login_params = fixed.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    };
    let mut scene = Scene::new(fix).await;
    let link = "organization=org_evil&max_age=999999&connection=x";
    let got = scene.ask(Endpoint::Login, link).await.unwrap();
    for (name, value) in
        [("organization", "org_1"), ("max_age", "60"), ("resource", "r"), ("connection", "x")]
    {
        assert_eq!(got.sent(name).as_deref(), Some(value), "{name}");
    }
    // And the answer is held against what was fixed.
    let now = Timestamp::now().0;
    for (claims, good) in [
        (json!({"org_id": "org_1", "auth_time": now}), true),
        (json!({"org_id": "org_evil", "auth_time": now}), false),
        (json!({"org_id": "org_1", "auth_time": now - 3600}), false),
        (json!({"org_id": "org_1"}), false),
    ] {
        assert_eq!(scene.sign_in(link, &claims).await.is_ok(), good, "{claims}");
    }
}

#[tokio::test]
async fn a_page_that_needs_a_login_is_where_it_ends() {
    let mut scene = Scene::new(|_| {}).await;
    let (request, ()) = Request::get("/deep/page?q=1&r=%2F").body(()).unwrap().into_parts();
    let asked = Asked { request: &request, origin: &scene.origin, now: Timestamp::now() };
    let response = scene.login.begin(asked).unwrap();
    let line = response.headers()[SET_COOKIE].to_str().unwrap().to_owned();
    let (pair, _) = line.split_once(';').unwrap();
    let (name, value) = pair.split_once('=').unwrap();
    scene.jar.insert(name.to_owned(), value.to_owned());
    let location = response.headers()[LOCATION].to_str().unwrap().to_owned();
    let begun = Got { status: 303, location, fields: HeaderMap::new() };
    scene.agrees(&begun, &json!({}));
    let state = begun.sent("state").unwrap();
    let got = scene.ask(Endpoint::Callback, &format!("code=c&state={state}")).await.unwrap();
    assert_eq!((got.status, got.location.as_str()), (303, "/deep/page?q=1&r=%2F"));
    assert!(scene.is_signed_in().await);
    assert_eq!(scene.jar.len(), 1, "the attempt's cookie is gone");
}

/// CVE-2020-5233, CVE-2022-23527 and their kin.
#[tokio::test]
async fn a_login_and_a_logout_end_on_the_own_origin_and_never_at_an_endpoint() {
    local(Box::pin(async {
        let mut scene = Scene::new(|_| {}).await;
        for return_to in [
            "https%3A%2F%2Fevil.example",
            "//evil.example",
            "/%5Cevil.example",
            "/%09/evil.example",
            "/auth/logout",
            "/auth/login",
            "/%61uth/login",
        ] {
            let query = format!("return_to={return_to}");
            let got = scene.sign_in(&query, &json!({})).await.unwrap();
            assert_eq!(got.location, "/", "{return_to}");
            scene.jar.clear();
            let got = scene.ask(Endpoint::Logout, &query).await.unwrap();
            assert_eq!(got.location, "/", "{return_to}");
        }
    }))
    .await;
}

#[tokio::test]
async fn without_a_provider_no_login_begins_and_whoever_is_signed_in_stays_so() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let mut scene = Scene::with(stub.client(), stub, signer, |_| {});
    assert_eq!(scene.fails(Endpoint::Login, "").await, (503, "provider_unavailable"));
    assert!(scene.jar.is_empty());
    assert_eq!(scene.fails(Endpoint::Profile, "").await, (401, "login_required"));
    let got = scene.ask(Endpoint::Logout, "return_to=/bye").await.unwrap();
    assert_eq!((got.status, got.location.as_str()), (303, "/bye"));
}

#[tokio::test]
async fn an_answer_that_was_not_asked_for_signs_nobody_in() {
    let mut scene = Scene::new(|_| {}).await;
    for query in ["", "code=c", "state=", "code=c&state=a&state=b"] {
        assert_eq!(scene.fails(Endpoint::Callback, query).await, (400, "bad_request"), "{query}");
    }
    // Login CSRF: the answer of an attempt that another browser began.
    let begun = scene.ask(Endpoint::Login, "").await.unwrap();
    scene.agrees(&begun, &json!({}));
    scene.jar.clear();
    let query = format!("code=c&state={}", begun.sent("state").unwrap());
    let got = scene.ask(Endpoint::Callback, &query).await.unwrap();
    assert!(got.location.contains("/authorize?"), "one fresh login");
    assert!(scene.stub.asked("/token").is_empty(), "the code was not looked at");
    // And never a loop.
    scene.jar.clear();
    let query = format!("code=c&state={}", got.sent("state").unwrap());
    assert_eq!(scene.fails(Endpoint::Callback, &query).await, (400, "login_lost"));
    assert!(!scene.is_signed_in().await);
}

#[tokio::test]
async fn what_the_provider_refuses_is_told_from_what_it_cannot() {
    let mut scene = Scene::new(|_| {}).await;
    for (answer, failure) in [
        ("error=access_denied&error_description=no", (403, "login_refused")),
        ("error=login_required", (401, "login_refused")),
        ("error=temporarily_unavailable", (503, "provider_unavailable")),
        ("code=", (400, "bad_request")),
        ("code=c&iss=https%3A%2F%2Fevil.example%2F", (400, "bad_request")),
    ] {
        let begun = scene.ask(Endpoint::Login, "").await.unwrap();
        scene.agrees(&begun, &json!({}));
        let query = format!("{answer}&state={}", begun.sent("state").unwrap());
        assert_eq!(scene.fails(Endpoint::Callback, &query).await, failure, "{answer}");
    }
    for (status, body, failure) in [
        (400, r#"{"error":"invalid_grant"}"#, (400, "login_failed")),
        (401, r#"{"error":"invalid_client"}"#, (502, "login_failed")),
        (200, "nonsense", (502, "login_failed")),
    ] {
        let begun = scene.ask(Endpoint::Login, "").await.unwrap();
        scene.stub.answer_text("/token", status, body);
        let query = format!("code=c&state={}", begun.sent("state").unwrap());
        assert_eq!(scene.fails(Endpoint::Callback, &query).await, failure, "{body}");
    }
    assert!(!scene.is_signed_in().await);
}

#[tokio::test]
async fn a_logout_ends_the_session_here_and_then_at_the_provider() {
    local(Box::pin(async {
        let mut scene = Scene::new(|_| {}).await;
        let mut metadata = scene.stub.metadata();
        metadata["end_session_endpoint"] = format!("{}end?x=1", scene.stub.issuer).into();
        scene.stub.answer("/.well-known/openid-configuration", 200, &metadata);
        scene.login.provider = Arc::new(scene.stub.discovered().await);
        scene.sign_in("", &json!({})).await.unwrap();
        let copied = scene.jar.clone();
        let got = scene.ask(Endpoint::Logout, "return_to=/bye").await.unwrap();
        assert_eq!(got.status, 303);
        assert!(got.location.starts_with(&format!("{}end?x=1&", scene.stub.issuer)));
        assert_eq!(got.sent("post_logout_redirect_uri").unwrap(), "https://app.example/bye");
        assert_eq!(got.sent("client_id").unwrap(), "client");
        assert_eq!(got.sent("id_token_hint").unwrap().split('.').count(), 3);
        assert_eq!(got.fields["clear-site-data"], "\"cache\"");
        assert!(scene.jar.is_empty());
        // express-openid-connect #561: a cookie that was copied is dead.
        scene.jar = copied;
        assert!(!scene.is_signed_in().await);
        while scene.stub.asked("/revoke").is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(scene.stub.asked("/revoke")[0].body.starts_with("token=rt-1&"));
    }))
    .await;
}

#[tokio::test]
async fn an_id_token_too_long_for_an_address_is_not_sent_along() {
    local(Box::pin(async {
        let mut scene = Scene::new(|_| {}).await;
        let mut metadata = scene.stub.metadata();
        metadata["end_session_endpoint"] = format!("{}end", scene.stub.issuer).into();
        scene.stub.answer("/.well-known/openid-configuration", 200, &metadata);
        scene.login.provider = Arc::new(scene.stub.discovered().await);
        scene.sign_in("", &json!({"pad": "x".repeat(3500)})).await.unwrap();
        let got = scene.ask(Endpoint::Logout, "").await.unwrap();
        assert_eq!(got.sent("id_token_hint"), None);
        assert_eq!(got.sent("client_id").unwrap(), "client");
    }))
    .await;
}

#[tokio::test]
async fn a_provider_that_is_down_keeps_nobody_signed_in_here() {
    local(Box::pin(async {
        let mut scene = Scene::new(|_| {}).await;
        scene.sign_in("", &json!({})).await.unwrap();
        assert!(scene.is_signed_in().await);
        let mut nowhere = scene.stub.clone();
        nowhere.issuer = "http://127.0.0.1:9/".to_owned();
        scene.login.provider = Arc::new(nowhere.client());
        let got = scene.ask(Endpoint::Logout, "").await.unwrap();
        assert_eq!((got.status, got.location.as_str()), (303, "/"));
        assert!(!scene.is_signed_in().await);
    }))
    .await;
}

#[tokio::test]
async fn endpoints_are_asked_with_get() {
    let scene = Scene::new(|_| {}).await;
    for method in [Method::POST, Method::PUT, Method::OPTIONS, Method::HEAD] {
        for endpoint in [Endpoint::Login, Endpoint::Callback, Endpoint::Logout] {
            let request = Request::builder().method(&method).uri("/auth/x").body(()).unwrap();
            let (request, ()) = request.into_parts();
            let asked = Asked { request: &request, origin: &scene.origin, now: Timestamp::now() };
            let mut visit = Visit::default();
            let response =
                scene.login.serve(endpoint, asked, Body::Empty, &mut visit).await.unwrap();
            assert_eq!(response.status(), 405, "{method} {endpoint:?}");
            assert_eq!(response.headers()[ALLOW], "GET");
            assert!(!response.headers().contains_key(SET_COOKIE));
        }
    }
}
