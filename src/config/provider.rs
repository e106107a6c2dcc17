//! `[provider]`: from the file to [`Provider`].

use url::Url;

use super::address::{domain, issuer};
use super::parse::Wrong;
use super::secrets::{client_secret, private_key};
use super::table::{Item, Table, filled};
use super::{ClientAuthentication, Provider};

/// The table.
pub(super) fn provider(t: &mut Table<'_>) -> Option<Provider> {
    let issuer = one_issuer(t);
    let client_id =
        t.required("client_id", "write client_id = \"…\", as the provider shows it", |i| {
            filled(i)
        });
    let authentication = authentication(t);
    let scopes = t.key("scopes", "['openid', 'profile', 'email', 'offline_access']", scopes);
    let audience = t.optional("audience", filled);
    let login_params = t.key("login_params", "{}", |i| i.entries(login_param));
    let groups_claim = t.key("groups_claim", "'groups'", filled);
    let (issuer, issuer_url) = issuer?;
    Some(Provider {
        issuer,
        issuer_url,
        client_id: client_id?,
        authentication: authentication?,
        scopes: scopes?,
        audience,
        login_params: login_params?,
        groups_claim: groups_claim?,
    })
}

fn one_issuer(t: &mut Table<'_>) -> Option<(String, Url)> {
    let written = t.optional("issuer", |i| i.parse(issuer));
    let short = t.optional("domain", |i| {
        i.parse(|text| domain(text).and_then(|domain| issuer(&format!("https://{domain}/"))))
    });
    let remedy =
        r#"write issuer = "https://TENANT.eu.auth0.com/", or domain = "TENANT.eu.auth0.com""#;
    match (t.has("issuer"), t.has("domain")) {
        (true, false) => written,
        (false, true) => short,
        (true, true) => t.wrong(
            "domain",
            Wrong::new("stands beside issuer, which it is short for", "keep one of the two"),
        ),
        (false, false) => t.missing("issuer", remedy),
    }
}

fn authentication(t: &mut Table<'_>) -> Option<ClientAuthentication> {
    let secret = t.optional("client_secret", client_secret);
    let key = t.optional("private_key", private_key);
    match (t.has("client_secret"), t.has("private_key")) {
        (true, false) => secret.map(ClientAuthentication::Secret),
        (false, true) => key.map(ClientAuthentication::PrivateKey),
        (true, true) => {
            t.wrong("private_key", Wrong::new("stands beside client_secret", "keep one of the two"))
        }
        (false, false) => t.missing(
            "client_secret",
            r#"write client_secret = { env = "NAME" }, or private_key = { file = "path" }"#,
        ),
    }
}

/// Scopes (RFC 6749, section 3.3) with `openid` (OpenID Connect Core, section 3.1.2.1).
fn scopes(item: &Item<'_>) -> Option<Vec<String>> {
    let is_scope = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let scopes = item.some(|item| {
        item.parse(|text| {
            if text.is_empty() || !text.bytes().all(is_scope) {
                return Err(Wrong::new("is no scope", "write one scope, without spaces"));
            }
            Ok(text.to_owned())
        })
    })?;
    if !scopes.iter().any(|scope| scope == "openid") {
        return item.wrong(Wrong::new(
            "lacks openid, without which there is no ID token",
            r#"add "openid""#,
        ));
    }
    Some(scopes)
}

/// SECURITY: a fixed `state`, `nonce` or challenge would switch off what protects the login; a
/// request object (RFC 9101) could carry them all.
const OWN_PARAMETERS: [&str; 13] = [
    "response_type",
    "client_id",
    "redirect_uri",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "scope",
    "response_mode",
    "request",
    "request_uri",
    "client_secret",
    "audience",
];

fn login_param(name: &str, item: &Item<'_>) -> Option<(String, String)> {
    if OWN_PARAMETERS.contains(&name) {
        let remedy = match name {
            "audience" => "write provider.audience",
            "scope" => "write provider.scopes",
            _ => "leave it out",
        };
        return item
            .wrong_name(Wrong::new("names a parameter that the login itself sends", remedy));
    }
    if name.is_empty() || name.chars().any(char::is_control) {
        return item.wrong_name(Wrong::new("names no parameter", "write a name"));
    }
    let value = filled(item)?;
    // OpenID Connect Core, section 3.1.2.1; the age is checked when the user comes back.
    if name == "max_age" && (value.len() > 9 || !value.bytes().all(|byte| byte.is_ascii_digit())) {
        return item.wrong(Wrong::new("is no age in seconds", r#"write digits: "3600""#));
    }
    Some((name.to_owned(), value))
}
