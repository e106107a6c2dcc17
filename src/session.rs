//! The session: what it holds, who owns which part, and what apps see of it. How it is sealed,
//! carried, remembered and changed is in the files below; none of them knows of bodies, of HTTP
//! clients or of OpenID Connect.
//!
//! | file | question |
//! |---|---|
//! | `store` | how is a session loaded, changed, and written to the response? |
//! | `cookie_store` | what if the cookie carries the session? |
//! | `redis_store` | what if Redis keeps it, for many gateways? |
//! | `change` | what may become of it, and why may it not? |
//! | `update` | what does `X-Session-Update` ask, and may it? |
//! | `lifetime` | is it still alive? |
//! | `cookie` | how does it look on the wire? |
//! | `seal` | how is it kept from being read or made by others? |
//! | `memory` | what is newer than the cookie? |
//! | `logouts` | whose sessions has the provider ended? |
//! | `cache` | has this worker just opened that cookie? |
//! | `following` | does what outlives its request outlive the session? |

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::clock::Timestamp;

mod cache;
pub mod change;
pub mod cookie;
mod cookie_store;
mod following;
pub mod lifetime;
pub mod logouts;
pub mod memory;
pub mod redis_store;
pub mod seal;
pub mod store;
pub mod update;

pub use cache::Opened;
pub use change::{Change, CommitRefused, Unavailable};
pub use following::Followed;
pub use logouts::{Logout, LogoutRefused, Whose};
pub use memory::Memory;
pub use redis_store::Lease;
pub use seal::{Purpose, Sealer};
pub use store::{Sessions, Turn, Visit};
pub use update::SessionUpdate;

/// A session's name: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SessionId(pub(crate) [u8; 16]);

impl SessionId {
    /// A new one; nothing if the operating system has no randomness.
    pub fn random() -> Option<Self> {
        use ring::rand::SecureRandom;
        let mut id = [0; 16];
        ring::rand::SystemRandom::new().fill(&mut id).ok()?;
        Some(Self(id))
    }
}

impl SessionId {
    /// A number that is as good as the name where a few sessions may share one.
    pub fn number(self) -> u64 {
        u64::from_le_bytes(self.0.first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// The id is no secret, but it is not for logs either: it would tie lines to a session's cookie.
impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SessionId(…)")
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        base64_simd::URL_SAFE_NO_PAD.encode_to_string(id.0)
    }
}

impl TryFrom<String> for SessionId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        let bytes = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(IdentityError::Id)
    }
}

/// What is wrong with something that should become part of a session.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Not 16 bytes.
    #[error("the session's id is not 16 bytes")]
    Id,
    /// OpenID Connect Core, section 2: `sub` is required, at most 255 ASCII characters.
    #[error("the claim `sub` is missing, empty, or longer than 255 characters")]
    Subject,
    /// OpenID Connect Core, section 2: `iss` is required.
    #[error("the claim `iss` is missing")]
    Issuer,
}

/// Who the user is: the claims of the ID token and userinfo. The provider owns it: it is replaced
/// on login and on every refresh, and nothing else changes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Identity(Map<String, Value>);

impl Identity {
    /// An identity of these claims.
    pub fn new(claims: Map<String, Value>) -> Result<Self, IdentityError> {
        let text = |name| claims.get(name).and_then(Value::as_str);
        text("sub").filter(|sub| (1..=255).contains(&sub.len())).ok_or(IdentityError::Subject)?;
        text("iss").ok_or(IdentityError::Issuer)?;
        Ok(Self(claims))
    }

    /// The claim `sub`: unique and never reassigned within the issuer.
    pub fn subject(&self) -> &str {
        self.0.get("sub").and_then(Value::as_str).unwrap_or_default()
    }

    /// One claim.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// All claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl TryFrom<Map<String, Value>> for Identity {
    type Error = IdentityError;

    fn try_from(claims: Map<String, Value>) -> Result<Self, IdentityError> {
        Self::new(claims)
    }
}

