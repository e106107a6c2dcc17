//! The provider's answer: what makes a session, and what does not.

use http::Method;
use ring::hmac;
use serde_json::{Value, json};
use url::Url;

use crate::support::provider::Key;
use crate::support::wire::parameter;
use crate::support::{
    Answer, App, Ask, Browser, Gateway, PROTOCOLS, Provider, Scripted, Stage, until,
};

/// A gateway whose provider can lie.
async fn scripted() -> (Scripted, App, Gateway) {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    (provider, app, gateway)
}

/// Goes to the provider and stays before the answer: gives the callback's address.
async fn callback(browser: &Browser, target: &str) -> Url {
    let login = browser.page(target).await;
    assert_eq!(login.status, 303, "{}", login.text());
    browser.page(login.location().as_str()).await.location()
}

fn with(url: &Url, name: &str, value: Option<&str>) -> Url {
    let mut changed = url.clone();
    let pairs: Vec<_> = url.query_pairs().into_owned().filter(|(known, _)| known != name).collect();
    let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    changed.query_pairs_mut().clear().extend_pairs(pairs.chain(value.map(|value| (name, value))));
    changed
}

fn has_session(browser: &Browser) -> bool {
    !browser.cookies("__Host-session").is_empty()
}

#[tokio::test]
async fn a_good_answer_makes_a_session_and_spends_the_attempt() {
    for protocol in PROTOCOLS {
        let (_provider, _app, gateway) = scripted().await;
        let zoe = gateway.browser_over(protocol);
        let url = callback(&zoe, "/inbox").await;
        let answer = zoe.page(url.as_str()).await;
        assert_eq!((answer.status.as_u16(), answer.location()), (303, zoe.url("/inbox")));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(has_session(&zoe));
        assert_eq!(zoe.cookies("__Host-login."), Vec::<String>::new());
    }
}

/// CVE-2023-27496 (Envoy): a callback without `state` crashed it.
#[tokio::test]
async fn an_incomplete_answer_is_refused_and_the_gateway_lives() {
    let (_provider, _app, gateway) = scripted().await;
    let browser = gateway.browser();
    let good = callback(&browser, "/").await;
    let twice = |name: &str| {
        let mut url = good.clone();
        url.query_pairs_mut().append_pair(name, "again");
        url
    };
    let mut bare = good.clone();
    bare.set_query(None);
    for url in [
        bare,
        with(&good, "state", None),
        with(&good, "state", Some("")),
        with(&good, "code", None),
        with(&good, "code", Some("")),
        twice("state"),
        twice("code"),
        with(&good, "x", Some(&"y".repeat(5000))),
    ] {
        let answer = browser.page(url.as_str()).await;
        assert_eq!(answer.status, 400, "{url}");
        assert!(!has_session(&browser), "{url}");
    }
    assert_eq!(browser.page(good.as_str()).await.status, 303, "none of it spent the attempt");
    assert!(has_session(&browser));
}

#[tokio::test]
async fn an_attackers_answer_in_another_browser_makes_no_session() {
    let (_provider, app, gateway) = scripted().await;
    let attacker = gateway.browser();
    let url = callback(&attacker, "/attackers-page").await;
    let victim = gateway.browser();
    // A fresh login of the victim's own, and no page of the attacker's.
    let answer = victim.page(url.as_str()).await;
    assert_eq!(answer.status, 303);
    assert_eq!(answer.location().host_str(), Some("127.0.0.1"));
    assert!(!has_session(&victim));
    assert_eq!(app.seen().len(), 0);
    // Nor with an attempt of the victim's own.
    callback(&victim, "/").await;
    victim.page(url.as_str()).await;
    assert!(!has_session(&victim));
    // Nor with the state of one and the code of the other.
    let mine = callback(&victim, "/").await;
    let mixed = with(&mine, "code", parameter(&url, "code").as_deref());
    let refused = victim.page(mixed.as_str()).await;
    assert!(refused.status.is_client_error() && !has_session(&victim), "{}", refused.status);
}

#[tokio::test]
async fn an_answer_without_its_attempt_leads_to_one_fresh_login_and_never_in_circles() {
    let (_provider, _app, gateway) = scripted().await;
    let browser = gateway.browser();
    let url = callback(&browser, "/inbox").await;
    let [attempt] = &browser.cookies("__Host-login.")[..] else { panic!("one attempt") };
    browser.forget(attempt);
    // The fresh login works.
    let fresh = browser.open(url.as_str()).await;
    assert_eq!((fresh.status.as_u16(), fresh.url.path()), (200, "/"));

    // A browser that keeps no cookies at all.
    let deaf = gateway.browser();
    let mut answer = deaf.page("/").await;
    let mut hops = 0;
    while answer.status.is_redirection() {
        for name in deaf.cookies("__Host-") {
            deaf.forget(&name);
        }
        hops += 1;
        assert!(hops < 8, "in circles");
        answer = deaf.page(answer.location().as_str()).await;
    }
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("cookie"), "it says what is wrong: {}", answer.text());
}

