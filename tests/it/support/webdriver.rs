//! A real browser: headless Chromium, driven through Debian's chromedriver. It knows how to open,
//! press, read and take pictures; what is on the pages, only the stories know.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use base64_simd::STANDARD;
use fantoccini::wd::WindowHandle;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use rcgen::PublicKeyData;
use serde_json::{Value, json};
use url::Url;

use super::gateway::Gateway;
use super::program::{Program, repository};
use super::{PATIENCE, free_port, until};

/// Nothing but what the pages ask for, and nothing that a machine without a screen lacks.
const SWITCHES: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1100,1250",
];

/// A browser with an empty profile. It is closed with its value.
pub(crate) struct Chromium {
    client: Client,
    port: u16,
    driver: Program,
}

impl Chromium {
    /// Starts one, for somebody who goes on whatever certificate there is.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], true).await
    }

    /// Starts one that finds nothing wrong with this gateway's certificate: then its cache works as
    /// it does for users.
    pub(crate) async fn trusting(gateway: &Gateway) -> Self {
        let key = gateway.directory.path().join("localhost.key");
        let key = rcgen::KeyPair::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
        let info = key.subject_public_key_info();
        let hash = STANDARD.encode_to_string(ring::digest::digest(&ring::digest::SHA256, &info));
        let switch = format!("--ignore-certificate-errors-spki-list={hash}");
        Self::start_with(&[switch], false).await
    }

    async fn start_with(more: &[String], insecure: bool) -> Self {
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let mut driver =
            Program::start(&mut command, "install Debian's chromium-driver, or run tests/run");
        driver.listens(port).await;
        let profile = driver.directory.path().join("profile");
        let mut switches = SWITCHES.map(str::to_owned).to_vec();
        switches.extend_from_slice(more);
        switches.push(format!("--user-data-dir={}", profile.display()));
        let limit = u64::try_from(PATIENCE.as_millis()).unwrap();
        let wishes = json!({
            "acceptInsecureCerts": insecure,
            "goog:chromeOptions": { "args": switches },
            "timeouts": { "pageLoad": limit, "script": limit, "implicit": 0 },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wishes.as_object().unwrap().clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap_or_else(|error| {
                panic!("no browser: install Debian's chromium, or run tests/run: {error}")
            });
        Self { client, port, driver }
    }

    /// Opens an address, as if it was typed.
    pub(crate) async fn open(&self, url: &Url) {
        self.client.goto(url.as_str()).await.unwrap();
    }

    /// Where it is.
    pub(crate) async fn url(&self) -> Url {
        self.client.current_url().await.unwrap()
    }

    /// The button for the page before.
    pub(crate) async fn back(&self) {
        self.client.back().await.unwrap();
    }

    /// Presses what has this id, and waits for the page that this leads to.
    pub(crate) async fn press(&self, id: &str) {
        let before = self.page().await;
        self.client.find(Locator::Id(id)).await.unwrap().click().await.unwrap();
        until(&format!("{id} leads to a page"), async || {
            let now = self.page().await;
            (!now.is_null() && now != before).then_some(())
        })
        .await;
    }

    /// Types into the field that has this id.
    pub(crate) async fn enter(&self, id: &str, text: &str) {
        self.client.find(Locator::Id(id)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// The text of what has this id; none if nothing has.
    pub(crate) async fn text(&self, id: &str) -> Option<String> {
        let script = "return document.getElementById(arguments[0])?.textContent";
        let text = self.run(script, vec![id.into()]).await;
        text.as_str().map(str::to_owned)
    }

    /// A property of the page's look, as computed.
    pub(crate) async fn style(&self, property: &str) -> String {
        let script = "return getComputedStyle(document.body)[arguments[0]]";
        self.run(script, vec![property.into()]).await.as_str().unwrap().to_owned()
    }

    /// What the page's own script gets from `fetch`: status, content type, body, and whether it was
    /// redirected.
    pub(crate) async fn fetch(&self, path: &str) -> Value {
        let script = "const [path, done] = arguments;
            fetch(path).then(async answer => done({
                status: answer.status,
                kind: answer.headers.get('content-type'),
                redirected: answer.redirected,
                body: await answer.text(),
            })).catch(error => done(String(error)));";
        self.client.execute_async(script, vec![path.into()]).await.unwrap()
    }

    /// Runs a script in the page.
    pub(crate) async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.client.execute(script, arguments).await.unwrap()
    }

    /// The names of the cookies that the page's address would get.
    pub(crate) async fn cookies(&self) -> Vec<String> {
        let cookies = self.client.get_all_cookies().await.unwrap();
        cookies.iter().map(|cookie| cookie.name().to_owned()).collect()
    }

    /// Opens a tab and goes there; gives the one that was left.
    pub(crate) async fn new_tab(&self) -> WindowHandle {
        let old = self.client.window().await.unwrap();
        let new = self.client.new_window(true).await.unwrap();
        self.client.switch_to_window(new.handle).await.unwrap();
        old
    }

    /// Goes to a tab; gives the one that was left.
    pub(crate) async fn switch(&self, tab: WindowHandle) -> WindowHandle {
        let old = self.client.window().await.unwrap();
        self.client.switch_to_window(tab).await.unwrap();
        old
    }

    /// Makes the window as small as a telephone, or as another thing.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }

    /// Keeps a picture of the page as `target/screenshots/NAME.png`.
    pub(crate) async fn picture(&self, name: &str) {
        let directory = repository("target/screenshots");
        fs::create_dir_all(&directory).unwrap();
        let png = self.client.screenshot().await.unwrap();
        fs::write(directory.join(format!("{name}.png")), png).unwrap();
    }

    /// What tells this page from the one before, once it is there.
    async fn page(&self) -> Value {
        let script = "return document.readyState === 'complete' ? performance.timeOrigin : null";
        // While one page gives way to the next there is nothing to run it in.
        self.client.execute(script, Vec::new()).await.unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver closes the browser before it ends; the driver's end alone would leave it.
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let port = self.port;
        let request = format!("GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
        self.driver.wait(Duration::from_secs(5));
    }
}
