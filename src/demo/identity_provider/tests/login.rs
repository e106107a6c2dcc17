//! `/authorize` and its page.

use super::*;

#[test]
fn a_user_signs_in_and_the_browser_goes_back_with_a_code_and_the_state() {
    let provider = provider();
    let mut browser = Browser::default();
    let page = browser.get(&provider, &authorize(&[]));
    assert_eq!(page.status, 200);
    for id in ["user-zoe", "user-bob", "name", "continue", "cancel"] {
        assert!(page.body.contains(&format!("id=\"{id}\"")), "{id}");
    }
    // The form's own address, as a browser would read it off the page.
    let action = page.body.split("action=\"").nth(1).unwrap().split('"').next().unwrap();
    let sent = browser.post(&provider, &action.replace("&amp;", "&"), &[("user", "auth0|zoe")]);
    assert_eq!(sent.status, 303);
    assert!(sent.location.as_ref().unwrap().as_str().starts_with(CALLBACK));
    assert_eq!(sent.parameter("state").as_deref(), Some("the state"));
    assert!(sent.parameter("code").is_some());
}

#[test]
fn a_second_login_needs_no_page_unless_one_is_asked_for() {
    let provider = provider();
    let mut browser = Browser::default();
    browser.sign_in(&provider, "Bob", &[]);
    assert_eq!(browser.get(&provider, &authorize(&[])).status, 302);
    assert_eq!(browser.get(&provider, &authorize(&[("prompt", "login")])).status, 200);
    assert_eq!(browser.get(&provider, &authorize(&[("max_age", "0")])).status, 200);
    assert_eq!(browser.get(&provider, &authorize(&[("max_age", "10")])).status, 302);
    assert!(browser.get(&provider, &authorize(&[("prompt", "none")])).parameter("code").is_some());
}

#[test]
fn without_a_sign_in_prompt_none_is_refused() {
    let sent = Browser::default().get(&provider(), &authorize(&[("prompt", "none")]));
    assert_eq!(sent.parameter("error").as_deref(), Some("login_required"));
    assert_eq!(sent.parameter("state").as_deref(), Some("the state"));
}

#[test]
fn a_cancelled_login_tells_the_client() {
    let sent = Browser::default().post(&provider(), &authorize(&[]), &[("cancel", "1")]);
    assert_eq!(sent.parameter("error").as_deref(), Some("access_denied"));
}

#[test]
fn a_request_that_is_not_in_order_tells_the_client() {
    let cases = [
        (("response_type", "token"), "unsupported_response_type"),
        (("response_type", ""), "invalid_request"),
        (("response_mode", "fragment"), "invalid_request"),
        (("scope", "profile"), "invalid_scope"),
        (("code_challenge_method", "plain"), "invalid_request"),
        (("code_challenge", ""), "invalid_request"),
        (("max_age", "soon"), "invalid_request"),
        (("prompt", "none login"), "invalid_request"),
        (("request", "e30."), "request_not_supported"),
        (("request_uri", "https://evil.example/"), "request_uri_not_supported"),
    ];
    for (pair, error) in cases {
        let sent = Browser::default().get(&provider(), &authorize(&[pair]));
        assert_eq!(sent.parameter("error").as_deref(), Some(error), "{pair:?}");
    }
}

#[test]
fn an_address_that_is_not_registered_is_never_redirected_to() {
    let evil = [
        "https://evil.example/",
        "https://localhost:8443/auth/callback/",
        "https://localhost:8443/auth/callback?x",
        "https://localhost:8443/auth/callbacK",
        "javascript:alert(1)",
        "",
    ];
    for uri in evil {
        let mut browser = Browser::default();
        for path in [
            authorize(&[("redirect_uri", uri)]),
            authorize(&[("redirect_uri", uri), ("scope", "")]),
        ] {
            for seen in [
                browser.get(&provider(), &path),
                browser.post(&provider(), &path, &[("user", "Bob")]),
            ] {
                assert_eq!((seen.status, seen.location), (400, None), "{uri}");
            }
        }
    }
    let seen = Browser::default().get(&provider(), &authorize(&[("client_id", "another")]));
    assert_eq!((seen.status, seen.location), (400, None));
}

