//! The memory of the cookie store when it is full: it stays within its bound, says what it forgets,
//! and forgets what it is documented to forget, the oldest first.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use vestibule::clock::Timestamp;

use crate::contract::{Store, local};
use crate::support::jar::{From, Jar};
use crate::support::wire::Connection;
use crate::support::{App, Ask, Browser, Gateway, Protocol, Provider, Reply, join_all};

/// Sessions that change: at 15 KB of sealed text each, more than 64 MiB of it in every part of the
/// memory.
const SESSIONS: usize = 5500;
/// Letters that each update puts into its session.
const LETTERS: usize = 10_900;
/// Connections that ask.
const AT_ONCE: usize = 16;

const FORGOTTEN: &str = "vestibule_sessions_forgotten_total";

/// Browsers with a session each, sealed with the secret that the gateway has.
async fn signed_in(count: usize) -> Vec<Jar> {
    local(async {
        let (worker, now) = (Store::new(None).worker(), Timestamp::now());
        let mut jars = Vec::new();
        for _ in 0..count {
            jars.push(worker.signed_in(now).await);
        }
        jars
    })
    .await
}

fn browser(gateway: &Gateway, jar: &Jar) -> Browser {
    let browser = gateway.browser();
    *browser.jar() = jar.clone();
    browser
}

/// One more update of each session, in trailers: no browser gets the newer cookie.
async fn change_all(gateway: &Gateway, jars: &[Jar]) {
    let next = AtomicUsize::new(0);
    let url = gateway.url.join("/fill").unwrap();
    let scripts = (0..AT_ONCE).map(|_| {
        let (next, url) = (&next, &url);
        async move {
            let connection = Connection::open(url, Protocol::Http1).await.unwrap();
            while let Some(jar) = jars.get(next.fetch_add(1, Ordering::SeqCst)) {
                let cookie = jar.line(url, From::SameSite).unwrap();
                assert!(connection.is_ready().await);
                let ask = Ask::fetch("/fill").header("cookie", cookie);
                let answer = connection.ask(url, ask).await.unwrap();
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "x"));
                assert!(answer.set_cookies().is_empty(), "{answer:?}");
            }
        }
    });
    join_all(scripts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_memory_forgets_the_oldest_changes_says_so_and_keeps_what_has_ended() {
    let provider = Provider::start().await;
    let app = App::start(|seen| match seen.path() {
        "/fill" => Reply::new(200)
            .body("x")
            .trailer("X-Session-Update", json!({ "letters": "x".repeat(LETTERS) }).to_string()),
        "/theme" => Reply::new(200).update(r#"{"theme":"dark"}"#),
        _ => Reply::new(200),
    })
    .await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    let mut jars = signed_in(SESSIONS + 3).await;
    let [told, untold, ended] = jars.split_off(SESSIONS).try_into().unwrap();

    // A browser that gets the newer cookie, one that does not, and one that logs out.
    let told = browser(&gateway, &told);
    assert!(told.fetch("/theme").await.set_cookie("__Host-session").is_some());
    let before = browser(&gateway, &untold);
    assert_eq!(before.copy().fetch("/theme").await.status, 200);
    assert_eq!(before.copy().profile().await.unwrap()["theme"], "dark", "out of the memory");
    let copied = browser(&gateway, &ended);
    copied.copy().page("/auth/logout").await;
    assert_eq!(copied.copy().profile().await, None);
    assert_eq!(gateway.metric(FORGOTTEN).await, 0);

    change_all(&gateway, &jars).await;
    let (forgotten, resident) = (gateway.metric(FORGOTTEN).await, gateway.resident() / 1024);
    eprintln!("{forgotten} of {SESSIONS} forgotten, {resident} MiB resident");
    // 64 MiB of text are some 4,400 of these sessions.
    assert!((600..1700).contains(&forgotten), "{forgotten}");
    assert!(resident < 600, "{resident} MiB");

    assert_eq!(told.profile().await.unwrap()["theme"], "dark", "her cookie has it");
    let lost = before.copy().profile().await.unwrap();
    assert!(lost.get("theme").is_none(), "the oldest went first: {lost}");
    assert_eq!(before.fetch("/theme").await.status, 200, "it goes on from what its cookie says");
    assert_eq!(before.profile().await.unwrap()["theme"], "dark");
    assert_eq!(copied.copy().profile().await, None, "what has ended takes no text, and stays");
    // The newest are all there.
    let newest = browser(&gateway, jars.last().unwrap());
    assert_eq!(newest.profile().await.unwrap()["letters"].as_str().unwrap().len(), LETTERS);
}
