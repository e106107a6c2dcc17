//! What every store promises. Each claim gets a store of its own.

use http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use vestibule::clock::Timestamp;
use vestibule::config::value::Secret;
use vestibule::session::{Change, CommitRefused};

use super::endings::{
    a_login_under_way_at_the_providers_logout_does_not_escape_it,
    a_logout_by_the_provider_ends_whom_it_names_up_to_its_time,
    a_logout_by_the_provider_is_obeyed_once, many_sessions_of_one_user_end_together,
    one_at_a_time_has_the_turn, what_was_under_way_at_the_providers_logout_brings_nothing_back,
};
use super::{ABSOLUTE, INACTIVITY, Store, identity, tokens, update, view};
use crate::support::join_all;

/// Holds each claim against a store; the last that is named when it fails is the one.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        pub(crate) async fn hold(store: &dyn Fn() -> Store) {
            $(
                eprintln!("{}", stringify!($claim));
                Box::pin($claim(&store())).await;
            )*
        }
    };
}

claims! {
    a_login_is_seen_by_every_worker_of_every_gateway,
    parallel_updates_all_survive_whichever_response_comes_last,
    an_addition_is_exact_however_many_add,
    an_older_cookie_is_answered_with_the_newest,
    a_copied_cookie_is_dead_after_logout_and_no_response_revives_it,
    a_touch_under_way_at_logout_writes_nothing,
    a_refresh_under_way_at_logout_changes_nothing,
    a_login_over_a_planted_session_takes_a_new_id_and_kills_the_old,
    most_responses_set_no_cookie_and_a_touch_only_in_time,
    a_touch_does_not_revert_an_update_of_another_response,
    an_update_does_not_revert_a_touch_of_another_response,
    a_slow_response_changes_a_session_that_was_in_use_when_it_began,
    an_unused_session_expires,
    absolute_expiry_is_extended_by_nothing,
    an_expired_session_is_none_and_its_cookie_is_deleted,
    what_does_not_open_is_no_session_and_deleted,
    a_refresh_replaces_the_identity_and_keeps_the_data,
    a_session_over_its_cap_is_refused_and_stays_as_it_was,
    a_refused_update_changes_nothing,
    an_update_that_changes_nothing_writes_nothing,
    a_null_update_ends_the_session,
    an_update_that_no_browser_has_seen_is_there_whenever_its_session_is_used,
    secrets_rotate,
    a_logout_by_the_provider_ends_whom_it_names_up_to_its_time,
    a_logout_by_the_provider_is_obeyed_once,
    what_was_under_way_at_the_providers_logout_brings_nothing_back,
    many_sessions_of_one_user_end_together,
    a_login_under_way_at_the_providers_logout_does_not_escape_it,
    one_at_a_time_has_the_turn,
}

async fn a_login_is_seen_by_every_worker_of_every_gateway(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let jar = gateway.worker().signed_in(now).await;
    for worker in [gateway.worker(), store.worker()] {
        let seen = worker.view(&jar, now).await.unwrap();
        assert_eq!(seen["user"]["sub"], "auth0|zoe");
    }
}

async fn parallel_updates_all_survive_whichever_response_comes_last(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    let jar = here.signed_in(now).await;
    let visits = (0..20).map(|n| {
        let (worker, jar) = (if n % 2 == 0 { &here } else { &there }, &jar);
        async move {
            let mut visit = worker.load(jar, now).await;
            let patch = json!({ format!("k{n}"): n, "sum": { "$add": n } });
            worker.commit(&mut visit, update(&patch), now).await.unwrap();
            visit
        }
    });
    for visit in join_all(visits).await {
        let mut jar = jar.clone();
        here.answer(&visit, &mut jar, now);
        let seen = here.view(&jar, now).await.unwrap();
        assert_eq!(seen["sum"], 190);
        assert!((0..20).all(|n| seen[format!("k{n}")] == n), "{seen}");
    }
}

