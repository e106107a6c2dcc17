//! Tokens that are good, and all the ways in which one is not (CVE-2024-33531 and its kin), signed
//! with real keys.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::super::client_authentication::base64url;
use super::*;
use crate::config::sample;

/// Long past by the machine's clock, which must not matter.
const NOW: Timestamp = Timestamp(1_600_000_000);

/// A P-256 key of a provider's.
pub(in crate::login) struct Signer {
    pub(in crate::login) pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Signer {
    pub(in crate::login) fn new(kid: &'static str) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { pair: EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap(), kid }
    }

    pub(in crate::login) fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": base64url(x), "y": base64url(y),
        })
    }

    pub(in crate::login) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "ES256", "typ": "JWT", "kid": self.kid}), claims)
    }

    pub(in crate::login) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = signing_input(header, claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64url(signature))
    }
}

pub(in crate::login) fn signing_input(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()))
}

/// Claims of Zoë's for `client` at `issuer`, issued at `now` for five minutes.
pub(in crate::login) fn claims(issuer: &str, now: Timestamp) -> Value {
    json!({
        "iss": issuer, "sub": "auth0|zoe", "aud": "client", "nonce": "n-1",
        "iat": now.0, "exp": now.0 + 300, "name": "Zoë",
    })
}

/// Other claims: `null` takes one out.
pub(in crate::login) fn change(mut claims: Value, changed: &Value) -> Value {
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changed.as_object().unwrap() {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

pub(in crate::login) fn keys(all: &[Value]) -> Keys {
    Keys::parse(json!({"keys": all}).to_string().as_bytes()).unwrap()
}

const ISSUER: &str = "https://id.example/";

fn expected() -> Expected<'static> {
    Expected { nonce: Some("n-1"), ..Expected::default() }
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

    fn verify(
        &self,
        token: &str,
        expected: &Expected<'_>,
    ) -> Result<Map<String, Value>, Unverified> {
        verify(token, &self.keys, &self.config, expected, NOW)
    }

    /// What becomes of a token whose claims are changed: `null` takes one out.
    fn with_expecting(
        &self,
        changed: &Value,
        expected: &Expected<'_>,
    ) -> Result<Map<String, Value>, Unverified> {
        let claims = change(claims(ISSUER, NOW), changed);
        self.verify(&self.signer.sign(&claims), expected)
    }

    fn with(&self, changed: &Value) -> Result<Map<String, Value>, Unverified> {
        self.with_expecting(changed, &expected())
    }

    /// Why it is refused.
    fn why(&self, changed: &Value) -> String {
        why(self.with(changed))
    }
}

fn why(verified: Result<Map<String, Value>, Unverified>) -> String {
    match verified {
        Err(Unverified::Bad(why)) => why,
        Err(Unverified::NoKey) => "no key".to_owned(),
        Ok(claims) => panic!("it was believed: {claims:?}"),
    }
}

#[test]
fn a_good_token_is_believed_with_all_its_claims() {
    let bench = Bench::new();
    let more = json!({"https://example.com/plan": {"tier": 3}, "org_id": "org_1"});
    let found = bench.with(&more).unwrap();
    assert_eq!(found["sub"], "auth0|zoe");
    assert_eq!(found["name"], "Zoë");
    assert_eq!(found["https://example.com/plan"]["tier"], 3);
}

/// CVE-2024-33531, GHSA-wcvh.
#[test]
fn a_token_that_nobody_signed_is_refused() {
    let bench = Bench::new();
    let claims = claims(ISSUER, NOW);
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": algorithm, "kid": "k1"});
        let input = signing_input(&header, &claims);
        let signed = bench.signer.sign_as(&header, &claims);
        for token in [format!("{input}."), input.clone(), format!("{input}.AAAA"), signed] {
            why(bench.verify(&token, &expected()));
        }
    }
    let good = bench.signer.sign(&claims);
    let (input, _) = good.rsplit_once('.').unwrap();
    for signature in ["", "AA", &base64url([0; 64]), &base64url([255; 64])] {
        why(bench.verify(&format!("{input}.{signature}"), &expected()));
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    use ring::hmac;
    let bench = Bench::new();
    let claims = claims(ISSUER, NOW);
    let point = bench.signer.pair.public_key().as_ref().to_vec();
    let jwk = bench.signer.jwk().to_string().into_bytes();
    // The client's own secret signs no token either: it may be known to more than the provider.
    for secret in [point, jwk, b"hunter2".to_vec(), b"".to_vec()] {
        for kid in [json!("k1"), json!(null), json!("other")] {
            let input = signing_input(&json!({"alg": "HS256", "kid": kid}), &claims);
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let token = format!("{input}.{}", base64url(hmac::sign(&key, input.as_bytes())));
            assert_ne!(why(bench.verify(&token, &expected())), "no key");
        }
    }
}

#[test]
fn a_shared_secret_among_the_published_keys_verifies_nothing() {
    use ring::hmac;
    let signer = Signer::new("k1");
    let oct = json!({"kty": "oct", "kid": "s", "k": base64url("published"), "alg": "HS256"});
    let keys = keys(&[oct.clone(), signer.jwk()]);
    let input = signing_input(&json!({"alg": "HS256", "kid": "s"}), &claims(ISSUER, NOW));
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"published");
    let token = format!("{input}.{}", base64url(hmac::sign(&key, input.as_bytes())));
    why(verify(&token, &keys, &sample::provider(ISSUER), &expected(), NOW));
    let alone = json!({"keys": [oct]}).to_string();
    assert!(matches!(Keys::parse(alone.as_bytes()), Err(KeysError::Empty)));
}

