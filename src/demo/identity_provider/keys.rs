//! The provider's RSA keys: making, publishing, rotating, signing JWTs and verifying its own. It
//! knows the form of a JWT (RFC 7515, RFC 7519), not what its claims mean.

use std::fmt;
use std::sync::Arc;

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use rsa::pkcs8::EncodePrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use serde_json::{Map, Value, json};

const KEY_BITS: usize = 2048;
/// Bytes of a JWT that is looked at.
const MAX_JWT: usize = 16 * 1024;
/// Old keys that stay published.
const MAX_RETIRED: usize = 4;

/// No key could be made, or it could not sign: the system has no randomness or no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing key could not be made or used")]
pub struct KeyError;

/// An RSA key of 2048 bits that signs with RS256. Clones share the key.
#[derive(Clone)]
pub struct SigningKey(Arc<KeyInner>);

struct KeyInner {
    kid: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    pair: RsaKeyPair,
}

/// What becomes of the old key when a new one takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKey {
    /// It stays in the JWKS, so that tokens it signed still verify.
    StaysPublished,
    /// It leaves the JWKS at once, as after a leak.
    Withdrawn,
}

/// The key that signs now and those that are still published.
pub(super) struct Keys {
    current: SigningKey,
    retired: Vec<SigningKey>,
}

impl SigningKey {
    /// Makes a key. Takes a good part of a second of computing: not for a thread that serves.
    pub fn generate() -> Result<Self, KeyError> {
        let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, KEY_BITS);
        let private = private.map_err(|_| KeyError)?;
        let document = private.to_pkcs8_der().map_err(|_| KeyError)?;
        let pair = RsaKeyPair::from_pkcs8(document.as_bytes()).map_err(|_| KeyError)?;
        let modulus = private.n().to_bytes_be();
        let exponent = private.e().to_bytes_be();
        // The key's name is its thumbprint (RFC 7638, section 3): these members in this order.
        let members = format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            BASE64URL.encode_to_string(&exponent),
            BASE64URL.encode_to_string(&modulus)
        );
        let kid = BASE64URL.encode_to_string(digest(&SHA256, members.as_bytes()));
        Ok(Self(Arc::new(KeyInner { kid, modulus, exponent, pair })))
    }

    /// The key's name in JWT headers and in the JWKS.
    pub fn kid(&self) -> &str {
        &self.0.kid
    }

    /// The public half as a JWK (RFC 7517).
    pub fn jwk(&self) -> Value {
        json!({
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.0.kid,
            "n": BASE64URL.encode_to_string(&self.0.modulus),
            "e": BASE64URL.encode_to_string(&self.0.exponent),
        })
    }

    /// Signs claims as a JWT of the media type `typ` (`JWT`, `at+jwt`).
    pub fn sign(&self, typ: &str, claims: &Map<String, Value>) -> Result<String, KeyError> {
        let header = json!({ "alg": "RS256", "typ": typ, "kid": self.0.kid }).to_string();
        let claims = serde_json::to_vec(claims).map_err(|_| KeyError)?;
        let mut jwt = BASE64URL.encode_to_string(header);
        jwt.push('.');
        BASE64URL.encode_append(claims, &mut jwt);
        let mut signature = vec![0; self.0.pair.public().modulus_len()];
        let random = SystemRandom::new();
        let signed = self.0.pair.sign(&RSA_PKCS1_SHA256, &random, jwt.as_bytes(), &mut signature);
        signed.map_err(|_| KeyError)?;
        jwt.push('.');
        BASE64URL.encode_append(signature, &mut jwt);
        Ok(jwt)
    }

    fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        let public = RsaPublicKeyComponents { n: &self.0.modulus, e: &self.0.exponent };
        public.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature).is_ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.0.kid)
    }
}

impl Keys {
    pub(super) fn new(current: SigningKey) -> Self {
        Self { current, retired: Vec::new() }
    }

    /// The key that signs now.
    pub(super) fn current(&self) -> SigningKey {
        self.current.clone()
    }

