//! Races as races, counted: a thousand answers at once, logouts in the middle of them, tokens that
//! expire under a hundred requests. Each is run with cookies and with Redis, over both protocols.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::dice::Dice;
use crate::support::field::{Asker, COOKIE, Field, NEW, OLD, keys, secrets, take};
use crate::support::jar::Jar;
use crate::support::redis::Server;
use crate::support::{Answer, Browser, PROTOCOLS, Protocol, join_all};

/// How many at once.
const MANY: usize = 1000;

/// Requests that all bring the same cookies and are all at the app before it answers one; what comes
/// back, in the order of chance.
async fn at_once(field: &Field, protocol: Protocol, jar: &Jar, dice: &mut Dice) -> Vec<Answer> {
    field.hold();
    let connections = if protocol == Protocol::Http2 { MANY / 100 } else { MANY };
    let each = MANY / connections;
    let mut askers = Vec::new();
    for number in 0..connections {
        let mut asker = Asker::of(field.gateway(number), protocol);
        assert_eq!(asker.ask("/public", jar).await.unwrap().status, 200);
        askers.push(asker);
    }
    let asked = askers.into_iter().enumerate().flat_map(|(number, asker)| {
        (0..each).map(move |part| (asker.clone(), number * each + part))
    });
    let asked = asked.map(|(mut asker, key)| async move {
        let answer = asker.ask(&format!("/held/set/{key}"), jar).await.unwrap();
        assert_eq!(answer.status, 200);
        answer
    });
    let (mut answers, ()) = tokio::join!(join_all(asked), field.release(MANY));
    dice.shuffle(&mut answers);
    answers
}

