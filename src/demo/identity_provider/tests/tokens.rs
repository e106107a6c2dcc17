//! `/oauth/token`, `/oauth/revoke`, `/userinfo` and what the tokens say.

use super::*;

#[test]
fn an_id_token_says_who_for_whom_from_whom_and_until_when() {
    let provider = provider();
    let tokens = log_in(&provider, "Zoë", &[]);
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["expires_in"], 24 * 60 * 60);
    let claims = claims(&provider, "JWT", &tokens["id_token"]);
    for (name, value) in [
        ("iss", json!(ISSUER)),
        ("sub", json!("auth0|zoe")),
        ("aud", json!("vestibule")),
        ("iat", json!(NOW.0)),
        ("exp", json!(NOW.0 + 36_000)),
        ("auth_time", json!(NOW.0)),
        ("nonce", json!("the nonce")),
        ("name", json!("Zoë Okafor")),
        ("email", json!("zoe@example.com")),
        ("roles", json!(["admin", "editor"])),
        ("picture", json!("http://127.0.0.1:9080/pictures/zoe.svg")),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(claims["sid"].as_str().unwrap().len(), 43);
    // 16 bytes are 21 characters and a bit of the hash's own 43.
    let at_hash = claims["at_hash"].as_str().unwrap();
    assert_eq!(at_hash.len(), 22);
    assert!(sha256_text(tokens["access_token"].as_str().unwrap()).starts_with(&at_hash[..21]));
    assert_eq!(claims.get("org_id"), None);
}

#[test]
fn what_the_protocol_owns_a_user_cannot_claim() {
    let provider = provider();
    let claims_of_mallory =
        json!({"iss": "https://evil.example/", "sub": "auth0|zoe", "nonce": "x", "aud": "y"});
    provider.put_user(User::new("mallory", claims_of_mallory.as_object().unwrap().clone()));
    let tokens = log_in(&provider, "mallory", &[("nonce", "")]);
    let claims = claims(&provider, "JWT", &tokens["id_token"]);
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!(ISSUER), &json!("mallory")));
    assert_eq!((claims.get("nonce"), &claims["aud"]), (None, &json!("vestibule")));
}

#[test]
fn a_scope_that_was_not_asked_gives_no_claims_and_no_refresh_token() {
    let provider = provider();
    let tokens = log_in(&provider, "Zoë", &[("scope", "openid")]);
    assert_eq!(tokens.get("refresh_token"), None);
    let claims = claims(&provider, "JWT", &tokens["id_token"]);
    assert_eq!((claims.get("email"), claims.get("name")), (None, None));
}

#[test]
fn an_organization_is_named_by_its_id() {
    let provider = provider();
    let by_id = log_in(&provider, "Bob", &[("organization", "org_1")]);
    let claims_by_id = claims(&provider, "JWT", &by_id["id_token"]);
    assert_eq!((&claims_by_id["org_id"], claims_by_id.get("org_name")), (&json!("org_1"), None));
    assert_eq!(claims(&provider, "at+jwt", &by_id["access_token"])["org_id"], "org_1");
    let by_name = log_in(&provider, "Bob", &[("organization", "Acme")]);
    let by_name = claims(&provider, "JWT", &by_name["id_token"]);
    assert_eq!(by_name["org_name"], "acme");
    assert!(by_name["org_id"].as_str().unwrap().starts_with("org_"));
}

#[test]
fn an_access_token_is_for_the_api_that_was_asked_and_for_userinfo() {
    let provider = provider();
    let tokens = log_in(&provider, "Bob", &[("audience", "https://api.example/")]);
    let claims = claims(&provider, "at+jwt", &tokens["access_token"]);
    assert_eq!(claims["aud"], json!(["https://api.example/", "http://127.0.0.1:9080/userinfo"]));
    assert_eq!(userinfo(&provider, tokens["access_token"].as_str().unwrap(), NOW).status, 200);
}

