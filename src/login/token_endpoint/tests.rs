//! Answers that are good, hostile, or missing, from a provider of the test's own.

use serde_json::json;

use super::super::id_token::tests::{Signer, claims};
use super::super::provider::tests::Stub;
use super::*;
use crate::session::tests::session;

/// A provider with one key, and the gateway's side of it.
struct Scene {
    stub: Stub,
    signer: Signer,
    provider: Provider,
    now: Timestamp,
}

type Got = Result<(Identity, Tokens), ProviderError>;

impl Scene {
    async fn new() -> Self {
        let signer = Signer::new("k1");
        let stub = Stub::start(&[&signer]).await;
        let provider = stub.discovered().await;
        let scene = Self { stub, signer, provider, now: Timestamp::now() };
        scene.stub.answer("/userinfo", 200, &json!({"sub": "auth0|zoe"}));
        scene.stub.answer("/token", 200, &scene.good());
        scene
    }

    fn id_token(&self, more: &Value) -> String {
        let mut claims = claims(&self.stub.issuer, self.now);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.signer.sign(&claims)
    }

    /// An answer of the token endpoint as it should be.
    fn good(&self) -> Value {
        json!({
            "access_token": "at-1", "token_type": "Bearer", "expires_in": 3600,
            "refresh_token": "rt-1", "id_token": self.id_token(&json!({})), "scope": "openid",
        })
    }

    /// The good answer with some members changed; `null` takes one out.
    fn answers(&self, changed: &Value) {
        let mut answer = self.good();
        let members = answer.as_object_mut().unwrap();
        members.extend(changed.as_object().unwrap().clone());
        members.retain(|_, value| !value.is_null());
        self.stub.answer("/token", 200, &answer);
    }

    async fn redeem(&self) -> Got {
        let expected = Expected { nonce: Some("n-1"), ..Expected::default() };
        self.provider.redeem("c&1", "v-1", "https://app/cb", expected, self.now).await
    }

    async fn refresh(&self) -> Got {
        self.provider.refresh(&session(), "rt-0", self.now).await
    }
}

