//! What a client sends as `Cookie`, made of anything and of pieces of two real sessions: a session
//! that opens is one of the two, nothing of the gateway's own is left in what apps get, everything
//! else is, and what is answered is what is read next time.

#![no_main]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use vestibule::clock::Timestamp;
use vestibule::config::value::{Keys, Secret};
use vestibule::config::{self, Cookie, SameSite};
use vestibule::session::cookie::{pairs, remove};
use vestibule::session::memory::Bounds;
use vestibule::session::{
    Change, Identity, Memory, Sealer, Session, SessionUpdate, Sessions, Tokens, Visit,
};
use vestibule_fuzz::SECRET;

const NAME: &str = "__Host-session";
const BEGIN: Timestamp = Timestamp(1_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A gateway, and what it has given to two browsers.
struct Setting {
    sessions: Sessions,
    known: [Session; 2],
    /// What stands for a byte from 0x80 on: names, values, and parts of a session that is split.
    pieces: Vec<Vec<u8>>,
}

thread_local! {
    static SETTING: Setting = Setting::new();
}

impl Setting {
    fn new() -> Self {
        let secret = Secret::new(SECRET);
        let cookie = Cookie {
            name: NAME.to_owned(),
            same_site: SameSite::Lax,
            domain: None,
            transient: false,
        };
        let config = config::Session {
            secrets: vec![secret.clone()],
            absolute: 3 * DAY,
            inactivity: Some(DAY),
            cookie,
            redis: None,
        };
        let memory = Arc::new(Memory::new(Bounds::default()));
        let sessions = Sessions::new(&config, Arc::new(Sealer::new(&[secret])), memory);
        let (short, short_lines) = signed_in(&sessions, "short", 40);
        let (long, long_lines) = signed_in(&sessions, "long", 6000);
        let mut pieces: Vec<Vec<u8>> =
            vec![NAME.into(), b"; ".to_vec(), format!("; {NAME}=").into()];
        assert!(short_lines.len() == 1 && long_lines.len() > 2);
        for pair in short_lines.iter().chain(&long_lines) {
            let (name, value) = pair.split_once('=').expect("a pair");
            let (tag, rest) = value.split_at(8);
            pieces.extend([pair, name, value, tag, rest].map(|text| text.as_bytes().to_vec()));
        }
        pieces.push(long_lines.join("; ").into());
        Self { sessions, known: [short, long], pieces }
    }
}

/// A user whose session holds `length` bytes of an app's, and the browser's cookies.
fn signed_in(sessions: &Sessions, subject: &str, length: usize) -> (Session, Vec<String>) {
    let claims = json!({"iss": "http://127.0.0.1:9/", "sub": subject});
    let identity = Identity::new(claims.as_object().expect("claims").clone()).expect("an identity");
    let tokens = Tokens {
        id_token: "it".to_owned(),
        access_token: None,
        refresh_token: None,
        expires_at: None,
        refresh_at: None,
        scope: None,
    };
    let mut visit = Visit::default();
    let change = Change::Start { identity, tokens };
    now(sessions.commit(&mut visit, change, BEGIN)).expect("a session");
    let line = HeaderValue::try_from(json!({"a": "x".repeat(length)}).to_string()).expect("ASCII");
    let update = SessionUpdate::parse([&line], &Keys::All).expect("an update");
    now(sessions.commit(&mut visit, Change::Update(update), BEGIN)).expect("an update");
    let mut answer = HeaderMap::new();
    sessions.answer(&visit, &mut answer, BEGIN);
    let pair = |line: &HeaderValue| {
        let line = line.to_str().expect("ASCII");
        line.split(';').next().expect("a pair").to_owned()
    };
    let lines = answer.get_all(SET_COOKIE).iter().map(pair).collect();
    (visit.session().expect("a session").clone(), lines)
}

/// The cookie store waits for nobody.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the cookie store waits"),
    }
}

fuzz_target!(|data: &[u8]| {
    SETTING.with(|setting| {
        let [hours, data @ ..] = data else { return };
        let Some(headers) = headers(data, &setting.pieces) else { return };
        let time = BEGIN.plus(Duration::from_secs(u64::from(*hours % 80) * 3600));
        let visit = now(setting.sessions.load(&headers, time)).expect("no store to reach");
        if let Some(session) = visit.session() {
            assert!(setting.known.iter().any(|known| same(session, known)), "another's session");
            assert!(time < BEGIN.plus(DAY), "an expired session");
        }
        if let Some(known) = brought_plainly(setting, &headers)
            && *hours % 80 < 24
        {
            let session = visit.session().expect("the session that was brought");
            assert!(same(session, known));
        }
        nothing_of_ours_is_left(setting, &headers);
        what_is_answered_is_read(setting, &headers, &visit, time);
    });
});

