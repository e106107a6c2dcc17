//! Where browsers are sent: never off our own origin by somebody else's word.

use url::Url;

use crate::support::{App, Ask, Browser, Gateway, PROTOCOLS, Scripted, Stage, raw};

/// CVE-2020-5233, CVE-2020-11053, CVE-2020-4037 (oauth2-proxy), CVE-2021-32786 (`mod_auth_openidc`).
const HOSTILE: [&str; 26] = [
    "/\\evil.example",
    "//evil.example",
    "///evil.example",
    "/%09/evil.example",
    "/%0b/\\evil.example",
    "/./\\evil.example",
    "/%5cevil.example",
    "/%5c%5cevil.example",
    "/%2fevil.example",
    "/%2f%2fevil.example",
    "/%252fevil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\\\\evil.example",
    "\u{1}//evil.example",
    " //evil.example",
    "/.//evil.example",
    "/a/..//evil.example",
    "https://evil.example",
    "https:evil.example",
    "https:/\\evil.example",
    "https://evil.example\\@localhost/",
    "https://localhost@evil.example/",
    "javascript:alert(1)",
    "data:text/html,x",
    "@evil.example",
];

fn query(value: &str) -> String {
    url::form_urlencoded::byte_serialize(value.as_bytes()).collect()
}

/// Whether a browser that is sent there stays at home, whatever it decodes on the way.
#[track_caller]
fn stays_at_home(browser: &Browser, location: &Url, hostile: &str) {
    assert_eq!(location.origin(), browser.home.origin(), "{hostile:?} → {location}");
    assert!(!location.as_str().contains("evil"), "{hostile:?} → {location}");
}

#[tokio::test]
async fn a_way_back_after_login_is_on_our_own_origin() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    for hostile in HOSTILE {
        let browser = gateway.browser();
        let login = browser.page(&format!("/auth/login?return_to={}", query(hostile))).await;
        let callback = browser.page(login.location().as_str()).await.location();
        let answer = browser.page(callback.as_str()).await;
        assert_eq!(answer.status, 303, "{hostile:?}");
        stays_at_home(&browser, &answer.location(), hostile);
        assert_eq!(answer.location().path(), "/", "{hostile:?}");
    }
}

/// CVE-2022-23527, CVE-2019-14857 (`mod_auth_openidc`): the same on logout.
#[tokio::test]
async fn a_way_back_after_logout_is_on_our_own_origin() {
    let stage = Stage::new().await;
    let nobody = stage.gateway.browser();
    for hostile in HOSTILE {
        let logout = format!("/auth/logout?return_to={}", query(hostile));
        stays_at_home(&nobody, &nobody.page(&logout).await.location(), hostile);
    }
    for hostile in &HOSTILE[..6] {
        let zoe = stage.signed_in("zoe").await;
        let answer = zoe.page(&format!("/auth/logout?return_to={}", query(hostile))).await;
        let back = answer.location_parameter("post_logout_redirect_uri").unwrap();
        stays_at_home(&zoe, &Url::parse(&back).unwrap(), hostile);
    }
}

/// As a page that is opened: its own address is the way back.
#[tokio::test]
async fn a_hostile_address_of_a_page_is_no_way_off_either() {
    let provider = Scripted::start().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).start().await;
    for target in [
        "//evil.example",
        "/\\evil.example",
        "/%5cevil.example",
        "/%09/evil.example",
        "/.//evil.example",
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n");
        let response = raw::exchange(&gateway, request).await;
        assert_eq!(raw::status(&response), 400, "{target}: {response}");
    }
    assert_eq!(app.seen().len(), 0);
}

/// CVE-2024-21499 (caddy-security), CVE-2020-15129 (Traefik).
#[tokio::test]
async fn forwarded_fields_of_a_stranger_do_not_bend_redirects() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let browser = stage.gateway.browser_over(protocol);
        let ask = || {
            Ask::page("/inbox")
                .header("x-forwarded-proto", "javascript")
                .header("x-forwarded-prefix", "//evil.example")
                .header("x-forwarded-host", "evil.example")
                .header("forwarded", "host=evil.example;proto=http")
                .header("x-forwarded-uri", "//evil.example")
                .header("x-original-url", "//evil.example")
                .header("origin", "https://evil.example")
                .header("referer", "https://evil.example/")
        };
        let answer = browser.ask(ask()).await;
        assert_eq!(answer.status, 303);
        let callback = browser.url("/auth/callback");
        assert_eq!(answer.location_parameter("redirect_uri").unwrap(), callback.as_str());
        assert!(!answer.location().as_str().contains("evil"));
        let page = browser.follow(answer).await;
        let page = browser.submit(&page, &[("user", "zoe")]).await;
        assert_eq!(page.url, browser.url("/inbox"));
        let logout = browser.ask(Ask { target: "/auth/logout".to_owned(), ..ask() }).await;
        assert!(!logout.location().as_str().contains("evil"));
    }
}

#[tokio::test]
async fn a_way_back_to_the_gateways_own_endpoints_leads_home() {
    let stage = Stage::new().await;
    for target in ["/auth/logout", "/auth/login", "/%61uth/logout", "/x/../auth/logout"] {
        let browser = stage.gateway.browser();
        let page = browser.open(&format!("/auth/login?return_to={}", query(target))).await;
        let page = browser.submit(&page, &[("user", "zoe")]).await;
        assert_eq!((page.status.as_u16(), page.url.path()), (200, "/"), "{target}");
        assert!(browser.profile().await.is_some(), "{target}");
    }
}

#[tokio::test]
async fn the_listener_without_tls_only_sends_to_https() {
    let stage = Stage::new().await;
    let plain = stage.gateway.plain("/inbox?x=%2F").await;
    assert_eq!(plain.status, 308);
    assert_eq!(plain.location(), stage.gateway.url.join("/inbox?x=%2F").unwrap());
    assert_eq!(plain.set_cookies(), Vec::<&str>::new());

    let port = stage.gateway.plain_url().port().unwrap();
    let ask = async |head: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    };
    for head in [
        "GET //evil.example/ HTTP/1.1\r\nHost: localhost\r\n",
        "GET /\\evil.example HTTP/1.1\r\nHost: localhost\r\n",
        "GET http://localhost//evil.example HTTP/1.1\r\nHost: localhost\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil.example\r\n",
    ] {
        let response = ask(head).await;
        let location = response.lines().find_map(|line| line.strip_prefix("location: "));
        if let Some(location) = location {
            let location = Url::parse(location).unwrap();
            assert_eq!(location.origin(), stage.gateway.url.origin(), "{head}");
        }
    }
    for head in ["GET / HTTP/1.1\r\nHost: evil.example\r\n", "GET / HTTP/1.1\r\n"] {
        let response = ask(head).await;
        assert!([400, 421].contains(&raw::status(&response)), "{response}");
        assert!(!response.contains("location:"), "{response}");
    }
    assert_eq!(stage.app.seen().len(), 0, "nothing is forwarded there");
}

#[tokio::test]
async fn an_apps_own_redirects_pass() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    for location in ["/next", "https://elsewhere.example/", "//elsewhere.example", "next?x"] {
        stage.app.say(crate::support::Reply::new(302).header("Location", location));
        assert_eq!(zoe.page("/").await.header("location"), Some(location));
    }
}
