//! `X-Session-Update`: what an app's response asks of the session. It parses, refuses and merges;
//! it does no I/O and does not know where sessions are kept.
//!
//! An update is a JSON Merge Patch (RFC 7396), several of them, or `null`, which ends the session.
//! `{"$add": n}` in the place of a value adds to the number that stands there.

use http::HeaderValue;
use serde_json::{Map, Number, Value};
use thiserror::Error;

use super::Session;
use crate::config::value::Keys;

/// The most bytes that the field lines of one response may hold together.
pub const MAX_BYTES: usize = 16 * 1024;
/// The deepest nesting of objects and arrays, the outermost counted as 1.
pub const MAX_DEPTH: usize = 32;
/// Who the user is. Only the provider says so; an update may repeat these but not change them.
const PROTECTED_CLAIMS: [&str; 5] = ["sub", "iss", "aud", "sid", "org_id"];

/// Why an update was refused, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UpdateRefused {
    /// No JSON in UTF-8, or something else beside it.
    #[error("it is not JSON")]
    NotJson,
    /// JSON, but neither an object nor a lone `null`.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("it is nested deeper than 32")]
    TooDeep,
    /// Longer than [`MAX_BYTES`].
    #[error("it is longer than 16 KiB")]
    TooLarge,
    /// A top-level member that the route's `session_update` does not list.
    #[error("it changes a key that the route may not change")]
    KeyNotAllowed,
    /// The tokens, the session's own facts, or a claim that says who the user is.
    #[error("it changes a protected member")]
    Protected,
    /// `$add` of or to something that is not a number, or past the range of numbers.
    #[error("$add needs numbers")]
    NotANumber,
    /// There is no session to change, or it has ended.
    #[error("there is no active session")]
    NoSession,
    /// The session would no longer fit its store.
    #[error("the session would exceed its size cap")]
    SessionTooLarge,
}

impl UpdateRefused {
    /// Every reason there is.
    pub const ALL: [Self; 9] = [
        Self::NotJson,
        Self::NotAnObject,
        Self::TooDeep,
        Self::TooLarge,
        Self::KeyNotAllowed,
        Self::Protected,
        Self::NotANumber,
        Self::NoSession,
        Self::SessionTooLarge,
    ];

    /// The word for the log and for the `reason` label of the counter.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
            Self::KeyNotAllowed => "key_not_allowed",
            Self::Protected => "protected",
            Self::NotANumber => "not_a_number",
            Self::NoSession => "no_session",
            Self::SessionTooLarge => "session_too_large",
        }
    }
}

/// A parsed update: well formed, bounded, not yet held against a session.
#[derive(Debug)]
pub struct SessionUpdate {
    steps: Vec<Step>,
    allowed: Keys,
}

#[derive(Debug)]
enum Step {
    Merge(Map<String, Value>),
    End,
}

/// What an update makes of a session.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// The session's new data.
    Data(Map<String, Value>),
    /// Nothing changes: there is nothing to write.
    Unchanged,
    /// The session ends.
    End,
}

impl SessionUpdate {
    /// Parses the field lines of one response, in their order, for a route that may change the
    /// top-level keys `allowed`.
    pub fn parse<'a>(
        lines: impl IntoIterator<Item = &'a HeaderValue>,
        allowed: &Keys,
    ) -> Result<Self, UpdateRefused> {
        let lines: Vec<&HeaderValue> = lines.into_iter().collect();
        if lines.iter().map(|line| line.len()).sum::<usize>() > MAX_BYTES {
            return Err(UpdateRefused::TooLarge);
        }
        let mut steps = Vec::with_capacity(lines.len());
        for line in lines {
            parse_line(line.as_bytes(), &mut steps)?;
        }
        Ok(Self { steps, allowed: allowed.clone() })
    }

    /// Whether its last word is that the session ends.
    pub(super) fn wants_end(&self) -> bool {
        matches!(self.steps.last(), Some(Step::End))
    }

    /// What the whole update makes of `session`: all of its steps or none.
    pub fn apply(&self, session: &Session) -> Result<Outcome, UpdateRefused> {
        let mut data = session.data.clone();
        let mut ended = false;
        for step in &self.steps {
            if ended {
                return Err(UpdateRefused::NoSession);
            }
            match step {
                Step::End => ended = true,
                Step::Merge(patch) => {
                    let mut patch = without_protected(patch.clone(), session)?;
                    if !patch.keys().all(|key| self.allowed.allow(key)) {
                        return Err(UpdateRefused::KeyNotAllowed);
                    }
                    add_numbers(&mut patch, session, &data)?;
                    merge_data(&mut data, patch, session.identity.claims());
                }
            }
        }
        Ok(match (ended, data == session.data) {
            (true, _) => Outcome::End,
            (false, true) => Outcome::Unchanged,
            (false, false) => Outcome::Data(data),
        })
    }
}