/// A thousand parallel updates and additions; how long they took.
async fn thousand(field: &Field, protocol: Protocol, dice: &mut Dice) -> Duration {
    let zoe = field.signed_in(protocol).await;
    let first = zoe.jar().clone();
    let start = Instant::now();
    let answers = at_once(field, protocol, &first, dice).await;
    let took = start.elapsed();
    for answer in &answers {
        take(&zoe, answer);
    }
    for (place, profile) in field.profiles(&zoe).await.into_iter().enumerate() {
        let profile = profile.unwrap();
        let (kept, sum) = (keys(&profile).len(), &profile["n"]);
        eprintln!("{protocol:?}, gateway {place}: {kept} of {MANY} keys, sum {sum}, {took:?}");
        assert_eq!((kept, sum), (MANY, &json!(MANY)));
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_all_survive_in_cookies() {
    let (field, mut dice) = (Field::new(1, "", None).await, Dice::rolled());
    for protocol in PROTOCOLS {
        thousand(&field, protocol, &mut dice).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_all_survive_in_redis() {
    let (server, mut dice) = (Server::start().await, Dice::rolled());
    let field = Field::new(1, "", Some(&server.toml())).await;
    for protocol in PROTOCOLS {
        thousand(&field, protocol, &mut dice).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_through_three_gateways_all_survive() {
    let (server, mut dice) = (Server::start().await, Dice::rolled());
    let field = Field::new(3, "", Some(&server.toml())).await;
    for protocol in PROTOCOLS {
        thousand(&field, protocol, &mut dice).await;
    }
}

fn askers(field: &Field) -> Vec<Asker> {
    field.gateways.iter().map(|gateway| Asker::of(gateway, Protocol::Http2)).collect()
}

/// A thousand updates while the session is touched every second, its token is refreshed every other,
/// and its secret is replaced.
async fn everything_at_once(field: &mut Field, zoe: &Browser) {
    let refreshes = field.provider.grants("refresh_token").len();
    let ups: Vec<_> = field.gateways.iter().map(|_| AtomicBool::new(true)).collect();
    if field.gateways.len() == 1 {
        // Nobody else takes its requests meanwhile.
        storm(askers(field), zoe, 0..MANY / 2, &ups).await;
        // Its memory goes with it: what the last answer brought may not be the newest.
        zoe.profile().await.unwrap();
        field.gateways[0].rewrite("secrets", &secrets(&[NEW, OLD]));
        field.gateways[0].restart().await;
        storm(askers(field), zoe, MANY / 2..MANY, &ups).await;
    } else {
        // First all open what the new secret seals, then all seal with it.
        let askers = askers(field);
        let mut gateways = std::mem::take(&mut field.gateways);
        let steps = [secrets(&[OLD, NEW]), secrets(&[NEW, OLD])];
        let rotation = async {
            for step in &steps {
                for (gateway, up) in gateways.iter_mut().zip(ups.iter()) {
                    up.store(false, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(400)).await;
                    gateway.rewrite("secrets", step);
                    gateway.restart().await;
                    up.store(true, Ordering::SeqCst);
                }
            }
        };
        tokio::join!(rotation, storm(askers, zoe, 0..MANY, &ups));
        field.gateways = gateways;
    }
    let refreshed = field.provider.grants("refresh_token").len() - refreshes;
    for profile in field.profiles(zoe).await {
        let profile = profile.unwrap();
        let (kept, sum) = (keys(&profile).len(), &profile["n"]);
        eprintln!("{kept} of {MANY} keys, sum {sum}, {refreshed} refreshes on the way");
        assert_eq!((kept, sum), (MANY, &json!(MANY)));
    }
    assert!(refreshed > 1, "{refreshed}");
}

/// Sixteen scripts of one page set these keys, each over the next gateway that is up.
async fn storm(askers: Vec<Asker>, zoe: &Browser, range: Range<usize>, up: &[AtomicBool]) {
    let (next, end) = (AtomicUsize::new(range.start), range.end);
    let scripts = (0..16).map(|script| {
        let (next, mut askers) = (&next, askers.clone());
        async move {
            let mut turn = script;
            loop {
                let key = next.fetch_add(1, Ordering::SeqCst);
                if key >= end {
                    return;
                }
                turn += 1;
                while !up[turn % up.len()].load(Ordering::SeqCst) {
                    turn += 1;
                    tokio::task::yield_now().await;
                }
                let jar = zoe.jar().clone();
                let path = format!("/token/set/{key}");
                let answer = askers[turn % up.len()].ask(&path, &jar).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                take(zoe, &answer);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    join_all(scripts).await;
}

/// A use is written down every second; a token of four seconds is replaced long before its end.
const RESTLESS: &str = "inactivity = \"10s\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_survive_touches_refreshes_and_new_secrets_in_cookies() {
    let mut field = Field::new(1, RESTLESS, None).await;
    field.provider.script().tokens = json!({ "expires_in": 4 });
    let zoe = field.signed_in(Protocol::Http2).await;
    everything_at_once(&mut field, &zoe).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_survive_touches_refreshes_and_new_secrets_in_redis() {
    let server = Server::start().await;
    let mut field = Field::new(3, RESTLESS, Some(&server.toml())).await;
    field.provider.script().tokens = json!({ "expires_in": 4 });
    let zoe = field.signed_in(Protocol::Http2).await;
    everything_at_once(&mut field, &zoe).await;
    for gateway in &field.gateways {
        gateway.rewrite("secrets", &secrets(&[NEW]));
    }
    for gateway in &mut field.gateways {
        gateway.restart().await;
    }
    let profiles = field.profiles(&zoe).await;
    assert!(profiles.iter().all(Option::is_some), "the old secret is not needed any more");
}

/// Logs out in the middle of twenty updates; whether any cookie still brings the session.
async fn logout(field: &Field, protocol: Protocol, number: usize, seed: u64) -> bool {
    let zoe = field.signed_in(protocol).await;
    let (copied, cookie) = (zoe.copy(), zoe.cookie(COOKIE).unwrap());
    let jar = copied.jar().clone();
    let updates = (0..20).map(|key| {
        let jar = &jar;
        async move {
            let mut asker = Asker::of(field.gateway(number + key), protocol);
            asker.ask(&format!("/slow/set/{key}"), jar).await.unwrap()
        }
    });
    let logging_out = async {
        tokio::time::sleep(Duration::from_millis(u64::try_from(number % 40).unwrap())).await;
        let mut asker = Asker::of(field.gateway(number), protocol);
        let answer = asker.ask("/auth/logout", &jar).await.unwrap();
        assert!(answer.status.is_redirection());
        answer
    };
    let (mut answers, out) = tokio::join!(join_all(updates), logging_out);
    Dice::new(seed).shuffle(&mut answers);
    // Some answers come before the logout's, the rest after.
    let early = number % 20;
    for answer in answers.iter().take(early).chain([&out]).chain(answers.iter().skip(early)) {
        take(&zoe, answer);
    }
    copied.set_cookie(COOKIE, &cookie);
    let mut alive = false;
    for browser in [&zoe, &copied] {
        alive |= field.profiles(browser).await.iter().any(Option::is_some);
    }
    alive
}

async fn two_hundred_logouts(field: &Field, protocol: Protocol) {
    let mut dice = Dice::rolled();
    let mut alive = 0;
    for round in 0..10 {
        let rounds = (0..20).map(|part| logout(field, protocol, round * 20 + part, dice.any()));
        alive += join_all(rounds).await.into_iter().filter(|alive| *alive).count();
    }
    let applied = field.app.seen().iter().filter(|seen| seen.target.contains("/set/")).count();
    eprintln!("{protocol:?}: {alive} of 200 sessions came back; {applied} answers with updates");
    assert_eq!(alive, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_comes_back_after_its_logout_in_cookies() {
    let field = Field::new(1, "", None).await;
    two_hundred_logouts(&field, Protocol::Http2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_comes_back_after_its_logout_in_redis() {
    let server = Server::start().await;
    let field = Field::new(3, "", Some(&server.toml())).await;
    two_hundred_logouts(&field, Protocol::Http1).await;
}

/// SDK #2149, oauth2-proxy #1992
async fn a_hundred_on_an_expired_token(field: &Field) {
    for protocol in PROTOCOLS {
        field.provider.script().tokens = json!({ "expires_in": 1 });
        let zoe = field.signed_in(protocol).await;
        let before = field.provider.grants("refresh_token").len();
        {
            let mut script = field.provider.script();
            script.tokens = json!({ "expires_in": 3600 });
            script.slowness = Duration::from_millis(200);
        }
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let jar = zoe.jar().clone();
        let asked = (0..100).map(|_| {
            let jar = &jar;
            async move {
                let mut asker = Asker::of(field.gateway(0), protocol);
                asker.ask("/token", jar).await.unwrap()
            }
        });
        let answers = join_all(asked).await;
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        let calls = field.provider.grants("refresh_token").len() - before;
        eprintln!("{protocol:?}: {good} of 100 answers are good, {calls} refresh");
        assert_eq!((good, calls), (100, 1));
        for answer in &answers {
            take(&zoe, answer);
        }
        let tokens: Vec<Value> = field
            .app
            .seen()
            .iter()
            .rev()
            .take(100)
            .map(|seen| seen.header("authorization").into())
            .collect();
        assert!(tokens.iter().all(|token| *token == tokens[0]), "all have the new one");
        field.provider.script().slowness = Duration::ZERO;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_on_an_expired_token_make_one_call_in_cookies() {
    a_hundred_on_an_expired_token(&Field::new(1, "", None).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_on_an_expired_token_make_one_call_in_redis() {
    let server = Server::start().await;
    a_hundred_on_an_expired_token(&Field::new(1, "", Some(&server.toml())).await).await;
}
