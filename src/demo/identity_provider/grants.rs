//! What users have granted, and the one-time secrets that stand for it: authorization codes and
//! rotating refresh tokens, in bounded memory. It knows nothing of HTTP or JWTs; the time is
//! handed in.

use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD as BASE64URL;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::bounded::Bounded;
use super::keys::KeyError;
use super::oauth_error::OAuthError;
use crate::clock::Timestamp;

const MAX_CODES: usize = 1_000;
const MAX_FAMILIES: usize = 10_000;

/// What a user granted to the client by signing in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) sub: String,
    /// The sign-in it came from: the claim `sid`.
    pub(super) sid: String,
    /// When the user last proved who they are: the claim `auth_time`.
    pub(super) auth_time: Timestamp,
    pub(super) scope: Vec<String>,
    /// The organization that was asked for.
    pub(super) organization: Option<String>,
    /// The API that the access token is for, besides the provider's own.
    pub(super) audience: Option<String>,
}

impl Grant {
    pub(super) fn has(&self, scope: &str) -> bool {
        self.scope.iter().any(|granted| granted == scope)
    }
}

/// A code under way, with all that its redemption is checked against.
pub(super) struct Code {
    pub(super) grant: Grant,
    pub(super) redirect_uri: String,
    pub(super) nonce: Option<String>,
    /// The PKCE challenge, S256 (RFC 7636, section 4.2).
    pub(super) challenge: String,
    pub(super) expires: Timestamp,
}

/// What a code was worth.
pub(super) struct Redeemed {
    pub(super) grant: Grant,
    pub(super) nonce: Option<String>,
    /// There is one if `offline_access` was granted.
    pub(super) refresh_token: Option<String>,
}

/// The codes and refresh tokens of one provider.
pub(super) struct Grants {
    codes: Bounded<CodeState>,
    families: Bounded<Family>,
    refresh_token_life: Duration,
}

enum CodeState {
    Fresh(Code),
    /// Kept so that a second use is noticed; with the family that its first use began.
    Spent(Option<String>),
}

/// The refresh tokens that follow from one sign-in: only the newest is good.
struct Family {
    grant: Grant,
    current: String,
    expires: Timestamp,
}

impl Grants {
    pub(super) fn new(refresh_token_life: Duration) -> Self {
        Self {
            codes: Bounded::new(MAX_CODES),
            families: Bounded::new(MAX_FAMILIES),
            refresh_token_life,
        }
    }

    /// A new code that stands for `code`.
    pub(super) fn issue(&mut self, code: Code) -> Result<String, KeyError> {
        let secret = random_text()?;
        self.codes.insert(secret.clone(), CodeState::Fresh(code));
        Ok(secret)
    }

    /// Takes a code in. It is spent by the attempt, whether that succeeds or not.
    pub(super) fn redeem(
        &mut self,
        code: &str,
        redirect_uri: &str,
        verifier: &str,
        now: Timestamp,
    ) -> Result<Redeemed, OAuthError> {
        let state = self.codes.get_mut(code);
        let state = state.ok_or(OAuthError::invalid_grant("The code is unknown or expired."))?;
        let code_was = match std::mem::replace(state, CodeState::Spent(None)) {
            CodeState::Fresh(fresh) => fresh,
            CodeState::Spent(family) => {
                // RFC 6749, section 4.1.2: a code that comes twice was stolen, so what its first
                // use brought is no good either.
                if let Some(family) = family {
                    self.families.remove(&family);
                }
                return Err(OAuthError::invalid_grant("The code was used before."));
            }
        };
        if code_was.expires <= now {
            return Err(OAuthError::invalid_grant("The code is unknown or expired."));
        }
        if code_was.redirect_uri != redirect_uri {
            return Err(OAuthError::invalid_grant("The redirect_uri is not that of the login."));
        }
        if !verifier_matches(&code_was.challenge, verifier) {
            return Err(OAuthError::invalid_grant("The code_verifier is not that of the login."));
        }
        let Code { grant, nonce, .. } = code_was;
        let refresh_token = if grant.has("offline_access") {
            let (family, token) = self.begin_family(grant.clone(), now)?;
            self.codes.insert(code.to_owned(), CodeState::Spent(Some(family)));
            Some(token)
        } else {
            None
        };
        Ok(Redeemed { grant, nonce, refresh_token })
    }