#[test]
fn userinfo_takes_a_good_access_token_and_nothing_else() {
    let provider = provider();
    let tokens = log_in(&provider, "Zoë", &[]);
    let (access, id) =
        (tokens["access_token"].as_str().unwrap(), tokens["id_token"].as_str().unwrap());
    let answer = userinfo(&provider, access, NOW).json();
    assert_eq!(answer["sub"], "auth0|zoe");
    assert_eq!(answer["email"], "zoe@example.com");
    assert_eq!(answer.get("iss"), None);

    let late = NOW.plus(Duration::from_secs(24 * 60 * 60));
    let other_key =
        KEYS[1].sign("at+jwt", &claims(&provider, "at+jwt", &tokens["access_token"])).unwrap();
    for (token, at) in [(access, late), (id, NOW), ("junk", NOW), (&other_key, NOW)] {
        let seen = userinfo(&provider, token, at);
        assert_eq!((seen.status, seen.error().as_str()), (401, "invalid_token"));
        assert!(seen.challenge.unwrap().starts_with("Bearer"));
    }
    let bare = Browser::default().get(&provider, "/userinfo");
    assert_eq!(bare.status, 401);
}

#[test]
fn a_replayed_code_is_refused_and_ends_what_it_brought() {
    let provider = provider();
    let code = Browser::default().sign_in(&provider, "Bob", &[]);
    let tokens = redeem(&provider, &code).json();
    assert_eq!(redeem(&provider, &code).error(), "invalid_grant");
    let token = tokens["refresh_token"].as_str().unwrap();
    assert_eq!(refresh(&provider, token).error(), "invalid_grant");
}

#[test]
fn a_code_with_the_wrong_verifier_or_address_is_refused() {
    let provider = provider();
    for (name, value) in [
        ("code_verifier", "another-verifier-of-at-least-forty-three-characters"),
        ("code_verifier", ""),
        ("redirect_uri", HOME),
        ("redirect_uri", ""),
    ] {
        let code = Browser::default().sign_in(&provider, "Bob", &[]);
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", VERIFIER),
        ];
        form.retain(|(known, _)| *known != name);
        form.push((name, value));
        let seen = call(&provider, "/oauth/token", &form, NOW);
        assert_eq!((seen.status, seen.error().as_str()), (400, "invalid_grant"), "{name}");
    }
    let code = Browser::default().sign_in(&provider, "Bob", &[]);
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
    ];
    let late = call(&provider, "/oauth/token", &form, NOW.plus(Duration::from_secs(60)));
    assert_eq!(late.error(), "invalid_grant");
}

#[test]
fn a_client_with_the_wrong_secret_gets_nothing_and_spends_nothing() {
    let provider = provider();
    let code = Browser::default().sign_in(&provider, "Bob", &[]);
    let form = encode(&[
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
        ("client_id", "vestibule"),
        ("client_secret", "wrong"),
    ]);
    for path in ["/oauth/token", "/oauth/revoke"] {
        let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = request.body(Bytes::from(form.clone())).unwrap();
        let seen = Seen::of(provider.answer(&request, NOW));
        assert_eq!((seen.status, seen.error().as_str()), (401, "invalid_client"));
        assert!(seen.challenge.unwrap().starts_with("Basic"));
    }
    assert_eq!(redeem(&provider, &code).status, 200);
}

#[test]
fn what_is_no_form_and_no_known_grant_is_refused() {
    let provider = provider();
    let request = Request::post("/oauth/token").header(CONTENT_TYPE, "application/json");
    let seen = Seen::of(provider.answer(&request.body(Bytes::from("{}")).unwrap(), NOW));
    assert_eq!(seen.error(), "invalid_request");
    for (grant, error) in [
        ("password", "unsupported_grant_type"),
        ("", "invalid_request"),
        ("authorization_code", "invalid_request"),
        ("refresh_token", "invalid_request"),
    ] {
        let seen = call(&provider, "/oauth/token", &[("grant_type", grant)], NOW);
        assert_eq!(seen.error(), error, "{grant}");
    }
    let twice = [("grant_type", "refresh_token"), ("grant_type", "refresh_token")];
    assert_eq!(call(&provider, "/oauth/token", &twice, NOW).error(), "invalid_request");
}

