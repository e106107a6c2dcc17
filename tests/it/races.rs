//! Races as races, counted: a thousand answers at once, logouts in the middle of them, tokens that
//! expire under a hundred requests. Each is run with cookies and with Redis, over both protocols.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::reload::{APPLIED, edit, reload};
use crate::support::dice::Dice;
use crate::support::field::{Asker, COOKIE, Field, NEW, OLD, keys, secrets, take};
use crate::support::jar::Jar;
use crate::support::redis::Server;
use crate::support::{
    Answer, Browser, Gateway, PATIENCE_WITH_MANY, PROTOCOLS, Protocol, join_all, until_within,
};

/// How many at once.
const MANY: usize = 1000;

/// So many who ask over this protocol and have asked already, each for a key of its own.
async fn askers(field: &Field, protocol: Protocol) -> Vec<(Asker, usize)> {
    let connections = if protocol == Protocol::Http2 { MANY / 100 } else { MANY };
    let each = MANY / connections;
    let mut askers = Vec::new();
    for number in 0..connections {
        let mut asker = Asker::of(field.gateway(number), protocol);
        assert_eq!(asker.ask("/public", &Jar::default()).await.unwrap().status, 200);
        askers.extend((0..each).map(|part| (asker.clone(), number * each + part)));
    }
    askers
}

/// Requests that all bring the same cookies and are all at the app before it answers one; what comes
/// back, in the order of chance.
async fn at_once(field: &Field, protocol: Protocol, jar: &Jar, dice: &mut Dice) -> Vec<Answer> {
    field.hold();
    let asked = askers(field, protocol).await.into_iter();
    let asked = asked.map(|(mut asker, key)| async move {
        let answer = asker.ask(&format!("/held/set/{key}"), jar).await.unwrap();
        assert_eq!(answer.status, 200);
        answer
    });
    let (mut answers, ()) = tokio::join!(join_all(asked), field.release(MANY));
    dice.shuffle(&mut answers);
    answers
}

/// Whether every update is there, wherever one asks. What is not there, the gateways have said: where
/// the machine is too busy, Redis does not answer in time.
async fn all_are_there(field: &Field, zoe: &Browser) -> bool {
    let lost = field.said_lost().await;
    for (place, profile) in field.profiles(zoe).await.into_iter().enumerate() {
        let profile = profile.unwrap();
        let (kept, sum) = (keys(&profile), &profile["n"]);
        eprintln!("gateway {place}: {} of {MANY} keys, sum {sum}", kept.len());
        assert_eq!(*sum, json!(kept.len()), "each was added once");
        let silent = |key: &usize| !kept.contains(key) && !lost.contains(key);
        let silent: Vec<_> = (0..MANY).filter(silent).collect();
        assert!(silent.is_empty(), "lost without a word: {silent:?}");
    }
    lost.is_empty()
}

/// Runs a race until nothing was lost, as it is where the machine has time for it.
async fn run(race: impl AsyncFn(&mut Dice) -> bool) {
    let mut dice = Dice::rolled();
    for _ in 0..3 {
        if race(&mut dice).await {
            return;
        }
        eprintln!("again: Redis did not answer in time");
    }
    panic!("the machine is too busy to show anything");
}