    /// Trades a refresh token for the next one. A token that was traded before ends its family
    /// (RFC 9700, section 4.14.2). A narrower `scope` holds for this once.
    pub(super) fn refresh(
        &mut self,
        token: &str,
        scope: Option<&[String]>,
        now: Timestamp,
    ) -> Result<(Grant, String), OAuthError> {
        let unknown =
            OAuthError::invalid_grant("The refresh token is unknown, expired or revoked.");
        let id = family_of(token).ok_or(unknown)?;
        let family = self.families.get_mut(id).ok_or(unknown)?;
        if family.expires <= now {
            self.families.remove(id);
            return Err(unknown);
        }
        if family.current != token {
            self.families.remove(id);
            return Err(OAuthError::invalid_grant(
                "The refresh token was used before: every token that follows from it is revoked.",
            ));
        }
        let mut grant = family.grant.clone();
        if let Some(scope) = scope {
            if !scope.iter().all(|name| grant.has(name)) {
                let sentence = "The scope is wider than the one granted.";
                return Err(OAuthError::other("invalid_scope", sentence));
            }
            grant.scope = scope.to_vec();
        }
        family.current = token_of(id)?;
        Ok((grant, family.current.clone()))
    }

    /// Ends the family of a refresh token, if there is one.
    pub(super) fn revoke(&mut self, token: &str) {
        if let Some(id) = family_of(token) {
            self.families.remove(id);
        }
    }

    /// Ends every code and refresh token of a user.
    pub(super) fn revoke_user(&mut self, sub: &str) {
        self.families.retain(|family| family.grant.sub != sub);
        self.codes.retain(|code| !matches!(code, CodeState::Fresh(code) if code.grant.sub == sub));
    }

    fn begin_family(&mut self, grant: Grant, now: Timestamp) -> Result<(String, String), KeyError> {
        let id = random_text()?;
        let current = token_of(&id)?;
        let expires = now.plus(self.refresh_token_life);
        self.families.insert(id.clone(), Family { grant, current: current.clone(), expires });
        Ok((id, current))
    }
}

/// 32 random bytes as text that is safe in URLs and cookies.
pub(super) fn random_text() -> Result<String, KeyError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError)?;
    Ok(BASE64URL.encode_to_string(bytes))
}

/// SHA-256 of `text` in base64url, as PKCE and the thumbprints have it.
pub(super) fn sha256_text(text: &str) -> String {
    BASE64URL.encode_to_string(digest(&SHA256, text.as_bytes()))
}

/// A refresh token names its family, so that an old one is known for what it is without being
/// remembered. Nobody can name a family who has not held one of its tokens.
fn token_of(family: &str) -> Result<String, KeyError> {
    Ok(format!("{family}.{}", random_text()?))
}

fn family_of(token: &str) -> Option<&str> {
    token.split_once('.').map(|(family, _)| family)
}

