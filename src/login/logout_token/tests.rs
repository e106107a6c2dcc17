//! Logout tokens that are good, and all the ways in which one is not, signed with real keys.

use ring::hmac;
use ring::signature::KeyPair;
use serde_json::json;

use super::super::client_authentication::base64url;
use super::super::id_token::tests::{Signer, change, claims as id_claims, keys, signing_input};
use super::super::id_token::{Expected, verify as verify_id};
use super::*;
use crate::config::sample;

const ISSUER: &str = "https://id.example/";
/// Long past by the machine's clock, which must not matter.
const NOW: Timestamp = Timestamp(1_600_000_000);

/// The claims of a logout of Zoë's at `now`.
pub(in crate::login) fn logout_claims(issuer: &str, now: Timestamp) -> Value {
    json!({
        "iss": issuer, "sub": "auth0|zoe", "aud": "client", "iat": now.0, "exp": now.0 + 120,
        "jti": "j-1", "events": { EVENT: {} },
    })
}

/// One provider with one key, and a token of its own with some claims changed.
struct Bench {
    signer: Signer,
    keys: Keys,
    config: config::Provider,
}

impl Bench {
    fn new() -> Self {
        let signer = Signer::new("k1");
        let keys = keys(&[signer.jwk()]);
        Self { signer, keys, config: sample::provider(ISSUER) }
    }

    fn verify(&self, token: &str) -> Result<Logout, Unverified> {
        verify(token, &self.keys, &self.config, NOW)
    }

    /// What becomes of a token whose claims are changed: `null` takes one out.
    fn with(&self, changed: &Value) -> Result<Logout, Unverified> {
        let claims = change(logout_claims(ISSUER, NOW), changed);
        self.verify(&self.signer.sign(&claims))
    }

    fn why(&self, changed: &Value) -> String {
        why(self.with(changed))
    }

    fn under(&self, header: &Value) -> Result<Logout, Unverified> {
        self.verify(&self.signer.sign_as(header, &logout_claims(ISSUER, NOW)))
    }
}

fn why(verified: Result<Logout, Unverified>) -> String {
    match verified {
        Err(Unverified::Bad(why)) => why,
        Err(Unverified::NoKey) => "no key".to_owned(),
        Ok(logout) => panic!("it was believed: {logout:?}"),
    }
}

#[test]
fn a_good_token_says_whose_sessions_end_and_since_when() {
    let bench = Bench::new();
    let logout = bench.with(&json!({})).unwrap();
    let expected = Logout {
        name: "j-1".to_owned(),
        issuer: ISSUER.to_owned(),
        whose: Whose::User("auth0|zoe".to_owned()),
        issued_at: NOW,
        expires: Timestamp(NOW.0 + 180),
    };
    assert_eq!(logout, expected);
    for changed in [json!({"sid": "s1"}), json!({"sid": "s1", "sub": null})] {
        let whose = bench.with(&changed).unwrap().whose;
        assert_eq!(whose, Whose::SignIn("s1".to_owned()));
    }
}

#[test]
fn its_kind_is_said_rightly_or_not_at_all() {
    let bench = Bench::new();
    for kind in ["logout+jwt", "JWT", "jwt", "application/logout+jwt", "APPLICATION/JWT"] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": kind});
        assert!(bench.under(&header).is_ok(), "{kind}");
    }
    assert!(bench.under(&json!({"alg": "ES256", "kid": "k1"})).is_ok());
    for kind in
        [json!("at+jwt"), json!("secevent+jwt"), json!(""), json!(null), json!(7), json!("xJWT")]
    {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": kind});
        assert!(why(bench.under(&header)).contains("another kind"), "{kind}");
    }
    for more in [json!({"crit": ["exp"]}), json!({"crit": []}), json!({"cty": "JWT"})] {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        why(bench.under(&header));
    }
}