async fn an_addition_is_exact_however_many_add(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let workers = [gateway.worker(), gateway.worker(), gateway.worker()];
    let jar = workers[0].signed_in(now).await;
    let additions = (0..300).map(|n| {
        let (worker, mut jar) = (&workers[n % 3], jar.clone());
        async move { worker.update(&mut jar, json!({ "n": { "$add": 1 } }), now).await.unwrap() }
    });
    join_all(additions).await;
    assert_eq!(workers[0].view(&jar, now).await.unwrap()["n"], 300);
}

async fn an_older_cookie_is_answered_with_the_newest(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let worker = gateway.worker();
    let old = worker.signed_in(now).await;
    worker.update(&mut old.clone(), json!({ "theme": "dark" }), now).await.unwrap();
    let worker = gateway.worker();
    let visit = worker.load(&old, now).await;
    assert_eq!(view(&visit).unwrap()["theme"], "dark");
    let mut new = old.clone();
    worker.answer(&visit, &mut new, now);
    // A gateway that remembers nothing reads the update by the cookie alone.
    assert_eq!(store.worker().view(&new, now).await.unwrap()["theme"], "dark");
}

/// CVE-2024-21492, and a response under way at logout.
async fn a_copied_cookie_is_dead_after_logout_and_no_response_revives_it(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    let copied = here.signed_in(now).await;
    let mut slow = there.load(&copied, now).await;
    let mut jar = copied.clone();
    here.log_out(&mut jar, now).await;
    assert!(jar.all().is_empty());
    assert_eq!(there.view(&copied, now).await, None);
    let refused = there.commit(&mut slow, update(&json!({ "a": 1 })), now).await;
    assert!(matches!(refused, Err(CommitRefused::NoSession)));
    // It does not even delete: another login may be there.
    assert_eq!(there.response(&slow, now), HeaderMap::new());
    assert_eq!(there.view(&copied, now).await, None);
}

async fn a_touch_under_way_at_logout_writes_nothing(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let copied = worker.signed_in(now).await;
    let later = Timestamp(now.0 + 200);
    let touched = worker.load(&copied, later).await;
    worker.log_out(&mut copied.clone(), later).await;
    assert_eq!(worker.response(&touched, later), HeaderMap::new());
    assert_eq!(worker.view(&copied, later).await, None);
}

async fn a_refresh_under_way_at_logout_changes_nothing(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let copied = worker.signed_in(now).await;
    let mut refreshing = worker.load(&copied, now).await.without_cookies();
    worker.log_out(&mut copied.clone(), now).await;
    let change = Change::Refresh { identity: identity(&json!({})), tokens: tokens("second") };
    let refused = worker.commit(&mut refreshing, change, now).await;
    assert!(matches!(refused, Err(CommitRefused::NoSession)));
    assert_eq!(worker.view(&copied, now).await, None);
}

/// GHSA-f24x-5g9q-753f
async fn a_login_over_a_planted_session_takes_a_new_id_and_kills_the_old(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let mut planted = worker.signed_in(now).await;
    worker.update(&mut planted, json!({ "cart": "evil" }), now).await.unwrap();
    let id = worker.load(&planted, now).await.session().unwrap().id;
    let mut own = planted.clone();
    worker.log_in(&mut own, now).await;
    let visit = worker.load(&own, now).await;
    assert_ne!(visit.session().unwrap().id, id);
    assert_eq!(view(&visit).unwrap().get("cart"), None);
    assert_eq!(worker.view(&planted, now).await, None);
}

async fn most_responses_set_no_cookie_and_a_touch_only_in_time(store: &Store) {
    let start = Timestamp::now();
    let worker = store.worker();
    let jar = worker.signed_in(start).await;
    for (after, touched) in [(0, false), (99, false), (100, true)] {
        let now = Timestamp(start.0 + after);
        let visit = worker.load(&jar, now).await;
        let response = worker.response(&visit, now);
        assert_eq!(response.contains_key(SET_COOKIE), touched, "{after}");
        assert_eq!(response.get(CACHE_CONTROL).is_some(), touched, "{after}");
    }
}

