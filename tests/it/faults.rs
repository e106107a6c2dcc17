//! What fails, fails while updates run at a steady rate: a gateway, Redis, its primary. Afterwards
//! everything is counted: no update that was answered is lost unless the gateway said so, nobody is
//! signed in who was not, nobody was sent to log in, and nothing needed a restart.
//!
//! An update is answered when its response came with the app's status. If the store could not be
//! written by then the response passes all the same, for the app has acted; the gateway counts it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::cut::Cut;
use crate::support::field::{Asker, COOKIE, Field, keys, take};
use crate::support::jar::Jar;
use crate::support::redis::{Sentinels, Server};
use crate::support::{Browser, Protocol, join_all, until};

/// Between two updates of one script, where that is all there is.
const PACE: Duration = Duration::from_millis(25);
/// Where it takes long: a session of 16 KiB holds some 1,200 keys.
const SLOW_PACE: Duration = Duration::from_millis(100);

/// What the scripts of a page have seen.
struct Report {
    pace: Duration,
    next: AtomicUsize,
    done: AtomicBool,
    answered: Mutex<BTreeSet<usize>>,
    unavailable: AtomicUsize,
    /// The connection broke: nobody knows.
    broken: AtomicUsize,
    /// The longest time in which no update was answered.
    longest_gap: Mutex<(Option<Instant>, Duration)>,
}

impl Report {
    fn new(pace: Duration) -> Self {
        Self {
            pace,
            next: AtomicUsize::default(),
            done: AtomicBool::default(),
            answered: Mutex::default(),
            unavailable: AtomicUsize::default(),
            broken: AtomicUsize::default(),
            longest_gap: Mutex::default(),
        }
    }

    fn answered(&self, key: usize) {
        self.answered.lock().unwrap().insert(key);
        let (last, longest) = &mut *self.longest_gap.lock().unwrap();
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            *longest = (*longest).max(now - last);
        }
    }

    fn count(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Waits until this many more updates are answered.
    async fn more(&self, count: usize) {
        let enough = self.count() + count;
        until("updates are answered again", async || (self.count() >= enough).then_some(())).await;
    }
}

/// Four scripts of one page send an update each in their turn, to any gateway, until they are told
/// to stop.
async fn updates(field: &Field, zoe: &Browser, report: &Report) {
    run(field.gateways.iter().map(|g| Asker::of(g, Protocol::Http2)).collect(), zoe, report).await;
}

async fn run(askers: Vec<Asker>, zoe: &Browser, report: &Report) {
    let scripts = (0..4).map(|script| {
        let mut askers = askers.clone();
        async move {
            let mut turn = script;
            while !report.done.load(Ordering::SeqCst) {
                let key = report.next.fetch_add(1, Ordering::SeqCst);
                turn += 1;
                let place = turn % askers.len();
                let jar: Jar = zoe.jar().clone();
                match askers[place].ask(&format!("/set/{key}"), &jar).await {
                    None => drop(report.broken.fetch_add(1, Ordering::SeqCst)),
                    Some(answer) => {
                        take(zoe, &answer);
                        match answer.status.as_u16() {
                            200 => report.answered(key),
                            503 => {
                                assert!(answer.headers.contains_key("retry-after"));
                                report.unavailable.fetch_add(1, Ordering::SeqCst);
                            }
                            status => panic!("{status}: {}", answer.text()),
                        }
                    }
                }
                tokio::time::sleep(report.pace).await;
            }
        }
    });
    join_all(scripts).await;
}

/// Counts what is there against what was answered.
async fn settle(field: &Field, zoe: &Browser, report: &Report, what: &str) {
    let answered = report.answered.lock().unwrap().clone();
    let sent: BTreeSet<usize> = (0..report.next.load(Ordering::SeqCst)).collect();
    let said_lost = field.said_lost().await;
    for profile in field.profiles(zoe).await {
        let profile = profile.unwrap_or_else(|| panic!("{what}: Zoë is not signed in any more"));
        assert_eq!(profile["user"]["sub"], "auth0|zoe");
        let kept = keys(&profile);
        let missing: BTreeSet<usize> = answered.difference(&kept).copied().collect();
        let silent: BTreeSet<_> = missing.difference(&said_lost).collect();
        eprintln!(
            "{what}: {} updates sent, {} answered, {} with 503, {} connections broke; {} kept, {} \
             answered and missing, {} said to be lost; longest gap {:?}",
            sent.len(),
            answered.len(),
            report.unavailable.load(Ordering::SeqCst),
            report.broken.load(Ordering::SeqCst),
            kept.len(),
            missing.len(),
            said_lost.len(),
            report.longest_gap.lock().unwrap().1,
        );
        assert!(silent.is_empty(), "answered updates were lost without a word: {silent:?}");
        assert!(kept.is_subset(&sent), "nothing is there that nobody sent");
        assert_eq!(profile["n"], kept.len(), "none was made twice");
    }
    // Nobody is signed in who was not, nor who has logged out.
    let stranger = field.gateways[0].browser();
    assert_eq!(stranger.profile().await, None);
}