#[tokio::test]
async fn a_code_becomes_an_identity_and_tokens() {
    let scene = Scene::new().await;
    scene.stub.answer("/userinfo", 200, &json!({"sub": "auth0|zoe", "email": "z@example.com"}));
    let (identity, tokens) = scene.redeem().await.unwrap();
    assert_eq!(identity.subject(), "auth0|zoe");
    assert_eq!(identity.claim("email").unwrap(), "z@example.com");
    assert_eq!(identity.claim("name").unwrap(), "Zoë");
    for of_the_token in OF_THE_TOKEN {
        assert_eq!(identity.claim(of_the_token), None, "{of_the_token}");
    }
    assert_eq!(tokens.access_token.as_deref(), Some("at-1"));
    assert_eq!(tokens.refresh_token.as_deref(), Some("rt-1"));
    assert_eq!(tokens.expires_at, Some(Timestamp(scene.now.0 + 3600)));
    assert_eq!(tokens.refresh_at, Some(Timestamp(scene.now.0 + 3570)));
    assert_eq!(tokens.scope.as_deref(), Some("openid"));

    let asked = scene.stub.asked("/token").remove(0);
    assert_eq!(
        asked.body,
        "grant_type=authorization_code&code=c%261&redirect_uri=https%3A%2F%2Fapp%2Fcb&code_verifier=v-1"
    );
    let basic = base64_simd::STANDARD.encode_to_string("client:hunter2");
    assert!(asked.head.contains(&format!("authorization: Basic {basic}")), "{}", asked.head);
    let userinfo = scene.stub.asked("/userinfo").remove(0);
    assert!(userinfo.head.contains("authorization: Bearer at-1"), "{}", userinfo.head);
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_an_error() {
    let scene = Scene::new().await;
    let long = "x".repeat(MAX_TOKEN + 1);
    for changed in [
        json!({"id_token": null}),
        json!({"id_token": ""}),
        json!({"id_token": "x"}),
        json!({"id_token": 7}),
        json!({"id_token": long}),
        json!({"token_type": "mac"}),
        json!({"token_type": "N_A"}),
        json!({"token_type": 1}),
        json!({"access_token": long}),
        json!({"access_token": "a\r\nX-Forwarded-User: root"}),
        json!({"access_token": "a\u{e9}"}),
        json!({"access_token": ["at"]}),
        json!({"refresh_token": long}),
        json!({"refresh_token": "r\u{0}"}),
    ] {
        scene.answers(&changed);
        let error = scene.redeem().await.expect_err(&changed.to_string());
        assert!(!error.to_string().contains("xxxx"), "no token in a log");
    }
    for text in ["", "access_token=at&token_type=bearer", "[]", "null", "<html>", "{\"a\":"] {
        scene.stub.answer_text("/token", 200, text);
        assert!(matches!(scene.redeem().await, Err(ProviderError::Malformed(_))), "{text}");
    }
    scene.answers(&json!({"token_type": "bEaReR", "more": {"than": ["expected"]}}));
    assert!(scene.redeem().await.is_ok());
}

#[tokio::test]
async fn a_life_that_cannot_be_true_is_none() {
    let scene = Scene::new().await;
    for (said, life) in [
        (json!(3600), Some(3600)),
        (json!("3600"), Some(3600)),
        (json!(3600.9), Some(3600)),
        (json!(1), Some(1)),
        (json!(0), None),
        (json!(-1), None),
        (json!("-1"), None),
        (json!("soon"), None),
        (json!("NaN"), None),
        (json!("inf"), None),
        (json!(1e300), None),
        (json!(u64::MAX), None),
        (json!(true), None),
        (json!([3600]), None),
        (json!(null), None),
    ] {
        scene.answers(&json!({"expires_in": said}));
        let (_, tokens) = scene.redeem().await.unwrap();
        let at = |life: u64| Timestamp(scene.now.0 + life);
        assert_eq!(tokens.expires_at, life.map(at), "{said}");
        assert_eq!(tokens.refresh_at.is_some(), life.is_some(), "{said}");
        assert!(tokens.refresh_at <= tokens.expires_at);
    }
}

#[tokio::test]
async fn a_short_life_is_refreshed_in_its_last_quarter_and_without_a_refresh_token_never() {
    let scene = Scene::new().await;
    scene.answers(&json!({"expires_in": 40}));
    let (_, tokens) = scene.redeem().await.unwrap();
    assert_eq!(tokens.refresh_at, Some(Timestamp(scene.now.0 + 30)));
    for none in [json!(null), json!("")] {
        scene.answers(&json!({"refresh_token": none}));
        let (_, tokens) = scene.redeem().await.unwrap();
        assert_eq!((tokens.refresh_token, tokens.refresh_at), (None, None));
        assert!(tokens.expires_at.is_some());
    }
}

#[tokio::test]
async fn a_scope_that_would_swell_the_session_is_not_kept() {
    let scene = Scene::new().await;
    for scope in ["x ".repeat(MAX_SCOPE), "a\u{7}".to_owned()] {
        scene.answers(&json!({"scope": scope}));
        assert_eq!(scene.redeem().await.unwrap().1.scope, None);
    }
}

#[tokio::test]
async fn userinfo_about_another_user_is_refused() {
    let scene = Scene::new().await;
    for other in [json!({"sub": "auth0|al"}), json!({}), json!({"sub": ["auth0|zoe"]}), json!([])] {
        scene.stub.answer("/userinfo", 200, &other);
        assert!(matches!(scene.redeem().await, Err(ProviderError::Malformed(_))), "{other}");
        assert!(matches!(scene.refresh().await, Err(ProviderError::Malformed(_))), "{other}");
    }
    scene.stub.answer_text("/userinfo", 200, "ey.ey.sig");
    assert!(scene.redeem().await.is_err());
}

#[tokio::test]
async fn userinfo_cannot_say_otherwise_what_the_signed_token_says() {
    let scene = Scene::new().await;
    scene.answers(&json!({"id_token": scene.id_token(&json!({"org_id": "org_1", "sid": "s-1"}))}));
    let evil = json!({
        "sub": "auth0|zoe", "iss": "https://evil.example/", "aud": "evil", "sid": "evil",
        "org_id": "org_evil", "org_name": "evil", "auth_time": 1, "acr": "evil", "amr": ["evil"],
        "nonce": "evil", "exp": 1, "email": "z@example.com",
    });
    scene.stub.answer("/userinfo", 200, &evil);
    for (identity, _) in [scene.redeem().await.unwrap(), scene.refresh().await.unwrap()] {
        assert!(!format!("{:?}", identity.claims()).contains("evil"), "{identity:?}");
        assert_eq!(identity.claim("org_id").unwrap(), "org_1");
        assert_eq!(identity.claim("sid").unwrap(), "s-1");
        assert_eq!(identity.claim("email").unwrap(), "z@example.com");
        assert_eq!(identity.claim("auth_time"), None, "not even where the token is silent");
    }
}

#[tokio::test]
async fn a_provider_without_userinfo_is_not_asked_for_it() {
    let scene = Scene::new().await;
    let mut metadata = scene.stub.metadata();
    metadata.as_object_mut().unwrap().remove("userinfo_endpoint");
    scene.stub.answer("/.well-known/openid-configuration", 200, &metadata);
    let provider = scene.stub.discovered().await;
    let expected = Expected { nonce: Some("n-1"), ..Expected::default() };
    provider.redeem("c", "v", "https://app/cb", expected, scene.now).await.unwrap();
    assert!(scene.stub.asked("/userinfo").is_empty());
}

#[tokio::test]
async fn a_refusal_is_told_from_an_operators_mistake_and_from_an_outage() {
    let scene = Scene::new().await;
    for (status, body, refusal) in [
        (400, r#"{"error":"invalid_grant"}"#, true),
        (403, r#"{"error":"invalid_grant","error_description":"Unknown"}"#, true),
        (401, r#"{"error":"invalid_client"}"#, false),
        (400, r#"{"error":"unauthorized_client"}"#, false),
        (429, "slow down", false),
        (500, r#"{"error":"invalid_grant"}"#, false),
        (503, "", false),
        (302, "", false),
        (204, "", false),
    ] {
        scene.stub.answer_text("/token", status, body);
        for error in [scene.redeem().await.unwrap_err(), scene.refresh().await.unwrap_err()] {
            assert_eq!(error.is_refusal(), refusal, "{status} {body}");
            assert!(matches!(error, ProviderError::Status { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_refresh_replaces_the_identity_and_keeps_what_was_not_replaced() {
    let scene = Scene::new().await;
    scene.answers(&json!({
        "id_token": scene.id_token(&json!({"nonce": null, "roles": ["new"]})),
        "refresh_token": null,
    }));
    let (identity, tokens) = scene.refresh().await.unwrap();
    assert_eq!(identity.claim("roles").unwrap(), &json!(["new"]));
    assert_eq!(identity.claim("email"), None, "a claim that is gone is gone (CVE-2021-41230)");
    assert_eq!(tokens.access_token.as_deref(), Some("at-1"));
    assert_eq!(tokens.refresh_token.as_deref(), Some("rt-0"), "it was not rotated");
    let asked = scene.stub.asked("/token").remove(0);
    assert_eq!(asked.body, "grant_type=refresh_token&refresh_token=rt-0");

    // OpenID Connect Core, section 12.2: there might be no ID token.
    scene.answers(&json!({"id_token": null}));
    let (identity, tokens) = scene.refresh().await.unwrap();
    assert_eq!(identity.claim("nickname").unwrap(), "zoe");
    assert_eq!((tokens.id_token.as_str(), tokens.refresh_token.as_deref()), ("it", Some("rt-1")));
}

#[tokio::test]
async fn a_refresh_for_another_user_is_refused() {
    let scene = Scene::new().await;
    scene.answers(&json!({"id_token": scene.id_token(&json!({"sub": "auth0|al"}))}));
    scene.stub.answer("/userinfo", 200, &json!({"sub": "auth0|al"}));
    assert!(scene.refresh().await.unwrap_err().is_refusal());
    scene.answers(&json!({"access_token": null}));
    assert!(matches!(scene.refresh().await, Err(ProviderError::Malformed(_))));
}

/// With rotation the old refresh token is spent by then: losing the answer would end the session.
#[tokio::test]
async fn an_outage_after_a_refresh_does_not_lose_the_new_tokens() {
    let scene = Scene::new().await;
    for status in [500, 401, 429] {
        scene.stub.answer_text("/userinfo", status, "");
        let (identity, tokens) = scene.refresh().await.unwrap();
        assert_eq!(tokens.refresh_token.as_deref(), Some("rt-1"));
        assert_eq!(identity.claim("name").unwrap(), "Zoë", "what the new ID token says");
        assert_eq!(identity.claim("email").unwrap(), "zoe@example.com", "what was known");
        assert_eq!(identity.claim("exp"), None);
    }
    // Signed with a key that is not published yet.
    let unknown = Signer::new("k2").sign(&claims(&scene.stub.issuer, scene.now));
    scene.answers(&json!({"id_token": unknown}));
    let (identity, tokens) = scene.refresh().await.unwrap();
    assert_eq!(tokens.access_token.as_deref(), Some("at-1"));
    assert_eq!(tokens.id_token, "it", "the one that was verified");
    assert_eq!(identity.claims(), session().identity.claims());
    // A login needs what is not there.
    assert!(scene.redeem().await.is_err());
}

#[tokio::test]
async fn a_refresh_token_is_made_worthless_where_the_provider_can() {
    let scene = Scene::new().await;
    scene.stub.answer_text("/revoke", 200, "");
    scene.provider.revoke("rt&0", scene.now).await.unwrap();
    let asked = scene.stub.asked("/revoke").remove(0);
    assert_eq!(asked.body, "token=rt%260&token_type_hint=refresh_token");
    scene.stub.answer_text("/revoke", 503, "");
    assert!(scene.provider.revoke("rt", scene.now).await.is_err());
}

#[tokio::test]
async fn a_provider_that_takes_the_secret_in_the_form_only_gets_it_there() {
    let scene = Scene::new().await;
    let mut metadata = scene.stub.metadata();
    metadata["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"]);
    scene.stub.answer("/.well-known/openid-configuration", 200, &metadata);
    let provider = scene.stub.discovered().await;
    provider.refresh(&session(), "rt", scene.now).await.unwrap();
    let asked = scene.stub.asked("/token").remove(0);
    assert!(asked.body.ends_with("&client_id=client&client_secret=hunter2"), "{}", asked.body);
    assert!(!asked.head.contains("authorization"), "{}", asked.head);
}
