//! The sessions of the users who send the load: made by the library, as at a login, under the
//! gateway's own secret, so that the gateway has to open each, hold it against its rules, and tell the
//! app of it. A session of the Redis store is in that Redis then, and its cookie is the ticket to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use serde_json::json;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use vestibule::clock::Timestamp;
use vestibule::config::value::{Keys, Secret};
use vestibule::config::{self, Cookie, Redis, RedisServers, SameSite};
use vestibule::session::memory::Bounds;
use vestibule::session::{
    Change, Identity, Memory, Sealer, SessionUpdate, Sessions, Tokens, Visit,
};

use crate::rows::{CONNECTIONS, Visitor};

/// The cookie's default name.
const NAME: &str = "__Host-session";
/// The ID token is as long as makes the cookie 1.1 KB: that of a usual session.
const ID_TOKEN: usize = 330;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where sessions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// In the cookie.
    Cookie,
    /// In Redis.
    Redis,
}

/// The `Cookie` fields of the signed-in users of one store.
pub(crate) struct Cookies {
    /// Their sessions stay as they are.
    quiet: Vec<String>,
    /// Apps change theirs.
    changing: Vec<String>,
    /// One more of those.
    shared: [String; 1],
}

impl Cookies {
    /// Signs them in. Their sessions were just used: no touch is due for hours, so that the gateway's
    /// answers need no `Set-Cookie`.
    pub(crate) fn make(secret: &str, issuer: &str, redis: Option<SocketAddr>) -> Result<Self> {
        let memory = Arc::new(Memory::new(Bounds::default()));
        runtime()?.block_on(async {
            let sessions = sessions(secret, redis, memory);
            let mut cookies = Vec::with_capacity(2 * CONNECTIONS + 1);
            for user in (0..).take(2 * CONNECTIONS + 1) {
                let visit = sign_in(&sessions, issuer, user, r#"{"theme":"dark"}"#).await?;
                cookies.push(cookie(&sessions, &visit)?);
            }
            let shared = [cookies.pop().context("nobody is signed in")?];
            let changing = cookies.split_off(CONNECTIONS);
            Ok(Self { quiet: cookies, changing, shared })
        })
    }

    /// The `sub` and the `Cookie` field of every user.
    pub(crate) fn each(&self) -> impl Iterator<Item = (String, String)> {
        let all = self.quiet.iter().chain(&self.changing).chain(&self.shared);
        (0..).map(subject).zip(all.cloned())
    }

    /// What a visitor sends: one for each of the connections, in turn. None for a stranger.
    pub(crate) fn of(&self, visitor: Visitor) -> &[String] {
        match visitor {
            Visitor::Stranger => &[],
            Visitor::User => self.quiet.get(..1).unwrap_or_default(),
            Visitor::Users => &self.quiet,
            Visitor::Changing => &self.shared,
            Visitor::AllChanging => &self.changing,
        }
    }
}

/// The `sub` of a user.
pub(crate) fn subject(user: u32) -> String {
    format!("auth0|6650a1f2c3d4e5f6{user:08x}")
}

/// What the Redis store needs: tasks that stay on this thread.
pub(crate) fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// The sessions as a gateway with this secret and the defaults has them, in the cookie or in this
/// Redis.
pub(crate) fn sessions(secret: &str, redis: Option<SocketAddr>, memory: Arc<Memory>) -> Sessions {
    let secret = Secret::new(secret);
    let redis = redis.map(|address| {
        Arc::new(Redis {
            urls: vec![format!("redis://{address}")],
            servers: RedisServers::Single,
            username: None,
            password: None,
            ca: None,
            prefix: "vestibule:".to_owned(),
            replicas: 0,
        })
    });
    let config = config::Session {
        secrets: vec![secret.clone()],
        absolute: 3 * DAY,
        inactivity: Some(DAY),
        cookie: Cookie {
            name: NAME.to_owned(),
            same_site: SameSite::Lax,
            domain: None,
            transient: false,
        },
        redis,
    };
    Sessions::new(&config, Arc::new(Sealer::new(&[secret])), memory)
}

/// A login, and one update of an app's.
pub(crate) async fn sign_in(
    sessions: &Sessions,
    issuer: &str,
    user: u32,
    update: &'static str,
) -> Result<Visit> {
    let now = Timestamp::now();
    let (identity, tokens) = login(issuer, user)?;
    let mut visit = Visit::default();
    sessions.commit(&mut visit, Change::Start { identity, tokens }, now).await?;
    let update = SessionUpdate::parse([&HeaderValue::from_static(update)], &Keys::All)?;
    sessions.commit(&mut visit, Change::Update(update), now).await?;
    Ok(visit)
}

/// What the provider says at a login.
fn login(issuer: &str, user: u32) -> Result<(Identity, Tokens)> {
    let claims = json!({
        "iss": issuer,
        "sub": subject(user),
        "aud": "benchmark",
        "sid": format!("Wf3nJ5kQ9s7LZr0vXy2bAg1c{user:08x}"),
        "name": "Zoë Quill",
        "nickname": "zoe",
        "email": "zoe.quill@example.com",
        "email_verified": true,
        "groups": ["editors", "staff"],
    });
    let tokens = Tokens {
        id_token: "x".repeat(ID_TOKEN),
        access_token: Some("a".repeat(32)),
        refresh_token: Some("v1.".to_owned() + &"r".repeat(43)),
        expires_at: None,
        refresh_at: None,
        scope: None,
    };
    Ok((Identity::new(claims.as_object().cloned().unwrap_or_default())?, tokens))
}

/// The `Cookie` field of a browser that was just signed in: behind another cookie of the app's.
fn cookie(sessions: &Sessions, visit: &Visit) -> Result<String> {
    let mut response = HeaderMap::new();
    sessions.answer(visit, &mut response, Timestamp::now());
    let set = response.get(SET_COOKIE).context("a login sets no cookie")?.to_str()?;
    Ok(format!("theme=dark; {}", pair(set)))
}

/// Puts the session cookie that an answer set into the request in place of the one there.
pub(crate) fn renew(request: &mut Vec<u8>, set: &str) {
    let pair = pair(set).as_bytes();
    let Some((name, _)) = pair.split_at_checked(NAME.len() + 1) else { return };
    if let Some(begin) = memchr::memmem::find(request, name)
        && let Some(rest) = request.get(begin..)
        && let Some(length) = memchr::memchr2(b';', b'\r', rest)
    {
        request.splice(begin..begin + length, pair.iter().copied());
    }
}

/// The same in a `Cookie` field.
pub(crate) fn replace(field: &mut String, set: &str) {
    let pair = pair(set);
    if let Some(begin) = pair.starts_with(NAME).then(|| field.find(NAME)).flatten() {
        let rest = field.get(begin..).unwrap_or_default();
        let length = rest.find(';').unwrap_or(rest.len());
        field.replace_range(begin..begin + length, pair);
    }
}

/// `name=value` of a `Set-Cookie` field (RFC 6265, section 4.1.1).
fn pair(set: &str) -> &str {
    set.split(';').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookies_have_the_size_of_a_usual_session() {
        let secret = "0123456789abcdef0123456789abcdef";
        let cookies = Cookies::make(secret, "http://127.0.0.1:9/", None).unwrap();
        for visitor in [Visitor::User, Visitor::Users, Visitor::Changing, Visitor::AllChanging] {
            for cookie in cookies.of(visitor) {
                assert!((1080..1160).contains(&cookie.len()), "{}", cookie.len());
            }
        }
    }

    #[test]
    fn no_session_is_both_changed_and_left_alone() {
        let secret = "0123456789abcdef0123456789abcdef";
        let cookies = Cookies::make(secret, "http://127.0.0.1:9/", None).unwrap();
        let (quiet, changing) = (cookies.of(Visitor::Users), cookies.of(Visitor::AllChanging));
        assert_eq!((quiet.len(), changing.len()), (CONNECTIONS, CONNECTIONS));
        assert!(!quiet.iter().any(|cookie| changing.contains(cookie)));
        assert!(!cookies.of(Visitor::Changing).iter().any(|cookie| changing.contains(cookie)));
    }

    #[test]
    fn the_next_request_brings_the_cookie_that_was_set() {
        let mut request = b"GET / HTTP/1.1\r\nCookie: a=b; __Host-session=old\r\n\r\n".to_vec();
        renew(&mut request, "__Host-session=newer; Path=/; Secure");
        assert_eq!(request, b"GET / HTTP/1.1\r\nCookie: a=b; __Host-session=newer\r\n\r\n");
        renew(&mut request, "other=1; Path=/");
        assert_eq!(request, b"GET / HTTP/1.1\r\nCookie: a=b; __Host-session=newer\r\n\r\n");
    }
}