/// CVE-2024-33531, GHSA-wcvh.
#[test]
fn a_token_that_the_provider_did_not_sign_is_refused() {
    let bench = Bench::new();
    let claims = logout_claims(ISSUER, NOW);
    for algorithm in [json!("none"), json!("None"), json!(""), json!(null), json!("HS256")] {
        let header = json!({"alg": algorithm, "kid": "k1"});
        let input = signing_input(&header, &claims);
        let signed = bench.signer.sign_as(&header, &claims);
        for token in [format!("{input}."), input.clone(), format!("{input}.AAAA"), signed] {
            assert_ne!(why(bench.verify(&token)), "no key");
        }
    }
    why(bench.under(&json!({"kid": "k1"})));
    // The public key is no shared secret, nor is the client's own.
    let point = bench.signer.pair.public_key().as_ref().to_vec();
    for secret in [point, bench.signer.jwk().to_string().into_bytes(), b"hunter2".to_vec()] {
        let input = signing_input(&json!({"alg": "HS256", "kid": "k1"}), &claims);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), input.as_bytes());
        why(bench.verify(&format!("{input}.{}", base64url(tag))));
    }
    // A foreign key, whatever it calls itself and whatever it brings along.
    let foreign = Signer::new("k1");
    assert_ne!(why(bench.verify(&foreign.sign(&claims))), "no key");
    for brought in ["jwk", "x5c", "jku"] {
        let header = json!({"alg": "ES256", "kid": "k1", brought: foreign.jwk()});
        why(bench.verify(&foreign.sign_as(&header, &claims)));
    }
    why(bench.verify(&foreign.sign_as(&json!({"alg": "ES256"}), &claims)));
    // Perhaps one that is newer than what is known.
    assert_eq!(bench.verify(&Signer::new("k2").sign(&claims)), Err(Unverified::NoKey));
    let other = json!({"alg": "RS256", "kid": "k1"});
    assert_eq!(bench.under(&other), Err(Unverified::NoKey), "an EC key makes no RSA signature");
    let odd = json!({"alg": "ES256", "kid": 1});
    assert_eq!(bench.under(&odd), Err(Unverified::NoKey));
}

#[test]
fn one_of_several_keys_that_name_themselves_or_not_has_signed_it() {
    let (signer, other) = (Signer::new("k1"), Signer::new("k2"));
    let mut nameless = signer.jwk();
    nameless.as_object_mut().unwrap().remove("kid");
    let config = sample::provider(ISSUER);
    let claims = logout_claims(ISSUER, NOW);
    let keys = keys(&[other.jwk(), nameless]);
    let token = signer.sign_as(&json!({"alg": "ES256"}), &claims);
    assert!(verify(&token, &keys, &config, NOW).is_ok());
    assert_eq!(verify(&signer.sign(&claims), &keys, &config, NOW), Err(Unverified::NoKey));
    let mut for_encryption = signer.jwk();
    for_encryption["use"] = "enc".into();
    let keys = super::super::id_token::tests::keys(&[for_encryption]);
    let by_enc = verify(&signer.sign(&claims), &keys, &config, NOW);
    assert_eq!(by_enc, Err(Unverified::NoKey), "a key for encryption signs nothing");
}

#[test]
fn a_token_that_was_changed_is_refused() {
    let bench = Bench::new();
    let token = bench.signer.sign(&logout_claims(ISSUER, NOW));
    // The last digit of the signature has bits that mean nothing.
    for at in 0..token.len() - 1 {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(bench.verify(&changed).is_err(), "byte {at}");
    }
    for changed in [format!("{token}."), format!(".{token}"), token.replace('.', ".."), token + "="]
    {
        assert!(bench.verify(&changed).is_err());
    }
}

#[test]
fn it_is_of_this_provider_and_for_this_client() {
    let bench = Bench::new();
    for issuer in
        [json!(null), json!("https://id.example"), json!("https://evil/"), json!([ISSUER])]
    {
        assert!(bench.why(&json!({"iss": issuer})).contains("iss"), "{issuer}");
    }
    for audience in [
        json!(null),
        json!("other"),
        json!([]),
        json!(["other"]),
        json!("CLIENT"),
        json!({"client": 1}),
    ] {
        assert!(bench.why(&json!({"aud": audience})).contains("aud"), "{audience}");
    }
    assert!(bench.with(&json!({"aud": ["other", "client"]})).is_ok());
}

