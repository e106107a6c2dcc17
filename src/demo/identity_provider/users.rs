//! Who can sign in: two sample users with everything filled in, and anybody else by any name.
//! It knows claims, not tokens.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

/// Bytes of a name that may be typed into the login page.
pub(super) const MAX_NAME: usize = 100;

/// A user: a subject and the claims about it.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// The claim `sub`.
    pub sub: String,
    /// Every other claim of the ID token and of `/userinfo` that is about the user. Members that
    /// the protocol owns (`iss`, `aud`, `exp`, …) are overwritten; `picture` is filled in if absent.
    pub claims: Map<String, Value>,
}

impl User {
    /// A user of the two members given.
    pub fn new(sub: impl Into<String>, claims: Map<String, Value>) -> Self {
        Self { sub: sub.into(), claims }
    }

    /// Zoë, who has every role, and Bob, who has none.
    pub fn samples() -> Vec<Self> {
        let zoe = json!({
            "name": "Zoë Okafor", "given_name": "Zoë", "family_name": "Okafor",
            "nickname": "zoe", "email": "zoe@example.com", "email_verified": true,
            "roles": ["admin", "editor"], "groups": ["staff", "engineering"],
        });
        let bob = json!({
            "name": "Bob Lindqvist", "given_name": "Bob", "family_name": "Lindqvist",
            "nickname": "bob", "email": "bob@example.com", "email_verified": true,
            "roles": [], "groups": ["staff"],
        });
        [("auth0|zoe", zoe), ("auth0|bob", bob)]
            .into_iter()
            .filter_map(|(sub, claims)| match claims {
                Value::Object(claims) => Some(Self::new(sub, claims)),
                _ => None,
            })
            .collect()
    }

    /// A user of whom only a name is known; the same name gives the same user. Nobody has verified
    /// the address. `None` for a name that is empty, too long or holds a control character.
    pub(super) fn named(name: &str) -> Option<Self> {
        let name = name.trim();
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return None;
        }
        let lower = name.to_lowercase();
        let mut sub = String::from("auth0|");
        for byte in digest(&SHA256, lower.as_bytes()).as_ref().iter().take(12) {
            let _ = write!(sub, "{byte:02x}");
        }
        let mailbox = slug(&lower);
        let mailbox = if mailbox.is_empty() { "someone" } else { &mailbox };
        let claims = Map::from_iter([
            ("name".to_owned(), name.into()),
            ("nickname".to_owned(), name.into()),
            ("email".to_owned(), format!("{mailbox}@example.com").into()),
            ("email_verified".to_owned(), false.into()),
            ("roles".to_owned(), json!([])),
            ("groups".to_owned(), json!([])),
        ]);
        Some(Self::new(sub, claims))
    }

    /// Whether somebody who types `text` means this user.
    pub(super) fn answers_to(&self, text: &str) -> bool {
        let text = text.trim().to_lowercase();
        self.sub == text
            || ["name", "nickname", "email", "given_name"].iter().any(|claim| {
                let value = self.claims.get(*claim).and_then(Value::as_str);
                value.is_some_and(|value| value.to_lowercase() == text)
            })
    }

    /// What to call the user on a page.
    pub(in crate::demo) fn display_name(&self) -> &str {
        self.claims.get("name").and_then(Value::as_str).unwrap_or(&self.sub)
    }

    /// The nickname, or else the name, in ASCII letters, digits and dots: for addresses and ids.
    pub(super) fn short_name(&self) -> String {
        let name = self.claims.get("nickname").and_then(Value::as_str);
        slug(&name.unwrap_or_else(|| self.display_name()).to_lowercase())
    }

    /// What to show of the user beside the name, if there is anything.
    pub(super) fn email(&self) -> Option<&str> {
        self.claims.get("email").and_then(Value::as_str)
    }

    /// The claims that these scopes give out (OpenID Connect Core, section 5.4); claims that no
    /// standard scope covers always are, as Auth0's custom claims.
    pub(super) fn released(&self, issuer: &str, scope: &[String]) -> Map<String, Value> {
        let granted = |name: &str| scope.iter().any(|scope| scope == name);
        let mut claims = self.claims.clone();
        claims
            .entry("picture")
            .or_insert_with(|| format!("{issuer}pictures/{}.svg", self.short_name()).into());
        claims.retain(|name, _| covering_scope(name).is_none_or(granted));
        claims
    }
}

/// The scope that a standard claim needs.
fn covering_scope(claim: &str) -> Option<&'static str> {
    match claim {
        "name" | "family_name" | "given_name" | "middle_name" | "nickname"
        | "preferred_username" | "profile" | "picture" | "website" | "gender" | "birthdate"
        | "zoneinfo" | "locale" | "updated_at" => Some("profile"),
        "email" | "email_verified" => Some("email"),
        "phone_number" | "phone_number_verified" => Some("phone"),
        "address" => Some("address"),
        _ => None,
    }
}

/// The letters and digits of ASCII in `lower`, with a dot for each run of anything else.
fn slug(lower: &str) -> String {
    let words = lower.split(|character: char| !character.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_answer_to_their_names() {
        let samples = User::samples();
        assert_eq!(samples.len(), 2);
        for text in ["auth0|zoe", "ZOE", " Zoë ", "zoe@example.com", "zoë okafor"] {
            assert!(samples[0].answers_to(text), "{text}");
            assert!(!samples[1].answers_to(text), "{text}");
        }
        assert!(!samples[0].answers_to(""));
    }

    #[test]
    fn any_other_name_is_one_user_of_its_own() {
        let ada = User::named("Ada L'Ovelace").unwrap();
        assert_eq!(ada.sub, User::named(" ada l'ovelace").unwrap().sub);
        assert_ne!(ada.sub, User::named("Ada").unwrap().sub);
        assert_eq!(ada.sub.len(), "auth0|".len() + 24);
        assert_eq!(ada.claims["email"], "ada.l.ovelace@example.com");
        assert_eq!(ada.claims["email_verified"], false);
        assert_eq!(User::named("李").unwrap().claims["email"], "someone@example.com");
    }

    #[test]
    fn a_name_is_bounded() {
        assert_eq!(User::named("  "), None);
        assert_eq!(User::named("a\u{7}b"), None);
        assert_eq!(User::named(&"x".repeat(MAX_NAME + 1)), None);
    }

    #[test]
    fn a_scope_that_was_not_granted_keeps_its_claims_back() {
        let zoe = User::samples().remove(0);
        let only_email = zoe.released("http://issuer/", &["openid".into(), "email".into()]);
        assert_eq!(only_email.get("name"), None);
        assert_eq!(only_email.get("picture"), None);
        assert_eq!(only_email["email"], "zoe@example.com");
        assert_eq!(only_email["roles"], json!(["admin", "editor"]));
        let profile = zoe.released("http://issuer/", &["profile".into()]);
        assert_eq!(profile.get("email"), None);
        assert_eq!(profile["picture"], "http://issuer/pictures/zoe.svg");
    }
}