/// The provider's tokens. Never shown to a browser, never logged; an app gets the access token
/// where its route says so.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// For `id_token_hint` at logout.
    #[serde(rename = "i")]
    pub id_token: String,
    /// What apps may use at APIs.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// What gets new tokens.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// When the access token expires, if the provider said so.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// From when on a request that needs the access token gets a new one first.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub refresh_at: Option<Timestamp>,
    /// The scope granted, where it differs from the scope asked.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

impl Tokens {
    /// As the members of `tokenSet` in Auth0's SDK: what an app may echo.
    pub(crate) fn as_members(&self) -> Map<String, Value> {
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let members = [
            ("idToken", Some(Value::from(self.id_token.clone()))),
            ("accessToken", text(&self.access_token)),
            ("refreshToken", text(&self.refresh_token)),
            ("expiresAt", self.expires_at.map(|time| Value::from(time.0))),
            ("scope", text(&self.scope)),
        ];
        members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tokens(…)")
    }
}

/// A session. The member names are those of its sealed form: short, for each byte is sent with
/// every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Random; new at every login.
    #[serde(rename = "i")]
    pub id: SessionId,
    /// Grows with every change, so that the newest of several copies is known.
    #[serde(rename = "v")]
    pub version: u64,
    /// The login.
    #[serde(rename = "c")]
    pub created_at: Timestamp,
    /// The last use that was written down.
    #[serde(rename = "t")]
    pub touched_at: Timestamp,
    /// The provider's part.
    #[serde(rename = "u")]
    pub identity: Identity,
    /// The apps' part: a merge patch over `{"user": claims}`. It survives refreshes.
    #[serde(rename = "d", default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// The gateway's part.
    #[serde(rename = "k")]
    pub tokens: Tokens,
}

impl Session {
    /// What apps see: the data merged over `{"user": claims}`. No token is in it.
    pub fn view(&self) -> Map<String, Value> {
        self.view_with(self.data.clone())
    }

    /// What apps would see if these were the data.
    fn view_with(&self, data: Map<String, Value>) -> Map<String, Value> {
        let user = Value::Object(self.identity.claims().clone());
        let mut view = Map::from_iter([("user".to_owned(), user)]);
        update::merge(&mut view, data);
        view
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A session of Zoë's, made at 100.
    pub(crate) fn session() -> Session {
        let claims = json!({
            "iss": "https://tenant.auth0.com/", "sub": "auth0|zoe", "aud": "client",
            "sid": "s1", "nickname": "zoe", "email": "zoe@example.com",
        });
        Session {
            id: SessionId([7; 16]),
            version: 1,
            created_at: Timestamp(100),
            touched_at: Timestamp(100),
            identity: Identity::new(claims.as_object().unwrap().clone()).unwrap(),
            data: Map::new(),
            tokens: Tokens {
                id_token: "it".to_owned(),
                access_token: Some("at".to_owned()),
                refresh_token: Some("rt".to_owned()),
                expires_at: None,
                refresh_at: None,
                scope: None,
            },
        }
    }

    #[test]
    fn a_session_reads_back_as_it_was_written() {
        let text = serde_json::to_vec(&session()).unwrap();
        assert_eq!(serde_json::from_slice::<Session>(&text).unwrap(), session());
    }

    /// Read carelessly, these are off by one in their last place.
    #[test]
    fn a_number_is_the_same_however_often_a_session_is_opened() {
        for number in ["118446744073709551615", "1.1844674407370957e20", "0.1", "5e-324"] {
            let mut session = session();
            session.data.insert("n".to_owned(), serde_json::from_str(number).unwrap());
            let text = serde_json::to_vec(&session).unwrap();
            assert_eq!(serde_json::from_slice::<Session>(&text).unwrap(), session, "{number}");
        }
    }

    #[test]
    fn an_identity_without_subject_or_issuer_is_none() {
        for claims in [json!({"iss": "i"}), json!({"iss": "i", "sub": ""}), json!({"sub": "s"})] {
            assert!(Identity::new(claims.as_object().unwrap().clone()).is_err(), "{claims}");
        }
    }

    #[test]
    fn tokens_are_not_in_what_apps_see_nor_in_debug_output() {
        let text = serde_json::to_string(&session().view()).unwrap() + &format!("{:?}", session());
        assert!(!text.contains("\"at\"") && !text.contains("\"rt\"") && !text.contains("\"it\""));
    }
}