#[tokio::test]
async fn the_back_button_after_a_login_leads_home() {
    let (provider, _app, gateway) = scripted().await;
    let zoe = gateway.browser();
    let url = callback(&zoe, "/inbox").await;
    zoe.page(url.as_str()).await;
    let again = zoe.page(url.as_str()).await;
    assert_eq!((again.status.as_u16(), again.location()), (303, zoe.url("/")));
    assert!(zoe.profile().await.is_some());
    assert_eq!(provider.grants("authorization_code").len(), 1, "the code is sent once");
}

#[tokio::test]
async fn a_provider_that_says_no_is_heard() {
    for (error, status) in [
        ("access_denied", 403),
        ("login_required", 401),
        ("server_error", 503),
        ("temporarily_unavailable", 503),
        ("invalid_request", 403),
    ] {
        let (provider, _app, gateway) = scripted().await;
        provider.script().callback = json!({
            "code": null, "error": error, "error_description": "<b>no</b>\r\nX-Evil: 1",
        });
        let browser = gateway.browser();
        let url = callback(&browser, "/").await;
        let answer = browser.page(url.as_str()).await;
        assert_eq!(answer.status.as_u16(), status, "{error}");
        assert!(answer.is_html() && !answer.text().contains("<b>no"), "{}", answer.text());
        assert!(!has_session(&browser));
        let line = gateway.logged(&[error]).await;
        assert!(line.contains("no"), "the operator is told: {line}");
    }
}

#[tokio::test]
async fn somebody_who_cancels_is_told_so_and_can_try_again() {
    let stage = Stage::new().await;
    let browser = stage.gateway.browser();
    let login_page = browser.open("/").await;
    let answer = browser.submit(&login_page, &[("cancel", "1")]).await;
    assert_eq!(answer.status, 403);
    assert!(!has_session(&browser));
    assert_eq!(browser.log_in("zoe", "/").await.status, 200);
}

/// CVE-2021-32792 (`mod_auth_openidc`), CVE-2024-21496 (caddy-security).
#[tokio::test]
async fn markup_in_any_parameter_is_not_shown() {
    let (_provider, _app, gateway) = scripted().await;
    let hostile = r#"'"><script>alert(1)</script>"#;
    for name in ["state", "code", "error", "error_description", "iss", "session_state", "x"] {
        let browser = gateway.browser();
        let mut url = with(&callback(&browser, "/").await, name, Some(hostile));
        if name == "error_description" {
            url = with(&url, "error", Some("access_denied"));
        }
        for target in [url.as_str(), &format!("/auth/logout?{name}={hostile}")] {
            let answer = browser.page(browser.url(target).as_str()).await;
            assert!(!answer.text().contains("<script"), "{name}: {}", answer.text());
            assert!(!answer.text().contains("alert("), "{name}: {}", answer.text());
            if answer.is_html() {
                let policy = answer.header("content-security-policy").unwrap();
                assert!(policy.contains("default-src 'none'"), "{policy}");
            }
        }
    }
}

/// RFC 9207: an answer of another provider (mix-up).
#[tokio::test]
async fn an_answer_that_names_another_issuer_is_refused() {
    let (provider, _app, gateway) = scripted().await;
    for (iss, good) in [(json!("https://evil.example/"), false), (json!(provider.address()), true)]
    {
        provider.script().callback = json!({ "iss": iss });
        let browser = gateway.browser();
        let url = callback(&browser, "/").await;
        let answer = browser.page(url.as_str()).await;
        assert_eq!(answer.status, if good { 303 } else { 400 }, "{iss}");
        assert_eq!(has_session(&browser), good, "{iss}");
    }
}