async fn a_touch_does_not_revert_an_update_of_another_response(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    for first in ["touch", "update"] {
        let mut jar = here.signed_in(now).await;
        let later = Timestamp(now.0 + 200);
        let touch = here.load(&jar, later).await;
        let mut change = there.load(&jar, later).await;
        there.commit(&mut change, update(&json!({ "a": 1 })), later).await.unwrap();
        if first == "touch" {
            here.answer(&touch, &mut jar, later);
            there.answer(&change, &mut jar, later);
        } else {
            there.answer(&change, &mut jar, later);
            here.answer(&touch, &mut jar, later);
        }
        for worker in [&here, &there] {
            assert_eq!(worker.view(&jar, later).await.unwrap()["a"], 1, "{first} first");
            let used = worker.load(&jar, later).await.session().unwrap().touched_at;
            assert_eq!(used, later, "{first} first");
        }
    }
}

/// The use stands in the cookie alone, the update in the memory.
async fn an_update_does_not_revert_a_touch_of_another_response(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(now).await;
    let mut slow = worker.load(&jar, now).await;
    let used = Timestamp(now.0 + 500);
    let touch = worker.load(&jar, used).await;
    worker.answer(&touch, &mut jar, used);
    worker.commit(&mut slow, update(&json!({ "a": 1 })), used).await.unwrap();
    let last = Timestamp(used.0 + INACTIVITY - 1);
    assert_eq!(worker.view(&jar, last).await.unwrap()["a"], 1);
}

/// Though whoever changed the session last had not used it for longer.
async fn a_slow_response_changes_a_session_that_was_in_use_when_it_began(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let jar = worker.signed_in(now).await;
    let mut old = worker.load(&jar, now).await;
    let used = Timestamp(now.0 + 500);
    let mut slow = worker.load(&jar, used).await;
    worker.commit(&mut old, update(&json!({ "a": 1 })), used).await.unwrap();
    let last = Timestamp(used.0 + INACTIVITY - 1);
    worker.commit(&mut slow, update(&json!({ "b": 2 })), last).await.unwrap();
    let view = view(&slow).unwrap();
    assert_eq!((&view["a"], &view["b"]), (&json!(1), &json!(2)));
}

async fn an_unused_session_expires(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let jar = worker.signed_in(now).await;
    assert!(worker.view(&jar, Timestamp(now.0 + INACTIVITY - 1)).await.is_some());
    let worker = store.worker();
    let jar = worker.signed_in(now).await;
    assert!(worker.view(&jar, Timestamp(now.0 + INACTIVITY)).await.is_none());
}

async fn absolute_expiry_is_extended_by_nothing(store: &Store) {
    let start = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(start).await;
    let mut now = start;
    while now.0 + 400 < start.0 + ABSOLUTE {
        now = Timestamp(now.0 + 400);
        worker.update(&mut jar, json!({ "n": { "$add": 1 } }), now).await.unwrap();
        let mut visit = worker.load(&jar, now).await;
        let change = Change::Refresh { identity: identity(&json!({})), tokens: tokens("next") };
        worker.commit(&mut visit, change, now).await.unwrap();
        let line = worker.response(&visit, now).remove(SET_COOKIE);
        // Redis has the session itself: its cookie stays.
        assert!(line.is_some() || store.is_redis());
        let age = line.and_then(|line| max_age(line.to_str().unwrap()));
        assert!(age.is_none_or(|age| now.0 + age <= start.0 + ABSOLUTE), "{age:?}");
        worker.answer(&visit, &mut jar, now);
    }
    let last = Timestamp(start.0 + ABSOLUTE - 1);
    assert_eq!(worker.view(&jar, last).await.unwrap()["n"], 7);
    assert!(worker.view(&jar, Timestamp(start.0 + ABSOLUTE)).await.is_none());
}

fn max_age(line: &str) -> Option<u64> {
    line.split("; ").find_map(|attribute| attribute.strip_prefix("Max-Age="))?.parse().ok()
}

async fn an_expired_session_is_none_and_its_cookie_is_deleted(store: &Store) {
    let start = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(start).await;
    let steps = [(999, true), (1998, true), (2997, true), (2998, true), (3000, false)];
    for (after, alive) in steps {
        let now = Timestamp(start.0 + after);
        let visit = worker.load(&jar, now).await;
        assert_eq!(visit.session().is_some(), alive, "{after}");
        worker.answer(&visit, &mut jar, now);
    }
    assert!(jar.all().is_empty());
}

