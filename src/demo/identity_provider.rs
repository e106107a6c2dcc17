//! A development OpenID Provider of Auth0's shape, on loopback: whoever types a name is that user.
//! It owns who is signed in, what was granted and which keys sign; it knows nothing of the gateway,
//! which meets it over HTTP like any other provider.
//!
//! | file | question |
//! |---|---|
//! | `authorize`, `pages` | how does a user sign in? |
//! | `token_endpoint`, `client` | how does a code or refresh token become tokens, and for whom? |
//! | `tokens` | what do the tokens say? |
//! | `userinfo`, `discovery`, `pictures` | what can be read? |
//! | `logout` | how does a sign-in end? |
//! | `grants`, `sign_in`, `users`, `keys`, `bounded` | what is remembered? |

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::net::TcpListener;

mod authorize;
mod bounded;
mod client;
mod discovery;
mod grants;
mod keys;
mod logout;
mod oauth_error;
mod pages;
mod pictures;
mod sign_in;
mod token_endpoint;
mod tokens;
mod userinfo;
mod users;

pub use keys::{KeyError, OldKey, SigningKey};
pub use users::User;

use super::web::{self, Reply};
use crate::clock::Timestamp;
use crate::lock::lock;
use bounded::Bounded;
use grants::Grants;
use keys::Keys;
use sign_in::{SignIn, SignIns};

/// The cookie by which the provider knows who is signed in to it.
const COOKIE: &str = "demo_sign_in";
/// Users known by the name they typed.
const MAX_NAMED: usize = 10_000;

/// What the provider is told at start.
#[derive(Clone)]
pub struct Options {
    /// Who it says it is, in tokens and discovery: its own address with a slash at the end
    /// (`http://127.0.0.1:9080/`), as Auth0 has it.
    pub issuer: String,
    /// The one client it knows.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: String,
    /// Where a login may send the browser; the whole text is compared.
    pub redirect_uris: Vec<String>,
    /// Where a logout may send the browser; the whole text is compared.
    pub logout_uris: Vec<String>,
    /// How long a code can be redeemed.
    pub code_life: Duration,
    /// `expires_in`: how long an access token is good.
    pub access_token_life: Duration,
    /// How long an ID token is good.
    pub id_token_life: Duration,
    /// How long the refresh tokens that follow from one login are good.
    pub refresh_token_life: Duration,
    /// Whether discovery names `end_session_endpoint`. Older Auth0 tenants do not, and have only
    /// `/v2/logout`.
    pub announce_end_session: bool,
}

