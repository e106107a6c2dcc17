//! What only a real browser can say: whether it does what the gateway's headers and cookies ask of
//! it.

use serde_json::{Value, json};

use crate::support::webdriver::Chromium;
use crate::support::{App, Reply, Stage, until};
use crate::upgrade::echo_and;

/// A page of text with links, that anybody may keep for ten minutes.
fn page(links: &str, body: &str) -> Reply {
    Reply::new(200)
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Cache-Control", "max-age=600")
        .body(format!("<!doctype html><title>a page</title>{links}<p id=\"said\">{body}</p>"))
}

/// What the page says.
async fn said(browser: &Chromium) -> String {
    let text = browser.text("said").await;
    text.unwrap_or_default()
}

#[tokio::test]
async fn after_logout_the_browser_has_no_page_of_the_session_in_its_cache() {
    let app = App::start(|seen| match seen.path() {
        "/bye" => page("", "bye"),
        _ => {
            page("<a id=\"out\" href=\"/auth/logout?return_to=/bye\">out</a>", "a secret of Zoë's")
        }
    })
    .await;
    let stage = Stage::before_with(app, |builder, app| {
        builder.route("/", app).route_with("/bye", app, "access = \"public\"")
    })
    .await;
    let zoe = Chromium::trusting(&stage.gateway).await;
    zoe.open(&stage.gateway.url.join("/secret").unwrap()).await;
    zoe.press("user-zoe").await;
    // Once more, for the first answer came with a cookie and was not for keeping.
    zoe.open(&stage.gateway.url.join("/again").unwrap()).await;
    zoe.open(&stage.gateway.url.join("/secret").unwrap()).await;
    let asked = stage.app.seen().len();
    zoe.open(&stage.gateway.url.join("/again").unwrap()).await;
    assert_eq!(stage.app.seen().len(), asked, "the browser keeps pages");
    assert_eq!(said(&zoe).await, "a secret of Zoë's");

    zoe.press("out").await;
    assert_eq!(said(&zoe).await, "bye");

    // The address is in the history, the page is not in the cache.
    zoe.open(&stage.gateway.url.join("/secret").unwrap()).await;
    assert_eq!(said(&zoe).await, "");
    assert_eq!(zoe.url().await.host_str(), Some("127.0.0.1"), "she has to sign in again");
}

/// Of a page that an app says nothing about, the browser keeps no picture either: `back` would show
/// it without asking anybody.
#[tokio::test]
async fn after_logout_the_back_button_shows_nothing_of_the_session() {
    let app = App::start(|seen| {
        let html = Reply::new(200).header("Content-Type", "text/html; charset=utf-8");
        html.body(match seen.path() {
            "/bye" => "<!doctype html><p id=said>bye</p>",
            _ => {
                "<!doctype html><a id=out href=/auth/logout?return_to=/bye>out</a><p id=said>secret</p>"
            }
        })
    })
    .await;
    let stage = Stage::before_with(app, |builder, app| {
        builder.route("/", app).route_with("/bye", app, "access = \"public\"")
    })
    .await;
    let zoe = Chromium::trusting(&stage.gateway).await;
    zoe.open(&stage.gateway.url.join("/secret").unwrap()).await;
    zoe.press("user-zoe").await;
    zoe.open(&stage.gateway.url.join("/secret").unwrap()).await;
    assert_eq!(said(&zoe).await, "secret");
    zoe.press("out").await;
    assert_eq!(said(&zoe).await, "bye");
    zoe.back().await;
    assert_eq!(said(&zoe).await, "");
}

#[tokio::test]
async fn a_session_in_several_cookies_is_kept_whole() {
    let app = App::start(|seen| {
        let sizes = seen.session().unwrap()["notes"].as_array().map_or(0, Vec::len);
        let reply = page("", &sizes.to_string());
        match seen.path() {
            // 200 notes of 20 random-looking characters, and one alone.
            "/grow" => reply.update(json!({ "notes": notes(200) }).to_string()),
            "/shrink" => reply.update(json!({ "notes": notes(1) }).to_string()),
            _ => reply,
        }
    })
    .await;
    let stage = Stage::before(app).await;
    let zoe = Chromium::trusting(&stage.gateway).await;
    zoe.open(&stage.gateway.url).await;
    zoe.press("user-zoe").await;
    for (change, notes, cookies) in [("/grow", "200", 2..6), ("/shrink", "1", 1..2)] {
        zoe.open(&stage.gateway.url.join(change).unwrap()).await;
        let page = stage.gateway.url.join(&format!("/{notes}")).unwrap();
        zoe.open(&page).await;
        assert_eq!(said(&zoe).await, notes, "after {change}");
        let kept = zoe.cookies().await;
        assert!(cookies.contains(&kept.len()), "after {change}: {kept:?}");
    }
}

fn notes(count: usize) -> Vec<Value> {
    (0..count).map(|number| format!("note {number:015}").into()).collect()
}

#[tokio::test]
async fn a_page_that_is_fetched_ahead_starts_no_login() {
    let rules = r#"<link rel="prefetch" href="/by-link">
        <script type="speculationrules">{"prefetch":[
            {"source":"list","urls":["/by-rule"],"eagerness":"immediate"}
        ]}</script>"#;
    let stage = Stage::before_with(App::start(|_| page(rules, "welcome")).await, |builder, app| {
        builder.route("/", app).route_with("/welcome", app, "access = \"public\"")
    })
    .await;
    let stranger = Chromium::trusting(&stage.gateway).await;
    stranger.open(&stage.gateway.url.join("/welcome").unwrap()).await;
    for path in ["/by-link", "/by-rule"] {
        let line = stage.gateway.access_line(&[path]).await;
        assert!(line.contains(" 401 "), "{line}");
    }
    assert_eq!(stranger.cookies().await, Vec::<String>::new());
}

/// RFC 8441: a page's WebSocket goes over the connection that the page came on.
#[tokio::test]
async fn a_pages_websocket_needs_no_connection_of_its_own() {
    let html = "<!doctype html><link rel=icon href='data:,'><p id=said></p><script>\
        if (location.pathname == '/talk') {\
            const socket = new WebSocket(`wss://${location.host}/live`);\
            socket.onopen = () => socket.send('said over a WebSocket');\
            socket.onmessage = message => said.textContent = message.data;\
        }</script>";
    let stage = Stage::before_with(echo_and("", html).await, |builder, app| {
        builder.route_with("/", app, "access = \"public\"")
    })
    .await;
    let browser = Chromium::trusting(&stage.gateway).await;
    browser.open(&stage.gateway.url.join("/page").unwrap()).await;
    let open = async || stage.gateway.metric("vestibule_open_connections").await;
    let before = open().await;
    browser.open(&stage.gateway.url.join("/talk").unwrap()).await;
    until("the app has answered", async || {
        (said(&browser).await == "said over a WebSocket").then_some(())
    })
    .await;
    assert!(stage.app.seen().iter().any(|seen| seen.target == "/live"));
    assert!(open().await <= before, "{} connections, {before} before", open().await);
}