fn headers(data: &[u8], pieces: &[Vec<u8>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for field in data.split(|byte| *byte == 0xff) {
        let mut text = Vec::new();
        for byte in field {
            match byte.checked_sub(0x80).and_then(|at| pieces.get(usize::from(at))) {
                Some(piece) => text.extend_from_slice(piece),
                None => text.push(*byte),
            }
        }
        headers.append(COOKIE, HeaderValue::from_bytes(&text).ok()?);
    }
    let length: usize = headers.values().map(HeaderValue::len).sum();
    (length < 64 * 1024).then_some(headers)
}

/// But for when it was used last.
fn same(session: &Session, known: &Session) -> bool {
    let touched_at = known.touched_at;
    Session { touched_at, ..session.clone() } == *known
}

/// The short session, where its cookie is there as a browser would send it, and no other of ours.
fn brought_plainly<'a>(setting: &'a Setting, headers: &HeaderMap) -> Option<&'a Session> {
    let owns = |name: &[u8]| setting.sessions.cookie().owns(name);
    let mut ours = pairs(headers).filter(|(name, _)| owns(name));
    let (name, value) = ours.next()?;
    let whole = name == NAME.as_bytes() && value == setting.pieces[5].as_slice();
    (whole && ours.next().is_none()).then(|| &setting.known[0])
}

fn nothing_of_ours_is_left(setting: &Setting, headers: &HeaderMap) {
    let cookie = setting.sessions.cookie();
    let mut passed = headers.clone();
    remove(&mut passed, |name| cookie.owns(name));
    assert!(cookie.find(&passed).brought.nothing(), "an app gets the session: {passed:?}");
    assert!(!pairs(&passed).any(|(name, _)| cookie.owns(name)));
    let others = |headers: &HeaderMap| -> Vec<(Vec<u8>, Vec<u8>)> {
        pairs(headers)
            .filter(|(name, value)| !cookie.owns(name) && !(name.is_empty() && value.is_empty()))
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect()
    };
    assert_eq!(others(&passed), others(headers), "another's cookie is lost");
    let mut again = passed.clone();
    remove(&mut again, |name| cookie.owns(name));
    assert_eq!(again, passed);
}

fn what_is_answered_is_read(
    setting: &Setting,
    headers: &HeaderMap,
    visit: &Visit,
    time: Timestamp,
) {
    let fields = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let mut all = fields.flat_map(|field| field.split(|byte| *byte == b';'));
    if all.any(|pair| {
        matches!(pair.split(|byte| *byte == b'=').next(), Some([.., b' ' | b'\t']) | None)
            || !pair.contains(&b'=')
    }) {
        // A browser has a name for every value, and no blank behind it.
        return;
    }
    let mut jar: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in pairs(headers) {
        if jar.iter().any(|(other, _)| other == name) {
            // No browser has two of one name under one path.
            return;
        }
        jar.push((name.to_vec(), value.to_vec()));
    }
    let mut answer = HeaderMap::new();
    setting.sessions.answer(visit, &mut answer, time);
    let changed = answer.contains_key(SET_COOKIE);
    for line in answer.get_all(SET_COOKIE) {
        let line = line.to_str().expect("ASCII");
        let (name, value) =
            line.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
        assert!(name.len() + value.len() < 4096, "a browser does not keep it");
        jar.retain(|(other, _)| other != name.as_bytes());
        if !line.contains("Max-Age=0") {
            jar.push((name.into(), value.into()));
        }
    }
    if !changed {
        return;
    }
    let pair = |(name, value): &(Vec<u8>, Vec<u8>)| [&name[..], b"=", &value[..]].concat();
    let field = jar.iter().map(pair).collect::<Vec<_>>().join(&b"; "[..]);
    let next = HeaderMap::from_iter([(COOKIE, HeaderValue::from_bytes(&field).expect("a field"))]);
    let again = now(setting.sessions.load(&next, time)).expect("no store to reach");
    assert_eq!(again.session(), visit.session(), "another session the next time");
    let mut answer = HeaderMap::new();
    setting.sessions.answer(&again, &mut answer, time);
    assert!(!answer.contains_key(SET_COOKIE), "it is written twice");
}