/// CVE-2024-33531 (lua-resty-openidc) and every other way to lie in an ID token (OpenID Connect
/// Core, section 3.1.3.7).
#[tokio::test]
async fn an_id_token_that_is_not_good_makes_no_session() {
    let (provider, app, gateway) = scripted().await;
    let now = vestibule::clock::Timestamp::now().0;
    let claims = |value: Value| (value, json!({}));
    for (what, (claims, header)) in [
        ("another issuer", claims(json!({ "iss": "https://evil.example/" }))),
        (
            "the issuer without its slash",
            claims(json!({ "iss": provider.address().trim_end_matches('/') })),
        ),
        ("no issuer", claims(json!({ "iss": null }))),
        ("another audience", claims(json!({ "aud": "other" }))),
        ("no audience", claims(json!({ "aud": null }))),
        ("several audiences, no azp", claims(json!({ "aud": ["vestibule-tests", "other"] }))),
        ("another azp", claims(json!({ "azp": "other" }))),
        ("no subject", claims(json!({ "sub": null }))),
        ("an empty subject", claims(json!({ "sub": "" }))),
        ("no expiry", claims(json!({ "exp": null }))),
        ("expired", claims(json!({ "exp": now - 120 }))),
        ("no time of issue", claims(json!({ "iat": null }))),
        ("issued tomorrow", claims(json!({ "iat": now + 86_400 }))),
        ("good from tomorrow", claims(json!({ "nbf": now + 86_400 }))),
        ("no nonce", claims(json!({ "nonce": null }))),
        ("another nonce", claims(json!({ "nonce": "replayed" }))),
        (
            "the hash of another access token",
            claims(json!({ "at_hash": "AAAAAAAAAAAAAAAAAAAAAA" })),
        ),
        ("no signature", (json!({}), json!({ "alg": "none" }))),
        ("an unknown key", (json!({}), json!({ "kid": "unknown" }))),
        ("another algorithm", (json!({}), json!({ "alg": "RS256" }))),
    ] {
        provider.script().claims = claims;
        provider.script().header = header;
        refused(&gateway, what).await;
    }
    provider.script().claims = json!({});
    provider.script().header = json!({});

    // Signed by somebody else under the published key's name.
    let foreign = Key::new("first");
    provider.script().signature = Some(Box::new(move |bytes| foreign.sign(bytes)));
    refused(&gateway, "a foreign key").await;
    provider.script().signature = Some(Box::new(|_| Vec::new()));
    refused(&gateway, "an empty signature").await;
    provider.script().header = json!({ "alg": "none" });
    refused(&gateway, "alg none, without a signature").await;
    // The public key as the secret of an HMAC.
    let public = provider.script().key.public().to_vec();
    provider.script().header = json!({ "alg": "HS256" });
    provider.script().signature = Some(Box::new(move |bytes| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), bytes).as_ref().to_vec()
    }));
    refused(&gateway, "HS256 with the public key").await;
    // The client's secret, as a provider may do by the standard; this gateway does not take it.
    provider.script().signature = Some(Box::new(move |bytes| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, crate::support::provider::SECRET.as_bytes());
        hmac::sign(&key, bytes).as_ref().to_vec()
    }));
    refused(&gateway, "HS256 with the client's secret").await;

    assert_eq!(app.seen().len(), 0);
    provider.script().signature = None;
    provider.script().header = json!({});
    provider.script().claims =
        json!({ "aud": ["vestibule-tests", "other"], "azp": "vestibule-tests" });
    assert_eq!(gateway.browser().open("/").await.status, 200, "a good one still is");
}

/// A login that must come to nothing.
async fn refused(gateway: &Gateway, what: &str) -> Answer {
    let browser = gateway.browser();
    let url = callback(&browser, "/").await;
    let answer = browser.page(url.as_str()).await;
    assert!(
        answer.status.is_client_error() || answer.status == 502,
        "{what}: {} {}",
        answer.status,
        answer.text()
    );
    assert!(!has_session(&browser), "{what}");
    assert_eq!(browser.profile().await, None, "{what}");
    answer
}

