//! Debian's nginx behind the gateway: over clear text, a unix socket, TLS with certificates on both
//! sides, and HTTP/2 with and without TLS.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::authority::Authority;
use crate::support::curl::curl;
use crate::support::nginx::Nginx;
use crate::support::{Answer, Ask, Gateway, PROTOCOLS, Provider, free_port, join_all};

/// The ways to one nginx, each a route.
pub(super) const WAYS: [&str; 5] = ["/clear", "/socket", "/tls", "/h2c", "/h2"];
const PUBLIC: &str = r#"access = "public""#;
/// What stands in `page`.
const PAGE: &str = "whole of it";
/// Bytes of `large`.
const LARGE: usize = 24 * 1024 * 1024;

/// An nginx with files, a gateway with a route for each way to it.
pub(super) struct Scene {
    pub(super) gateway: Gateway,
    pub(super) nginx: Nginx,
    large: Vec<u8>,
    _provider: Provider,
}

impl Scene {
    pub(super) async fn new() -> Self {
        let [clear, h2c, tls] = [free_port(), free_port(), free_port()];
        let large: Vec<u8> = (0..LARGE).map(|at| (at * at % 251).to_le_bytes()[0]).collect();
        let nginx = Nginx::start(clear, |at| {
            pages(at, &large);
            papers(at);
            servers(at, clear, h2c, tls)
        })
        .await;
        let at = |name: &str| nginx.file(name).display().to_string();
        let secure = |protocol: &str, ca: &str, own: &str| {
            let [ca, cert, key] = [at(ca), at(&format!("{own}.pem")), at(&format!("{own}.key"))];
            format!(
                "{{ url = 'https://127.0.0.1:{tls}', protocol = '{protocol}', ca = '{ca}', \
                 cert = '{cert}', key = '{key}', server_name = 'app.internal' }}"
            )
        };
        let (clear, socket) = (format!("http://127.0.0.1:{clear}"), at("app.sock"));
        let h2c = format!("{{ url = 'http://127.0.0.1:{h2c}', protocol = 'http2' }}");
        let provider = Provider::start().await;
        let gateway = Gateway::with(&provider)
            .route_to("/clear", &[&clear], PUBLIC)
            .route_to("/private", &[&clear], "")
            .route_to("/socket", &[&format!("unix:{socket}")], PUBLIC)
            .route_written("/tls", &secure("http1", "house.ca", "gateway"), PUBLIC)
            .route_written("/h2c", &h2c, PUBLIC)
            .route_written("/h2", &secure("auto", "house.ca", "gateway"), PUBLIC)
            .route_written("/h2/of-a-stranger", &secure("auto", "house.ca", "stranger"), PUBLIC)
            .route_written("/h2/to-a-stranger", &secure("auto", "other.ca", "gateway"), PUBLIC)
            .start()
            .await;
        Self { gateway, nginx, large, _provider: provider }
    }

    /// What curl has to be told to ask for a page.
    fn url(&self, path: &str) -> String {
        self.gateway.url.join(path).unwrap().into()
    }
}

/// The same on every way.
fn pages(at: &Path, large: &[u8]) {
    let www = at.join("www");
    fs::create_dir(&www).unwrap();
    fs::write(www.join("page"), PAGE).unwrap();
    fs::write(www.join("large"), large).unwrap();
    fs::write(www.join("text.txt"), "It is a long text. ".repeat(5000)).unwrap();
    for way in WAYS.iter().chain(&["/private"]) {
        std::os::unix::fs::symlink(".", www.join(&way[1..])).unwrap();
    }
}

/// Certificates of the server, of the gateway, and of somebody who is neither.
fn papers(at: &Path) {
    let (house, other) = (Authority::new("the house"), Authority::new("another"));
    for (name, pair) in [
        ("server", house.issue(&["app.internal"])),
        ("gateway", house.issue_to("the gateway", |_| {})),
        ("stranger", other.issue_to("a stranger", |_| {})),
    ] {
        fs::write(at.join(format!("{name}.pem")), pair.cert).unwrap();
        fs::write(at.join(format!("{name}.key")), pair.key).unwrap();
    }
    fs::write(at.join("house.ca"), house.pem).unwrap();
    fs::write(at.join("other.ca"), other.pem).unwrap();
}

fn servers(at: &Path, clear: u16, h2c: u16, tls: u16) -> String {
    let at = at.display();
    // What is said at `told`: how it was asked, by whom, and on which connection.
    let places = format!(
        "access_log {at}/access told; root {at}/www; default_type text/plain; gzip on; gzip_types text/plain; gzip_proxied any; gzip_min_length 1000;\n\
         location ~ /told$ {{ return 200 \"$server_protocol|$ssl_client_s_dn|$ssl_server_name|\
         $connection|$http_x_forwarded_user\"; }}\n\
         location ~ /up$ {{ dav_methods PUT; }}\n"
    );
    format!(
        "log_format told '$status $http_x_forwarded_user';\n\
         server {{ listen 127.0.0.1:{clear}; listen unix:{at}/app.sock; {places} }}\n\
         server {{ listen 127.0.0.1:{h2c} http2; {places} }}\n\
         server {{ listen 127.0.0.1:{tls} ssl http2; {places} ssl_verify_client on;\n\
         ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key;\n\
         ssl_client_certificate {at}/house.ca; }}\n"
    )
}