#[test]
fn a_refresh_gives_new_tokens_of_the_same_sign_in_without_a_nonce() {
    let provider = provider();
    let first = log_in(&provider, "Zoë", &[]);
    let second = refresh(&provider, first["refresh_token"].as_str().unwrap()).json();
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_ne!(first["access_token"], second["access_token"]);
    let (before, after) = (
        claims(&provider, "JWT", &first["id_token"]),
        claims(&provider, "JWT", &second["id_token"]),
    );
    for name in ["sub", "sid", "auth_time", "name"] {
        assert_eq!(before[name], after[name], "{name}");
    }
    assert_eq!(after.get("nonce"), None);
}

#[test]
fn a_refresh_token_used_twice_ends_them_all() {
    let provider = provider();
    let first = log_in(&provider, "Bob", &[]);
    let first = first["refresh_token"].as_str().unwrap();
    let second = refresh(&provider, first).json();
    assert_eq!(refresh(&provider, first).error(), "invalid_grant");
    let second = second["refresh_token"].as_str().unwrap();
    assert_eq!(refresh(&provider, second).error(), "invalid_grant");
}

#[test]
fn a_revoked_refresh_token_is_no_good_and_an_unknown_one_is_no_error() {
    let provider = provider();
    let tokens = log_in(&provider, "Bob", &[]);
    let token = tokens["refresh_token"].as_str().unwrap();
    for token in [token, "unknown", token] {
        assert_eq!(call(&provider, "/oauth/revoke", &[("token", token)], NOW).status, 200);
    }
    assert_eq!(refresh(&provider, token).error(), "invalid_grant");
    assert_eq!(call(&provider, "/oauth/revoke", &[], NOW).error(), "invalid_request");
}

#[test]
fn an_ended_user_has_to_sign_in_again() {
    let provider = provider();
    let mut browser = Browser::default();
    let code = browser.sign_in(&provider, "Bob", &[]);
    let tokens = log_in(&provider, "Bob", &[]);
    let zoe = log_in(&provider, "Zoë", &[]);
    provider.end_user("auth0|bob");
    assert_eq!(browser.get(&provider, &authorize(&[])).status, 200);
    assert_eq!(redeem(&provider, &code).error(), "invalid_grant");
    assert_eq!(
        refresh(&provider, tokens["refresh_token"].as_str().unwrap()).error(),
        "invalid_grant"
    );
    assert_eq!(refresh(&provider, zoe["refresh_token"].as_str().unwrap()).status, 200);
}

#[test]
fn a_changed_user_is_new_in_the_next_tokens() {
    let provider = provider();
    let tokens = log_in(&provider, "Bob", &[]);
    let changed = json!({"name": "Bob", "roles": ["admin"]});
    provider.put_user(User::new("auth0|bob", changed.as_object().unwrap().clone()));
    let next = refresh(&provider, tokens["refresh_token"].as_str().unwrap()).json();
    assert_eq!(claims(&provider, "JWT", &next["id_token"])["roles"], json!(["admin"]));
    let info = userinfo(&provider, tokens["access_token"].as_str().unwrap(), NOW).json();
    assert_eq!(info["roles"], json!(["admin"]));
}

#[test]
fn anybody_is_who_they_say_they_are() {
    let provider = provider();
    let tokens = log_in(&provider, "Ada Lovelace", &[]);
    let claims = claims(&provider, "JWT", &tokens["id_token"]);
    assert_eq!(claims["name"], "Ada Lovelace");
    assert_eq!(claims["email_verified"], false);
    let picture = claims["picture"].as_str().unwrap().strip_prefix(ISSUER).unwrap();
    assert_eq!(Browser::default().get(&provider, &format!("/{picture}")).status, 200);
}

#[test]
fn after_a_rotation_new_tokens_name_the_new_key() {
    let provider = provider();
    let old = log_in(&provider, "Bob", &[]);
    provider.rotate(KEYS[1].clone(), OldKey::StaysPublished);
    let keys = Browser::default().get(&provider, "/.well-known/jwks.json").json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    assert_eq!(keys["keys"][0]["kid"], KEYS[1].kid());
    assert_eq!(userinfo(&provider, old["access_token"].as_str().unwrap(), NOW).status, 200);
    provider.rotate(KEYS[0].clone(), OldKey::Withdrawn);
    let newer = log_in(&provider, "Bob", &[]);
    assert_eq!(claims(&provider, "JWT", &newer["id_token"])["sub"], "auth0|bob");
}
