//! What the provider says of itself (OpenID Connect Discovery 1.0, section 3), as Auth0 says it.

use http::StatusCode;
use serde_json::json;

use super::{Options, tokens};
use crate::demo::web::{self, Reply};

/// The discovery document.
pub(super) fn document(options: &Options) -> Reply {
    let issuer = &options.issuer;
    let mut document = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}authorize"),
        "token_endpoint": format!("{issuer}oauth/token"),
        "userinfo_endpoint": tokens::userinfo_address(issuer),
        "jwks_uri": format!("{issuer}.well-known/jwks.json"),
        "revocation_endpoint": format!("{issuer}oauth/revoke"),
        "scopes_supported": ["openid", "profile", "email", "phone", "address", "offline_access"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "claims_supported": [
            "sub", "iss", "aud", "exp", "iat", "auth_time", "nonce", "sid", "org_id", "name",
            "given_name", "family_name", "nickname", "picture", "email", "email_verified",
        ],
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
    });
    if options.announce_end_session
        && let Some(members) = document.as_object_mut()
    {
        let address = format!("{issuer}oidc/logout");
        members.insert("end_session_endpoint".to_owned(), address.into());
    }
    web::json(StatusCode::OK, &document)
}
