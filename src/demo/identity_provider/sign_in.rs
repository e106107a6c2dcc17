//! Who is signed in to the provider itself, so that a second login needs no page: the provider's
//! own cookie and what it stands for. It knows nothing of clients, codes or tokens.

use std::time::Duration;

use super::bounded::Bounded;
use super::grants::random_text;
use super::keys::KeyError;
use crate::clock::Timestamp;

const MAX_SIGN_INS: usize = 1_000;
/// How long somebody stays signed in, whatever happens.
pub(super) const LIFE: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// Somebody who is signed in.
#[derive(Clone, Debug)]
pub(super) struct SignIn {
    pub(super) sub: String,
    /// The name of this sign-in for clients: the claim `sid`. Not the cookie's value.
    pub(super) sid: String,
    pub(super) auth_time: Timestamp,
}

/// Everybody who is signed in, by their cookie's value.
pub(super) struct SignIns(Bounded<SignIn>);

impl SignIns {
    pub(super) fn new() -> Self {
        Self(Bounded::new(MAX_SIGN_INS))
    }

    /// Signs a user in under a new secret, for the cookie.
    pub(super) fn begin(
        &mut self,
        sub: String,
        now: Timestamp,
    ) -> Result<(SignIn, String), KeyError> {
        let sign_in = SignIn { sub, sid: random_text()?, auth_time: now };
        let secret = random_text()?;
        self.0.insert(secret.clone(), sign_in.clone());
        Ok((sign_in, secret))
    }

    pub(super) fn get(&self, secret: &str, now: Timestamp) -> Option<&SignIn> {
        self.0.get(secret).filter(|sign_in| now.since(sign_in.auth_time) < LIFE)
    }

    pub(super) fn end(&mut self, secret: &str) {
        self.0.remove(secret);
    }

    /// Ends the sign-in that an ID token names.
    pub(super) fn end_sid(&mut self, sid: &str) {
        self.0.retain(|sign_in| sign_in.sid != sid);
    }

    /// Ends every sign-in of a user.
    pub(super) fn end_user(&mut self, sub: &str) {
        self.0.retain(|sign_in| sign_in.sub != sub);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    #[test]
    fn a_sign_in_ends_by_cookie_sid_user_and_time() {
        let mut all = SignIns::new();
        let begin = |all: &mut SignIns| all.begin("auth0|zoe".into(), NOW).unwrap();

        let (sign_in, secret) = begin(&mut all);
        assert_ne!(sign_in.sid, secret);
        assert!(all.get(&secret, NOW).is_some());
        assert!(all.get(&sign_in.sid, NOW).is_none());
        assert!(all.get(&secret, NOW.plus(LIFE)).is_none());
        all.end(&secret);
        assert!(all.get(&secret, NOW).is_none());

        let (sign_in, secret) = begin(&mut all);
        all.end_sid("another");
        assert!(all.get(&secret, NOW).is_some());
        all.end_sid(&sign_in.sid);
        assert!(all.get(&secret, NOW).is_none());

        let (_, secret) = begin(&mut all);
        all.end_user("auth0|bob");
        assert!(all.get(&secret, NOW).is_some());
        all.end_user("auth0|zoe");
        assert!(all.get(&secret, NOW).is_none());
    }
}
