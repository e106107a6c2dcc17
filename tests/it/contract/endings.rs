//! What every store promises of sessions that the provider ends, and of what one gateway does alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vestibule::clock::Timestamp;
use vestibule::session::{Change, CommitRefused, Logout, Turn, Whose};

use super::{ABSOLUTE, Store, Worker, identity, tokens, update};
use crate::support::jar::Jar;

pub(super) fn user(sub: &str) -> Whose {
    Whose::User(sub.to_owned())
}

fn sign_in(sid: &str) -> Whose {
    Whose::SignIn(sid.to_owned())
}

/// The provider's word, issued at this time.
pub(super) fn logout(name: &str, whose: Whose, issued_at: Timestamp) -> Logout {
    Logout {
        name: name.to_owned(),
        issuer: "https://tenant.auth0.com/".to_owned(),
        whose,
        issued_at,
        expires: issued_at.plus(Duration::from_secs(180)),
    }
}

/// A browser in which somebody with these claims has just logged in.
pub(super) async fn signed_in(worker: &Worker, claims: Value, now: Timestamp) -> Jar {
    let mut jar = Jar::default();
    let mut visit = worker.load(&jar, now).await;
    let change = Change::Start { identity: identity(&claims), tokens: tokens("first") };
    worker.commit(&mut visit, change, now).await.unwrap();
    worker.answer(&visit, &mut jar, now);
    jar
}

pub(super) async fn a_logout_by_the_provider_ends_whom_it_names_up_to_its_time(store: &Store) {
    let now = Timestamp::now();
    let after = |seconds| now.plus(Duration::from_secs(seconds));
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    let first = signed_in(&here, json!({ "sid": "s1" }), now).await;
    let second = signed_in(&here, json!({ "sid": "s2" }), now).await;
    let later = signed_in(&there, json!({ "sid": "s1" }), after(3)).await;
    let bob = signed_in(&here, json!({ "sub": "auth0|bob", "sid": "s3" }), now).await;
    let mut alive = vec![&first, &second, &later, &bob];
    for (name, whose, issued_at, ends) in [
        ("1", sign_in("s1"), now, Some(&first)),
        ("2", sign_in("auth0|zoe"), after(9), None),
        ("3", user("s2"), after(9), None),
        ("4", user("auth0|zoe"), after(2), Some(&second)),
        ("5", user("auth0|zoe"), after(3), Some(&later)),
        ("6", user("auth0|zoe"), after(9), None),
    ] {
        assert!(there.end_all(&logout(name, whose, issued_at), after(9)).await, "{name}");
        alive.retain(|jar| ends.is_none_or(|ended| !std::ptr::eq(*jar, ended)));
        for worker in [&here, &there, &gateway.worker()] {
            for jar in [&first, &second, &later, &bob] {
                let lives = alive.iter().any(|other| std::ptr::eq(*other, jar));
                let view = worker.view(jar, after(9)).await;
                assert_eq!(view.is_some(), lives, "{name}: {view:?}");
            }
        }
    }
    // No copy of a cookie of one that ended outlives what is remembered of it.
    assert_eq!(here.view(&first, after(ABSOLUTE / 3 - 1)).await, None);
    let elsewhere = Logout {
        issuer: "https://elsewhere/".to_owned(),
        ..logout("7", user("auth0|bob"), after(9))
    };
    assert!(here.end_all(&elsewhere, after(9)).await);
    assert!(here.view(&bob, after(9)).await.is_some(), "users are each provider's own");
}

pub(super) async fn a_logout_by_the_provider_is_obeyed_once(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let worker = gateway.worker();
    let word = logout("1", user("auth0|zoe"), now);
    assert!(worker.end_all(&word, now).await);
    assert!(!worker.end_all(&word, now).await);
    assert!(!gateway.worker().end_all(&logout("1", sign_in("s"), now), now).await);
    assert!(worker.end_all(&logout("2", user("auth0|zoe"), now), now).await);
    if store.is_redis() {
        assert!(!store.worker().end_all(&word, now).await, "on another gateway");
    }
}