async fn what_does_not_open_is_no_session_and_deleted(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let good = worker.signed_in(now).await.get("__Host-session").unwrap().value.clone();
    let flipped = |place: usize| {
        let mut text = good.clone().into_bytes();
        text[place] = if text[place] == b'A' { b'B' } else { b'A' };
        String::from_utf8(text).unwrap()
    };
    let mut junk: Vec<String> = (0..good.len()).step_by(7).map(flipped).collect();
    junk.extend(["junk".to_owned(), String::new(), "x".repeat(20_000), format!("{good}A")]);
    junk.push(good[..good.len() - 1].to_owned());
    for value in junk {
        let parts = format!(
            "__Host-session={value}; __Host-session.0=junkjunkjunk; __Host-session.3=x; a=b"
        );
        let request = HeaderMap::from_iter([(COOKIE, HeaderValue::try_from(parts).unwrap())]);
        let visit = worker.0.load(&request, now).await.unwrap();
        assert!(visit.session().is_none(), "{value}");
        let response = worker.response(&visit, now);
        let deleted: Vec<_> = response.get_all(SET_COOKIE).iter().collect();
        assert_eq!(deleted.len(), 3, "{deleted:?}");
        assert!(deleted.iter().all(|line| line.to_str().unwrap().contains("Max-Age=0")));
    }
}

async fn a_refresh_replaces_the_identity_and_keeps_the_data(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(now).await;
    let patch = json!({ "user": { "nickname": "Al" }, "theme": "dark" });
    worker.update(&mut jar, patch, now).await.unwrap();
    let mut visit = worker.load(&jar, now).await;
    // An update comes in between.
    worker.update(&mut jar.clone(), json!({ "cart": [1] }), now).await.unwrap();
    let new = identity(&json!({ "nickname": "new", "plan": "pro" }));
    let change = Change::Refresh { identity: new, tokens: tokens("second") };
    worker.commit(&mut visit, change, now).await.unwrap();
    worker.answer(&visit, &mut jar, now);
    let visit = store.worker().load(&jar, now).await;
    let (session, seen) = (visit.session().unwrap(), view(&visit).unwrap());
    assert_eq!(seen["user"]["nickname"], "Al");
    assert_eq!(seen["user"]["plan"], "pro");
    assert_eq!((&seen["theme"], &seen["cart"]), (&json!("dark"), &json!([1])));
    assert_eq!(session.identity.claim("nickname"), Some(&json!("new")));
    assert_eq!(session.tokens, tokens("second"));
}

async fn a_session_over_its_cap_is_refused_and_stays_as_it_was(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(now).await;
    let huge = worker.update(&mut jar, json!({ "a": "x".repeat(13_000) }), now).await;
    assert!(matches!(huge, Err(CommitRefused::TooLarge(_))));
    assert_eq!(worker.view(&jar, now).await.unwrap().get("a"), None);
    let large = "x".repeat(9_000);
    worker.update(&mut jar, json!({ "a": large }), now).await.unwrap();
    assert_eq!(store.worker().view(&jar, now).await.unwrap()["a"], large);
    // And small again, with nothing left of the large one.
    worker.update(&mut jar, json!({ "a": null }), now).await.unwrap();
    assert_eq!(jar.all().len(), 1);
    assert_eq!(store.worker().view(&jar, now).await.unwrap().get("a"), None);
}

async fn a_refused_update_changes_nothing(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let mut jar = worker.signed_in(now).await;
    worker.update(&mut jar, json!({ "a": "text" }), now).await.unwrap();
    for patch in [json!({ "b": 1, "user": { "sub": "x" } }), json!({ "b": 1, "a": { "$add": 1 } })]
    {
        let refused = worker.update(&mut jar, patch, now).await;
        assert!(matches!(refused, Err(CommitRefused::Update(_))));
        let seen = worker.view(&jar, now).await.unwrap();
        assert_eq!((&seen["a"], seen.get("b")), (&json!("text"), None));
    }
}