#[tokio::test]
async fn what_was_asked_of_the_login_is_checked_in_its_answer() {
    let (provider, _app, gateway) = scripted().await;
    let now = vestibule::clock::Timestamp::now().0;
    for (query, claims, good) in [
        ("max_age=300", json!({ "auth_time": now - 60 }), true),
        ("max_age=300", json!({ "auth_time": now - 3600 }), false),
        ("max_age=300", json!({}), false),
        ("organization=org_a", json!({ "org_id": "org_a" }), true),
        ("organization=acme", json!({ "org_id": "org_a", "org_name": "Acme" }), true),
        ("organization=org_a", json!({ "org_id": "org_b" }), false),
        ("organization=org_a", json!({}), false),
        ("login_hint=zoe", json!({}), true),
    ] {
        provider.script().claims = claims.clone();
        let browser = gateway.browser();
        let url = callback(&browser, &format!("/auth/login?{query}")).await;
        let answer = browser.page(url.as_str()).await;
        assert_eq!(has_session(&browser), good, "{query} {claims}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_right_hash_of_the_access_token_is_right() {
    let (provider, _app, gateway) = scripted().await;
    let hash = ring::digest::digest(&ring::digest::SHA256, b"the-access-token");
    let half = base64_simd::URL_SAFE_NO_PAD.encode_to_string(&hash.as_ref()[..16]);
    provider.script().tokens = json!({ "access_token": "the-access-token" });
    provider.script().claims = json!({ "at_hash": half });
    assert_eq!(gateway.browser().open("/").await.status, 200);
}

#[tokio::test]
async fn userinfo_adds_claims_of_the_same_user_only() {
    let provider = Scripted::start().await;
    let endpoint = format!("{}userinfo", provider.address());
    provider.script().metadata = json!({ "userinfo_endpoint": endpoint });
    provider.script().userinfo =
        json!({ "sub": "auth0|zoe", "email": "zoe@example.com", "org_id": "org_evil", "iss": "x" });
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    zoe.open("/").await;
    let user = zoe.profile().await.unwrap()["user"].clone();
    assert_eq!(user["email"], "zoe@example.com");
    assert_eq!((user.get("org_id"), &user["iss"]), (None, &json!(provider.address())));
    let asked = provider.calls("/userinfo").pop().unwrap();
    assert!(asked.header("authorization").unwrap().starts_with("Bearer access-"));

    for other in [json!({ "sub": "auth0|bob" }), json!({ "email": "x" }), json!([])] {
        provider.script().userinfo = other.clone();
        refused(&gateway, &other.to_string()).await;
    }
}

#[tokio::test]
async fn a_token_endpoint_that_talks_nonsense_makes_no_session() {
    let (provider, _app, gateway) = scripted().await;
    for (what, tokens) in [
        ("no ID token", json!({ "id_token": null })),
        ("no JWT", json!({ "id_token": "x" })),
        ("not a string", json!({ "id_token": 7 })),
        ("another kind", json!({ "token_type": "mac" })),
        ("an endless token", json!({ "access_token": "x".repeat(200_000) })),
        ("a token that ends the line", json!({ "access_token": "a\r\nX-Evil: 1" })),
    ] {
        provider.script().tokens = tokens;
        refused(&gateway, what).await;
    }
    provider.script().tokens = json!({});
    for status in [400, 401, 404, 429, 500, 302] {
        provider.script().broken = Some(("/oauth/token", status));
        let browser = gateway.browser();
        let url = callback(&browser, "/").await;
        let answer = browser.page(url.as_str()).await;
        assert!(answer.status.as_u16() >= 400, "{status}: {}", answer.status);
        assert!(!has_session(&browser), "{status}");
    }
    provider.script().broken = None;
    assert_eq!(gateway.browser().open("/").await.status, 200);
}

#[tokio::test]
async fn the_code_goes_to_the_provider_with_the_clients_proof_and_the_verifier() {
    let (provider, _app, gateway) = scripted().await;
    gateway.browser().open("/").await;
    let [call] = &provider.grants("authorization_code")[..] else { panic!() };
    let form = crate::support::provider::form(call);
    assert_eq!(form["redirect_uri"], format!("{}auth/callback", gateway.url));
    assert!((43..=128).contains(&form["code_verifier"].len()));
    let proof = call.header("authorization").unwrap();
    assert!(proof.starts_with("Basic "), "the secret in the header by default: {proof}");
    assert!(!call.target.contains('?'), "nothing of it in an address");
}

#[tokio::test]
async fn a_key_the_provider_has_changed_to_is_found() {
    let (provider, _app, gateway) = scripted().await;
    assert_eq!(gateway.browser().open("/").await.status, 200);
    let reads = provider.calls("/jwks").len();
    provider.script().key = Key::new("second");
    // Not more often than once in a while: tokens with made-up keys must not become calls.
    until("the new key is known", async || {
        let browser = gateway.browser();
        let answer = browser.open("/").await;
        (answer.status == 200).then_some(())
    })
    .await;
    let more = provider.calls("/jwks").len() - reads;
    assert!(more <= 2, "{more} reads");
}

#[tokio::test]
async fn the_callback_takes_no_post() {
    let (_provider, _app, gateway) = scripted().await;
    let browser = gateway.browser();
    let url = callback(&browser, "/").await;
    let ask = Ask { method: Method::POST, ..Ask::page(url.as_str()) };
    assert_eq!(browser.ask(ask).await.status, 405);
    assert!(!has_session(&browser));
}

/// The provider's key is RSA, the scripted one's is not: both kinds are read.
#[tokio::test]
async fn keys_of_the_embedded_provider_rotate_too() {
    use vestibule::demo::identity_provider::{OldKey, SigningKey};
    let provider = Provider::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    gateway.browser().log_in("zoe", "/").await;
    let next = tokio::task::spawn_blocking(SigningKey::generate).await.unwrap().unwrap();
    provider.inner.rotate(next, OldKey::Withdrawn);
    until("the new key is known", async || {
        let page = gateway.browser().log_in("zoe", "/").await;
        (page.status == 200).then_some(())
    })
    .await;
}
