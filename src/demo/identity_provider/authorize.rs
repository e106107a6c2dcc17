//! `/authorize`: checks what the client asks, shows the login page or goes without, and sends the
//! browser back with a code or an error (RFC 6749, section 4.1; OpenID Connect Core, section 3.1).
//! It signs nothing: codes become tokens elsewhere.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use url::Url;

use super::grants::{Code, Grant};
use super::keys::KeyError;
use super::sign_in::SignIn;
use super::{IdentityProvider, Options, pages};
use crate::clock::Timestamp;
use crate::demo::web::{self, Parameters, Reply};

/// A request for a login that was found in order.
pub(super) struct Asked {
    redirect_uri: String,
    state: Option<String>,
    nonce: Option<String>,
    scope: Vec<String>,
    challenge: String,
    prompt: Prompt,
    /// Seconds since the user last proved who they are.
    max_age: Option<u64>,
    audience: Option<String>,
    /// The organization to sign in to.
    pub(super) organization: Option<String>,
    /// Who is about to sign in, by the client's guess.
    pub(super) login_hint: Option<String>,
    /// Whether the client would rather show a sign-up.
    pub(super) sign_up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prompt {
    /// A page only if nobody is signed in.
    AsNeeded,
    /// Never a page.
    None,
    /// Always a page.
    Login,
}

/// Why there is no login.
enum Refused {
    /// The client or its address is not known: the browser is not sent there.
    Page(&'static str),
    /// The client is told.
    Redirect { redirect_uri: String, state: Option<String>, error: Problem },
}

/// An error code and a sentence (RFC 6749, section 4.1.2.1).
type Problem = (&'static str, &'static str);

/// Answers a request for a login, and the login page's own form.
pub(super) fn answer(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    now: Timestamp,
) -> Reply {
    let (parameters, form) = match read(request) {
        Ok(read) => read,
        Err(refused) => return pages::error(&refused.to_string()),
    };
    let asked = match Asked::parse(&parameters, provider.options()) {
        Ok(asked) => asked,
        Err(Refused::Page(sentence)) => return pages::error(sentence),
        Err(Refused::Redirect { redirect_uri, state, error }) => {
            return back(request.method(), &redirect_uri, state.as_deref(), &error_pairs(error));
        }
    };
    let outcome = match form {
        Some(form) => sign_in(provider, request, &asked, &parameters, &form, now),
        None => go_on(provider, request, &asked, &parameters, now),
    };
    outcome.unwrap_or_else(|KeyError| {
        let error = ("server_error", "The provider could not draw random bytes.");
        asked.back(request.method(), &error_pairs(error))
    })
}

/// The request's own parameters, and the login page's form if it is that which was sent.
fn read(
    request: &Request<Bytes>,
) -> Result<(Parameters, Option<Parameters>), web::ParametersRefused> {
    let query = Parameters::of_query(request)?;
    if request.method() != Method::POST {
        return Ok((query, None));
    }
    let form = Parameters::parse(request.body())?;
    // A client may also send its request as a form (OpenID Connect Core, section 3.1.2.1); the
    // login page's form has the request in its query.
    if query.get("client_id").is_none() { Ok((form, None)) } else { Ok((query, Some(form))) }
}

/// Goes on with whoever is signed in, or shows the login page.
fn go_on(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    asked: &Asked,
    parameters: &Parameters,
    now: Timestamp,
) -> Result<Reply, KeyError> {
    let method = request.method();
    if let Some(known) = provider.signed_in(request.headers(), now)
        && asked.accepts(&known, now)
    {
        let code = issue(provider, asked, &known, now)?;
        return Ok(asked.back(method, &[("code", &code)]));
    }
    if asked.prompt == Prompt::None {
        let error = ("login_required", "Nobody is signed in, and no page may be shown.");
        return Ok(asked.back(method, &error_pairs(error)));
    }
    Ok(pages::login(provider, asked, parameters, None))
}

/// The login page's form: `user` names who signs in, `cancel` gives up.
fn sign_in(
    provider: &IdentityProvider,
    request: &Request<Bytes>,
    asked: &Asked,
    parameters: &Parameters,
    form: &Parameters,
    now: Timestamp,
) -> Result<Reply, KeyError> {
    // SECURITY: another site's form must not sign its visitor in as somebody it picks (login
    // CSRF). Programs that are no browser send no such field.
    let site = request.headers().get("sec-fetch-site");
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Ok(pages::error("This form was not sent from the login page."));
    }
    if form.get("cancel").is_some() {
        let error = ("access_denied", "The user cancelled the login.");
        return Ok(asked.back(request.method(), &error_pairs(error)));
    }
    let Some(user) = form.get("user").and_then(|name| provider.user_named(name)) else {
        let sentence = "A name is needed: at most 100 bytes, without control characters.";
        return Ok(pages::login(provider, asked, parameters, Some(sentence)));
    };
    let (sign_in, cookie) = provider.begin_sign_in(request.headers(), user, now)?;
    let code = issue(provider, asked, &sign_in, now)?;
    let mut reply = asked.back(request.method(), &[("code", &code)]);
    set_cookie(reply.headers_mut(), &cookie);
    Ok(reply)
}

/// A code for what was asked, by whoever signed in.
fn issue(
    provider: &IdentityProvider,
    asked: &Asked,
    sign_in: &SignIn,
    now: Timestamp,
) -> Result<String, KeyError> {
    let grant = Grant {
        sub: sign_in.sub.clone(),
        sid: sign_in.sid.clone(),
        auth_time: sign_in.auth_time,
        scope: asked.scope.clone(),
        organization: asked.organization.clone(),
        audience: asked.audience.clone(),
    };
    let code = Code {
        grant,
        redirect_uri: asked.redirect_uri.clone(),
        nonce: asked.nonce.clone(),
        challenge: asked.challenge.clone(),
        expires: now.plus(provider.options().code_life),
    };
    provider.memory().grants.issue(code)
}

impl Asked {
    fn parse(parameters: &Parameters, options: &Options) -> Result<Self, Refused> {
        if parameters.get("client_id") != Some(&options.client_id) {
            return Err(Refused::Page("The login names a client_id that is not registered here."));
        }
        // SECURITY: an address that is not registered is never redirected to, whatever else is
        // wrong (open redirect; RFC 6749, section 4.1.2.1). The whole text is compared.
        let redirect_uri = parameters.get("redirect_uri").unwrap_or_default();
        if !options.redirect_uris.iter().any(|known| known == redirect_uri) {
            return Err(Refused::Page("The login's redirect_uri is not registered here."));
        }
        let redirect_uri = redirect_uri.to_owned();
        let state = parameters.get("state").map(str::to_owned);
        match Self::parse_rest(parameters, redirect_uri.clone(), state.clone()) {
            Ok(asked) => Ok(asked),
            Err(error) => Err(Refused::Redirect { redirect_uri, state, error }),
        }
    }