/// One field line: objects with commas between them, as stacks fold lines (RFC 9110, section 5.3).
fn parse_line(line: &[u8], steps: &mut Vec<Step>) -> Result<(), UpdateRefused> {
    let mut rest = line;
    loop {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            // serde_json itself stops at 128 levels, far over ours.
            Some(Err(error)) if error.to_string().starts_with("recursion limit") => {
                return Err(UpdateRefused::TooDeep);
            }
            Some(Err(_)) | None => return Err(UpdateRefused::NotJson),
        };
        let end = values.byte_offset();
        if depth(&value) > MAX_DEPTH {
            return Err(UpdateRefused::TooDeep);
        }
        steps.push(match value {
            Value::Object(patch) => Step::Merge(patch),
            Value::Null => Step::End,
            _ => return Err(UpdateRefused::NotAnObject),
        });
        rest = rest.get(end..).unwrap_or_default().trim_ascii();
        match rest.split_first() {
            None => return Ok(()),
            Some((b',', more)) => rest = more,
            Some(_) => return Err(UpdateRefused::NotJson),
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The patch without the members that are the gateway's own and only repeated; refused where it
/// would change one. `internal` is dropped unread, as `updateSession` does.
fn without_protected(
    mut patch: Map<String, Value>,
    session: &Session,
) -> Result<Map<String, Value>, UpdateRefused> {
    patch.remove("internal");
    if let Some(tokens) = patch.remove("tokenSet") {
        let tokens = tokens.as_object().ok_or(UpdateRefused::Protected)?;
        let own = session.tokens.as_members();
        if !tokens.iter().all(|(name, value)| own.get(name) == Some(value)) {
            return Err(UpdateRefused::Protected);
        }
    }
    if patch.remove("createdAt").is_some_and(|time| time != session.created_at.0) {
        return Err(UpdateRefused::Protected);
    }
    if let Some(user) = patch.get_mut("user") {
        let user = user.as_object_mut().ok_or(UpdateRefused::Protected)?;
        for claim in PROTECTED_CLAIMS {
            if let Some(value) = user.remove(claim)
                && session.identity.claim(claim).unwrap_or(&Value::Null) != &value
            {
                return Err(UpdateRefused::Protected);
            }
        }
    }
    Ok(patch)
}

/// Replaces each `{"$add": n}` by the sum with what stands in its place now, when the session's
/// data have become `data`.
fn add_numbers(
    patch: &mut Map<String, Value>,
    session: &Session,
    data: &Map<String, Value>,
) -> Result<(), UpdateRefused> {
    if patch.contains_key("$add") {
        return Err(UpdateRefused::NotANumber);
    }
    if !patch.values().any(holds_add) {
        return Ok(());
    }
    let view = session.view_with(data.clone());
    patch.iter_mut().try_for_each(|(key, value)| add_number(value, view.get(key)))
}

fn holds_add(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|members| members.contains_key("$add") || members.values().any(holds_add))
}

fn add_number(value: &mut Value, current: Option<&Value>) -> Result<(), UpdateRefused> {
    let Some(members) = value.as_object_mut() else { return Ok(()) };
    let Some(addend) = members.get("$add") else {
        return members.iter_mut().try_for_each(|(key, value)| {
            add_number(value, current.and_then(Value::as_object).and_then(|now| now.get(key)))
        });
    };
    let zero = Number::from(0);
    let sum = match (addend, current, members.len()) {
        (Value::Number(addend), None, 1) => sum(&zero, addend),
        (Value::Number(addend), Some(Value::Number(current)), 1) => sum(current, addend),
        _ => None,
    };
    *value = Value::Number(sum.ok_or(UpdateRefused::NotANumber)?);
    Ok(())
}

/// Exact for integers; nothing where the sum leaves the range of numbers.
fn sum(left: &Number, right: &Number) -> Option<Number> {
    match (left.as_i128(), right.as_i128()) {
        (Some(left), Some(right)) => Number::from_i128(left.checked_add(right)?),
        _ => Number::from_f64(left.as_f64()? + right.as_f64()?),
    }
}

/// Merges a patch into the session's data so that what apps see, the data merged over
/// `{"user": claims}`, becomes what it was with the patch merged into it.
fn merge_data(
    data: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    claims: &Map<String, Value>,
) {
    if let Some(Value::Object(user)) = patch.remove("user") {
        let overlay = data.entry("user").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(overlay) = overlay {
            compose(overlay, user, Some(claims));
        }
        if overlay.as_object().is_none_or(Map::is_empty) {
            data.remove("user");
        }
    }
    compose(data, patch, None);
}

/// RFC 7396, section 2, on members: `null` removes, objects merge, all else replaces.
pub fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    compose(target, patch, None);
}