async fn an_update_that_changes_nothing_writes_nothing(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    let mut jar = here.signed_in(now).await;
    here.update(&mut jar, json!({ "a": 1 }), now).await.unwrap();
    let mut visit = here.load(&jar, now).await;
    here.commit(&mut visit, update(&json!({ "a": 1 })), now).await.unwrap();
    assert_eq!(here.response(&visit, now), HeaderMap::new());
    // But it does change what somebody else has changed meanwhile.
    there.update(&mut jar, json!({ "a": 2 }), now).await.unwrap();
    here.commit(&mut visit, update(&json!({ "a": 1 })), now).await.unwrap();
    here.answer(&visit, &mut jar, now);
    assert_eq!(there.view(&jar, now).await.unwrap()["a"], 1);
}

async fn a_null_update_ends_the_session(store: &Store) {
    let now = Timestamp::now();
    let worker = store.worker();
    let copied = worker.signed_in(now).await;
    let mut jar = copied.clone();
    worker.update(&mut jar, Value::Null, now).await.unwrap();
    assert!(jar.all().is_empty());
    assert_eq!(worker.view(&copied, now).await, None);
}

async fn an_update_that_no_browser_has_seen_is_there_whenever_its_session_is_used(store: &Store) {
    let day = std::time::Duration::from_secs(24 * 3600);
    let store = store.with(|config| (config.absolute, config.inactivity) = (3 * day, Some(day)));
    let now = Timestamp::now();
    let (early, late) = (Timestamp(now.0 + 7200), Timestamp(now.0 + 23 * 3600));
    let worker = store.gateway().worker();
    let mut jar = worker.signed_in(now).await;
    // A response that takes hours begins; others are answered, and their cookies get lost.
    let mut slow = worker.load(&jar, now).await;
    worker.update(&mut jar.clone(), json!({ "theme": "dark" }), now).await.unwrap();
    for time in [early, late] {
        // Everywhere in the memory something changes.
        for _ in 0..300 {
            let mut other = worker.signed_in(time).await;
            worker.update(&mut other, json!({ "a": 1 }), time).await.unwrap();
        }
        let mut copy = jar.clone();
        assert_eq!(view(&worker.load(&copy, time).await).unwrap()["theme"], "dark");
        worker.update(&mut copy, json!({ time.0.to_string(): 1 }), time).await.unwrap();
    }
    worker.commit(&mut slow, update(&json!({ "slow": 1 })), late).await.unwrap();
    let visit = worker.load(&jar, late).await;
    worker.answer(&visit, &mut jar, late);
    let seen = worker.view(&jar, late).await.unwrap();
    for key in ["theme", "slow", &early.0.to_string(), &late.0.to_string()] {
        assert!(!seen[key].is_null(), "{key}: {seen}");
    }
}

async fn secrets_rotate(store: &Store) {
    let now = Timestamp::now();
    let secret = |word: &str| Secret::new(format!("{word} secret of the tests, long enough"));
    let with =
        |words: &[&str]| store.with(|c| c.secrets = words.iter().map(|w| secret(w)).collect());
    let mut jar = with(&["old"]).worker().signed_in(now).await;
    let both = with(&["new", "old"]).worker();
    both.update(&mut jar, json!({ "a": 1 }), now).await.unwrap();
    assert_eq!(with(&["old"]).worker().signed_in(now).await.all().len(), 1);
    // At the latest when the session's use is written down, the first secret seals it.
    let later = Timestamp(now.0 + INACTIVITY / 10);
    let touched = both.load(&jar, later).await;
    both.answer(&touched, &mut jar, later);
    assert_eq!(with(&["new"]).worker().view(&jar, later).await.unwrap()["a"], 1);
    assert_eq!(with(&["old"]).worker().view(&jar, later).await, None);
    let fresh = both.signed_in(now).await;
    assert_eq!(with(&["old"]).worker().view(&fresh, now).await, None);
    assert!(with(&["new"]).worker().view(&fresh, now).await.is_some());
}