/// A page, a script, and a public page while Redis is away.
async fn is_unavailable(field: &Field, zoe: &Browser) {
    for gateway in &field.gateways {
        let browser = Browser::at(&gateway.url, Protocol::Http2);
        *browser.jar() = zoe.jar().clone();
        for answer in [browser.page("/page").await, browser.fetch("/fetch").await] {
            assert_eq!(answer.status, 503, "never a redirect to log in: {:?}", answer.headers);
            assert!(answer.headers.contains_key("retry-after"));
            assert_eq!(answer.set_cookie(COOKIE), None, "the cookie stays");
        }
        let public = browser.fetch("/public/page").await;
        assert_eq!(public.status, 200);
        let nobody = gateway.browser();
        nobody.forget(COOKIE);
        assert_eq!(nobody.fetch("/public").await.status, 200);
        assert_eq!(nobody.page("/page").await.status, 303, "whoever has no session may log in");
        until("it says so", async || {
            let ready = gateway.admin("/readyz").await;
            (ready.status == 503 && ready.text().contains("Redis cannot be reached")).then_some(())
        })
        .await;
        assert_eq!(gateway.admin("/healthz").await.status, 200);
    }
}

async fn is_ready_again(field: &Field) {
    for gateway in &field.gateways {
        until("it is ready again", async || {
            (gateway.admin("/readyz").await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_loses_no_update_that_redis_has() {
    let server = Server::start().await;
    let mut field = Field::new(2, "", Some(&server.toml())).await;
    let (zoe, report) = (field.signed_in(Protocol::Http2).await, Report::new(PACE));
    let mut gateways = std::mem::take(&mut field.gateways);
    let askers = gateways.iter().map(|g| Asker::of(g, Protocol::Http2)).collect();
    let faults = async {
        for round in 0..4 {
            report.more(60).await;
            let gateway = &mut gateways[round % 2];
            gateway.kill();
            report.more(30).await;
            gateway.start_again().await;
        }
        report.more(60).await;
        report.done.store(true, Ordering::SeqCst);
    };
    tokio::join!(faults, run(askers, &zoe, &report));
    field.gateways = gateways;
    settle(&field, &zoe, &report, "a gateway is killed, Redis").await;
}

/// The newest cookie holds everything that one script was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_loses_nothing_that_is_in_the_cookie() {
    let mut field = Field::new(1, "", None).await;
    let zoe = field.signed_in(Protocol::Http2).await;
    let (mut answered, mut sent) = (BTreeSet::new(), 0);
    for round in 0..4 {
        let mut asker = Asker::of(&field.gateways[0], Protocol::Http2);
        let pid = field.gateways[0].pid();
        let killer = async {
            tokio::time::sleep(Duration::from_millis(400 + 7 * round)).await;
            crate::support::gateway::kill(pid);
        };
        let script = async {
            loop {
                let jar = zoe.jar().clone();
                sent += 1;
                match asker.ask(&format!("/set/{sent}"), &jar).await {
                    Some(answer) => {
                        assert_eq!(answer.status, 200);
                        take(&zoe, &answer);
                        answered.insert(sent);
                    }
                    None => return,
                }
            }
        };
        tokio::join!(killer, script);
        field.gateways[0].kill();
        field.gateways[0].start_again().await;
        let kept = keys(&field.profiles(&zoe).await[0].clone().unwrap());
        eprintln!(
            "a gateway is killed, cookies: {sent} updates sent, {} answered, {} kept",
            answered.len(),
            kept.len()
        );
        assert_eq!(kept, answered);
        if kept.len() > 800 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_loses_no_update() {
    let mut server = Server::start().await;
    let field = Field::new(2, "", Some(&server.toml())).await;
    let (zoe, report) = (field.signed_in(Protocol::Http2).await, Report::new(PACE));
    let faults = async {
        for away in [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)] {
            report.more(60).await;
            server.kill();
            if away > Duration::from_secs(2) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                is_unavailable(&field, &zoe).await;
            }
            tokio::time::sleep(away).await;
            server.start_again().await;
        }
        report.more(60).await;
        is_ready_again(&field).await;
        report.done.store(true, Ordering::SeqCst);
    };
    tokio::join!(faults, updates(&field, &zoe, &report));
    settle(&field, &zoe, &report, "Redis is killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_redis_loses_no_update() {
    let server = Server::start().await;
    let field = Field::new(2, "", Some(&server.toml())).await;
    let (zoe, report) = (field.signed_in(Protocol::Http2).await, Report::new(PACE));
    let faults = async {
        for _ in 0..2 {
            report.more(60).await;
            let start = Instant::now();
            server.signal("STOP");
            tokio::time::sleep(Duration::from_millis(1500)).await;
            is_unavailable(&field, &zoe).await;
            tokio::time::sleep(Duration::from_secs(5).saturating_sub(start.elapsed())).await;
            server.signal("CONT");
        }
        report.more(60).await;
        is_ready_again(&field).await;
        report.done.store(true, Ordering::SeqCst);
    };
    tokio::join!(faults, updates(&field, &zoe, &report));
    settle(&field, &zoe, &report, "Redis is paused for 5 s").await;
}

/// Redis answers before its replicas have a change; the gateway waits until one has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_loses_no_update() {
    let mut sentinels = Sentinels::start(2).await;
    let field = Field::new(2, "", Some(&sentinels.toml())).await;
    let (zoe, report) = (field.signed_in(Protocol::Http2).await, Report::new(SLOW_PACE));
    let out = field.signed_in(Protocol::Http2).await;
    let copied = out.copy();
    assert!(out.page("/auth/logout").await.status.is_redirection());
    let faults = async {
        for alone in [false, true] {
            report.more(20).await;
            let port = sentinels.primary().await;
            let place = sentinels.servers.iter().position(|server| server.port == port).unwrap();
            if alone {
                // The primary goes on answering, but nobody gets copies of what it has.
                let wire = Cut::before(port).await;
                let at = wire.port.to_string();
                for replica in sentinels.servers.iter().filter(|server| server.port != port) {
                    let () = replica.ask(&["REPLICAOF", "127.0.0.1", &at]).await;
                }
                sentinels.replicated(2).await;
                // They have everything up to here.
                report.more(20).await;
                wire.mute();
                tokio::time::sleep(Duration::from_secs(1)).await;
                sentinels.servers[place].kill();
            } else {
                sentinels.servers[place].kill();
            }
            until("another is primary", async || (sentinels.primary().await != port).then_some(()))
                .await;
            report.more(20).await;
            sentinels.servers[place].start_again().await;
            sentinels.replicated(2).await;
        }
        report.more(60).await;
        is_ready_again(&field).await;
        report.done.store(true, Ordering::SeqCst);
    };
    tokio::join!(faults, updates(&field, &zoe, &report));
    settle(&field, &zoe, &report, "the primary is killed").await;
    assert_eq!(copied.profile().await, None, "nobody comes back who has logged out");
}

/// Sentinels may put another server in a primary's place that lives on and answers, for some 10 s,
/// whoever still asks it: by order, or because it was too slow for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_primary_that_lives_on_loses_no_update() {
    let sentinels = Sentinels::start(2).await;
    let field = Field::new(2, "", Some(&sentinels.toml())).await;
    let (zoe, report) = (field.signed_in(Protocol::Http2).await, Report::new(SLOW_PACE));
    let out = field.signed_in(Protocol::Http2).await;
    let copied = out.copy();
    let faults = async {
        for _ in 0..2 {
            report.more(20).await;
            let before = sentinels.primary().await;
            sentinels.replace().await;
            until("another is primary", async || {
                (sentinels.primary().await != before).then_some(())
            })
            .await;
            report.more(40).await;
            sentinels.replicated(2).await;
        }
        assert!(out.page("/auth/logout").await.status.is_redirection());
        report.more(20).await;
        is_ready_again(&field).await;
        report.done.store(true, Ordering::SeqCst);
    };
    tokio::join!(faults, updates(&field, &zoe, &report));
    settle(&field, &zoe, &report, "the primary is replaced").await;
    assert_eq!(copied.profile().await, None, "nobody comes back who has logged out");
}