#[test]
fn a_foreign_key_signs_nothing_whatever_it_calls_itself() {
    let bench = Bench::new();
    let claims = claims(ISSUER, NOW);
    let foreign = Signer::new("k1");
    why(bench.verify(&foreign.sign(&claims), &expected()));
    // SECURITY: a key that a token brings along is nobody's.
    for brought in ["jwk", "x5c", "jku", "x5u"] {
        let header = json!({"alg": "ES256", "kid": "k1", brought: foreign.jwk()});
        why(bench.verify(&foreign.sign_as(&header, &claims), &expected()));
    }
    let other = Signer::new("k2").sign(&claims);
    assert_eq!(bench.verify(&other, &expected()), Err(Unverified::NoKey));
}

#[test]
fn a_token_that_was_changed_is_refused() {
    let bench = Bench::new();
    let token = bench.signer.sign(&claims(ISSUER, NOW));
    // The last digit of the signature has bits that mean nothing.
    for at in 0..token.len() - 1 {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(bench.verify(&changed, &expected()).is_err(), "byte {at}");
    }
    for changed in [format!("{token}."), format!(".{token}"), token.replace('.', ".."), token + "="]
    {
        assert!(bench.verify(&changed, &expected()).is_err());
    }
}

#[test]
fn a_header_that_asks_for_more_than_is_understood_is_refused() {
    let bench = Bench::new();
    let claims = claims(ISSUER, NOW);
    for more in
        [json!({"crit": ["exp"]}), json!({"crit": ["b64"], "b64": false}), json!({"cty": "JWT"})]
    {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        why(bench.verify(&bench.signer.sign_as(&header, &claims), &expected()));
    }
    // An access token (RFC 9068) or a logout token of the same provider is no ID token.
    for kind in ["at+jwt", "logout+jwt"] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": kind});
        why(bench.verify(&bench.signer.sign_as(&header, &claims), &expected()));
    }
}

#[test]
fn a_token_of_another_issuer_or_for_another_client_is_refused() {
    let bench = Bench::new();
    for issuer in ["https://id.example", "https://evil.example/", "https://ID.example/", ""] {
        bench.why(&json!({"iss": issuer}));
    }
    bench.why(&json!({"iss": null}));
    for audience in [json!("other"), json!([]), json!(["other"]), json!("client "), json!("CLIENT")]
    {
        bench.why(&json!({"aud": audience}));
    }
    bench.why(&json!({"aud": null}));
    assert!(bench.with(&json!({"aud": ["client"]})).is_ok());
}

#[test]
fn of_several_audiences_azp_says_which_one_it_was_issued_for() {
    let bench = Bench::new();
    let both = json!(["api", "client"]);
    assert!(bench.why(&json!({"aud": both})).contains("no azp"));
    assert!(bench.why(&json!({"aud": both, "azp": "api"})).contains("azp names another"));
    assert!(bench.why(&json!({"azp": "other"})).contains("azp names another"));
    assert!(bench.with(&json!({"aud": both, "azp": "client"})).is_ok());
    assert!(bench.with(&json!({"azp": "client"})).is_ok());
}

