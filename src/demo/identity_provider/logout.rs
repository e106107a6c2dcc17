//! The end of a sign-in at the provider, in both forms: `/oidc/logout` (OpenID Connect
//! RP-Initiated Logout 1.0) and Auth0's own `/v2/logout`. Neither sends the browser to an address
//! that is not registered.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use url::Url;

use super::authorize::set_cookie;
use super::{IdentityProvider, pages, tokens};
use crate::clock::Timestamp;
use crate::demo::web::{self, Parameters, ParametersRefused, Reply};

const NOT_REGISTERED: &str = "The address to go to after the logout is not registered here.";
const WRONG_CLIENT: &str = "The logout names a client_id that is not registered here.";

/// Answers `/v2/logout?client_id=…&returnTo=…`.
pub(super) fn auth0(provider: &IdentityProvider, request: &Request<Bytes>) -> Reply {
    let parameters = match Parameters::of_query(request) {
        Ok(parameters) => parameters,
        Err(refused) => return pages::error(&refused.to_string()),
    };
    let options = provider.options();
    let client = parameters.get("client_id");
    if client.is_some_and(|client| client != options.client_id) {
        return pages::error(WRONG_CLIENT);
    }
    let return_to = parameters.get("returnTo");
    // SECURITY: an address is registered with a client; without one there is none to look at.
    if return_to.is_some_and(|uri| client.is_none() || !is_registered(provider, uri)) {
        return pages::error(NOT_REGISTERED);
    }
    let cookie = provider.end_sign_in(request.headers());
    leave(request.method(), return_to, None, &cookie)
}

/// Answers `/oidc/logout`, and the form by which a user says that the logout is meant.
pub(super) fn end_session(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    now: Timestamp,
) -> Reply {
    let (parameters, confirmed) = match read(request) {
        Ok(read) => read,
        Err(refused) => return pages::error(&refused.to_string()),
    };
    let hint = parameters.get("id_token_hint").and_then(|token| Hint::open(provider, token));
    let client = parameters.get("client_id");
    if client.is_some_and(|client| client != provider.options().client_id) {
        return pages::error(WRONG_CLIENT);
    }
    let return_to = parameters.get("post_logout_redirect_uri");
    // Section 3: the address counts only if it is known whose it is.
    let known_client = client.is_some() || hint.is_some();
    if return_to.is_some_and(|uri| !known_client || !is_registered(provider, uri)) {
        return pages::error(NOT_REGISTERED);
    }
    // SECURITY: any site can send a browser here. Without a token of whoever is signed in, they
    // are asked (section 2).
    let here = provider.signed_in(request.headers(), now);
    let meant = here.is_none_or(|here| hint.as_ref().is_some_and(|hint| hint.sub == here.sub));
    if !meant && !confirmed {
        return pages::confirm_logout(&parameters);
    }
    if let Some(hint) = hint {
        provider.memory().sign_ins.end_sid(&hint.sid);
    }
    let cookie = provider.end_sign_in(request.headers());
    leave(request.method(), return_to, parameters.get("state"), &cookie)
}

/// The request's own parameters, and whether they came with the confirmation.
fn read(request: &Request<Bytes>) -> Result<(Parameters, bool), ParametersRefused> {
    let query = Parameters::of_query(request)?;
    if request.method() != Method::POST {
        return Ok((query, false));
    }
    let form = Parameters::parse(request.body())?;
    if form.get("confirm").is_none() {
        return Ok((form, false));
    }
    let site = request.headers().get("sec-fetch-site");
    let own = site.is_none_or(|site| site == "same-origin" || site == "none");
    Ok((query, own))
}

/// Whom an ID token of ours is about. Section 2: it may have expired.
struct Hint {
    sub: String,
    sid: String,
}

impl Hint {
    fn open(provider: &IdentityProvider, token: &str) -> Option<Self> {
        let claims = provider.memory().keys.open(tokens::ID_TOKEN, token)?;
        let text = |name: &str| claims.get(name)?.as_str().map(str::to_owned);
        let options = provider.options();
        let ours = text("iss")? == options.issuer && text("aud")? == options.client_id;
        ours.then_some(())?;
        Some(Self { sub: text("sub")?, sid: text("sid")? })
    }
}

fn is_registered(provider: &IdentityProvider, uri: &str) -> bool {
    provider.options().logout_uris.iter().any(|known| known == uri)
}

/// Sends the browser to a registered address, or says that it is done.
fn leave(method: &Method, to: Option<&str>, state: Option<&str>, cookie: &str) -> Reply {
    let mut reply = match to.map(Url::parse) {
        None => pages::signed_out(),
        Some(Err(_)) => pages::error("The registered address is not a URL."),
        Some(Ok(mut url)) => {
            if let Some(state) = state {
                url.query_pairs_mut().append_pair("state", state);
            }
            let post = *method == Method::POST;
            let status = if post { StatusCode::SEE_OTHER } else { StatusCode::FOUND };
            web::redirect(status, url.as_str())
        }
    };
    set_cookie(reply.headers_mut(), cookie);
    reply
}