pub(super) async fn what_was_under_way_at_the_providers_logout_brings_nothing_back(store: &Store) {
    let now = Timestamp::now();
    let after = |seconds| now.plus(Duration::from_secs(seconds));
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    let jar = here.signed_in(now).await;
    let mut updating = there.load(&jar, now).await;
    let mut refreshing = there.load(&jar, now).await;
    let mut changed = there.load(&jar, now).await;
    there.commit(&mut changed, update(&json!({ "a": 1 })), now).await.unwrap();
    let followed = there.follow(&changed);
    assert!(followed.is_alive(now));

    assert!(here.end_all(&logout("1", user("auth0|zoe"), now), now).await);

    assert!(!followed.is_alive(now));
    let refused = there.commit(&mut updating, update(&json!({ "b": 1 })), now).await;
    assert!(matches!(refused, Err(CommitRefused::NoSession)), "{refused:?}");
    let change = Change::Refresh { identity: identity(&json!({})), tokens: tokens("second") };
    let refused = there.commit(&mut refreshing, change, now).await;
    assert!(matches!(refused, Err(CommitRefused::NoSession)), "{refused:?}");
    for visit in [&updating, &refreshing, &changed] {
        let mut jar = jar.clone();
        there.answer(visit, &mut jar, now);
        for time in [now, after(150), after(500)] {
            assert_eq!(there.view(&jar, time).await, None);
            assert_eq!(here.view(&jar, time).await, None);
        }
    }
}

pub(super) async fn many_sessions_of_one_user_end_together(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let worker = gateway.worker();
    let mut jars = Vec::new();
    for number in 0..700 {
        jars.push(signed_in(&worker, json!({ "sid": number.to_string() }), now).await);
    }
    assert!(worker.end_all(&logout("1", user("auth0|zoe"), now), now).await);
    for jar in &jars {
        assert_eq!(worker.view(jar, now).await, None);
    }
}

pub(super) async fn a_login_under_way_at_the_providers_logout_does_not_escape_it(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), gateway.worker());
    // A gateway that has heard nothing of what others ended, where Redis tells it all.
    let deaf = || if store.is_redis() { store.worker() } else { gateway.worker() };
    for round in 0_u32..60 {
        let claims = json!({ "sub": round.to_string(), "sid": format!("sid-{round}") });
        let whose = if round % 2 == 0 {
            user(&round.to_string())
        } else {
            sign_in(&format!("sid-{round}"))
        };
        let login = signed_in(&here, claims, now);
        let ending = async {
            // At every moment of the login, and after it.
            tokio::time::sleep(Duration::from_micros(u64::from(round) * 50)).await;
            assert!(there.end_all(&logout(&round.to_string(), whose, now), now).await);
        };
        let (jar, ()) = tokio::join!(login, ending);
        assert_eq!(deaf().view(&jar, now).await, None, "{round}");
    }
    // And one that comes when all is done.
    let late = signed_in(&here, json!({ "sub": "2", "sid": "late" }), now).await;
    assert_eq!(deaf().view(&late, now).await, None);
    let after = now.plus(Duration::from_secs(1));
    let later = signed_in(&here, json!({ "sub": "2", "sid": "later" }), after).await;
    assert!(deaf().view(&later, after).await.is_some());
}

pub(super) async fn one_at_a_time_has_the_turn(store: &Store) {
    let now = Timestamp::now();
    let gateway = store.gateway();
    let (here, there) = (gateway.worker(), store.worker());
    let jar = here.signed_in(now).await;
    let (mut visit, other) = (here.load(&jar, now).await, there.load(&jar, now).await);
    let short = Duration::from_millis(100);
    let Turn::Ours(lease) = here.turn(&visit, short).await else { panic!("nobody has it") };
    if !store.is_redis() {
        // One gateway: its workers agree without the store.
        assert!(matches!(here.turn(&visit, short).await, Turn::Ours(_)));
        return;
    }
    assert!(matches!(there.turn(&other, short).await, Turn::Failed), "it is not done in time");
    lease.end(false).await;
    let Turn::Ours(lease) = there.turn(&other, short).await else { panic!("it is free again") };
    // Who waits hears of a failure, and does not fail in its turn.
    let start = Instant::now();
    let waiting = here.turn(&visit, Duration::from_secs(9));
    let failing = async {
        tokio::time::sleep(short).await;
        lease.end(true).await;
    };
    let (waited, ()) = tokio::join!(waiting, failing);
    assert!(matches!(waited, Turn::Failed) && start.elapsed() < Duration::from_secs(5));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let Turn::Ours(lease) = there.turn(&other, short).await else { panic!("it is free again") };
    // Who waits hears of a change.
    let waiting = there.turn(&other, Duration::from_secs(9));
    let changing = async {
        tokio::time::sleep(short).await;
        here.commit(&mut visit, update(&json!({ "a": 1 })), now).await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, changing);
    assert!(matches!(waited, Turn::Changed));
    // And one that says nothing any more is dead.
    drop(lease);
    let start = Instant::now();
    let Turn::Ours(_) = here.turn(&visit, Duration::from_secs(9)).await else { panic!("dead") };
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
}
