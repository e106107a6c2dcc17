//! The system's resolver, told by Debian's `nss_wrapper` which addresses a name has now.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::nginx::Nginx;
use crate::support::{Gateway, PROTOCOLS, Provider, free_port, until_within};

/// Longer than a gateway goes without looking a name up.
const SOON: Duration = Duration::from_secs(60);

/// Reads a file in place of `/etc/hosts`, whenever it has changed.
const BY_FILE: [&str; 3] = ["env", "LD_PRELOAD=libnss_wrapper.so", "NSS_WRAPPER_HOSTS=hosts"];

/// The place before stays up, and the connections to it stay open: only the name has moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_whose_name_moves_is_followed_without_a_reload() {
    let port = free_port();
    let nginx = Nginx::start(port, |_| {
        let server = |host: &str, says: &str| {
            format!("server {{ listen {host}:{port}; location / {{ return 200 {says}; }} }}\n")
        };
        // No connection ends by itself.
        let lines = "keepalive_requests 1000000; keepalive_timeout 10m;\n".to_owned();
        lines
            + &[("127.0.0.1", "up"), ("127.0.7.1", "old"), ("127.0.7.2", "new")]
                .map(|(host, says)| server(host, says))
                .concat()
    })
    .await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .launched_by(&BY_FILE)
        .file("hosts", "127.0.7.1 app.internal\n")
        .route_to("/", &[&format!("http://app.internal:{port}")], r#"access = "public""#)
        .start()
        .await;
    let browsers = PROTOCOLS.map(|protocol| gateway.browser_over(protocol));
    for browser in &browsers {
        for _ in 0..10 {
            let answer = browser.fetch("/").await;
            assert_eq!(
                (answer.status.as_u16(), answer.text().as_str()),
                (200, "old"),
                "install Debian's libnss-wrapper, or run tests/run: {}",
                gateway.log()
            );
        }
    }
    // The file's time of change is looked at, in seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let start = Instant::now();
    fs::write(gateway.directory.path().join("hosts"), "127.0.7.2 app.internal\n").unwrap();
    for browser in &browsers {
        until_within(SOON, "the name is followed", async || {
            let answer = browser.fetch("/").await;
            assert_eq!(answer.status, 200, "nothing is lost on the way");
            (answer.text() == "new").then_some(())
        })
        .await;
    }
    eprintln!("after {:?}", start.elapsed());
    for browser in &browsers {
        for _ in 0..10 {
            assert_eq!(browser.fetch("/").await.text(), "new");
        }
    }
    gateway.logged(&["an upstream has moved", "app.internal"]).await;
    drop(nginx);
}
