//! Several apps behind one route: who is asked, how often, and who is not while something is wrong
//! with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::authority::{Authority, Pair};
use crate::support::http2_app::{self, Http2App, Http2Reply};
use crate::support::wire::authority_of;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Provider, Raw, Reply, Stage, raw, until};

/// Says its name.
async fn named(name: &'static str) -> App {
    App::start(move |_| Reply::new(200).body(name)).await
}

/// As a value of `upstream`.
fn weighted(apps: &[(&App, u32)]) -> String {
    let all: Vec<_> = apps
        .iter()
        .map(|(app, weight)| format!("{{ url = {:?}, weight = {weight} }}", app.url))
        .collect();
    format!("[{}]", all.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_gets_requests_by_its_weight() {
    let provider = Provider::start().await;
    let (small, large) = (named("small").await, named("large").await);
    let upstream = weighted(&[(&small, 1), (&large, 4)]);
    let gateway = Gateway::with(&provider)
        .route_written("/", &upstream, r#"access = "public""#)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        for _ in 0..200 {
            assert_eq!(browser.fetch("/").await.status, 200);
        }
    }
    let shares = (small.seen().len(), large.seen().len());
    assert!((40..125).contains(&shares.0) && shares.0 + shares.1 == 400, "{shares:?}");
}

/// One app takes its time: the others get what it cannot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upstream_gets_fewer_requests() {
    let provider = Provider::start().await;
    let slow = App::start_later(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        Reply::new(200).body("slow")
    })
    .await;
    let quick = App::start_later(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(4)).await;
        Reply::new(200).body("quick")
    })
    .await;
    let gateway = Gateway::with(&provider)
        .server("workers = 1")
        .route_to("/", &[&slow.url, &quick.url], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    let scripts = (0..8).map(|_| async {
        for _ in 0..40 {
            assert_eq!(browser.fetch("/").await.status, 200);
        }
    });
    crate::support::join_all(scripts).await;
    let (slow, quick) = (slow.seen().len(), quick.seen().len());
    assert!(slow * 8 < quick, "{slow} and {quick}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_with_its_upstream_and_moves_only_while_that_is_down() {
    let provider = Provider::start_with(&["localhost"], |_| {}).await;
    let mut apps = vec![named("a").await, named("b").await, named("c").await];
    let urls: Vec<&str> = apps.iter().map(|app| app.url.as_str()).collect();
    let gateway = Gateway::with(&provider).route_to("/", &urls, "sticky = true").start().await;
    let stage = Stage { gateway, app: App::plain().await, provider };
    let mut users = Vec::new();
    for number in 0..6 {
        let protocol = PROTOCOLS[number % 2];
        let user = stage.signed_in_over("zoe", protocol).await;
        let own = user.fetch("/").await.text();
        for _ in 0..10 {
            assert_eq!(user.copy().fetch("/").await.text(), own, "on any worker");
        }
        users.push((user, own));
    }
    let down = users[0].1.clone();
    let place = ["a", "b", "c"].iter().position(|name| *name == down).unwrap();
    let port: u16 = apps[place].url.rsplit(':').next().unwrap().parse().unwrap();
    drop(apps.remove(place));
    for (user, own) in &users {
        let now = user.fetch("/").await;
        assert_eq!(now.status, 200);
        assert!(now.text() != down && (now.text() == *own || *own == down));
    }
    let name: &'static str = ["a", "b", "c"][place];
    let back = App::start_on(port, move |_| Reply::new(200).body(name)).await;
    for (user, own) in &users {
        until("each is where it was", async || {
            (user.fetch("/").await.text() == *own).then_some(())
        })
        .await;
    }
    drop(back);
}

/// Reads requests and answers none of them.
async fn broken() -> App {
    App::by_hand(|mut peer| async move {
        peer.request().await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_breaks_off_is_left_out_after_five_times_and_tried_again_later() {
    let provider = Provider::start().await;
    let (good, bad) = (App::plain().await, broken().await);
    let gateway = Gateway::with(&provider)
        .route_to("/", &[&good.url, &bad.url], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    let ejections = format!("vestibule_upstream_ejections_total{{upstream={:?}}}", bad.url);
    let mut broken = 0;
    while gateway.metric(&ejections).await == 0 {
        let answer = browser.ask(Ask::post("/", "x")).await;
        broken += usize::from(answer.status == 502);
        assert!(broken <= 5, "it should be left out");
    }
    assert_eq!((broken, bad.seen().len()), (5, 5));
    for _ in 0..50 {
        assert_eq!(browser.fetch("/").await.status, 200);
    }
    gateway.logged(&["an upstream is left out", &bad.url]).await;
    until("one request tries it", async || {
        browser.fetch("/").await;
        (bad.seen().len() == 6).then_some(())
    })
    .await;
    for _ in 0..50 {
        assert_eq!(browser.fetch("/").await.status, 200, "it stays out for longer");
    }
    assert_eq!(gateway.metric(&ejections).await, 1);

    let port: u16 = bad.url.rsplit(':').next().unwrap().parse().unwrap();
    drop(bad);
    let mended = App::start_on(port, |_| Reply::new(200).body("mended")).await;
    until("it is back", async || (browser.fetch("/").await.text() == "mended").then_some(())).await;
    gateway.logged(&["an upstream answers again", &mended.url]).await;
    for _ in 0..50 {
        assert_eq!(browser.fetch("/").await.status, 200);
    }
    assert!(mended.seen().len() > 5, "as before");
}

/// A client can break its own exchange.
/// An app that ends while connections to it wait costs nobody a page; a request that ends whoever it is
/// sent to ends two of them, not all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_upstream_is_asked_once_where_a_connection_is_closed_without_an_answer() {
    let provider = Provider::start().await;
    let (good, bad) = (App::plain().await, broken().await);
    let worse = [broken().await, broken().await, broken().await];
    let all: Vec<&str> = worse.iter().map(|app| app.url.as_str()).collect();
    let gateway = Gateway::with(&provider)
        .route_to("/", &[&good.url, &bad.url], r#"access = "public""#)
        .route_to("/worse", &all, r#"access = "public""#)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let browser = gateway.browser_over(protocol);
        for _ in 0..20 {
            assert_eq!(browser.fetch("/").await.status, 200);
        }
    }
    assert!(!bad.seen().is_empty(), "it was asked");
    let browser = gateway.browser();
    assert_eq!(browser.fetch("/worse").await.status, 502);
    assert_eq!(worse.iter().map(|app| app.seen().len()).sum::<usize>(), 2);
    assert_eq!(browser.ask(Ask::post("/worse", "x")).await.status, 502);
    assert_eq!(worse.iter().map(|app| app.seen().len()).sum::<usize>(), 3, "not twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_upstream_is_left_out_for_what_a_client_could_have_broken_or_for_its_pages() {
    let provider = Provider::start().await;
    let good = || App::start(|_| Reply::new(200).body("good"));
    let (one, other) = (good().await, good().await);
    let gateway = Gateway::with(&provider)
        .route_to("/", &[&one.url, &other.url], r#"access = "public""#)
        .start()
        .await;
    for _ in 0..30 {
        let host = authority_of(&gateway.url);
        let half = format!(
            "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n\
             4\r\nhalf\r\nnonsense\r\n"
        );
        let answer = raw::exchange(&gateway, half).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    for app in [&one, &other] {
        let name = format!("vestibule_upstream_ejections_total{{upstream={:?}}}", app.url);
        assert_eq!(gateway.metric(&name).await, 0);
    }
    // A request that came whole is another matter.
    let silent = broken().await;
    let gateway = Gateway::with(&provider)
        .beside()
        .route_to("/", &[&one.url, &silent.url], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    let name = format!("vestibule_upstream_ejections_total{{upstream={:?}}}", silent.url);
    until("it is left out", async || {
        browser.ask(Ask::post("/", "body")).await;
        (gateway.metric(&name).await == 1).then_some(())
    })
    .await;
    // Nor are pages with 500: a status is an answer.
    let failing = App::start(|_| Reply::new(500).body("sorry")).await;
    let gateway = Gateway::with(&provider)
        .beside()
        .route_to("/", &[&failing.url, &silent.url], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    let mut pages = 0;
    for _ in 0..40 {
        pages += usize::from(browser.fetch("/").await.status == 500);
    }
    assert!(pages >= 20, "{pages}");
    let name = format!("vestibule_upstream_ejections_total{{upstream={:?}}}", failing.url);
    assert_eq!(gateway.metric(&name).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_upstreams_are_left_out_all_are_asked() {
    let provider = Provider::start().await;
    let (one, other) = (broken().await, broken().await);
    let gateway = Gateway::with(&provider)
        .route_to("/", &[&one.url, &other.url], r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    for _ in 0..30 {
        assert_eq!(browser.ask(Ask::post("/", "x")).await.status, 502);
    }
    assert_eq!(one.seen().len() + other.seen().len(), 30);
    assert!(one.seen().len() > 7 && other.seen().len() > 7);
}

/// Every connection is reset under its second request, which is sent once more and no oftener.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_repeated_once_when_a_connection_breaks_under_it() {
    let provider = Provider::start().await;
    let app = App::by_hand(|mut peer| async move {
        if peer.request().await.is_some_and(|seen| seen.path() == "/first") {
            // All are under way at once, so that each has a connection of its own.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            peer.request().await;
        }
    })
    .await;
    let gateway = Gateway::with(&provider)
        .server("workers = 1")
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    let browser = gateway.browser();
    crate::support::join_all((0..6).map(|_| browser.fetch("/first"))).await;
    assert_eq!(app.connections(), 6);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(browser.fetch("/second").await.status, 502);
    let second = app.seen().iter().filter(|seen| seen.path() == "/second").count();
    assert_eq!(second, 2);
}

/// Writes an authority's certificate and one that it has issued for a gateway.
fn papers(authority: &Authority, directory: &std::path::Path, name: &str) -> String {
    let path = |kind: &str| directory.join(format!("{name}.{kind}"));
    let Pair { cert, key } = authority.issue(&["gateway.internal"]);
    for (kind, text) in [("ca", &authority.pem), ("pem", &cert), ("key", &key)] {
        std::fs::write(path(kind), text).unwrap();
    }
    format!("cert = '{}', key = '{}'", path("pem").display(), path("key").display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_may_have_an_authority_of_its_own_and_want_a_certificate() {
    let provider = Provider::start().await;
    let files = tempfile::TempDir::new().unwrap();
    let (house, stranger) = (Authority::new("the house"), Authority::new("a stranger"));
    let ours = papers(&house, files.path(), "house");
    let theirs = papers(&stranger, files.path(), "stranger");
    let ca = format!("ca = '{}'", files.path().join("house.ca").display());
    let tls = house.server_for_own("app.internal");
    let app = App::over_tls_with(tls, "127.0.0.1", |_| Reply::new(200).body("come in")).await;
    let name = r#"server_name = "app.internal""#;
    let mut builder = Gateway::with(&provider);
    let ways = [
        ("/all", vec![ca.as_str(), &ours, name], 200),
        ("/no-ca", vec![&ours, name], 502),
        ("/no-cert", vec![&ca, name], 502),
        ("/no-name", vec![&ca, &ours], 502),
        ("/wrong-cert", vec![&ca, &theirs, name], 502),
        ("/other-name", vec![&ca, &ours, r#"server_name = "other.internal""#], 502),
    ];
    for (path, keys, _) in &ways {
        let upstream = format!("{{ url = {:?}, {} }}", app.url, keys.join(", "));
        builder = builder.route_written(path, &upstream, r#"access = "public""#);
    }
    let gateway = builder.start().await;
    let browser = gateway.browser();
    // Twice and in any order: no session with the upstream is resumed by another route.
    for (path, _, status) in ways.iter().chain(ways.iter().rev()) {
        let answer = browser.fetch(path).await;
        assert_eq!(answer.status, *status, "{path}: {}", answer.text());
    }
    assert_eq!(app.seen().len(), 2);
}

/// An app that speaks nothing but HTTP/2 is not unwell for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_lets_the_handshake_say_which_protocol_is_spoken_as_requests_do() {
    let provider = Provider::start().await;
    let answer = |seen: &http2_app::Seen| Http2Reply::new(format!("{:?}", seen.head.version));
    for (protocols, spoken) in [
        (&[&b"h2"[..]][..], "HTTP/2.0"),
        (&[b"h2", b"http/1.1"], "HTTP/2.0"),
        (&[b"http/1.1"], "HTTP/1.1"),
    ] {
        let app = Http2App::over_tls(protocols, answer).await;
        let health = r#"{ path = "/up", interval = "100ms" }"#;
        let route = format!("access = \"public\"\nhealth = {health}");
        let gateway = Gateway::with(&provider).route_to("/", &[&app.url], &route).start().await;
        let passed =
            format!("vestibule_upstream_checks_total{{upstream={:?},outcome=\"passed\"}}", app.url);
        until("a check has passed", async || (gateway.metric(&passed).await > 2).then_some(()))
            .await;
        let up = format!("vestibule_upstream_up{{upstream={:?}}}", app.url);
        assert_eq!(gateway.metric(&up).await, 1, "{spoken}");
        assert_eq!(gateway.browser().fetch("/").await.text(), spoken);
        for seen in app.seen() {
            assert_eq!(format!("{:?}", seen.head.version), spoken, "{}", seen.head.uri);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_its_checks_find_unwell_gets_nothing_until_it_is_well() {
    let provider = Provider::start().await;
    let well = Arc::new(AtomicBool::new(true));
    let told = well.clone();
    let checked = App::start(move |seen| match seen.path() {
        "/up" if told.load(Ordering::SeqCst) => Reply::new(204),
        "/up" => Reply::new(503),
        _ => Reply::new(200).body("checked"),
    })
    .await;
    let other = App::start(|_| Reply::new(200).body("other")).await;
    let health = r#"{ path = "/up?now", host = "App.internal", interval = "100ms", up_after = 3 }"#;
    let gateway = Gateway::with(&provider)
        .route_to(
            "/",
            &[&checked.url, &other.url],
            &format!("access = \"public\"\nhealth = {health}"),
        )
        .start()
        .await;
    let browser = gateway.browser();
    let answers = async || {
        let mut answers = std::collections::BTreeSet::new();
        for _ in 0..40 {
            answers.insert(browser.fetch("/").await.text());
        }
        answers
    };
    let up = format!("vestibule_upstream_up{{upstream={:?}}}", checked.url);
    let becomes = async |number| {
        until("the check is heard", async || (gateway.metric(&up).await == number).then_some(()))
            .await;
    };
    assert_eq!(answers().await.len(), 2);
    well.store(false, Ordering::SeqCst);
    becomes(0).await;
    gateway.logged(&["not well", &checked.url, "status 503"]).await;
    assert_eq!(answers().await, ["other".to_owned()].into());
    // Bad is better than nothing.
    drop(other);
    assert_eq!(answers().await, ["checked".to_owned()].into());
    well.store(true, Ordering::SeqCst);
    becomes(1).await;
    gateway.logged(&["an upstream is well again", &checked.url]).await;

    let checks = checked.seen().into_iter().filter(|seen| seen.path() == "/up");
    for check in checks {
        assert_eq!((check.method.as_str(), check.target.as_str()), ("GET", "/up?now"));
        assert_eq!(check.header("host").unwrap(), "app.internal");
        assert_eq!(check.header("x-session"), None);
    }
    let outcome = |outcome| {
        format!("vestibule_upstream_checks_total{{upstream={:?},outcome={outcome:?}}}", checked.url)
    };
    assert!(gateway.metric(&outcome("passed")).await >= 3);
    assert!(gateway.metric(&outcome("failed")).await >= 3);
}

/// An upstream that takes connections and says nothing, and one that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_not_waited_for() {
    let provider = Provider::start().await;
    let silent = App::by_hand(|mut peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let good = App::plain().await;
    let gateway = Gateway::with(&provider)
        .route_to(
            "/",
            &[&silent.url, "http://127.0.0.1:1", &good.url],
            "access = \"public\"\nhealth = { path = \"/\", interval = \"100ms\", timeout = \"200ms\" }",
        )
        .start()
        .await;
    let browser = gateway.browser();
    for url in [silent.url.as_str(), "http://127.0.0.1:1"] {
        gateway.logged(&["not well", url]).await;
    }
    for _ in 0..30 {
        assert_eq!(browser.fetch("/").await.status, 200);
    }
}

/// WebSockets last: they count as long as they are open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_websockets_are_spread_evenly_and_closed_ones_are_forgotten() {
    let provider = Provider::start().await;
    let app = |name: &'static str| {
        App::by_hand(move |mut peer| async move {
            peer.request().await;
            let head = format!(
                "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 X-App: {name}\r\n\r\n"
            );
            let _ = peer.write(head).await;
            while !peer.some().await.is_empty() {}
        })
    };
    let (one, other) = (app("one").await, app("other").await);
    let gateway = Gateway::with(&provider)
        .server("workers = 1")
        .route_to("/", &[&one.url, &other.url], r#"access = "public""#)
        .start()
        .await;
    let open = async || {
        let mut raw = Raw::open(&gateway).await;
        let host = authority_of(&gateway.url);
        raw.send(format!(
            "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
        let head = raw.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        (raw, head.to_ascii_lowercase().contains("x-app: one"))
    };
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(open().await);
    }
    assert_eq!((one.seen().len(), other.seen().len()), (10, 10));
    sockets.retain(|(_, of_one)| !of_one);
    assert_eq!(sockets.len(), 10);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    for _ in 0..10 {
        sockets.push(open().await);
    }
    assert_eq!((one.seen().len(), other.seen().len()), (20, 10));
}
