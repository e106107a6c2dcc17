//! The demo as people meet it: the command, the repository's own `gateway.toml`, and a real browser,
//! from login to logout. A picture of each page is kept in `target/screenshots`.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use url::Url;

use crate::support::program::{Program, repository};
use crate::support::webdriver::Chromium;
use crate::support::{Browser, Protocol, free_port, until};

/// A running demo. It ends with its value.
struct Demo {
    /// Where users come in.
    home: Url,
    /// Where they sign in.
    provider: Url,
    program: Program,
    _directory: TempDir,
}

impl Demo {
    /// Starts one, with the file as it is but for the ports: the tests run side by side.
    async fn start() -> Self {
        let mut text = fs::read_to_string(repository("gateway.toml")).unwrap();
        let mut port = |usual: &str| {
            let (old, new) = (format!(":{usual}"), free_port());
            assert!(text.contains(&old), "gateway.toml says nothing of port {usual}");
            text = text.replace(&old, &format!(":{new}"));
            new
        };
        let (https, admin, provider) = (port("8443"), port("9090"), port("9080"));
        port("8080");
        port("9000");
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("gateway.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        command.arg("demo").current_dir(directory.path());
        // It needs nobody to have set anything.
        command.env_remove("AUTH0_CLIENT_SECRET").env_remove("VESTIBULE_SECRET");
        let mut program = Program::start(&mut command, "cargo builds it");
        program.listens(https).await;
        program.listens(admin).await;
        let url = |text: String| Url::parse(&text).unwrap();
        let administrator = Browser::at(&url(format!("http://localhost:{admin}")), Protocol::Http1);
        until("users can log in", async || {
            (administrator.fetch("/readyz").await.status == 200).then_some(())
        })
        .await;
        Self {
            home: url(format!("https://localhost:{https}")),
            provider: url(format!("http://127.0.0.1:{provider}")),
            program,
            _directory: directory,
        }
    }

    fn page(&self, path: &str) -> Url {
        self.home.join(path).unwrap()
    }
}

/// What the page shows under this name.
async fn shows(browser: &Chromium, id: &str) -> String {
    let text = browser.text(id).await;
    match text {
        Some(text) => text,
        None => panic!("{} shows no {id}", browser.url().await),
    }
}

/// Whether the page is dark: its ground, as it is drawn.
async fn is_dark(browser: &Chromium) -> bool {
    let colour = browser.style("backgroundColor").await;
    let parts = colour.trim_start_matches("rgb(").trim_end_matches(')').split(", ");
    let light: u32 = parts.map(|part| part.parse::<u32>().unwrap()).sum();
    light < 3 * 128
}

#[tokio::test]
async fn from_login_to_logout() {
    let demo = Demo::start().await;
    let zoe = Chromium::start().await;

    zoe.open(&demo.page("/public")).await;
    assert_eq!(shows(&zoe, "public").await, "Open to everybody");
    zoe.picture("public").await;

    zoe.press("sign-in").await;
    assert_eq!(zoe.url().await.origin(), demo.provider.origin());
    zoe.picture("login").await;

    zoe.press("user-zoe").await;
    assert_eq!(zoe.url().await, demo.page("/"));
    assert_eq!(shows(&zoe, "user-name").await, "Zoë Okafor");
    assert_eq!(shows(&zoe, "user").await, "auth0|zoe");
    zoe.picture("app").await;

    press_each_button(&zoe).await;

    zoe.press("log-out").await;
    assert_eq!(zoe.url().await, demo.page("/public"));
    zoe.picture("logged-out").await;

    // What the browser remembers of the page is gone too.
    zoe.back().await;
    assert_eq!((zoe.text("user-name").await, zoe.text("session").await), (None, None));
    assert_eq!(zoe.url().await.origin(), demo.provider.origin(), "she has to sign in again");
    zoe.picture("back-button").await;
    assert!(!demo.program.output().contains("panicked"), "{}", demo.program.output());
}

async fn press_each_button(zoe: &Chromium) {
    zoe.press("set-light").await;
    assert_eq!((shows(zoe, "theme").await.as_str(), is_dark(zoe).await), ("light", false));
    zoe.press("set-dark").await;
    assert_eq!((shows(zoe, "theme").await.as_str(), is_dark(zoe).await), ("dark", true));

    assert_eq!(shows(zoe, "beta").await, "not set");
    zoe.press("beta-on").await;
    assert_eq!(shows(zoe, "beta").await, "true");
    zoe.press("beta-off").await;
    assert_eq!(shows(zoe, "beta").await, "false");

    zoe.enter("new-nickname", "Zoë „die Erste“").await;
    zoe.press("rename").await;
    assert_eq!(shows(zoe, "nickname").await, "Zoë „die Erste“");
    assert_eq!(shows(zoe, "user").await, "auth0|zoe", "that is who she is, whatever she is called");

    for views in ["1", "2", "3"] {
        zoe.press("count").await;
        assert_eq!(shows(zoe, "page-views").await, views);
    }

    zoe.picture("app-dark").await;

    let before = shows(zoe, "session").await;
    zoe.press("malformed").await;
    assert_eq!(shows(zoe, "session").await, before);
    assert!(shows(zoe, "note").await.contains("nothing has changed"));
    assert!(is_dark(zoe).await);
    zoe.picture("nonsense").await;
}

#[tokio::test]
async fn two_tabs_sign_in_side_by_side_and_are_signed_out_together() {
    let demo = Demo::start().await;
    let zoe = Chromium::start().await;

    // Both are under way at once.
    zoe.open(&demo.page("/")).await;
    let first = zoe.new_tab().await;
    zoe.open(&demo.page("/admin")).await;
    let second = zoe.switch(first).await;
    zoe.press("user-zoe").await;
    assert_eq!(zoe.url().await, demo.page("/"));
    let first = zoe.switch(second).await;
    zoe.press("user-zoe").await;
    assert_eq!(zoe.url().await, demo.page("/admin"));
    assert_eq!(shows(&zoe, "admin").await, "For admins only");
    zoe.picture("admin").await;

    // A page with a script, that is left open.
    zoe.open(&demo.page("/api/session")).await;
    let answer = zoe.fetch("/").await;
    assert_eq!((&answer["status"], &answer["redirected"]), (&200.into(), &false.into()));
    let second = zoe.switch(first).await;
    zoe.open(&demo.page("/")).await;
    assert_eq!(shows(&zoe, "user-name").await, "Zoë Okafor");
    zoe.press("log-out").await;
    zoe.switch(second).await;
    for path in ["/", "/api/session", "/admin", "/auth/profile"] {
        let answer = zoe.fetch(path).await;
        assert_eq!(answer["status"], 401, "{path}: {answer}");
        assert_eq!(answer["redirected"], false, "{path}");
        assert_eq!(answer["kind"], "application/json", "{path}");
        let body: serde_json::Value =
            serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["error"], "login_required", "{path}");
        assert_eq!(body["login_url"], "/auth/login", "{path}");
    }
}

