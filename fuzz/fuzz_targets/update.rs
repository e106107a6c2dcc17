//! What an app says in `X-Session-Update`: a session that it makes holds what RFC 7396 says, never
//! another identity, never a key that the route may not change, and it opens as it was sealed.

#![no_main]

use std::collections::BTreeSet;

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vestibule::clock::Timestamp;
use vestibule::config::value::Keys;
use vestibule::session::update::{MAX_BYTES, MAX_DEPTH, Outcome};
use vestibule::session::{Identity, Session, SessionId, SessionUpdate, Tokens};

const WHO: [&str; 5] = ["sub", "iss", "aud", "sid", "org_id"];

fuzz_target!(|data: &[u8]| {
    let [kind, data @ ..] = data else { return };
    let lines: Option<Vec<_>> =
        data.split(|byte| *byte == b'\n').map(|line| HeaderValue::from_bytes(line).ok()).collect();
    let Some(lines) = lines else { return };
    let allowed = match kind % 4 {
        0 => Keys::Only(BTreeSet::from(["a".to_owned(), "user".to_owned()])),
        1 => Keys::None,
        _ => Keys::All,
    };
    let session = session(kind % 8 > 3);
    let Ok(update) = SessionUpdate::parse(&lines, &allowed) else { return };
    assert!(lines.iter().map(HeaderValue::len).sum::<usize>() <= MAX_BYTES);
    let outcome = update.apply(&session);
    folded(&lines, &allowed, &session, &format!("{outcome:?}"));
    let patches = patches(&lines);
    let after = match outcome {
        Ok(Outcome::Data(data)) => Session { data, ..session.clone() },
        Ok(Outcome::Unchanged) => session.clone(),
        Ok(Outcome::End) => {
            assert_eq!(patches.last(), Some(&Value::Null), "it ends at nobody's word");
            return;
        }
        Err(_) => return,
    };
    sound(&session, &after, &allowed);
    if !patches.iter().any(adds) {
        let view = patches.iter().fold(Value::Object(session.view()), |view, patch| {
            let Value::Object(mut patch) = patch.clone() else { panic!("no object is taken") };
            ["internal", "tokenSet", "createdAt"].iter().for_each(|own| drop(patch.remove(*own)));
            if let Some(Value::Object(user)) = patch.get_mut("user") {
                WHO.iter().for_each(|claim| drop(user.remove(*claim)));
            }
            merged(view, Value::Object(patch))
        });
        let own = |mut view: Map<String, Value>| {
            view.retain(|key, value| key != "user" || value != &json!({}));
            Value::Object(view)
        };
        let Value::Object(view) = view else { panic!("a session is an object") };
        assert_eq!(own(after.view()), own(view));
        if patches.len() == 1 {
            let again = update.apply(&after).expect("as before");
            assert_eq!(again, Outcome::Unchanged, "the same again changes something");
        }
    }
});

fn session(changed: bool) -> Session {
    let claims = json!({
        "iss": "i", "sub": "zoe", "aud": "c", "sid": "s1", "nickname": "zoe",
        "address": {"city": "B", "geo": {"x": 1}}, "roles": ["a"], "n": 1,
    });
    let data = if changed {
        json!({"a": {"b": 1, "c": {"d": null}}, "n": 3, "list": [1, {"a": null}],
               "user": {"nickname": "Al", "address": {"city": null}, "extra": true}})
    } else {
        json!({})
    };
    Session {
        id: SessionId::random().expect("randomness"),
        version: 1,
        created_at: Timestamp(100),
        touched_at: Timestamp(100),
        identity: Identity::new(claims.as_object().expect("claims").clone()).expect("an identity"),
        data: data.as_object().expect("data").clone(),
        tokens: Tokens {
            id_token: "it".to_owned(),
            access_token: Some("at".to_owned()),
            refresh_token: None,
            expires_at: None,
            refresh_at: None,
            scope: None,
        },
    }
}

/// RFC 9110, section 5.3: lines that somebody on the way has joined with commas say the same.
fn folded(lines: &[HeaderValue], allowed: &Keys, session: &Session, outcome: &str) {
    let line = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    if line.len() <= MAX_BYTES {
        let line = HeaderValue::from_bytes(&line).expect("no other bytes");
        let update = SessionUpdate::parse([&line], allowed).expect("the same objects");
        assert_eq!(format!("{:?}", update.apply(session)), outcome);
    }
}

/// The objects of all lines, read apart from what is tested.
fn patches(lines: &[HeaderValue]) -> Vec<Value> {
    let mut all = Vec::new();
    for line in lines {
        let mut rest = line.as_bytes();
        loop {
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
            all.push(values.next().expect("a value").expect("JSON"));
            rest = rest[values.byte_offset()..].trim_ascii();
            match rest.split_first() {
                Some((b',', more)) => rest = more,
                Some(_) => panic!("something beside the objects is taken"),
                None => break,
            }
        }
    }
    all
}

/// What holds whatever was asked.
fn sound(before: &Session, after: &Session, allowed: &Keys) {
    let (view, old) = (after.view(), before.view());
    for claim in WHO {
        let seen = view.get("user").and_then(|user| user.get(claim));
        assert_eq!(seen, before.identity.claim(claim), "an app sees another {claim}");
    }
    for own in ["internal", "tokenSet", "createdAt"] {
        assert!(!view.contains_key(own), "an app has set {own}");
    }
    for key in view.keys().chain(old.keys()) {
        assert!(view.get(key) == old.get(key) || allowed.allow(key), "{key} is not its own");
    }
    // One more than an update's: what it adds stands in the data.
    assert!(depth(&Value::Object(after.data.clone())) <= MAX_DEPTH, "too deep");
    let sealed = serde_json::to_vec(after).expect("JSON");
    let opened: Session = serde_json::from_slice(&sealed).expect("a session that opens");
    assert_eq!(opened, *after, "it opens as another");
}

fn adds(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|members| members.contains_key("$add") || members.values().any(adds))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// RFC 7396, section 2, as it is written there.
fn merged(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let Value::Object(mut target) = (if target.is_object() { target } else { json!({}) }) else {
        unreachable!("it is an object")
    };
    for (name, value) in patch {
        let old = target.remove(&name);
        if !value.is_null() {
            target.insert(name, merged(old.unwrap_or(Value::Null), value));
        }
    }
    Value::Object(target)
}
