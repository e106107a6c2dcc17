//! How the gateway proves itself to the provider: a secret in a header or a form, or a signed
//! assertion. It owns the client's secret or key and does no I/O.

use http::HeaderValue;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::clock::Timestamp;
use crate::config;

/// How long an assertion is good for, in seconds: one call and a clock that is a little off.
const ASSERTION_LIFE: u64 = 60;

/// RFC 7523, section 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The client's means of proof.
pub(super) enum ClientAuthentication {
    Secret(String),
    PrivateKey(SigningKey),
}

/// A key for `private_key_jwt`.
pub(super) enum SigningKey {
    /// RS256
    Rsa(Box<RsaKeyPair>),
    /// ES256
    Ecdsa(Box<EcdsaKeyPair>),
}

/// Which of the provider's endpoints accept a secret in what place (discovery says so).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretPlace {
    /// `client_secret_basic`
    Header,
    /// `client_secret_post`
    Form,
}

/// Why the configured proof cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// RFC 6749, appendix A.2: a secret is visible ASCII.
    #[error("client_secret is not printable text")]
    Secret,
    /// No `BEGIN PRIVATE KEY`.
    #[error("private_key is not a PEM key in PKCS#8 form (BEGIN PRIVATE KEY)")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A key for another algorithm, or too small a one.
    #[error("private_key is neither an RSA key of 2048 bits or more nor a P-256 key: {0}")]
    Kind(ring::error::KeyRejected),
}

/// The machine gave no random bytes, or the key does not sign.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the assertion that proves the client")]
pub(super) struct CannotSign;

impl ClientAuthentication {
    /// Reads the configured secret or key.
    pub(super) fn new(configured: &config::ClientAuthentication) -> Result<Self, KeyError> {
        match configured {
            config::ClientAuthentication::Secret(secret) => {
                let secret = std::str::from_utf8(secret.expose()).map_err(|_| KeyError::Secret)?;
                if secret.is_empty() || secret.contains(char::is_control) {
                    return Err(KeyError::Secret);
                }
                Ok(Self::Secret(secret.to_owned()))
            }
            config::ClientAuthentication::PrivateKey(pem) => {
                let key =
                    PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).map_err(KeyError::Pem)?;
                SigningKey::new(key.secret_pkcs8_der()).map(Self::PrivateKey)
            }
        }
    }

    /// Adds the proof to a form; what it returns belongs into `Authorization`.
    /// `audience` is the issuer, to which an assertion is addressed.
    pub(super) fn prove(
        &self,
        form: &mut Serializer<'_, String>,
        client_id: &str,
        place: SecretPlace,
        audience: &str,
        now: Timestamp,
    ) -> Result<Option<HeaderValue>, CannotSign> {
        match (self, place) {
            (Self::Secret(secret), SecretPlace::Header) => {
                // RFC 6749, section 2.3.1: both are form-encoded before they become Basic.
                let pair: String = byte_serialize(client_id.as_bytes())
                    .chain([":"])
                    .chain(byte_serialize(secret.as_bytes()))
                    .collect();
                let basic = format!("Basic {}", base64_simd::STANDARD.encode_to_string(pair));
                let mut field = HeaderValue::try_from(basic).map_err(|_| CannotSign)?;
                field.set_sensitive(true);
                Ok(Some(field))
            }
            (Self::Secret(secret), SecretPlace::Form) => {
                form.append_pair("client_id", client_id).append_pair("client_secret", secret);
                Ok(None)
            }
            (Self::PrivateKey(key), _) => {
                let assertion = key.assertion(client_id, audience, now)?;
                form.append_pair("client_id", client_id)
                    .append_pair("client_assertion_type", ASSERTION_TYPE)
                    .append_pair("client_assertion", &assertion);
                Ok(None)
            }
        }
    }
}

impl SigningKey {
    fn new(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map(|key| Self::Ecdsa(Box::new(key)))
            .or_else(|_| RsaKeyPair::from_pkcs8(pkcs8).map(|key| Self::Rsa(Box::new(key))))
            .map_err(KeyError::Kind)
    }