    fn parse_rest(
        parameters: &Parameters,
        redirect_uri: String,
        state: Option<String>,
    ) -> Result<Self, Problem> {
        let text = |name: &str| parameters.get(name).map(str::to_owned);
        if parameters.get("request").is_some() {
            return Err(("request_not_supported", "Request objects are not taken."));
        }
        if parameters.get("request_uri").is_some() {
            return Err(("request_uri_not_supported", "Request objects are not taken."));
        }
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => return Err(("unsupported_response_type", "Only response_type=code is.")),
            None => return Err(("invalid_request", "response_type is missing.")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(("invalid_request", "Only response_mode=query is supported."));
        }
        let scope = split_scope(parameters.get("scope").unwrap_or_default());
        if !scope.iter().any(|name| name == "openid") {
            return Err(("invalid_scope", "The scope openid is missing."));
        }
        if parameters.get("code_challenge_method") != Some("S256") {
            return Err(("invalid_request", "code_challenge_method=S256 is required (PKCE)."));
        }
        // SHA-256 in base64url is 43 characters (RFC 7636, section 4.2).
        let challenge = text("code_challenge").filter(|challenge| challenge.len() == 43);
        let challenge = challenge.ok_or(("invalid_request", "code_challenge is not a SHA-256."))?;
        let max_age = match parameters.get("max_age").map(str::parse) {
            Some(Ok(seconds)) => Some(seconds),
            Some(Err(_)) => return Err(("invalid_request", "max_age is not a number.")),
            None => None,
        };
        Ok(Self {
            redirect_uri,
            state,
            nonce: text("nonce"),
            scope,
            challenge,
            prompt: Prompt::parse(parameters.get("prompt").unwrap_or_default())?,
            max_age,
            audience: text("audience"),
            organization: text("organization"),
            login_hint: text("login_hint"),
            sign_up: parameters.get("screen_hint") == Some("signup"),
        })
    }

    /// Whether a sign-in of a while ago will do.
    fn accepts(&self, known: &SignIn, now: Timestamp) -> bool {
        let age = now.since(known.auth_time).as_secs();
        self.prompt != Prompt::Login && self.max_age.is_none_or(|limit| age < limit)
    }

    fn back(&self, method: &Method, pairs: &[(&str, &str)]) -> Reply {
        back(method, &self.redirect_uri, self.state.as_deref(), pairs)
    }
}

impl Prompt {
    fn parse(text: &str) -> Result<Self, Problem> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["none"] => Ok(Self::None),
            // OpenID Connect Core, section 3.1.2.1: `none` stands alone.
            words if words.contains(&"none") => {
                Err(("invalid_request", "prompt=none goes with no other prompt."))
            }
            words if words.iter().any(|word| matches!(*word, "login" | "select_account")) => {
                Ok(Self::Login)
            }
            _ => Ok(Self::AsNeeded),
        }
    }
}

/// The words of a scope (RFC 6749, section 3.3).
pub(super) fn split_scope(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Adds a `Set-Cookie` line.
pub(super) fn set_cookie(headers: &mut HeaderMap, cookie: &str) {
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        headers.append(http::header::SET_COOKIE, cookie);
    }
}

fn error_pairs<'a>((code, description): (&'a str, &'a str)) -> [(&'a str, &'a str); 2] {
    [("error", code), ("error_description", description)]
}

/// Sends the browser back to a registered address.
fn back(method: &Method, redirect_uri: &str, state: Option<&str>, pairs: &[(&str, &str)]) -> Reply {
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return pages::error("The registered redirect_uri is not a URL.");
    };
    url.query_pairs_mut().extend_pairs(pairs).extend_pairs(state.map(|state| ("state", state)));
    // 303, so that the login form's POST is not repeated at the client.
    let status = if *method == Method::POST { StatusCode::SEE_OTHER } else { StatusCode::FOUND };
    web::redirect(status, url.as_str())
}
