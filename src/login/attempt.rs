//! A login under way: what the answer will be held against, sealed into a cookie of its own. Each
//! attempt has its own, so that tabs do not disturb each other; at most five, the oldest goes.

use cookie::SameSite;
use cookie::time::Duration as CookieDuration;
use http::HeaderMap;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::client_authentication::base64url;
use super::return_to::ReturnTo;
use crate::clock::Timestamp;
use crate::session::cookie::{append_set_cookie, own_cookie, pairs};
use crate::session::{Purpose, Sealer};

/// What every attempt's cookie is called, before the attempt's id of eight digits.
pub(super) const COOKIE_PREFIX: &str = "__Host-login.";
/// How long a login may take.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// Attempts at once.
const MOST: usize = 5;
/// A request brings at most this many that are looked at.
const MOST_READ: usize = 20;
/// The longest cookie value that is opened.
const MAX_SEALED: usize = 4000;
/// Ends the `state` of an attempt that was started because another one's answer had no cookie.
const AGAIN: &str = ".again";

/// What an answer is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// The whole `state`.
    #[serde(rename = "s")]
    pub(super) state: String,
    #[serde(rename = "n")]
    pub(super) nonce: String,
    /// RFC 7636, section 4.1.
    #[serde(rename = "v")]
    pub(super) verifier: String,
    #[serde(rename = "r")]
    pub(super) return_to: ReturnTo,
    /// Seconds, if it was asked.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub(super) max_age: Option<u64>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(super) organization: Option<String>,
    #[serde(rename = "t")]
    started_at: Timestamp,
}

/// Nothing random could be had, or the attempt could not be sealed.
#[derive(Debug, thiserror::Error)]
#[error("a login could not be started")]
pub(super) struct NotStarted;

impl Attempt {
    /// A new one. `again`: it follows one whose answer came without its cookie.
    pub(super) fn new(
        return_to: ReturnTo,
        again: bool,
        now: Timestamp,
    ) -> Result<Self, NotStarted> {
        let mut bytes = [0; 4 + 16 + 16 + 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NotStarted)?;
        let (id, rest) = bytes.split_at(4);
        let (state, rest) = rest.split_at(16);
        let (nonce, verifier) = rest.split_at(16);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let again = if again { AGAIN } else { "" };
        Ok(Self {
            state: format!("{id}.{}{again}", base64url(state)),
            nonce: base64url(nonce),
            verifier: base64url(verifier),
            return_to,
            max_age: None,
            organization: None,
            started_at: now,
        })
    }

    /// Writes the attempt's cookie, and deletes what it has no more room for.
    pub(super) fn write(
        &self,
        sealer: &Sealer,
        request: &HeaderMap,
        response: &mut HeaderMap,
        now: Timestamp,
    ) -> Result<(), NotStarted> {
        let name = cookie_name(&self.state).ok_or(NotStarted)?;
        let plain = serde_json::to_vec(self).map_err(|_| NotStarted)?;
        let sealed = sealer.seal(Purpose::Attempt, &name, &plain).map_err(|_| NotStarted)?;
        let mut others: Vec<(String, Option<Timestamp>)> = brought(request)
            .filter(|(other, _)| *other != name)
            .map(|(name, value)| {
                let started = open(sealer, &name, value, now).map(|attempt| attempt.started_at);
                (name, started)
            })
            .collect();
        // The youngest first; what is dead counts as older than all.
        others.sort_by_key(|(_, started)| std::cmp::Reverse(*started));
        for (at, (name, started)) in others.iter().enumerate() {
            if at >= MOST - 1 || started.is_none() {
                delete(name, response);
            }
        }
        set(&name, sealed, LIFE, response);
        Ok(())
    }

    /// The attempt that `state` belongs to, if this browser began it and it is not too old.
    pub(super) fn find(
        sealer: &Sealer,
        request: &HeaderMap,
        state: &str,
        now: Timestamp,
    ) -> Option<Self> {
        let name = cookie_name(state)?;
        let (_, value) = brought(request).find(|(other, _)| *other == name)?;
        // SECURITY: the cookie binds the answer to the browser that asked (login CSRF).
        open(sealer, &name, value, now).filter(|attempt| attempt.state == state)
    }

    /// Deletes the cookie of the attempt that `state` names, if the request brought it.
    pub(super) fn forget(state: &str, request: &HeaderMap, response: &mut HeaderMap) {
        if let Some(name) = cookie_name(state)
            && brought(request).any(|(other, _)| other == name)
        {
            delete(&name, response);
        }
    }

    /// Whether `state` says that a second attempt has already followed a first one.
    pub(super) fn was_again(state: &str) -> bool {
        state.ends_with(AGAIN)
    }
}

/// The name that `state` gives its cookie: eight hexadecimal digits, whatever the client sent.
fn cookie_name(state: &str) -> Option<String> {
    let (id, _) = state.split_once('.')?;
    let is_id = id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| format!("{COOKIE_PREFIX}{id}"))
}

/// The attempts that a request brings.
fn brought(request: &HeaderMap) -> impl Iterator<Item = (String, &[u8])> {
    let ours = |(name, value)| {
        let name = std::str::from_utf8(name).ok()?;
        let id = name.strip_prefix(COOKIE_PREFIX)?;
        // RFC 6265bis lets a name hold anything: only what we could have written goes on.
        (id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| (name.to_owned(), value))
    };
    pairs(request).filter_map(ours).take(MOST_READ)
}