fn verifier_matches(challenge: &str, verifier: &str) -> bool {
    // RFC 7636, section 4.1: 43 to 128 characters.
    (43..=128).contains(&verifier.len()) && sha256_text(verifier) == challenge
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);
    const URI: &str = "https://localhost:8443/auth/callback";
    const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters";

    fn grants() -> Grants {
        Grants::new(Duration::from_secs(100))
    }

    fn issue(grants: &mut Grants, scope: &[&str]) -> String {
        let grant = Grant {
            sub: "auth0|zoe".into(),
            sid: "sid".into(),
            auth_time: NOW,
            scope: scope.iter().map(ToString::to_string).collect(),
            organization: None,
            audience: None,
        };
        let code = Code {
            grant,
            redirect_uri: URI.into(),
            nonce: Some("nonce".into()),
            challenge: sha256_text(VERIFIER),
            expires: NOW.plus(Duration::from_secs(60)),
        };
        grants.issue(code).unwrap()
    }

    fn refresh_token(grants: &mut Grants) -> (String, String) {
        let code = issue(grants, &["openid", "email", "offline_access"]);
        let redeemed = grants.redeem(&code, URI, VERIFIER, NOW).unwrap();
        (code, redeemed.refresh_token.unwrap())
    }

    fn code_of<T>(outcome: Result<T, OAuthError>) -> &'static str {
        outcome.err().map_or("none", OAuthError::code)
    }

    #[test]
    fn a_code_is_good_once() {
        let mut grants = grants();
        let code = issue(&mut grants, &["openid"]);
        let redeemed = grants.redeem(&code, URI, VERIFIER, NOW).unwrap();
        assert_eq!(redeemed.nonce.as_deref(), Some("nonce"));
        assert_eq!(redeemed.refresh_token, None);
        assert_eq!(code_of(grants.redeem(&code, URI, VERIFIER, NOW)), "invalid_grant");
    }

    #[test]
    fn a_code_used_twice_revokes_what_its_first_use_brought() {
        let mut grants = grants();
        let (code, token) = refresh_token(&mut grants);
        assert!(grants.redeem(&code, URI, VERIFIER, NOW).is_err());
        assert_eq!(code_of(grants.refresh(&token, None, NOW)), "invalid_grant");
    }

    #[test]
    fn a_code_is_bound_to_its_time_address_and_verifier() {
        let long = "x".repeat(129);
        let cases = [
            (URI, VERIFIER, NOW.plus(Duration::from_secs(60))),
            ("https://localhost:8443/auth/callback/", VERIFIER, NOW),
            (URI, "another-verifier-of-at-least-forty-three-characters", NOW),
            (URI, "short", NOW),
            (URI, &long, NOW),
        ];
        for (uri, verifier, at) in cases {
            let mut grants = grants();
            let code = issue(&mut grants, &["openid"]);
            assert_eq!(code_of(grants.redeem(&code, uri, verifier, at)), "invalid_grant");
            // The attempt has spent it.
            assert_eq!(code_of(grants.redeem(&code, URI, VERIFIER, NOW)), "invalid_grant");
        }
    }

    #[test]
    fn a_verifier_too_short_is_refused_even_where_it_hashes_right() {
        assert!(!verifier_matches(&sha256_text("short"), "short"));
        assert!(verifier_matches(&sha256_text(VERIFIER), VERIFIER));
    }

    #[test]
    fn a_refresh_token_used_twice_revokes_its_family() {
        let mut grants = grants();
        let (_, first) = refresh_token(&mut grants);
        let (_, second) = grants.refresh(&first, None, NOW).unwrap();
        let (_, third) = grants.refresh(&second, None, NOW).unwrap();
        assert_eq!(code_of(grants.refresh(&first, None, NOW)), "invalid_grant");
        assert_eq!(code_of(grants.refresh(&third, None, NOW)), "invalid_grant");
    }

    #[test]
    fn another_familys_tokens_survive_a_revocation() {
        let mut grants = grants();
        let (_, lost) = refresh_token(&mut grants);
        let (_, kept) = refresh_token(&mut grants);
        grants.revoke(&lost);
        assert!(grants.refresh(&lost, None, NOW).is_err());
        assert!(grants.refresh(&kept, None, NOW).is_ok());
    }

    #[test]
    fn a_refresh_token_ends_with_its_life_and_with_its_user() {
        let mut grants = grants();
        let (_, token) = refresh_token(&mut grants);
        assert!(grants.refresh(&token, None, NOW.plus(Duration::from_secs(100))).is_err());
        let (_, token) = refresh_token(&mut grants);
        grants.revoke_user("auth0|bob");
        let (_, token) = grants.refresh(&token, None, NOW).unwrap();
        grants.revoke_user("auth0|zoe");
        assert!(grants.refresh(&token, None, NOW).is_err());
    }

    #[test]
    fn a_refresh_may_narrow_the_scope_and_not_widen_it() {
        let mut grants = grants();
        let (_, token) = refresh_token(&mut grants);
        let wide = ["openid".to_owned(), "admin".to_owned()];
        assert_eq!(code_of(grants.refresh(&token, Some(&wide), NOW)), "invalid_scope");
        // The refusal did not spend the token, and a narrow scope holds once.
        let (grant, token) = grants.refresh(&token, Some(&wide[..1]), NOW).unwrap();
        assert_eq!(grant.scope, ["openid"]);
        assert_eq!(grants.refresh(&token, None, NOW).unwrap().0.scope.len(), 3);
    }
}
