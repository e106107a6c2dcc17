//! The endpoint as a provider meets it, without a gateway around it.

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use http_body_util::{Full, StreamBody};
use serde_json::json;

use super::super::id_token::tests::Signer;
use super::super::logout_token::tests::logout_claims;
use super::super::provider::tests::Stub;
use super::super::{Asked, Endpoint, Parties, Provider, Refreshes};
use super::*;
use crate::config::sample;
use crate::observe::metrics::Metrics;
use crate::session::memory::Bounds;
use crate::session::{Memory, Sealer, Sessions, Visit};

struct Scene {
    login: Login,
    stub: Stub,
    signer: Signer,
}

impl Scene {
    async fn new() -> Self {
        let signer = Signer::new("k1");
        let stub = Stub::start(&[&signer]).await;
        let provider = stub.discovered().await;
        Self::with(provider, stub, signer)
    }

    fn with(provider: Provider, stub: Stub, signer: Signer) -> Self {
        let mut config = sample::config();
        config.provider = sample::provider(&stub.issuer);
        let sealer = Arc::new(Sealer::new(&config.session.secrets));
        let memory = Arc::new(Memory::new(Bounds::default()));
        let metrics = Metrics::new(vec![], memory.clone()).worker().into();
        let sessions = Sessions::new(&config.session, sealer.clone(), memory).into();
        let parties = Parties {
            config: Arc::new(config),
            provider: Arc::new(provider),
            sealer,
            refreshes: Arc::<Refreshes>::default(),
            pace: Arc::default(),
        };
        Self { login: Login::new(parties, sessions, metrics), stub, signer }
    }

    fn token(&self, jti: &str) -> String {
        let mut claims = logout_claims(&self.stub.issuer, Timestamp::now());
        claims["jti"] = jti.into();
        self.signer.sign(&claims)
    }

    async fn ask<B>(&self, request: http::request::Builder, body: B) -> Result<Response<Body>, u16>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>>,
    {
        let (request, ()) = request.body(()).unwrap().into_parts();
        let origin = &self.login.config.server.public_urls[0];
        let asked = Asked { request: &request, origin, now: Timestamp::now() };
        let mut visit = Visit::default();
        let served = self.login.serve(Endpoint::BackchannelLogout, asked, body, &mut visit).await;
        assert!(visit.session().is_none());
        served.map_err(|failure| {
            if failure.status.is_client_error() {
                assert_eq!(failure.code, "invalid_request");
                assert!(failure.cause.is_some());
            }
            failure.status.as_u16()
        })
    }

    /// The status of the answer to a form.
    async fn post(&self, form: impl Into<Bytes>) -> u16 {
        let request = Request::post("/auth/backchannel-logout")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        match self.ask(request, Full::new(form.into())).await {
            Ok(response) => response.status().as_u16(),
            Err(status) => status,
        }
    }
}

#[tokio::test]
async fn a_logout_is_answered_with_nothing_and_once() {
    let scene = Scene::new().await;
    let form = format!("more=1&logout_token={}", scene.token("1"));
    let request = Request::post("/x")
        .header(CONTENT_TYPE, "Application/X-WWW-Form-Urlencoded; charset=utf-8");
    let response = scene.ask(request, Full::new(Bytes::from(form.clone()))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert!(matches!(response.body(), Body::Empty));
    assert_eq!(scene.post(form).await, 400, "it was obeyed");
    assert_eq!(scene.post(format!("logout_token={}", scene.token("2"))).await, 200);
}

#[tokio::test]
async fn what_is_no_form_with_one_token_is_refused() {
    let scene = Scene::new().await;
    let token = scene.token("1");
    for form in [
        String::new(),
        "logout_token".to_owned(),
        token.clone(),
        format!("token={token}"),
        format!("logout_token={token}&logout_token={token}"),
        format!("logout_token={token}x"),
    ] {
        assert_eq!(scene.post(form.clone()).await, 400, "{form}");
    }
    let form = format!("logout_token={token}");
    for kind in ["application/json", "text/plain", "", "multipart/form-data"] {
        let request = Request::post("/x").header(CONTENT_TYPE, kind);
        let refused = scene.ask(request, Full::new(Bytes::from(form.clone()))).await;
        assert_eq!(refused.err(), Some(400), "{kind}");
    }
    assert_eq!(scene.post(form).await, 200);
}

#[tokio::test]
async fn only_post_is_understood() {
    let scene = Scene::new().await;
    for method in ["GET", "HEAD", "PUT", "OPTIONS", "DELETE"] {
        let request = Request::builder().method(method).uri("/x");
        let response = scene.ask(request, Full::default()).await.unwrap();
        assert_eq!(response.status(), 405, "{method}");
        assert_eq!(response.headers()[http::header::ALLOW], "POST");
    }
}

#[tokio::test(start_paused = true)]
async fn a_form_has_bounds_of_size_and_time() {
    let scene = Scene::new().await;
    let mut form = format!("logout_token={}&pad=", scene.token("1")).into_bytes();
    form.resize(LONGEST + 1, b'x');
    assert_eq!(scene.post(form.clone()).await, 413);
    form.truncate(LONGEST);
    assert_eq!(scene.post(form).await, 200);
    let never = StreamBody::new(futures_util::stream::pending::<
        Result<http_body::Frame<Bytes>, Infallible>,
    >());
    let request = Request::post("/x").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let begun = tokio::time::Instant::now();
    assert_eq!(scene.ask(request, never).await.err(), Some(408));
    assert_eq!(begun.elapsed(), PATIENCE);
}

#[tokio::test]
async fn a_key_that_is_new_is_looked_for_once() {
    let scene = Scene::new().await;
    let new = Signer::new("k2");
    let later = Timestamp::now().plus(Duration::from_secs(20));
    let sign = |signer: &Signer, jti: &str| {
        let mut claims = logout_claims(&scene.stub.issuer, later);
        claims["jti"] = jti.into();
        signer.sign(&claims)
    };
    let ask = async |token: String| {
        let request = Request::post("/x")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(())
            .unwrap();
        let body = Full::new(Bytes::from(format!("logout_token={token}")));
        let served = scene.login.backchannel_logout(&request.into_parts().0, body, later).await;
        served.map_or_else(|failure| failure.status.as_u16(), |answer| answer.status().as_u16())
    };
    let before = scene.stub.asked("/keys").len();
    scene.stub.publish(&[&scene.signer, &new]);
    assert_eq!(ask(sign(&new, "1")).await, 200);
    assert_eq!(scene.stub.asked("/keys").len(), before + 1);
    for number in 0..5 {
        let unknown = Signer::new("k3");
        assert_eq!(ask(sign(&unknown, &number.to_string())).await, 400);
    }
    assert_eq!(scene.stub.asked("/keys").len(), before + 1, "made-up keys are no calls");
}

#[tokio::test]
async fn without_a_provider_nobody_knows_whose_word_it_is() {
    let signer = Signer::new("k1");
    let stub = Stub::start(&[&signer]).await;
    let scene = Scene::with(stub.client(), stub, signer);
    assert_eq!(scene.post(format!("logout_token={}", scene.token("1"))).await, 503);
    assert_eq!(json!(scene.stub.asked("/keys").len()), 0);
}