impl Options {
    /// Auth0's lives of codes and tokens, and no registered addresses yet.
    pub fn new(
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> Self {
        Self {
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            redirect_uris: Vec::new(),
            logout_uris: Vec::new(),
            code_life: Duration::from_secs(60),
            access_token_life: Duration::from_secs(24 * 60 * 60),
            id_token_life: Duration::from_secs(10 * 60 * 60),
            refresh_token_life: Duration::from_secs(30 * 24 * 60 * 60),
            announce_end_session: true,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SECURITY: without the client's secret.
        let mut shown = formatter.debug_struct("Options");
        shown.field("issuer", &self.issuer).field("client_id", &self.client_id);
        shown.finish_non_exhaustive()
    }
}

/// The provider. What it remembers is in memory, bounded, and gone when it is dropped.
pub struct IdentityProvider {
    options: Options,
    memory: Mutex<Memory>,
}

/// What changes while the provider serves.
struct Memory {
    keys: Keys,
    grants: Grants,
    sign_ins: SignIns,
    users: Vec<User>,
    named: Bounded<User>,
}

impl IdentityProvider {
    /// A provider whose login page offers `users`, signing with `key`.
    pub fn new(options: Options, users: Vec<User>, key: SigningKey) -> Self {
        let memory = Memory {
            keys: Keys::new(key),
            grants: Grants::new(options.refresh_token_life),
            sign_ins: SignIns::new(),
            users,
            named: Bounded::new(MAX_NAMED),
        };
        Self { options, memory: Mutex::new(memory) }
    }

    /// Serves `listener` until the future is dropped, which also ends its connections.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> Infallible {
        web::serve(listener, move |request| self.answer(request, Timestamp::now())).await
    }

    /// Lets `next` sign from now on.
    pub fn rotate(&self, next: SigningKey, old: OldKey) {
        self.memory().keys.rotate(next, old);
    }

    /// Ends every sign-in, code and refresh token of a user, as an administrator who blocks one
    /// does. Access tokens already out stay good until they expire.
    pub fn end_user(&self, sub: &str) {
        let mut memory = self.memory();
        memory.sign_ins.end_user(sub);
        memory.grants.revoke_user(sub);
    }

    /// Puts `user` in the place of the one with the same `sub`, or adds it to the login page. The
    /// next tokens say what is new.
    pub fn put_user(&self, user: User) {
        let mut memory = self.memory();
        if let Some(known) = memory.users.iter_mut().find(|known| known.sub == user.sub) {
            *known = user;
        } else {
            memory.users.push(user);
        }
    }

    fn answer(&self, request: &Request<Bytes>, now: Timestamp) -> Reply {
        let path = request.uri().path();
        let allow = match path {
            "/authorize" | "/userinfo" | "/oidc/logout" => "GET, HEAD, POST",
            "/oauth/token" | "/oauth/revoke" => "POST",
            _ => "GET, HEAD",
        };
        // HEAD is answered as GET, without the body.
        let method = request.method();
        let method = if method == Method::HEAD { &Method::GET } else { method };
        if !allow.split(", ").any(|allowed| allowed == method.as_str()) {
            return web::method_not_allowed(allow);
        }
        match path {
            "/" => pages::start(),
            "/.well-known/openid-configuration" => discovery::document(&self.options),
            "/.well-known/jwks.json" => web::json(StatusCode::OK, &self.memory().keys.jwks()),
            "/authorize" => authorize::answer(self, request, now),
            "/oauth/token" => token_endpoint::answer(self, request, now),
            "/oauth/revoke" => token_endpoint::revoke(self, request),
            "/userinfo" => userinfo::answer(self, request, now),
            "/v2/logout" => logout::auth0(self, request),
            "/oidc/logout" => logout::end_session(self, request, now),
            _ => match path.strip_prefix("/pictures/") {
                Some(name) => pictures::answer(name),
                None => web::text(StatusCode::NOT_FOUND, "The provider has no such page."),
            },
        }
    }

    fn options(&self) -> &Options {
        &self.options
    }

    /// A panic while it was held leaves nothing half done that matters here.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Who is signed in to the provider in this browser.
    fn signed_in(&self, headers: &HeaderMap, now: Timestamp) -> Option<SignIn> {
        let secret = web::cookie(headers, COOKIE)?;
        self.memory().sign_ins.get(secret, now).cloned()
    }

    /// Signs `user` in, in the place of whoever was; gives the `Set-Cookie` that says so.
    fn begin_sign_in(
        &self,
        headers: &HeaderMap,
        user: User,
        now: Timestamp,
    ) -> Result<(SignIn, String), KeyError> {
        let mut memory = self.memory();
        if let Some(old) = web::cookie(headers, COOKIE) {
            memory.sign_ins.end(old);
        }
        let (sign_in, secret) = memory.sign_ins.begin(user.sub.clone(), now)?;
        if !memory.users.iter().any(|known| known.sub == user.sub) {
            memory.named.insert(user.sub.clone(), user);
        }
        let life = sign_in::LIFE.as_secs();
        let cookie = format!("{COOKIE}={secret}; Path=/; Max-Age={life}; HttpOnly; SameSite=Lax");
        Ok((sign_in, cookie))
    }

    /// Ends the sign-in of this browser; gives the `Set-Cookie` that says so.
    fn end_sign_in(&self, headers: &HeaderMap) -> String {
        if let Some(secret) = web::cookie(headers, COOKIE) {
            self.memory().sign_ins.end(secret);
        }
        format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
    }

    /// The user whom somebody means who types or picks `text`.
    fn user_named(&self, text: &str) -> Option<User> {
        let memory = self.memory();
        let known = memory.users.iter().find(|user| user.answers_to(text)).cloned();
        known.or_else(|| User::named(text))
    }

    /// The user with this subject, if it is still known.
    fn user(&self, sub: &str) -> Option<User> {
        let memory = self.memory();
        let known = memory.users.iter().find(|user| user.sub == sub);
        known.or_else(|| memory.named.get(sub)).cloned()
    }
}

#[cfg(test)]
mod tests;
