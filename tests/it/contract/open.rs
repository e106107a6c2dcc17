//! What is open at one gateway while its session ends, or lives on, at another.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vestibule::clock::Timestamp;
use vestibule::session::Followed;

use super::redis::one;
use super::{Store, local};
use crate::support::redis::{Cluster, Server};
use crate::support::until;

/// Waits until what is followed is over, looking as often as who has it open, and says how long it took.
async fn over(followed: &Followed) -> Duration {
    let start = Instant::now();
    while followed.is_alive(Timestamp::now()) {
        assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
        sleep(Duration::from_millis(100)).await;
    }
    start.elapsed()
}

/// Redis says a word once: who is connecting anew at that moment never hears it.
#[tokio::test]
async fn what_is_open_ends_though_the_word_of_its_end_was_missed() {
    local(async {
        let (server, store) = one().await;
        let now = Timestamp::now();
        let (here, there) = (store.worker(), store.gateway());
        until("it listens", async || there.health.is_good().then_some(())).await;
        let worker = there.worker();
        for kills_listener in [true, false] {
            let (jar, other) = (here.signed_in(now).await, here.signed_in(now).await);
            let followed = worker.follow(&worker.load(&jar, now).await);
            let untouched = worker.follow(&worker.load(&other, now).await);
            sleep(Duration::from_millis(1500)).await;
            assert!(followed.is_alive(Timestamp::now()));
            if kills_listener {
                let _: i64 = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
                here.log_out(&mut jar.clone(), now).await;
                let took = over(&followed).await;
                assert!(took < Duration::from_secs(6), "after it listens again: {took:?}");
            } else {
                let id = worker.load(&jar, now).await.session().unwrap().id;
                let _: i64 = server.ask(&["DEL", &format!("vestibule:{{{id}}}")]).await;
                let took = over(&followed).await;
                assert!(took < Duration::from_secs(14), "now and then: {took:?}");
            }
            assert!(untouched.is_alive(Timestamp::now()));
        }
    })
    .await;
}

/// The use of a session at one gateway keeps open what another one has of it.
#[tokio::test]
async fn what_is_open_lives_as_long_as_its_session_is_used_anywhere() {
    let (server, cluster) = (Server::start().await, Cluster::start().await);
    for config in [server.config(), cluster.config()] {
        local(lives_as_long_as_it_is_used(Store::new(Some(config)))).await;
    }
}

async fn lives_as_long_as_it_is_used(store: Store) {
    let store = store.with(|config| config.inactivity = Some(Duration::from_secs(3)));
    let (here, there) = (store.worker(), store.gateway());
    until("it listens", async || there.health.is_good().then_some(())).await;
    let worker = there.worker();
    let mut jar = here.signed_in(Timestamp::now()).await;
    let followed = worker.follow(&worker.load(&jar, Timestamp::now()).await);
    for _ in 0..30 {
        sleep(Duration::from_millis(300)).await;
        let used = here.load(&jar, Timestamp::now()).await;
        assert!(used.session().is_some());
        here.answer(&used, &mut jar, Timestamp::now());
        assert!(followed.is_alive(Timestamp::now()));
    }
    let took = over(&followed).await;
    assert!((2000..5500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(here.view(&jar, Timestamp::now()).await, None);
}

/// Who upgrades may have given the gateway's user no right to ask.
#[tokio::test]
async fn a_redis_that_may_not_be_asked_what_is_there_is_good_all_the_same() {
    local(async {
        let (server, store) = one().await;
        let _: String = server.ask(&["ACL", "SETUSER", "default", "-pexpiretime"]).await;
        let gateway = store.gateway();
        until("it listens", async || gateway.health.is_good().then_some(())).await;
        let (worker, now) = (gateway.worker(), Timestamp::now());
        let jar = worker.signed_in(now).await;
        let followed = worker.follow(&worker.load(&jar, now).await);
        for _ in 0..60 {
            sleep(Duration::from_millis(200)).await;
            assert!(gateway.health.is_good() && followed.is_alive(now));
        }
        worker.log_out(&mut jar.clone(), now).await;
        assert!(!followed.is_alive(now));
    })
    .await;
}