#[test]
fn a_token_is_good_for_a_time_and_a_minute_of_another_clock() {
    let bench = Bench::new();
    let now = NOW.0;
    for (claim, value, good) in [
        ("exp", json!(null), false),
        ("exp", json!(now - 60), false),
        ("exp", json!(now - 59), true),
        ("exp", json!(0), false),
        ("exp", json!(-1), false),
        ("exp", json!("soon"), false),
        ("exp", json!(1e300), false),
        ("iat", json!(null), false),
        ("iat", json!(now + 60), true),
        ("iat", json!(now + 61), false),
        ("iat", json!("x"), false),
        ("nbf", json!(now + 60), true),
        ("nbf", json!(now + 61), false),
    ] {
        let found = bench.with(&json!({claim: value}));
        assert_eq!(found.is_ok(), good, "{claim} {value}: {found:?}");
    }
}

#[test]
fn a_token_of_another_login_is_refused() {
    let bench = Bench::new();
    for nonce in [json!(null), json!("n-2"), json!(""), json!("N-1")] {
        bench.why(&json!({"nonce": nonce}));
    }
    let any = Expected::default();
    assert!(bench.with_expecting(&json!({"nonce": null}), &any).is_ok(), "a refresh has none");
}

#[test]
fn a_token_that_came_with_another_access_token_is_refused() {
    use ring::digest::{SHA256, digest};
    let bench = Bench::new();
    let hash = |token: &str| base64url(&digest(&SHA256, token.as_bytes()).as_ref()[..16]);
    let expected = Expected { access_token: Some("at-1"), ..expected() };
    assert!(bench.with_expecting(&json!({"at_hash": hash("at-1")}), &expected).is_ok());
    assert!(bench.with_expecting(&json!({}), &expected).is_ok(), "it is optional in this flow");
    for other in [hash("at-2"), String::new(), base64url([0; 16])] {
        why(bench.with_expecting(&json!({"at_hash": other}), &expected));
    }
}

#[test]
fn a_max_age_that_was_asked_is_held_against_auth_time() {
    let bench = Bench::new();
    let aged = |max_age| Expected { max_age: Some(max_age), ..expected() };
    let now = NOW.0;
    for (auth_time, good) in [
        (json!(null), false),
        (json!(now - 100), true),
        (json!(now - 160), true),
        (json!(now - 161), false),
        (json!(0), false),
    ] {
        let found = bench.with_expecting(&json!({"auth_time": auth_time}), &aged(100));
        assert_eq!(found.is_ok(), good, "{auth_time}");
    }
    assert!(bench.with_expecting(&json!({"auth_time": now - 30}), &aged(0)).is_ok());
    assert!(bench.with_expecting(&json!({"auth_time": 1}), &aged(u64::MAX)).is_ok());
    assert!(bench.with(&json!({"auth_time": 1})).is_ok(), "nobody asked");
}

#[test]
fn an_organization_that_was_asked_must_be_the_one() {
    let bench = Bench::new();
    for (asked, claims, good) in [
        ("org_1", json!({"org_id": "org_1"}), true),
        ("org_1", json!({"org_id": "org_2"}), false),
        ("org_1", json!({}), false),
        ("org_1", json!({"org_id": "org_2", "org_name": "org_1"}), false),
        ("org_1", json!({"org_id": "ORG_1"}), false),
        ("acme", json!({"org_id": "org_1", "org_name": "acme"}), true),
        ("Acme", json!({"org_id": "org_1", "org_name": "acme"}), true),
        ("acme", json!({"org_id": "org_1", "org_name": "acme2"}), false),
        ("acme", json!({"org_id": "acme"}), true),
        ("acme", json!({"org_name": ["acme"]}), false),
    ] {
        let expected = Expected { organization: Some(asked), ..expected() };
        let found = bench.with_expecting(&claims, &expected);
        assert_eq!(found.is_ok(), good, "{asked} {claims}");
    }
}

#[test]
fn a_refresh_is_for_the_same_user() {
    let bench = Bench::new();
    let subject = |subject| Expected { subject: Some(subject), ..Expected::default() };
    assert!(bench.with_expecting(&json!({}), &subject("auth0|zoe")).is_ok());
    assert!(why(bench.with_expecting(&json!({}), &subject("auth0|al"))).contains("another user"));
    why(bench.with_expecting(&json!({"sub": null}), &subject("auth0|zoe")));
}

/// OpenID Connect Back-Channel Logout 1.0, section 4: one kind of token for another.
#[test]
fn a_logout_token_passes_for_no_id_token_where_no_nonce_is_asked() {
    let bench = Bench::new();
    let refresh = Expected { subject: Some("auth0|zoe"), ..Expected::default() };
    let event = "http://schemas.openid.net/event/backchannel-logout";
    let logout = json!({"nonce": null, "events": {event: {}}, "jti": "1"});
    assert!(why(bench.with_expecting(&logout, &refresh)).contains("logout token"));
    let other = json!({"nonce": null, "events": {"https://example.com/other": {}}});
    assert!(bench.with_expecting(&other, &refresh).is_ok());
}