    /// OpenID Connect Core, section 9 (`private_key_jwt`), RFC 7523, section 3.
    fn assertion(
        &self,
        client_id: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<String, CannotSign> {
        let mut unique = [0; 16];
        SystemRandom::new().fill(&mut unique).map_err(|_| CannotSign)?;
        let algorithm = match self {
            Self::Rsa(_) => "RS256",
            Self::Ecdsa(_) => "ES256",
        };
        let claims = json!({
            "iss": client_id,
            "sub": client_id,
            // SECURITY: addressed to the issuer, not to an endpoint that discovery named: one
            // provider could else have an assertion made for another.
            "aud": audience,
            "iat": now.0,
            "exp": now.0.saturating_add(ASSERTION_LIFE),
            "jti": base64url(unique),
        });
        let header = json!({ "alg": algorithm, "typ": "JWT" });
        let signed = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let signature = self.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", base64url(signature)))
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CannotSign> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| CannotSign)?;
                Ok(signature)
            }
            Self::Ecdsa(key) => {
                let signature = key.sign(&random, message).map_err(|_| CannotSign)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

/// Base64url without padding (RFC 7515, section 2).
pub(super) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// Base64url of the SHA-256: the `S256` of RFC 7636, section 4.2.
pub(super) fn base64url_sha256(text: &str) -> String {
    base64url(digest(&SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, KeyPair, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;
    use crate::config::value::Secret;

    fn secret(text: &str) -> ClientAuthentication {
        let secret = config::ClientAuthentication::Secret(Secret::new(text));
        ClientAuthentication::new(&secret).unwrap()
    }

    fn private_key(der: &[u8]) -> Result<ClientAuthentication, KeyError> {
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            base64_simd::STANDARD.encode_to_string(der)
        );
        ClientAuthentication::new(&config::ClientAuthentication::PrivateKey(Secret::new(pem)))
    }

    fn prove(proof: &ClientAuthentication, place: SecretPlace) -> (String, Option<HeaderValue>) {
        let mut form = Serializer::new(String::new());
        let field = proof.prove(&mut form, "me:1", place, "https://id.example/", Timestamp(7));
        (form.finish(), field.unwrap())
    }

    #[test]
    fn a_secret_in_the_header_is_form_encoded_first() {
        let (form, field) = prove(&secret("p:w %ü"), SecretPlace::Header);
        assert_eq!(form, "");
        let basic = base64_simd::STANDARD.encode_to_string("me%3A1:p%3Aw+%25%C3%BC");
        assert_eq!(field.unwrap().to_str().unwrap(), format!("Basic {basic}"));
    }

    #[test]
    fn a_secret_in_the_form_sends_no_header() {
        let (form, field) = prove(&secret("p&w"), SecretPlace::Form);
        assert_eq!(form, "client_id=me%3A1&client_secret=p%26w");
        assert!(field.is_none());
    }

    #[test]
    fn an_assertion_is_signed_and_addressed_to_the_issuer() {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let public =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random)
                .unwrap();
        let proof = private_key(der.as_ref()).unwrap();
        let (form, field) = prove(&proof, SecretPlace::Header);
        assert!(field.is_none());
        let (claims, signed, signature) = taken_apart(&form);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .unwrap();
        assert_eq!(claims["iss"], "me:1");
        assert_eq!(claims["sub"], "me:1");
        assert_eq!(claims["aud"], "https://id.example/");
        assert_eq!(claims["exp"], 67);
        let (again, ..) = taken_apart(&prove(&proof, SecretPlace::Header).0);
        assert_ne!(again["jti"], claims["jti"]);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn an_rsa_key_signs_too() {
        use ring::signature::RSA_PKCS1_2048_8192_SHA256;
        use rsa::pkcs8::EncodePrivateKey;
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let der = key.to_pkcs8_der().unwrap();
        let proof = private_key(der.as_bytes()).unwrap();
        let (_, signed, signature) = taken_apart(&prove(&proof, SecretPlace::Header).0);
        let public = RsaKeyPair::from_pkcs8(der.as_bytes()).unwrap().public_key().clone();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public.as_ref())
            .verify(signed.as_bytes(), &signature)
            .unwrap();
    }

    fn taken_apart(form: &str) -> (Value, String, Vec<u8>) {
        let assertion = url::form_urlencoded::parse(form.as_bytes())
            .find(|(name, _)| name == "client_assertion")
            .unwrap()
            .1
            .into_owned();
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let decode = |text: &str| base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).unwrap();
        let claims = serde_json::from_slice(&decode(signed.split_once('.').unwrap().1)).unwrap();
        (claims, signed.to_owned(), decode(signature))
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        assert!(matches!(private_key(b"nonsense"), Err(KeyError::Kind(_))));
        let text = config::ClientAuthentication::PrivateKey(Secret::new("no key"));
        assert!(matches!(ClientAuthentication::new(&text), Err(KeyError::Pem(_))));
    }

    #[test]
    fn a_challenge_is_that_of_the_standard() {
        // RFC 7636, appendix B.
        assert_eq!(
            base64url_sha256("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
