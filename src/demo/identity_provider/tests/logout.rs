//! `/v2/logout` and `/oidc/logout`.

use super::*;

fn is_signed_in(browser: &mut Browser, provider: &IdentityProvider) -> bool {
    browser.get(provider, &authorize(&[])).status == 302
}

/// Bob's browser and his ID token.
fn bob(provider: &IdentityProvider) -> (Browser, String) {
    let mut browser = Browser::default();
    let code = browser.sign_in(provider, "Bob", &[]);
    let id_token = redeem(provider, &code).json()["id_token"].as_str().unwrap().to_owned();
    (browser, id_token)
}

#[test]
fn auth0s_logout_ends_the_sign_in_and_goes_to_a_registered_address_only() {
    let provider = provider();
    let (mut browser, _) = bob(&provider);
    let path = |client: &str, to: &str| {
        format!("/v2/logout?{}", encode(&[("client_id", client), ("returnTo", to)]))
    };
    for (client, to) in [
        ("vestibule", "https://evil.example/"),
        ("vestibule", "https://localhost:8443/x"),
        ("vestibule", "https://localhost:8443"),
        ("vestibule", "//evil.example/"),
        ("another", HOME),
        ("", HOME),
    ] {
        let seen = browser.get(&provider, &path(client, to));
        assert_eq!((seen.status, seen.location), (400, None), "{client} {to}");
        assert!(is_signed_in(&mut browser, &provider));
    }
    let seen = browser.get(&provider, &path("vestibule", HOME));
    assert_eq!((seen.status, seen.location.unwrap().as_str()), (302, HOME));
    assert!(!is_signed_in(&mut browser, &provider));
    assert_eq!(browser.get(&provider, "/v2/logout").status, 200);
}

#[test]
fn a_copied_cookie_is_worth_nothing_after_the_logout() {
    let provider = provider();
    let (mut browser, _) = bob(&provider);
    let mut copy = Browser { cookie: browser.cookie.clone() };
    browser.get(&provider, "/v2/logout");
    assert!(!is_signed_in(&mut copy, &provider));
}

#[test]
fn a_logout_with_an_id_token_needs_no_question_and_brings_the_state_back() {
    let provider = provider();
    for method in ["GET", "POST"] {
        let (mut browser, id_token) = bob(&provider);
        let pairs = [
            ("id_token_hint", id_token.as_str()),
            ("post_logout_redirect_uri", HOME),
            ("state", "s 1"),
        ];
        let seen = if method == "GET" {
            browser.get(&provider, &format!("/oidc/logout?{}", encode(&pairs)))
        } else {
            browser.post(&provider, "/oidc/logout", &pairs)
        };
        assert_eq!(seen.status, if method == "GET" { 302 } else { 303 });
        assert_eq!(seen.location.unwrap().as_str(), "https://localhost:8443/?state=s+1");
        assert!(!is_signed_in(&mut browser, &provider));
    }
}

#[test]
fn a_logout_goes_to_no_address_that_is_not_registered() {
    let provider = provider();
    let (mut browser, id_token) = bob(&provider);
    for (hint, client, to) in [
        (id_token.as_str(), "vestibule", "https://evil.example/"),
        (&id_token, "", "https://localhost:8443/x"),
        (&id_token, "another", HOME),
        // An address alone: nobody says whose it is.
        ("", "", HOME),
        ("junk", "", HOME),
    ] {
        let pairs =
            [("id_token_hint", hint), ("client_id", client), ("post_logout_redirect_uri", to)];
        let seen = browser.get(&provider, &format!("/oidc/logout?{}", encode(&pairs)));
        assert_eq!((seen.status, seen.location), (400, None), "{client} {to}");
        assert!(is_signed_in(&mut browser, &provider));
    }
}

#[test]
fn a_logout_without_the_users_own_token_is_asked_about_first() {
    let provider = provider();
    let (_, foreign) = bob(&provider);
    let mut browser = Browser::default();
    browser.sign_in(&provider, "Zoë", &[]);
    for hint in ["", "junk", &foreign] {
        let query = encode(&[
            ("id_token_hint", hint),
            ("client_id", "vestibule"),
            ("post_logout_redirect_uri", HOME),
        ]);
        let path = format!("/oidc/logout?{query}");
        let page = browser.get(&provider, &path);
        assert!(page.status == 200 && page.body.contains("id=\"confirm\""), "{}", page.body);
        assert!(is_signed_in(&mut browser, &provider));

        // Another site cannot press the button.
        let request = Request::post(&path).header("sec-fetch-site", "cross-site");
        let seen = browser.send(&provider, request, "confirm=1".to_owned());
        assert_eq!(seen.status, 200);
        assert!(is_signed_in(&mut browser, &provider));
    }
    let query = encode(&[("client_id", "vestibule"), ("post_logout_redirect_uri", HOME)]);
    let seen = browser.post(&provider, &format!("/oidc/logout?{query}"), &[("confirm", "1")]);
    assert_eq!((seen.status, seen.location.unwrap().as_str()), (303, HOME));
    assert!(!is_signed_in(&mut browser, &provider));
}

#[test]
fn an_id_token_ends_its_own_sign_in_from_another_browser_too() {
    let provider = provider();
    let (mut browser, id_token) = bob(&provider);
    let query = encode(&[("id_token_hint", &id_token)]);
    let seen = Browser::default().get(&provider, &format!("/oidc/logout?{query}"));
    assert_eq!(seen.status, 200);
    assert!(!is_signed_in(&mut browser, &provider));
}