/// A thousand parallel updates and additions over each protocol.
async fn thousand(gateways: usize, redis: Option<&str>) {
    run(async |dice| {
        let field = Field::new(gateways, "", redis).await;
        let mut all = true;
        for protocol in PROTOCOLS {
            let zoe = field.signed_in(protocol).await;
            let first = zoe.jar().clone();
            let start = Instant::now();
            let answers = at_once(&field, protocol, &first, dice).await;
            eprintln!("{protocol:?}: {:?}", start.elapsed());
            for answer in &answers {
                take(&zoe, answer);
            }
            all &= all_are_there(&field, &zoe).await;
        }
        all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_all_survive_in_cookies() {
    thousand(1, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_all_survive_in_redis() {
    let server = Server::start().await;
    thousand(1, Some(&server.toml())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_parallel_updates_through_three_gateways_all_survive() {
    let server = Server::start().await;
    thousand(3, Some(&server.toml())).await;
}

/// A thousand updates that are all under way while the session is touched every third second, its
/// token is refreshed every other, and its secret is replaced, by reloads of the file. Whether all of
/// them are there afterwards.
async fn everything_at_once(field: &Field, protocol: Protocol, dice: &mut Dice) -> bool {
    field.hold();
    let askers = askers(field, protocol).await;
    let zoe = &field.signed_in(protocol).await;
    let refreshes = field.provider.grants("refresh_token").len();
    let (jar, over, answered) = (zoe.jar().clone(), AtomicBool::new(false), AtomicUsize::new(0));
    let mut turns: Vec<usize> = (0..MANY).collect();
    dice.shuffle(&mut turns);
    let asked = askers.into_iter().zip(turns);
    let asked = asked.map(|((mut asker, key), turn)| {
        let (jar, answered) = (&jar, &answered);
        async move {
            let path = format!("/token/scattered/{turn}/set/{key}");
            let answer = asker.ask(&path, jar).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            take(zoe, &answer);
            answered.fetch_add(1, Ordering::SeqCst);
        }
    });
    let storm = async {
        join_all(asked).await;
        over.store(true, Ordering::SeqCst);
    };
    let rotation = rotate(field, &answered);
    let browsing = field.gateways.iter().map(|gateway| browse(gateway, zoe, &over));
    let ((), before, _) = tokio::join!(storm, rotation, join_all(browsing));
    let refreshed = field.provider.grants("refresh_token").len() - refreshes;
    eprintln!("{protocol:?}: {before} answers before the last reload, {refreshed} refreshes");
    assert!(before < MANY, "all were over");
    assert!(refreshed > 1, "{refreshed}");
    let all = all_are_there(field, zoe).await;
    // When the next use is written down, the cookie is sealed anew at the latest.
    tokio::time::sleep(Duration::from_millis(3200)).await;
    zoe.profile().await.unwrap();
    for gateway in &field.gateways {
        edit(gateway, |text| text.replace(&secrets(&[NEW, OLD]), &secrets(&[NEW])));
        reload(gateway, APPLIED).await;
    }
    let profiles = field.profiles(zoe).await;
    assert!(profiles.iter().all(Option::is_some), "the old secret is not needed any more");
    all
}

/// Replaces the secret of all gateways; how many had their answers then.
async fn rotate(field: &Field, answered: &AtomicUsize) -> usize {
    field.release(MANY).await;
    // First all open what the new secret seals, then all seal with it.
    let steps = [secrets(&[OLD]), secrets(&[OLD, NEW]), secrets(&[NEW, OLD])];
    let (mut turn, turns) = (0, 2 * field.gateways.len());
    for step in steps.windows(2) {
        for gateway in &field.gateways {
            turn += 1;
            until_within(PATIENCE_WITH_MANY, "so many are answered", async || {
                (answered.load(Ordering::SeqCst) >= MANY / 2 * turn / turns).then_some(())
            })
            .await;
            edit(gateway, |text| text.replace(&step[0], &step[1]));
            reload(gateway, APPLIED).await;
        }
    }
    answered.load(Ordering::SeqCst)
}

/// Asks for a page that needs a token, ten times a second.
async fn browse(gateway: &Gateway, zoe: &Browser, over: &AtomicBool) {
    let mut asker = Asker::of(gateway, Protocol::Http2);
    while !over.load(Ordering::SeqCst) {
        let jar = zoe.jar().clone();
        let answer = asker.ask("/token", &jar).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        take(zoe, &answer);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A use is written down every third second; a token of two seconds before its end.
const RESTLESS: &str = "inactivity = \"30s\"";

/// So many gateways, and what goes on on them.
async fn all_goes_on(gateways: usize, redis: Option<&str>) {
    for protocol in PROTOCOLS {
        run(async |dice| {
            let field = Field::new(gateways, RESTLESS, redis).await;
            field.provider.script().tokens = json!({ "expires_in": 2 });
            everything_at_once(&field, protocol, dice).await
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_survive_touches_refreshes_and_new_secrets_in_cookies() {
    all_goes_on(1, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_survive_touches_refreshes_and_new_secrets_in_redis() {
    let server = Server::start().await;
    all_goes_on(3, Some(&server.toml())).await;
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