#[test]
fn what_is_no_token_is_refused_in_no_time_and_said_in_a_few_words() {
    let bench = Bench::new();
    let begun = std::time::Instant::now();
    let deep = base64url("[".repeat(10_000));
    let hostile = [
        String::new(),
        "x".to_owned(),
        "a.b.c".to_owned(),
        "....".to_owned(),
        "ä.ö.ü".to_owned(),
        "\0".to_owned(),
        format!("{deep}.{deep}.{deep}"),
        "A".repeat(1024 * 1024),
        bench.signer.sign(&json!({"pad": "x".repeat(1024 * 1024)})),
        bench.signer.sign(&json!([])),
        bench.signer.sign(&json!({"iss": "\u{1b}[31m".repeat(2000)})),
    ];
    for token in hostile {
        let why = why(bench.verify(&token, &expected()));
        assert!(why.len() < 2000 && !why.contains(char::is_control), "{why}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// Auth0, Keycloak and Google publish keys with members and of kinds that nobody here understands.
#[test]
fn keys_that_are_not_understood_are_passed_over() {
    let (signer, enc) = (Signer::new("k1"), Signer::new("k2"));
    let mut for_encryption = enc.jwk();
    for_encryption["use"] = "enc".into();
    for_encryption["alg"] = "ECDH-ES".into();
    let mut with_more = signer.jwk();
    with_more["x5c"] = json!(["MIIB"]);
    with_more["x5t#S256"] = "abc".into();
    with_more["key_ops"] = json!(["verify"]);
    let keys = keys(&[
        json!({"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "kid": "e", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "pq", "pub": "AAAA"}),
        json!({"kty": "OKP", "crv": "X25519", "kid": "x", "x": "AAAA"}),
        json!({"kty": "EC", "crv": "secp256k1", "kid": "b", "x": "AAAA", "y": "AAAA", "alg": "ES256K"}),
        json!({"kid": "no kty"}),
        json!({"kty": 7}),
        json!("no key"),
        json!(null),
        for_encryption,
        with_more,
    ]);
    let claims = claims(ISSUER, NOW);
    let config = sample::provider(ISSUER);
    assert!(verify(&signer.sign(&claims), &keys, &config, &expected(), NOW).is_ok());
    let by_enc = verify(&enc.sign(&claims), &keys, &config, &expected(), NOW);
    assert_eq!(by_enc, Err(Unverified::NoKey), "a key for encryption signs nothing");
}

#[test]
fn what_is_no_key_set_is_an_error() {
    for text in
        ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[]}", "null", "{\"keys\":[{}]}", "<html>"]
    {
        assert!(Keys::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[cfg(feature = "demo")]
#[test]
fn a_token_signed_with_rsa_is_believed_and_none_with_its_public_key() {
    use ring::hmac;
    use ring::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair};
    use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
    use rsa::traits::PublicKeyParts;
    let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
    let pair = RsaKeyPair::from_pkcs8(private.to_pkcs8_der().unwrap().as_bytes()).unwrap();
    let (n, e) = (private.n().to_bytes_be(), private.e().to_bytes_be());
    let jwk = json!({"kty": "RSA", "kid": "r", "use": "sig", "n": base64url(n), "e": base64url(e)});
    let keys = keys(&[jwk]);
    let (claims, config) = (claims(ISSUER, NOW), sample::provider(ISSUER));
    let verify = |token: &str| verify(token, &keys, &config, &expected(), NOW);
    for (name, padding) in [
        ("RS256", &RSA_PKCS1_SHA256 as &dyn ring::signature::RsaEncoding),
        ("PS256", &RSA_PSS_SHA256),
    ] {
        let input = signing_input(&json!({"alg": name, "kid": "r"}), &claims);
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
        assert!(verify(&format!("{input}.{}", base64url(&signature))).is_ok(), "{name}");
        let other = signing_input(&json!({"alg": "RS384", "kid": "r"}), &claims);
        why(verify(&format!("{other}.{}", base64url(&signature))));
    }
    let pem = private.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
    for secret in [pem.clone(), pem.trim_end().to_owned()] {
        let input = signing_input(&json!({"alg": "HS256", "kid": "r"}), &claims);
        let tag =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), input.as_bytes());
        why(verify(&format!("{input}.{}", base64url(tag))));
    }
}