#[test]
fn it_is_good_for_a_time_and_a_minute_of_another_clock() {
    let bench = Bench::new();
    let now = NOW.0;
    for (claim, value, good) in [
        ("exp", json!(null), false),
        ("exp", json!(now - 60), false),
        ("exp", json!(now - 59), true),
        ("exp", json!(-1), false),
        ("exp", json!("soon"), false),
        ("exp", json!(1e300), false),
        ("iat", json!(null), false),
        ("iat", json!(now + 60), true),
        ("iat", json!(now + 61), false),
        ("iat", json!("x"), false),
        ("nbf", json!(now + 60), true),
        ("nbf", json!(now + 61), false),
        ("nbf", json!("x"), false),
    ] {
        let found = bench.with(&json!({claim: value}));
        assert_eq!(found.is_ok(), good, "{claim} {value}: {found:?}");
    }
}

#[test]
fn it_tells_of_a_logout_and_of_nothing_else() {
    let bench = Bench::new();
    for events in [
        json!(null),
        json!({}),
        json!([EVENT]),
        json!(EVENT),
        json!({EVENT: "yes"}),
        json!({EVENT: []}),
        json!({"http://schemas.openid.net/event/other": {}}),
    ] {
        assert!(bench.why(&json!({"events": events})).contains("no logout"), "{events}");
    }
    assert!(bench.with(&json!({"events": {EVENT: {"x": 1}, "https://other/": {}}})).is_ok());
    for nonce in [json!("n-1"), json!(""), json!(0)] {
        assert!(bench.why(&json!({"nonce": nonce})).contains("nonce"));
    }
}

#[test]
fn it_has_a_name_and_says_whose() {
    let bench = Bench::new();
    assert!(bench.why(&json!({"jti": null})).contains("no jti"));
    assert!(bench.why(&json!({"sub": null})).contains("neither"));
    for (claim, value) in [
        ("jti", json!("")),
        ("jti", json!(1)),
        ("jti", json!("x".repeat(LONGEST + 1))),
        ("sub", json!("")),
        ("sub", json!(["auth0|zoe"])),
        ("sid", json!("")),
        ("sid", json!({})),
    ] {
        assert!(bench.why(&json!({claim: value})).contains("no text"), "{claim} {value}");
    }
}

/// Section 4: one kind of token for another.
#[test]
fn an_id_token_is_no_logout_token_and_the_other_way_round() {
    let bench = Bench::new();
    let mut id = id_claims(ISSUER, NOW);
    why(bench.verify(&bench.signer.sign(&id)));
    // Not even with everything that a logout token has.
    let logout = logout_claims(ISSUER, NOW);
    id.as_object_mut().unwrap().extend(logout.as_object().unwrap().clone());
    assert!(why(bench.verify(&bench.signer.sign(&id))).contains("nonce"));
    for header in
        [json!({"alg": "ES256", "kid": "k1"}), json!({"alg": "ES256", "typ": "logout+jwt"})]
    {
        for claims in [&id, &logout] {
            let token = bench.signer.sign_as(&header, claims);
            let expected = Expected { nonce: None, ..Expected::default() };
            assert!(verify_id(&token, &bench.keys, &bench.config, &expected, NOW).is_err());
        }
    }
}

#[test]
fn what_is_no_token_is_refused_in_no_time_and_said_in_a_few_words() {
    let bench = Bench::new();
    let begun = std::time::Instant::now();
    let deep = base64url("[".repeat(10_000));
    for token in [
        String::new(),
        "a.b.c".to_owned(),
        "....".to_owned(),
        "ä.ö.ü".to_owned(),
        format!("{deep}.{deep}.{deep}"),
        "A".repeat(1024 * 1024),
        bench.signer.sign(&json!({"pad": "x".repeat(1024 * 1024)})),
        bench.signer.sign(&json!([])),
        bench.signer.sign(&json!({"iss": "\u{1b}[31m".repeat(2000)})),
    ] {
        let why = why(bench.verify(&token));
        assert!(why.len() < 2000 && !why.contains(char::is_control), "{why}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}
