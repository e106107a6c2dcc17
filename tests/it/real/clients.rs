//! Clients that we did not write, before nginx: curl for what is asked in odd ways, h2load for many
//! requests at once.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::nginx::{Scene, WAYS};
use crate::support::curl::curl;
use crate::support::program::Program;
use crate::support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_heads_ranges_and_304_over_either_protocol() {
    let scene = Scene::new().await;
    let directory = scene.gateway.directory.path();
    let [tag, body] = ["tag", "body"].map(|name| directory.join(name).display().to_string());
    for (protocol, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        for way in WAYS {
            let url: String = scene.gateway.url.join(&format!("{way}/page")).unwrap().into();
            let ask = |arguments: &[&str]| {
                let _ = fs::remove_file(&body);
                let common = [protocol, "-o", body.as_str(), url.as_str()];
                let said = curl(&scene.gateway, &[arguments, &common].concat());
                (said.to_lowercase(), fs::read_to_string(&body).unwrap_or_default())
            };
            let status = |number: u16| format!("< {version} {number}").to_lowercase();
            let (head, _) = ask(&["--head"]);
            assert!(head.contains(&status(200)), "{way}: {head}");
            assert!(head.contains("< content-length: 11\r"), "{way}: {head}");
            let (part, got) = ask(&["--range", "-5"]);
            assert!(part.contains(&status(206)), "{way}: {part}");
            assert_eq!(got, "of it", "{way}");
            let (whole, got) = ask(&["--etag-save", &tag]);
            assert!(whole.contains(&status(200)) && got == "whole of it", "{way}: {whole}");
            let (same, got) = ask(&["--etag-compare", &tag]);
            assert!(same.contains(&status(304)) && got.is_empty(), "{way}: {same}");
            // Two on one connection: nothing of the first is left over for the second.
            let (both, _) = ask(&["--head", &url, "--next", "--silent", "--verbose", "-k"]);
            assert!(both.contains("left intact"), "{way}: {both}");
        }
    }
}

/// What h2load was answered, over a route for those who are signed in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_every_answer_and_nginx_every_request_once() {
    const REQUESTS: usize = 4000;
    let scene = Scene::new().await;
    let zoe = scene.gateway.browser();
    zoe.log_in("zoe", "/private/page").await;
    let cookie = format!("cookie: __Host-session={}", zoe.cookie("__Host-session").unwrap());
    let url: String = scene.gateway.url.join("/private/page").unwrap().into();
    let log = scene.nginx.file("access");
    for protocol in ["h2", "http/1.1"] {
        let of_zoe = || {
            let text = fs::read_to_string(&log).unwrap();
            text.lines().filter(|line| *line == "200 auth0|zoe").count()
        };
        let before = of_zoe();
        let mut command = Command::new("h2load");
        command.args(["-n", &REQUESTS.to_string(), "-c", "20", "-m", "10"]);
        command.args(["--npn-list", protocol, "-H", &cookie, &url]);
        let mut h2load =
            Program::start(&mut command, "install Debian's nghttp2-client, or run tests/run");
        tokio::task::block_in_place(|| h2load.wait(Duration::from_secs(60)));
        let said = h2load.output();
        let all = format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx");
        assert!(said.contains(&all), "{protocol}: {said}");
        assert!(said.contains(&format!("{REQUESTS} succeeded, 0 failed, 0 errored")), "{said}");
        assert!(said.contains(&format!("Application protocol: {protocol}")), "{said}");
        until("nginx has written it down", async || (of_zoe() >= before + REQUESTS).then_some(()))
            .await;
        assert_eq!(of_zoe(), before + REQUESTS);
    }
}