/// Asks for a page on every way, over both protocols.
async fn on_every_way(
    scene: &Scene,
    page: &str,
    change: impl Fn(Ask) -> Ask,
) -> Vec<(String, Answer)> {
    let mut answers = Vec::new();
    for protocol in PROTOCOLS {
        let browser = scene.gateway.browser_over(protocol);
        for way in WAYS {
            let answer = browser.ask(change(Ask::fetch(&format!("{way}/{page}")))).await;
            answers.push((format!("{protocol:?} {way}"), answer));
            // What comes next is the answer to what is asked next.
            let next = browser.fetch(&format!("{way}/page")).await;
            assert_eq!((next.status.as_u16(), next.text().as_str()), (200, PAGE), "after {way}");
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_nginxs_is_206_and_one_outside_is_416() {
    let scene = Scene::new().await;
    let range =
        async |range: &str| on_every_way(&scene, "page", |ask| ask.header("range", range)).await;
    for (way, part) in range("bytes=6-7").await {
        assert_eq!((part.status.as_u16(), part.text().as_str()), (206, "of"), "{way}");
        assert_eq!(part.header("content-range"), Some("bytes 6-7/11"), "{way}");
        assert_eq!(part.header("content-length"), Some("2"), "{way}");
    }
    for (way, parts) in range("bytes=0-4,9-10").await {
        assert_eq!(parts.status, 206, "{way}");
        let kind = parts.header("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        assert_eq!(parts.text().matches(boundary).count(), 3, "{way}: {}", parts.text());
        assert!(parts.text().contains("\r\n\r\nwhole\r\n"), "{way}: {}", parts.text());
    }
    for (way, outside) in range("bytes=99-").await {
        assert_eq!(outside.status, 416, "{way}");
        assert_eq!(outside.header("content-range"), Some("bytes */11"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_the_browser_has_already_is_304_without_a_body() {
    let scene = Scene::new().await;
    let page = scene.gateway.browser().fetch("/clear/page").await;
    let (tag, date) = (page.header("etag").unwrap(), page.header("last-modified").unwrap());
    for (name, value, status) in [
        ("if-none-match", tag, 304),
        ("if-none-match", "\"other\"", 200),
        ("if-modified-since", date, 304),
        ("if-match", "\"other\"", 412),
    ] {
        for (way, answer) in on_every_way(&scene, "page", |ask| ask.header(name, value)).await {
            assert_eq!(answer.status, status, "{way} {name}: {value}");
            if status == 304 {
                assert_eq!(answer.header("etag"), Some(tag), "{way}");
                assert!(answer.body.is_empty(), "{way}");
            }
        }
    }
    let part = |ask: Ask| ask.header("range", "bytes=0-4").header("if-range", "\"old\"");
    for (way, answer) in on_every_way(&scene, "page", part).await {
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, PAGE), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_head_has_the_files_length_and_no_body() {
    let scene = Scene::new().await;
    for (page, status, length) in [("page", 200, Some("11")), ("missing", 404, None)] {
        let head = |ask: Ask| Ask { method: http::Method::HEAD, ..ask };
        for (way, answer) in on_every_way(&scene, page, head).await {
            assert_eq!(answer.status, status, "{way}");
            assert!(answer.body.is_empty(), "{way}");
            if length.is_some() {
                assert_eq!(answer.header("content-length"), length, "{way}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_pass_both_ways_byte_for_byte() {
    let scene = Scene::new().await;
    for (way, answer) in on_every_way(&scene, "large", |ask| ask).await {
        assert!(answer.body == scene.large, "{way}: {} bytes", answer.body.len());
        assert_eq!(answer.header("content-length"), Some(LARGE.to_string().as_str()), "{way}");
    }
    let file = scene.nginx.file("www/large").display().to_string();
    for way in WAYS {
        for (protocol, framing) in [
            ("--http2", "X-Framing: length"),
            ("--http1.1", "X-Framing: length"),
            ("--http1.1", "Transfer-Encoding: chunked"),
        ] {
            let up = scene.nginx.file("www/up");
            let _ = fs::remove_file(&up);
            let url = scene.url(&format!("{way}/up"));
            let said = curl(&scene.gateway, &[protocol, "-H", framing, "-T", &file, &url]);
            assert!(said.contains(" 201"), "{way} {protocol} {framing}: {said}");
            assert!(fs::read(&up).unwrap() == scene.large, "{way} {protocol} {framing}");
        }
    }
}

/// Its length is not known before its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nginx_has_compressed_passes_as_it_is() {
    let scene = Scene::new().await;
    let text = fs::read(scene.nginx.file("www/text.txt")).unwrap();
    let gzip = |ask: Ask| ask.header("accept-encoding", "gzip");
    for (way, answer) in on_every_way(&scene, "text.txt", gzip).await {
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{way}");
        assert_eq!(answer.header("content-length"), None, "{way}");
        assert!(answer.body.starts_with(b"\x1f\x8b") && answer.body.len() < text.len() / 10);
    }
    let out = scene.nginx.file("out");
    for way in WAYS {
        for protocol in ["--http1.1", "--http2"] {
            let _ = fs::remove_file(&out);
            let file = out.display().to_string();
            let url = scene.url(&format!("{way}/text.txt"));
            curl(&scene.gateway, &[protocol, "--compressed", "-o", &file, &url]);
            assert!(fs::read(&out).unwrap() == text, "{way} {protocol}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_sees_the_gateways_certificate_and_the_name_that_the_file_says() {
    let scene = Scene::new().await;
    for (way, answer) in on_every_way(&scene, "told", |ask| ask).await {
        let said = answer.text();
        let said: Vec<&str> = said.split('|').collect();
        let (_, way) = way.split_once(' ').unwrap();
        let spoken = if way.starts_with("/h2") { "HTTP/2.0" } else { "HTTP/1.1" };
        assert_eq!(said[0], spoken, "{way}");
        let certified = matches!(way, "/tls" | "/h2");
        assert_eq!(said[1].contains("CN=the gateway"), certified, "{way}: {said:?}");
        assert_eq!(said[2], if certified { "app.internal" } else { "" }, "{way}");
    }
    let browser = scene.gateway.browser();
    let refused = browser.fetch("/h2/of-a-stranger").await;
    assert_eq!(refused.status, 400, "nginx says so: {}", refused.text());
    assert!(refused.text().contains("The SSL certificate error"), "{}", refused.text());
    assert_eq!(browser.fetch("/h2/to-a-stranger").await.status, 502, "another's server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_nginx_are_used_again() {
    let scene = Scene::new().await;
    let browser = scene.gateway.browser();
    for way in WAYS {
        let mut connections = BTreeSet::new();
        for _ in 0..30 {
            let said = browser.fetch(&format!("{way}/told")).await.text();
            connections.insert(said.split('|').nth(3).unwrap().to_owned());
        }
        // A worker's one.
        assert!(connections.len() <= 2, "{way}: {connections:?}");
    }
}

/// `Connection: close`, GOAWAY, and idle connections that nginx closes when it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_where_nginx_closes_connections_all_the_time() {
    let [clear, h2c] = [free_port(), free_port()];
    let nginx = Nginx::start(clear, |_| {
        let place = "keepalive_requests 3; keepalive_timeout 30ms;\n\
                     location / { return 200 $request_method; }";
        format!(
            "server {{ listen 127.0.0.1:{clear}; {place} }}\n\
             server {{ listen 127.0.0.1:{h2c} http2; {place} }}\n"
        )
    })
    .await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .route_to("/clear", &[&format!("http://127.0.0.1:{clear}")], PUBLIC)
        .route_written(
            "/h2c",
            &format!("{{ url = 'http://127.0.0.1:{h2c}', protocol = 'http2' }}"),
            PUBLIC,
        )
        .start()
        .await;
    let scripts = (0..10_u64).map(|script| {
        let browser = gateway.browser();
        async move {
            for round in 0..20 {
                for way in ["/clear", "/h2c"] {
                    let answer = browser.fetch(way).await;
                    let got = (answer.status.as_u16(), answer.text());
                    assert_eq!(got, (200, "GET".to_owned()), "{way} {round}");
                }
                tokio::time::sleep(Duration::from_millis((script * 7 + round * 13) % 60)).await;
            }
        }
    });
    join_all(scripts).await;
    drop(nginx);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_one_nginx_of_two_is_restarted() {
    let [one, other] = [free_port(), free_port()];
    let start = async |port: u16| {
        Nginx::start(port, |_| {
            format!("server {{ listen 127.0.0.1:{port}; location / {{ return 200 {port}; }} }}\n")
        })
        .await
    };
    let (mut first, mut second) = (start(one).await, start(other).await);
    let provider = Provider::start().await;
    let urls = [one, other].map(|port| format!("http://127.0.0.1:{port}"));
    let gateway =
        Gateway::with(&provider).route_to("/", &[&urls[0], &urls[1]], PUBLIC).start().await;
    let (over, by_each) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let scripts = join_all((0..8).map(|script| {
        let browser = gateway.browser_over(PROTOCOLS[script % 2]);
        let (over, by_each) = (&over, &by_each);
        async move {
            while !over.load(Ordering::SeqCst) {
                let answer = browser.fetch("/").await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                let of_first = answer.text() == one.to_string();
                by_each[usize::from(!of_first)].fetch_add(1, Ordering::SeqCst);
            }
        }
    }));
    let restarts = async {
        for _ in 0..3 {
            first.restart(one).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            // Another generation of workers, on the same socket.
            second.program.signal("HUP");
            tokio::time::sleep(Duration::from_millis(300)).await;
            second.restart(other).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(scripts, restarts);
    let by_each = by_each.map(AtomicUsize::into_inner);
    eprintln!("{by_each:?} answers of the two");
    assert!(by_each.iter().all(|count| *count > 100), "{by_each:?}");
}