/// Composes two merge patches: `overlay` becomes the one patch that does to `base` what the old
/// `overlay` and then `patch` would do. Without a base there is nothing below to hide, and the
/// overlay is a plain document.
fn compose(
    overlay: &mut Map<String, Value>,
    patch: Map<String, Value>,
    base: Option<&Map<String, Value>>,
) {
    for (key, value) in patch {
        let below = base.and_then(|base| base.get(&key));
        let objects_below = below.and_then(Value::as_object);
        match value {
            Value::Null if below.is_some() => drop(overlay.insert(key, Value::Null)),
            Value::Null => drop(overlay.remove(&key)),
            Value::Object(patch) => match overlay.get_mut(&key) {
                Some(Value::Object(overlay)) => compose(overlay, patch, objects_below),
                Some(other) => {
                    // What stands here hides the base whole: the object that comes starts empty.
                    let mut whole = Map::new();
                    merge(&mut whole, patch);
                    hide(&mut whole, objects_below);
                    *other = Value::Object(whole);
                }
                None => {
                    let mut fresh = Map::new();
                    compose(&mut fresh, patch, objects_below);
                    overlay.insert(key, Value::Object(fresh));
                }
            },
            other => drop(overlay.insert(key, other)),
        }
    }
}

/// Adds a `null` for whatever of the base would show through `whole`.
fn hide(whole: &mut Map<String, Value>, base: Option<&Map<String, Value>>) {
    for (key, below) in base.into_iter().flatten() {
        match whole.get_mut(key) {
            Some(Value::Object(whole)) => hide(whole, below.as_object()),
            Some(_) => {}
            None => drop(whole.insert(key.clone(), Value::Null)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;
    use proptest::prelude::*;
    use serde_json::json;

    fn update(lines: &[&str], allowed: &Keys) -> Result<SessionUpdate, UpdateRefused> {
        let lines: Vec<_> =
            lines.iter().map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap()).collect();
        SessionUpdate::parse(&lines, allowed)
    }

    /// What apps see of a session whose claims and data are these, after the update.
    fn view_after(session: &Session, lines: &[&str]) -> Result<Value, UpdateRefused> {
        let mut session = session.clone();
        match update(lines, &Keys::All)?.apply(&session)? {
            Outcome::Data(data) => session.data = data,
            Outcome::Unchanged => {}
            Outcome::End => return Ok(Value::Null),
        }
        Ok(Value::Object(session.view()))
    }

    fn merged(target: &Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut target = target.as_object().cloned().unwrap_or_default();
        merge(&mut target, patch);
        Value::Object(target)
    }

    /// RFC 7396, appendix A.
    #[test]
    fn the_examples_of_rfc_7396_hold() {
        let examples = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), Value::Null, Value::Null),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (target, patch, result) in examples {
            assert_eq!(merged(&target, patch.clone()), result, "{target} {patch}");
        }
    }

    #[test]
    fn objects_in_one_line_or_several_are_applied_in_order() {
        let expected = view_after(&session(), &[r#"{"a":2,"b":1}"#]).unwrap();
        for lines in [&[r#"{"a":1}"#, r#"{"a":2,"b":1}"#][..], &[r#"{"a":1}, {"a":2} ,{"b":1}"#]] {
            assert_eq!(view_after(&session(), lines).unwrap(), expected);
        }
    }

    #[test]
    fn one_bad_object_refuses_all() {
        for bad in ["{", "{}x", "{},", "", "x", "{\"a\":\"\\ud800\"}", "{\"a\":1e999}"] {
            assert_eq!(view_after(&session(), &[r#"{"a":1}"#, bad]), Err(UpdateRefused::NotJson));
        }
        for bad in ["1", "[]", "\"x\"", "true"] {
            assert_eq!(view_after(&session(), &[bad]), Err(UpdateRefused::NotAnObject), "{bad}");
        }
    }

    #[test]
    fn latin_1_is_not_json() {
        let line = HeaderValue::from_bytes(b"{\"name\":\"Zo\xeb\"}").unwrap();
        assert_eq!(SessionUpdate::parse([&line], &Keys::All).err(), Some(UpdateRefused::NotJson));
    }

    #[test]
    fn depth_32_is_taken_and_33_is_not() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(update(&[&nested(32)], &Keys::All).is_ok());
        for depth in [33, 127, 128, 2000] {
            let refused = update(&[&nested(depth)], &Keys::All).err();
            assert_eq!(refused, Some(UpdateRefused::TooDeep), "{depth}");
        }
    }

    #[test]
    fn sixteen_kibibytes_in_all_are_taken_and_one_more_is_not() {
        let line = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        let half = MAX_BYTES / 2;
        assert!(update(&[&line(half), &line(half)], &Keys::All).is_ok());
        let refused = update(&[&line(half), &line(half + 1)], &Keys::All).err();
        assert_eq!(refused, Some(UpdateRefused::TooLarge));
    }

    #[test]
    fn null_ends_the_session_and_nothing_comes_after() {
        assert_eq!(view_after(&session(), &["null"]), Ok(Value::Null));
        assert_eq!(view_after(&session(), &[r#"{"a":1}, null"#]), Ok(Value::Null));
        assert_eq!(view_after(&session(), &["null", "{}"]), Err(UpdateRefused::NoSession));
    }

    #[test]
    fn a_route_changes_only_its_keys() {
        let theme = Keys::Only(["theme".to_owned()].into());
        let apply = |line, keys| update(&[line], keys).unwrap().apply(&session());
        assert!(matches!(apply(r#"{"theme":"dark"}"#, &theme), Ok(Outcome::Data(_))));
        assert_eq!(apply(r#"{"theme":1,"b":1}"#, &theme), Err(UpdateRefused::KeyNotAllowed));
        assert_eq!(apply(r#"{"b":1}"#, &Keys::None), Err(UpdateRefused::KeyNotAllowed));
        assert_eq!(apply(r#"{"internal":{"sid":"x"}}"#, &Keys::None), Ok(Outcome::Unchanged));
    }

    #[test]
    fn who_the_user_is_cannot_be_changed_but_echoed() {
        for patch in [
            json!({"user":{"sub":"auth0|other"}}),
            json!({"user":{"sub":null}}),
            json!({"user":{"sub":{"$add":1}}}),
            json!({"user":{"org_id":"org_1"}}),
            json!({"user":null}),
            json!({"user":"zoe"}),
            json!({"tokenSet":{"accessToken":"other"}}),
            json!({"tokenSet":null}),
            json!({"createdAt":1}),
        ] {
            let refused = view_after(&session(), &[&patch.to_string()]);
            assert_eq!(refused, Err(UpdateRefused::Protected), "{patch}");
        }
        let echo = json!({
            "user": session().identity.claims(),
            "tokenSet": {"accessToken": "at", "idToken": "it"},
            "createdAt": session().created_at.0,
            "internal": {"sid": "whatever"},
            "theme": "dark",
        });
        let seen = view_after(&session(), &[&echo.to_string()]).unwrap();
        assert_eq!(seen, view_after(&session(), &[r#"{"theme":"dark"}"#]).unwrap());
    }

    #[test]
    fn the_nickname_changes_in_what_apps_see_alone() {
        let mut session = session();
        let update = update(&[r#"{"user":{"nickname":"Al","email":null}}"#], &Keys::All).unwrap();
        let Ok(Outcome::Data(data)) = update.apply(&session) else { panic!("no data") };
        session.data = data;
        assert_eq!(session.view()["user"]["nickname"], "Al");
        assert_eq!(session.view()["user"].get("email"), None);
        assert_eq!(session.identity.claim("nickname"), Some(&json!("zoe")));
        assert_eq!(session.identity.claim("email"), Some(&json!("zoe@example.com")));
    }

    #[test]
    fn adding_counts_from_nothing_and_refuses_what_is_no_number() {
        let mut session = session();
        for expected in [1, 2, 3] {
            let update = update(&[r#"{"n":{"deep":{"$add":1}}}"#], &Keys::All).unwrap();
            let Ok(Outcome::Data(data)) = update.apply(&session) else { panic!("no data") };
            session.data = data;
            assert_eq!(session.view()["n"]["deep"], expected);
        }
        let after = |line| view_after(&session, &[line]);
        assert_eq!(after(r#"{"n":{"deep":{"$add":-1.5}}}"#).unwrap()["n"]["deep"], json!(1.5));
        let twice = r#"{"m":{"$add":1}},{"m":{"$add":2}}"#;
        assert_eq!(after(twice).unwrap()["m"], 3);
        for bad in [
            r#"{"n":{"$add":1}}"#,
            r#"{"user":{"nickname":{"$add":1}}}"#,
            r#"{"m":{"$add":"1"}}"#,
            r#"{"m":{"$add":1,"x":2}}"#,
            r#"{"m":{"$add":null}}"#,
            r#"{"$add":1}"#,
            r#"{"m":18446744073709551615},{"m":{"$add":1}}"#,
            r#"{"m":1e308},{"m":{"$add":1e308}}"#,
        ] {
            assert_eq!(after(bad), Err(UpdateRefused::NotANumber), "{bad}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            "[a-c]?".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                object_of(inner).prop_map(Value::Object),
            ]
        })
    }

    fn object_of(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
        prop::collection::btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    fn object() -> impl Strategy<Value = Map<String, Value>> {
        object_of(json_value())
    }

    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Object(members) => members
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
            other => other,
        }
    }

    proptest! {
        /// Composing patches and then applying them is applying one after the other.
        #[test]
        fn composed_patches_do_what_they_did_in_turn(
            base in object(),
            patches in prop::collection::vec(object(), 1..5),
        ) {
            let Value::Object(base) = without_nulls(Value::Object(base)) else { unreachable!() };
            let mut in_turn = base.clone();
            let mut overlay = Map::new();
            for patch in patches {
                merge(&mut in_turn, patch.clone());
                compose(&mut overlay, patch, Some(&base));
            }
            let mut at_once = base;
            merge(&mut at_once, overlay);
            prop_assert_eq!(at_once, in_turn);
        }

        #[test]
        fn merging_twice_is_merging_once(target in object(), patch in object()) {
            let mut once = target;
            merge(&mut once, patch.clone());
            let mut twice = once.clone();
            merge(&mut twice, patch);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn patches_of_different_keys_commute(a in json_value(), b in json_value(), target in object()) {
            let patch = |key: &str, value: &Value| Map::from_iter([(key.to_owned(), value.clone())]);
            let mut left = target.clone();
            merge(&mut left, patch("a", &a));
            merge(&mut left, patch("b", &b));
            let mut right = target;
            merge(&mut right, patch("b", &b));
            merge(&mut right, patch("a", &a));
            prop_assert_eq!(left, right);
        }

        #[test]
        fn no_line_panics(line: Vec<u8>) {
            if let Ok(line) = HeaderValue::from_bytes(&line)
                && let Ok(update) = SessionUpdate::parse([&line], &Keys::All)
            {
                let _ = update.apply(&session());
            }
        }
    }
}