fn open(sealer: &Sealer, name: &str, value: &[u8], now: Timestamp) -> Option<Attempt> {
    if value.len() > MAX_SEALED {
        return None;
    }
    let plain = sealer.open(Purpose::Attempt, name, value)?;
    let attempt: Attempt = serde_json::from_slice(&plain).ok()?;
    (now.since(attempt.started_at) < LIFE).then_some(attempt)
}

fn set(name: &str, value: String, age: Duration, response: &mut HeaderMap) {
    let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    // Lax: the answer is a navigation from the provider's site.
    let line = own_cookie(name.to_owned(), value).same_site(SameSite::Lax);
    append_set_cookie(response, &line.max_age(CookieDuration::seconds(seconds)).build());
}

fn delete(name: &str, response: &mut HeaderMap) {
    set(name, String::new(), Duration::ZERO, response);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Secret;
    use http::HeaderValue;
    use http::header::{COOKIE, SET_COOKIE};
    use std::collections::BTreeMap;

    fn sealer() -> Sealer {
        Sealer::new(&[Secret::new(*b"0123456789abcdef0123456789abcdef")])
    }

    #[derive(Default)]
    struct Jar(BTreeMap<String, String>);

    impl Jar {
        fn request(&self) -> HeaderMap {
            let pairs: Vec<_> =
                self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
            HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&pairs.join("; ")).unwrap())])
        }

        fn begin(&mut self, sealer: &Sealer, at: u64) -> Attempt {
            let attempt = Attempt::new(ReturnTo::parse("/x"), false, Timestamp(at)).unwrap();
            let mut response = HeaderMap::new();
            attempt.write(sealer, &self.request(), &mut response, Timestamp(at)).unwrap();
            for line in response.get_all(SET_COOKIE) {
                let line = cookie::Cookie::parse(line.to_str().unwrap().to_owned()).unwrap();
                assert!(line.secure().unwrap() && line.http_only().unwrap());
                assert_eq!((line.path(), line.domain()), (Some("/"), None));
                if line.max_age() == Some(CookieDuration::ZERO) {
                    assert!(self.0.remove(line.name()).is_some());
                } else {
                    self.0.insert(line.name().to_owned(), line.value().to_owned());
                }
            }
            attempt
        }
    }

    #[test]
    fn an_attempt_is_found_by_the_browser_that_began_it_and_by_no_other() {
        let (sealer, mut jar) = (sealer(), Jar::default());
        let attempt = jar.begin(&sealer, 100);
        let find = |jar: &Jar, state: &str, at| {
            Attempt::find(&sealer, &jar.request(), state, Timestamp(at))
        };
        assert_eq!(find(&jar, &attempt.state, 100), Some(attempt.clone()));
        assert_eq!(find(&jar, &attempt.state, 100 + 899), Some(attempt.clone()));
        assert_eq!(find(&jar, &attempt.state, 100 + 900), None);
        assert_eq!(find(&Jar::default(), &attempt.state, 100), None);
        assert_eq!(find(&jar, &format!("{}x", attempt.state), 100), None);
        let other = jar.begin(&sealer, 100);
        let swapped = format!("{}{}", &other.state[..8], &attempt.state[8..]);
        assert_eq!(find(&jar, &swapped, 100), None);
    }

    /// nextjs-auth0 #1917, oauth2-proxy #2163.
    #[test]
    fn the_oldest_of_more_than_five_attempts_goes() {
        let (sealer, mut jar) = (sealer(), Jar::default());
        let attempts: Vec<_> = (0..8).map(|at| jar.begin(&sealer, 100 + at)).collect();
        assert_eq!(jar.0.len(), MOST);
        for (at, attempt) in attempts.iter().enumerate() {
            let found = Attempt::find(&sealer, &jar.request(), &attempt.state, Timestamp(110));
            assert_eq!(found.is_some(), at >= 3, "{at}");
        }
    }

    #[test]
    fn attempts_that_are_dead_or_forged_are_deleted_by_the_next() {
        let (sealer, mut jar) = (sealer(), Jar::default());
        jar.begin(&sealer, 100);
        jar.0.insert(format!("{COOKIE_PREFIX}0123abcd"), "forged".to_owned());
        jar.begin(&sealer, 100 + 900);
        assert_eq!(jar.0.len(), 1);
    }

    #[test]
    fn an_attempt_does_not_open_under_another_ones_name() {
        let (sealer, mut jar) = (sealer(), Jar::default());
        let attempt = jar.begin(&sealer, 100);
        let value = jar.0.values().next().unwrap().clone();
        let state = format!("0123abcd{}", &attempt.state[8..]);
        jar.0.insert(format!("{COOKIE_PREFIX}0123abcd"), value);
        assert_eq!(Attempt::find(&sealer, &jar.request(), &state, Timestamp(100)), None);
    }

    #[test]
    fn a_state_that_is_none_names_no_cookie() {
        for state in ["", ".", "0123abcd", "0123abc.x", "0123abcg.x", "../../xx.y", "ä123abcd.x"] {
            assert_eq!(cookie_name(state), None, "{state}");
        }
    }

    #[test]
    fn five_attempts_with_the_longest_paths_fit_a_request() {
        let (sealer, mut jar) = (sealer(), Jar::default());
        for at in 0..5 {
            let path = format!("/{}", "a".repeat(1999));
            let attempt = Attempt::new(ReturnTo::parse(&path), false, Timestamp(at)).unwrap();
            let mut response = HeaderMap::new();
            attempt.write(&sealer, &jar.request(), &mut response, Timestamp(at)).unwrap();
            let line = response[SET_COOKIE].to_str().unwrap();
            assert!(line.len() < 4096, "{}", line.len());
            jar.0.insert(format!("{COOKIE_PREFIX}0000000{at}"), line.to_owned());
        }
    }
}
