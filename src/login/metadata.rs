//! What the provider says of itself (OpenID Connect Discovery 1.0, section 3): the addresses the
//! gateway calls and those it sends browsers to. Typed on arrival; it makes no call.

use serde::Deserialize;
use url::Url;

use super::http_client::HttpClient;

/// The members the gateway uses; others are not looked at.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) issuer: String,
    pub(super) authorization_endpoint: Url,
    pub(super) token_endpoint: Url,
    pub(super) jwks_uri: Url,
    pub(super) userinfo_endpoint: Option<Url>,
    /// OpenID Connect RP-Initiated Logout 1.0, section 2.1.
    pub(super) end_session_endpoint: Option<Url>,
    /// RFC 8414, section 2.
    pub(super) revocation_endpoint: Option<Url>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// RFC 9207, section 3.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

/// What is wrong with a discovery document.
#[derive(Debug, thiserror::Error)]
pub(super) enum MetadataError {
    #[error("the discovery document is not what it should be: {0}")]
    Json(#[from] serde_json::Error),
    /// OpenID Connect Discovery 1.0, section 4.3: the two are the same, to the letter.
    #[error(
        "the provider calls itself {found:?}; provider.issuer must be exactly that, or another"
    )]
    Issuer { found: String },
    #[error("the discovery document names an address that may not be used: {0}")]
    Address(Url),
}

impl Metadata {
    /// Reads the document of `issuer`.
    pub(super) fn parse(
        document: &[u8],
        issuer: &str,
        client: &HttpClient,
    ) -> Result<Self, MetadataError> {
        let metadata: Self = serde_json::from_slice(document)?;
        if metadata.issuer != issuer {
            let found = metadata.issuer.chars().take(200).collect();
            return Err(MetadataError::Issuer { found });
        }
        let forbidden = metadata.addresses().find(|url| !client.allows(url)).cloned();
        forbidden.map_or(Ok(metadata), |url| Err(MetadataError::Address(url)))
    }

    fn addresses(&self) -> impl Iterator<Item = &Url> {
        let optional =
            [&self.userinfo_endpoint, &self.end_session_endpoint, &self.revocation_endpoint];
        [&self.authorization_endpoint, &self.token_endpoint, &self.jwks_uri]
            .into_iter()
            .chain(optional.into_iter().flatten())
    }

    /// Whether the provider takes a secret in the form only. RFC 8414, section 2: without a word
    /// it takes it in the header.
    pub(super) fn wants_secret_in_form(&self) -> bool {
        let methods = self.token_endpoint_auth_methods_supported.as_deref().unwrap_or_default();
        let has = |name: &str| methods.iter().any(|method| method == name);
        has("client_secret_post") && !has("client_secret_basic")
    }

    /// Where a logout at the provider goes, if it has one: its `end_session_endpoint`, or Auth0's
    /// own address, which older tenants do not announce.
    pub(super) fn logout(&self) -> Option<LogoutAddress> {
        if let Some(url) = &self.end_session_endpoint {
            return Some(LogoutAddress::EndSession(url.clone()));
        }
        let auth0 = self.authorization_endpoint.path() == "/authorize"
            && self.token_endpoint.path() == "/oauth/token";
        let url = auth0.then(|| self.authorization_endpoint.join("/v2/logout").ok()).flatten();
        url.map(LogoutAddress::Auth0)
    }
}

/// An address that ends the user's session at the provider.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogoutAddress {
    /// RP-Initiated Logout 1.0.
    EndSession(Url),
    /// `/v2/logout?client_id=…&returnTo=…`
    Auth0(Url),
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::http_client::tests::client;
    use super::*;
    use serde_json::{Value, json};

    pub(in crate::login) fn document() -> Value {
        json!({
            "issuer": "https://id.example/",
            "authorization_endpoint": "https://id.example/authorize",
            "token_endpoint": "https://id.example/oauth/token",
            "jwks_uri": "https://id.example/jwks",
        })
    }

    fn parse(document: &Value, issuer: &str) -> Result<Metadata, MetadataError> {
        Metadata::parse(document.to_string().as_bytes(), issuer, &client(false))
    }

    #[test]
    fn the_issuer_is_compared_to_the_letter() {
        assert!(parse(&document(), "https://id.example/").is_ok());
        for issuer in ["https://id.example", "https://ID.example/", "https://id.example//"] {
            let refused = parse(&document(), issuer);
            assert!(matches!(refused, Err(MetadataError::Issuer { .. })), "{issuer}");
        }
    }

    #[test]
    fn an_address_that_is_not_https_is_refused() {
        for member in ["token_endpoint", "jwks_uri", "authorization_endpoint", "userinfo_endpoint"]
        {
            for url in ["http://id.example/x", "javascript:alert(1)", "file:///etc/passwd"] {
                let mut document = document();
                document[member] = url.into();
                assert!(parse(&document, "https://id.example/").is_err(), "{member} {url}");
            }
        }
    }

    #[test]
    fn a_secret_goes_into_the_header_unless_the_provider_takes_it_in_the_form_only() {
        for (methods, form) in [
            (json!(null), false),
            (json!(["client_secret_post", "client_secret_basic"]), false),
            (json!(["client_secret_post", "private_key_jwt"]), true),
        ] {
            let mut document = document();
            document["token_endpoint_auth_methods_supported"] = methods;
            assert_eq!(
                parse(&document, "https://id.example/").unwrap().wants_secret_in_form(),
                form
            );
        }
    }

    #[test]
    fn auth0s_logout_is_found_where_none_is_announced() {
        let auth0 = parse(&document(), "https://id.example/").unwrap().logout();
        let url = Url::parse("https://id.example/v2/logout").unwrap();
        assert_eq!(auth0, Some(LogoutAddress::Auth0(url)));
        let mut other = document();
        other["token_endpoint"] = "https://id.example/token".into();
        assert_eq!(parse(&other, "https://id.example/").unwrap().logout(), None);
        other["end_session_endpoint"] = "https://id.example/end".into();
        let logout = parse(&other, "https://id.example/").unwrap().logout();
        assert!(matches!(logout, Some(LogoutAddress::EndSession(_))));
    }
}