#[test]
fn markup_in_any_parameter_stays_text() {
    let provider = provider();
    let names = [
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "state",
        "nonce",
        "login_hint",
        "organization",
        "screen_hint",
        "code_challenge",
        "max_age",
        "prompt",
        "audience",
        "made_up",
        HOSTILE,
    ];
    for name in names {
        let path = authorize(&[(name, HOSTILE)]);
        let mut browser = Browser::default();
        let seen = [
            browser.get(&provider, &path),
            // The page once more, because the name is refused.
            browser.post(&provider, &path, &[("user", "\u{1}")]),
            browser.get(&provider, &format!("/v2/logout?{}", encode(&[(name, HOSTILE)]))),
            browser.get(&provider, &format!("/oidc/logout?{}", encode(&[(name, HOSTILE)]))),
        ];
        for seen in seen {
            let text = seen.body;
            assert!(!text.contains("<script") && !text.contains("'\">"), "{name}: {text}");
        }
    }
    let page = Browser::default().get(&provider, &authorize(&[("login_hint", HOSTILE)]));
    assert!(page.body.contains("value=\"&#39;&quot;&gt;&lt;script&gt;"), "{}", page.body);
}

#[test]
fn markup_in_a_users_claims_stays_text() {
    let provider = provider();
    let claims =
        json!({"name": HOSTILE, "email": HOSTILE, "picture": HOSTILE, "nickname": HOSTILE});
    provider.put_user(User::new(HOSTILE, claims.as_object().unwrap().clone()));
    let page = Browser::default().get(&provider, &authorize(&[]));
    assert!(
        !page.body.contains("<script") && page.body.contains("&lt;script&gt;"),
        "{}",
        page.body
    );
}

#[test]
fn another_sites_form_signs_nobody_in() {
    let provider = provider();
    for (site, status) in
        [("cross-site", 400), ("same-site", 400), ("same-origin", 303), ("none", 303)]
    {
        let request = Request::post(authorize(&[])).header("sec-fetch-site", site);
        let seen = Browser::default().send(&provider, request, encode(&[("user", "Bob")]));
        assert_eq!(seen.status, status, "{site}");
    }
}

#[test]
fn a_new_sign_in_ends_the_one_before_it_in_that_browser() {
    let provider = provider();
    let mut browser = Browser::default();
    browser.sign_in(&provider, "Bob", &[]);
    let mut copy = Browser { cookie: browser.cookie.clone() };
    browser.sign_in(&provider, "Zoë", &[]);
    assert_eq!(copy.get(&provider, &authorize(&[])).status, 200);
    assert_eq!(browser.get(&provider, &authorize(&[])).status, 302);
}

#[test]
fn a_method_that_a_page_does_not_take_is_405() {
    let provider = provider();
    let cases =
        [("GET", "/oauth/token"), ("DELETE", "/authorize"), ("POST", "/"), ("PUT", "/nope")];
    for (method, path) in cases {
        let request = Request::builder().method(method).uri(path);
        assert_eq!(
            Browser::default().send(&provider, request, String::new()).status,
            405,
            "{path}"
        );
    }
    let head = Request::builder().method("HEAD").uri("/.well-known/jwks.json");
    assert_eq!(Browser::default().send(&provider, head, String::new()).status, 200);
    assert_eq!(Browser::default().get(&provider, "/nope").status, 404);
}

#[test]
fn discovery_names_only_addresses_that_answer() {
    let provider = provider();
    let document = Browser::default().get(&provider, "/.well-known/openid-configuration").json();
    assert_eq!(document["issuer"], ISSUER);
    let names = [
        "authorization_endpoint",
        "token_endpoint",
        "userinfo_endpoint",
        "jwks_uri",
        "revocation_endpoint",
        "end_session_endpoint",
    ];
    for name in names {
        let url = Url::parse(document[name].as_str().unwrap()).unwrap();
        assert!(url.as_str().starts_with(ISSUER), "{name}");
        let seen = Browser::default().get(&provider, url.path());
        assert_ne!(seen.status, 404, "{name}");
    }
    let older = Options { announce_end_session: false, ..options() };
    let older = IdentityProvider::new(older, Vec::new(), KEYS[0].clone());
    let document = Browser::default().get(&older, "/.well-known/openid-configuration").json();
    assert_eq!(document.get("end_session_endpoint"), None);
}
