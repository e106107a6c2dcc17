//! The beginning of a login: an attempt, and the browser on its way to the provider
//! (OpenID Connect Core, section 3.1.2.1; PKCE, RFC 7636).

use http::Response;
use http::request::Parts;
use url::Url;

use super::attempt::Attempt;
use super::client_authentication::base64url_sha256;
use super::parameters::{Parameters, bad_request};
use super::return_to::ReturnTo;
use super::{Asked, Login, provider_unavailable, see_other};
use crate::body::Body;
use crate::error::Failure;
use crate::observe::metrics::LoginOutcome;

/// What `GET login` passes on to the provider.
const PASSED_ON: [&str; 9] = [
    "screen_hint",
    "connection",
    "organization",
    "invitation",
    "login_hint",
    "prompt",
    "max_age",
    "acr_values",
    "ui_locales",
];
/// The longest value that is passed on, in bytes.
const LONGEST: usize = 512;

/// What one login asks for.
#[derive(Default)]
struct Wish {
    return_to: ReturnTo,
    passed_on: Vec<(&'static str, String)>,
    again: bool,
}

impl Login {
    /// `GET login`.
    pub(super) fn login(&self, asked: Asked<'_>) -> Result<Response<Body>, Failure> {
        let parameters = Parameters::of(asked.request)?;
        let mut passed_on = Vec::new();
        for name in PASSED_ON {
            if let Some(value) = parameters.get(name) {
                if value.len() > LONGEST || value.chars().any(char::is_control) {
                    return Err(bad_request());
                }
                passed_on.push((name, value.to_owned()));
            }
        }
        let return_to = ReturnTo::parse(parameters.get("return_to").unwrap_or("/"));
        let return_to = return_to.outside(&self.config.auth.prefix);
        self.start(asked, Wish { return_to, passed_on, again: false })
    }

    /// A page was asked for that needs a login: the browser comes back to it.
    pub fn begin(&self, asked: Asked<'_>) -> Result<Response<Body>, Failure> {
        self.start(asked, Wish { return_to: asked_for(asked.request), ..Wish::default() })
    }

    /// A second attempt, after the answer to one came without its cookie.
    pub(super) fn begin_again(&self, asked: Asked<'_>) -> Result<Response<Body>, Failure> {
        self.start(asked, Wish { again: true, ..Wish::default() })
    }

    fn start(&self, asked: Asked<'_>, wish: Wish) -> Result<Response<Body>, Failure> {
        let discovered = self.provider.discovered().map_err(provider_unavailable)?;
        let mut attempt =
            Attempt::new(wish.return_to, wish.again, asked.now).map_err(provider_unavailable)?;
        let value = |name: &str| {
            let passed = wish.passed_on.iter().find(|(known, _)| *known == name);
            let fixed = self.config.provider.login_params.iter().find(|(known, _)| known == name);
            // What the configuration fixes, a link cannot change.
            fixed.map(|(_, value)| value).or_else(|| passed.map(|(_, value)| value)).cloned()
        };
        attempt.organization = value("organization");
        attempt.max_age = match value("max_age") {
            Some(seconds) => Some(seconds.parse().map_err(|_| bad_request())?),
            None => None,
        };
        let mut url = discovered.metadata.authorization_endpoint.clone();
        self.write_query(&mut url, asked, &attempt, &wish.passed_on);
        let mut response = see_other(url.as_str());
        attempt
            .write(&self.sealer, &asked.request.headers, response.headers_mut(), asked.now)
            .map_err(provider_unavailable)?;
        self.metrics.login(LoginOutcome::Started);
        Ok(response)
    }

    fn write_query(
        &self,
        url: &mut Url,
        asked: Asked<'_>,
        attempt: &Attempt,
        passed_on: &[(&'static str, String)],
    ) {
        let provider = &self.config.provider;
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &provider.client_id)
            .append_pair("redirect_uri", &self.redirect_uri(asked))
            .append_pair("scope", &provider.scopes.join(" "))
            .append_pair("state", &attempt.state)
            .append_pair("nonce", &attempt.nonce)
            .append_pair("code_challenge", &base64url_sha256(&attempt.verifier))
            .append_pair("code_challenge_method", "S256");
        if let Some(audience) = &provider.audience {
            query.append_pair("audience", audience);
        }
        query.extend_pairs(&provider.login_params);
        let fixed = |name: &str| provider.login_params.iter().any(|(known, _)| known == name);
        query.extend_pairs(passed_on.iter().filter(|(name, _)| !fixed(name)));
    }

    /// Where the provider sends the browser back to.
    pub(super) fn redirect_uri(&self, asked: Asked<'_>) -> String {
        format!("{}{}/callback", asked.origin, self.config.auth.prefix)
    }
}

/// The path and query that were asked for.
pub(super) fn asked_for(request: &Parts) -> ReturnTo {
    ReturnTo::parse(request.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
}