#[tokio::test]
async fn bob_on_his_telephone_may_not_do_everything() {
    let demo = Demo::start().await;
    let bob = Chromium::start().await;
    bob.resize(500, 900).await;

    bob.open(&demo.page("/")).await;
    fits(&bob).await;
    bob.picture("telephone-login").await;
    bob.press("user-bob").await;
    assert_eq!(shows(&bob, "user-name").await, "Bob Lindqvist");
    fits(&bob).await;
    bob.picture("telephone-app").await;

    bob.open(&demo.page("/admin")).await;
    assert_eq!(bob.text("admin").await, None);
    assert_eq!(bob.run("return document.title", Vec::new()).await, "Forbidden");
    fits(&bob).await;
    bob.picture("telephone-forbidden").await;

    bob.open(&demo.page("/")).await;
    bob.press("end-session").await;
    assert_eq!(bob.url().await, demo.page("/public"));
    fits(&bob).await;
    bob.open(&demo.page("/auth/profile")).await;
    let profile = bob.run("return document.body.textContent", Vec::new()).await;
    assert!(profile.as_str().unwrap().contains("login_required"), "{profile}");
}

/// Nothing sticks out to the side.
async fn fits(browser: &Chromium) {
    let script = "const page = document.documentElement;
        return [page.scrollWidth, page.clientWidth]";
    let widths = browser.run(script, Vec::new()).await;
    assert_eq!(widths[0], widths[1], "{}", browser.url().await);
}