    /// Lets `next` sign from now on.
    pub(super) fn rotate(&mut self, next: SigningKey, old: OldKey) {
        let previous = std::mem::replace(&mut self.current, next);
        if old == OldKey::StaysPublished {
            self.retired.insert(0, previous);
            self.retired.truncate(MAX_RETIRED);
        }
    }

    /// The published keys as a JWK Set (RFC 7517, section 5).
    pub(super) fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.published().map(SigningKey::jwk).collect();
        json!({ "keys": keys })
    }

    /// The claims of a JWT of the media type `typ` that one of the published keys signed. What the
    /// claims say, their expiry too, is for the caller to judge.
    pub(super) fn open(&self, typ: &str, jwt: &str) -> Option<Map<String, Value>> {
        if jwt.len() > MAX_JWT {
            return None;
        }
        let (signed, signature) = jwt.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        // SECURITY: the algorithm is ours to name, never the token's (`none`, HS256 with the
        // public key); and an access token is no ID token.
        if header.get("alg")? != "RS256" || header.get("typ")? != typ {
            return None;
        }
        let kid = header.get("kid")?.as_str()?;
        let key = self.published().find(|key| key.kid() == kid)?;
        if !key.verify(signed.as_bytes(), &decode(signature)?) {
            return None;
        }
        serde_json::from_slice(&decode(claims)?).ok()
    }

    fn published(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.current).chain(&self.retired)
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode_to_vec(text).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use super::*;

    /// Keys are costly to make: the tests of the provider share these two.
    pub(in crate::demo) static KEYS: LazyLock<[SigningKey; 2]> =
        LazyLock::new(|| [SigningKey::generate().unwrap(), SigningKey::generate().unwrap()]);

    fn claims(sub: &str) -> Map<String, Value> {
        Map::from_iter([("sub".to_owned(), sub.into())])
    }

    #[test]
    fn a_signed_token_opens_and_an_altered_one_does_not() {
        let keys = Keys::new(KEYS[0].clone());
        let jwt = KEYS[0].sign("JWT", &claims("zoe")).unwrap();
        assert_eq!(keys.open("JWT", &jwt), Some(claims("zoe")));

        let (head, rest) = jwt.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged = BASE64URL.encode_to_string(r#"{"sub":"bob"}"#);
        assert_eq!(keys.open("JWT", &format!("{head}.{forged}.{signature}")), None);
    }

    #[test]
    fn a_token_of_another_type_or_algorithm_does_not_open() {
        let keys = Keys::new(KEYS[0].clone());
        let jwt = KEYS[0].sign("at+jwt", &claims("zoe")).unwrap();
        assert_eq!(keys.open("JWT", &jwt), None);

        let header = json!({ "alg": "none", "typ": "JWT", "kid": KEYS[0].kid() }).to_string();
        let (header, claims) = (BASE64URL.encode_to_string(header), jwt.split('.').nth(1).unwrap());
        assert_eq!(keys.open("JWT", &format!("{header}.{claims}.")), None);
    }

    #[test]
    fn a_retired_key_still_verifies_and_a_withdrawn_one_does_not() {
        let jwt = KEYS[0].sign("JWT", &claims("zoe")).unwrap();
        for (old, opens, published) in
            [(OldKey::StaysPublished, true, 2), (OldKey::Withdrawn, false, 1)]
        {
            let mut keys = Keys::new(KEYS[0].clone());
            keys.rotate(KEYS[1].clone(), old);
            assert_eq!(keys.current().kid(), KEYS[1].kid());
            assert_eq!(keys.open("JWT", &jwt).is_some(), opens);
            assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), published);
        }
    }

    #[test]
    fn the_published_key_holds_no_private_member() {
        let jwk = KEYS[0].jwk();
        let mut members: Vec<_> = jwk.as_object().unwrap().keys().cloned().collect();
        members.sort();
        assert_eq!(members, ["alg", "e", "kid", "kty", "n", "use"]);
        assert_eq!(jwk["e"], "AQAB");
        assert_eq!(decode(jwk["n"].as_str().unwrap()).unwrap().len(), KEY_BITS / 8);
    }
}
