//! What Redis adds to the contract: many gateways, servers that go away, and strangers who read or
//! write it.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use vestibule::clock::Timestamp;
use vestibule::config::value::Secret;
use vestibule::config::{self, Redis};
use vestibule::session::{Change, CommitRefused, Visit};

use super::endings::{logout, signed_in, user};
use super::{INACTIVITY, Store, identity, local, tokens, update, view};
use crate::support::cut::Cut;
use crate::support::redis::Server;
use crate::support::{join_all, until};

/// A server, and sessions in it.
pub(super) async fn one() -> (Server, Store) {
    let server = Server::start().await;
    let store = Store::new(Some(server.config()));
    (server, store)
}

/// The name of the one session that a server holds.
async fn record(server: &Server) -> String {
    let [key] = server.keys("vestibule:{*}").await.try_into().unwrap();
    key
}

#[tokio::test]
async fn what_redis_holds_tells_nothing_of_the_user() {
    local(async {
        let (server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        let mut jar = worker.signed_in(now).await;
        worker
            .update(&mut jar, json!({ "theme": "d4rkmode", "n": { "$add": 1 } }), now)
            .await
            .unwrap();
        let later = Timestamp(now.0 + 200);
        let mut visit = worker.load(&jar, later).await;
        let refreshed = identity(&json!({ "plan": "platinum" }));
        let change = Change::Refresh { identity: refreshed, tokens: tokens("second") };
        worker.commit(&mut visit, change, later).await.unwrap();
        let cookie = jar.get("__Host-session").unwrap().value.clone();

        let contents = server.contents().await;
        let text = String::from_utf8_lossy(&contents);
        assert!(text.contains("vestibule:{"), "it is there");
        for word in [
            "auth0|zoe",
            "zoe@",
            "tenant.",
            "example.com",
            "sign-in-1",
            "\"client",
            "nickname",
            "id-token",
            "access-token",
            "refresh-token",
            "d4rkmode",
            "\"theme",
            "platinum",
            &cookie,
        ] {
            assert!(!text.contains(word), "Redis holds {word}");
        }
    })
    .await;
}

/// Whoever can write Redis makes no session that opens, and no session of another user's.
#[tokio::test]
async fn what_a_stranger_wrote_to_redis_does_not_open() {
    local(async {
        let (server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        let mut zoe = worker.signed_in(now).await;
        let hers = record(&server).await;
        worker.update(&mut zoe, json!({ "theme": "dark" }), now).await.unwrap();
        let bob = worker.signed_in(now).await;
        let keys = server.keys("vestibule:{*}").await;
        let his = keys.iter().find(|key| **key != hers).unwrap();
        let field =
            async |key: &str, field: &str| -> String { server.ask(&["HGET", key, field]).await };
        let set = async |name: &str, value: &str| {
            let _: i64 = server.ask(&["HSET", &hers, name, value]).await;
        };
        let (data, mark) = (field(&hers, "d").await, field(&hers, "t").await);
        let flipped = |text: &str, place: usize| {
            let mut text = text.as_bytes().to_vec();
            text[place] = if text[place] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).unwrap()
        };
        let mut forged = vec![
            ("d", field(his, "d").await),
            ("d", mark.clone()),
            ("d", String::new()),
            ("d", "x".repeat(1_000_000)),
            ("v", "3".to_owned()),
            ("v", "1".to_owned()),
            ("v", "18446744073709551616".to_owned()),
            ("v", "-1".to_owned()),
            ("t", field(his, "t").await),
            ("t", data.clone()),
            ("t", String::new()),
            ("t", (now.0 + 1_000_000).to_string()),
        ];
        forged.extend((0..data.len()).step_by(61).map(|place| ("d", flipped(&data, place))));
        forged.extend((0..mark.len()).step_by(9).map(|place| ("t", flipped(&mark, place))));
        for (name, value) in forged {
            let right = field(&hers, name).await;
            set(name, &value).await;
            let seen = store.worker().view(&zoe, now).await;
            assert_eq!(seen, None, "{name} is {value:.80}");
            set(name, &right).await;
        }
        // All of another's record.
        let all = ["v", "d", "t"];
        let right = [field(&hers, "v").await, data, mark];
        for name in all {
            set(name, &field(his, name).await).await;
        }
        assert_eq!(store.worker().view(&zoe, now).await, None);
        for (name, value) in all.iter().zip(right) {
            set(name, &value).await;
        }
        assert_eq!(store.worker().view(&zoe, now).await.unwrap()["theme"], "dark");
        assert!(store.worker().view(&bob, now).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn redis_lets_go_of_a_session_when_it_expires() {
    local(async {
        let (server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        let mut jar = worker.signed_in(now).await;
        let key = record(&server).await;
        let left = async || -> i64 {
            let end: i64 = server.ask(&["EXPIRETIME", &key]).await;
            end - i64::try_from(now.0).unwrap()
        };
        assert_eq!(left().await, i64::try_from(INACTIVITY).unwrap());
        worker.update(&mut jar, json!({ "a": 1 }), now).await.unwrap();
        assert_eq!(left().await, 1000, "an update extends nothing");
        for (after, expected) in [(200, 1200), (1100, 2100), (2050, 3000), (2999, 3000)] {
            assert!(worker.view(&jar, Timestamp(now.0 + after)).await.is_some());
            assert_eq!(left().await, expected, "after {after}");
        }
        // What ends sooner goes sooner.
        let short = store.with(|config| config.absolute = Duration::from_secs(2)).worker();
        let _: i64 = server.ask(&["DEL", &key]).await;
        short.signed_in(Timestamp::now()).await;
        until("Redis holds nothing", async || server.keys("*").await.is_empty().then_some(()))
            .await;
    })
    .await;
}

#[tokio::test]
async fn gateways_see_each_others_changes_at_once() {
    local(async {
        let (_server, store) = one().await;
        let now = Timestamp::now();
        let workers = [store.worker(), store.worker(), store.worker()];
        let jar = workers[0].signed_in(now).await;
        for round in 0..100_usize {
            let (writer, reader) = (&workers[round % 3], &workers[(round + 1) % 3]);
            writer.update(&mut jar.clone(), json!({ "round": round }), now).await.unwrap();
            assert_eq!(reader.view(&jar, now).await.unwrap()["round"], round);
        }
        let additions = (0..300).map(|n| {
            let (worker, mut jar) = (&workers[n % 3], jar.clone());
            async move {
                let patch = json!({ "n": { "$add": 1 }, format!("k{n}"): n });
                worker.update(&mut jar, patch, now).await.unwrap();
            }
        });
        join_all(additions).await;
        let seen = workers[1].view(&jar, now).await.unwrap();
        assert_eq!(seen["n"], 300);
        assert!((0..300).all(|n| seen[format!("k{n}")] == n));
    })
    .await;
}

#[tokio::test]
async fn a_logout_on_one_gateway_holds_on_every_other() {
    local(async {
        let (server, store) = one().await;
        let now = Timestamp::now();
        let (here, there) = (store.gateway(), store.gateway());
        until("both listen", async || {
            (here.health.is_good() && there.health.is_good()).then_some(())
        })
        .await;
        let (here, there) = (here.worker(), there.worker());
        let copied = here.signed_in(now).await;
        let later = Timestamp(now.0 + 200);
        let mut slow = there.load(&copied, later).await;
        assert!(!there.response(&slow, later).is_empty(), "it would write its use down");
        here.log_out(&mut copied.clone(), later).await;
        assert_eq!(there.view(&copied, later).await, None);
        until("the other has heard of it", async || {
            there.response(&slow, later).is_empty().then_some(())
        })
        .await;
        let refused = there.commit(&mut slow, update(&json!({ "a": 1 })), later).await;
        assert!(matches!(refused, Err(CommitRefused::NoSession)));
        assert_eq!(server.keys("vestibule:{*}").await, Vec::<String>::new());
    })
    .await;
}

/// The sessions of one gateway that reaches Redis over a wire.
fn behind(store: &Store, wire: &Cut) -> Store {
    store.with(|config| {
        let redis = config.redis.as_ref().unwrap();
        let urls = vec![format!("redis://127.0.0.1:{}", wire.port)];
        config.redis = Some(Redis { urls, ..Redis::clone(redis) }.into());
    })
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_made_once() {
    local(async {
        let (server, store) = one().await;
        let wire = Cut::before(server.port).await;
        let now = Timestamp::now();
        let config: config::Session = behind(&store, &wire).config;
        // Without the listener: the answer that is lost must be the write's.
        let memory = store.gateway();
        let far = super::Gateway { config, ..memory }.worker();
        let near = store.worker();
        let jar = far.signed_in(now).await;
        let mut expected = 0;
        // As many writes of others come in between as there may be while it is tried again.
        for others in [0, 1, 7, 8, 9, 200] {
            let mut visit = far.load(&jar, now).await;
            wire.swallow();
            let adding = async {
                far.commit(&mut visit, update(&json!({ "n": { "$add": 1 } })), now).await.unwrap();
            };
            let meanwhile = async {
                wire.swallowed().await;
                for _ in 0..others {
                    let mut jar = jar.clone();
                    near.update(&mut jar, json!({ "n": { "$add": 1 } }), now).await.unwrap();
                }
                wire.cut();
            };
            tokio::join!(adding, meanwhile);
            expected += 1 + others;
            assert_eq!(near.view(&jar, now).await.unwrap()["n"], expected, "{others} others");
        }
    })
    .await;
}

/// Many updates of one session wait for a Redis that hangs: each as long as one alone would.
#[tokio::test]
async fn an_update_is_tried_for_two_seconds_however_many_came_before_it() {
    local(async {
        let (server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        let jar = worker.signed_in(now).await;
        let mut visits = Vec::new();
        for _ in 0..24 {
            visits.push(worker.load(&jar, now).await);
        }
        server.signal("STOP");
        let updates = visits.iter_mut().enumerate().map(async |(number, visit)| {
            sleep(Duration::from_millis(number as u64 * 250)).await;
            let start = Instant::now();
            let patch = json!({ format!("k{number}"): "x".repeat(20) });
            let failed = worker.commit(visit, update(&patch), now).await;
            assert!(matches!(failed, Err(CommitRefused::Unavailable(_))), "{failed:?}");
            start.elapsed()
        });
        let times = join_all(updates).await;
        server.signal("CONT");
        let [least, most] = [times.iter().min().unwrap(), times.iter().max().unwrap()];
        assert!(
            *least > Duration::from_millis(1900) && *most < Duration::from_millis(2900),
            "{times:?}"
        );
        until("updates are saved again", async || {
            worker.update(&mut jar.clone(), json!({ "a": 1 }), now).await.ok()
        })
        .await;
    })
    .await;
}

/// Redis was away while somebody logged out, and is back before that was made up for.
#[tokio::test]
async fn a_logout_without_redis_holds_here_at_once_and_everywhere_later() {
    local(async {
        let (server, store) = one().await;
        let now = Timestamp::now();
        let (here, there) = (store.gateway(), store.worker());
        let (worker, other) = (here.worker(), here.worker());
        let copied = worker.signed_in(now).await;
        let mut visit = worker.load(&copied, now).await;
        server.signal("STOP");
        let start = Instant::now();
        let failed = worker.commit(&mut visit, Change::End, now).await;
        assert!(matches!(failed, Err(CommitRefused::Unavailable(_))));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        server.signal("CONT");
        for worker in [&worker, &other] {
            assert_eq!(worker.view(&copied, now).await, None);
        }
        until("the session is gone everywhere", async || {
            there.view(&copied, now).await.is_none().then_some(())
        })
        .await;
    })
    .await;
}

/// What has ended stays so here, whatever Redis has found again on another disk.
#[tokio::test]
async fn a_redis_that_has_lost_a_logout_revives_no_session() {
    local(async {
        let (server, store) = one().await;
        let now = Timestamp::now();
        let (here, there) = (store.gateway(), store.gateway());
        until("both listen", async || {
            (here.health.is_good() && there.health.is_good()).then_some(())
        })
        .await;
        let (here, there) = (here.worker(), there.worker());
        let copied = here.signed_in(now).await;
        let mut slow = there.load(&copied, now).await;
        let key = record(&server).await;
        let record: Vec<String> = server.ask(&["HGETALL", &key]).await;
        here.log_out(&mut copied.clone(), now).await;
        sleep(Duration::from_millis(200)).await;
        let words = ["HSET", &key].into_iter().chain(record.iter().map(String::as_str));
        let _: i64 = server.ask(&words.collect::<Vec<_>>()).await;
        for worker in [&here, &there] {
            assert_eq!(worker.view(&copied, now).await, None);
        }
        let refused = there.commit(&mut slow, update(&json!({ "a": 1 })), now).await;
        assert!(matches!(refused, Err(CommitRefused::NoSession)));
    })
    .await;
}

/// Users are indexed under a secret, and secrets come and go while sessions live.
#[tokio::test]
async fn a_logout_by_the_provider_finds_sessions_of_every_secret() {
    local(async {
        let (_server, store) = one().await;
        let now = Timestamp::now();
        let [old, new] =
            ["the secret that is going, long enough", "the secret that is coming, yes"];
        let of = |secrets: &[&str]| {
            let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
            store.with(|config| config.secrets = secrets).worker()
        };
        // The new one is made known everywhere before it seals; one gateway is late.
        let (late, ready) = (of(&[old, new]), of(&[new, old]));
        let users = [("early", &late, &ready), ("later", &ready, &late), ("both", &ready, &ready)];
        for (name, logs_in, is_told) in users {
            let mut jars = Vec::new();
            for worker in [logs_in, &late] {
                jars.push(signed_in(worker, json!({ "sub": name }), now).await);
            }
            let word = logout(name, user(name), now);
            assert!(is_told.end_all(&word, now).await, "{name}");
            for worker in [&late, &ready, &of(&[new, old])] {
                for jar in &jars {
                    assert_eq!(worker.view(jar, now).await, None, "{name}");
                }
                assert!(!worker.end_all(&word, now).await, "{name}: it was obeyed");
                let late = signed_in(worker, json!({ "sub": name }), now).await;
                assert_eq!(of(&[old, new]).view(&late, now).await, None, "{name}: under way");
            }
        }
        // What comes again when the old one is gone was obeyed all the same.
        assert!(!of(&[new]).end_all(&logout("early", user("early"), now), now).await);
    })
    .await;
}

/// A page asks for many things at once: one of them writes down that the session is in use.
#[tokio::test]
async fn a_use_of_many_requests_at_once_is_written_once() {
    local(async {
        let (_server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        let jar = worker.signed_in(now).await;
        let later = Timestamp(now.0 + 200);
        let visits = join_all((0..50).map(|_| worker.load(&jar, later))).await;
        let writes = |visit: &Visit| !worker.response(visit, later).is_empty();
        assert_eq!(visits.iter().filter(|visit| writes(visit)).count(), 1);
        assert!(visits.iter().all(|visit| visit.session().is_some()));
        let visit = worker.load(&jar, later).await;
        assert_eq!(visit.session().unwrap().touched_at, later);
        // Nobody is kept from it by one who left in the middle.
        let latest = Timestamp(now.0 + 400);
        drop(timeout(Duration::from_micros(1), worker.load(&jar, latest)).await);
        let visit = worker.load(&jar, latest).await;
        assert_eq!(visit.session().unwrap().touched_at, latest);
    })
    .await;
}

/// A worker that is told of a use while it saves a change knows of both.
#[tokio::test]
async fn a_use_that_is_written_while_a_change_is_saved_is_known() {
    local(async {
        let (_server, store) = one().await;
        let (now, worker) = (Timestamp::now(), store.worker());
        for _ in 0..50 {
            let jar = worker.signed_in(now).await;
            let mut change = worker.load(&jar, now).await;
            let later = Timestamp(now.0 + 200);
            let (committed, touched) = tokio::join!(
                worker.commit(&mut change, update(&json!({ "a": 1 })), later),
                worker.load(&jar, later),
            );
            committed.unwrap();
            assert_eq!(touched.session().unwrap().touched_at, later);
            let visit = worker.load(&jar, later).await;
            assert!(worker.response(&visit, later).is_empty(), "it is not written again");
            assert_eq!(visit.session().unwrap().touched_at, later);
            assert_eq!(view(&visit).unwrap()["a"], 1);
        }
    })
    .await;
}
