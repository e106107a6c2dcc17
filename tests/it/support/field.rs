//! A field for races: gateways that keep sessions together, an app that changes them by what it is
//! asked, and can hold its answers back until everybody is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use url::Url;

use super::app::{App, Reply};
use super::browser::Browser;
use super::gateway::{Builder, Gateway};
use super::jar::{From, Jar};
use super::provider::Scripted;
use super::wire::{Answer, Ask, Connection, Protocol};
use super::{PATIENCE_WITH_MANY, free_port, until_within};

/// How long the app takes where it is slow.
const SLOW: Duration = Duration::from_millis(20);
/// Between two answers of those that it scatters.
const APART: Duration = Duration::from_millis(6);
/// The name of the session's cookie.
pub(crate) const COOKIE: &str = "__Host-session";
/// The secret that gateways begin with.
pub(crate) const OLD: &str = "an old secret of the tests, long enough";
/// The one that they turn to.
pub(crate) const NEW: &str = "a new secret of the tests, long enough.";

/// The field.
pub(crate) struct Field {
    pub(crate) provider: Scripted,
    pub(crate) app: App,
    pub(crate) gateways: Vec<Gateway>,
    gate: Arc<Gate>,
}

/// What the app holds back.
struct Gate {
    open: watch::Sender<bool>,
    there: AtomicUsize,
}

impl Field {
    /// So many gateways; `redis` is their `[session.redis]`, `session` more lines of `[session]`.
    pub(crate) async fn new(gateways: usize, session: &str, redis: Option<&str>) -> Self {
        let provider = Scripted::start().await;
        let gate = Arc::new(Gate { open: watch::Sender::new(false), there: AtomicUsize::new(0) });
        let app = app(gate.clone()).await;
        let mut field = Self { provider, app, gateways: Vec::new(), gate };
        for number in 0..gateways {
            let builder = field.builder(session, redis);
            // The provider sends browsers to the first.
            let builder = if number == 0 { builder } else { builder.port(free_port()) };
            field.gateways.push(builder.start().await);
        }
        field
    }

    fn builder(&self, session: &str, redis: Option<&str>) -> Builder {
        let builder = Gateway::with(&self.provider)
            .route("/", &self.app)
            .route_with("/token", &self.app, "access_token = true")
            .route_with("/public", &self.app, "access = \"public\"")
            // A thousand connections on a busy machine: some say nothing for minutes, and the app
            // answers nobody before the last one has asked.
            .limits("header_time = \"5m\"")
            .limits("handshake_time = \"5m\"")
            .limits("idle_time = \"5m\"")
            .limits("response_time = \"5m\"")
            .session(&secrets(&[OLD]))
            .session(session);
        match redis {
            Some(lines) => builder.session(&format!("[session.redis]\n{lines}")),
            None => builder,
        }
    }

    /// Zoë signs in.
    pub(crate) async fn signed_in(&self, protocol: Protocol) -> Browser {
        let browser = self.gateways[0].browser_over(protocol);
        browser.open("/auth/login").await;
        assert!(browser.jar().line(&browser.home, From::SameSite).is_some(), "no session");
        browser
    }

    /// What the browser's session holds, as each gateway has it.
    pub(crate) async fn profiles(&self, browser: &Browser) -> Vec<Option<Value>> {
        let mut profiles = Vec::new();
        for gateway in &self.gateways {
            let there = Browser::at(&gateway.url, Protocol::Http2);
            *there.jar() = browser.jar().clone();
            profiles.push(there.profile().await);
        }
        profiles
    }

    /// The first gateway has the next one's turn, so that all have theirs.
    pub(crate) fn gateway(&self, turn: usize) -> &Gateway {
        &self.gateways[turn % self.gateways.len()]
    }

    /// From now on the app answers what was held back.
    pub(crate) async fn release(&self, expected: usize) {
        until_within(PATIENCE_WITH_MANY, "everybody is at the app", async || {
            (self.gate.there.load(Ordering::SeqCst) >= expected).then_some(())
        })
        .await;
        self.gate.open.send_replace(true);
    }

    /// And from now on it holds back again.
    pub(crate) fn hold(&self) {
        self.gate.open.send_replace(false);
        self.gate.there.store(0, Ordering::SeqCst);
    }

    /// The updates by `/set/…` that the gateways said they could not save.
    pub(crate) async fn said_lost(&self) -> BTreeSet<usize> {
        let mut keys = BTreeSet::new();
        for gateway in &self.gateways {
            for line in gateway.log().lines().filter(|line| line.contains("an update was lost")) {
                let (_, id) = line.split_once("request_id=\"").expect("the request is named");
                let line = gateway.access_line(&[&id[..32]]).await;
                let path = line.split_once("/set/").map(|(_, rest)| rest);
                let digits = path.and_then(|path| path.split(|c: char| !c.is_ascii_digit()).next());
                keys.extend(digits.and_then(|digits| digits.parse::<usize>().ok()));
            }
        }
        keys
    }
}

/// `secrets`
pub(crate) fn secrets(list: &[&str]) -> String {
    format!("secrets = {list:?}")
}

/// The numbers of the keys `k…` in a session.
pub(crate) fn keys(profile: &Value) -> BTreeSet<usize> {
    let names = profile.as_object().unwrap().keys();
    names.filter_map(|name| name.strip_prefix('k')?.parse().ok()).collect()
}

/// `/…/set/7` sets the key `k7` and adds one to `n`; with `/held/` it waits for the gate, with
/// `/scattered/7/` for the gate and then for its turn, with `/slow/` a moment.
async fn app(gate: Arc<Gate>) -> App {
    App::start_later(move |seen| {
        let gate = gate.clone();
        async move {
            let scattered = seen.target.split_once("/scattered/").map(|(_, rest)| rest);
            if seen.target.contains("/held/") || scattered.is_some() {
                let mut open = gate.open.subscribe();
                gate.there.fetch_add(1, Ordering::SeqCst);
                let _ = open.wait_for(|open| *open).await;
            }
            if let Some(turn) = scattered.and_then(|rest| rest.split('/').next()) {
                tokio::time::sleep(APART * turn.parse().unwrap()).await;
            }
            if seen.target.contains("/slow/") {
                tokio::time::sleep(SLOW).await;
            }
            let reply = Reply::new(200).body("done");
            match seen.target.rsplit_once("/set/") {
                Some((_, key)) => {
                    let update = json!({ format!("k{key}"): 1, "n": { "$add": 1 } });
                    reply.update(update.to_string())
                }
                None => reply,
            }
        }
    })
    .await
}

/// One who asks over a connection of his own, with cookies that he is given. His copy shares the
/// connection that he has.
#[derive(Clone)]
pub(crate) struct Asker {
    url: Url,
    protocol: Protocol,
    connection: Option<Connection>,
}

impl Asker {
    /// Of this gateway.
    pub(crate) fn of(gateway: &Gateway, protocol: Protocol) -> Self {
        Self { url: gateway.url.clone(), protocol, connection: None }
    }

    /// One exchange; nothing if the gateway went away.
    pub(crate) async fn ask(&mut self, path: &str, jar: &Jar) -> Option<Answer> {
        let url = self.url.join(path).unwrap();
        let mut ask = Ask::fetch(path);
        if let Some(line) = jar.line(&url, From::SameSite) {
            ask = ask.header("cookie", line);
        }
        let connection = match self.connection.take() {
            Some(connection) if connection.is_ready().await => connection,
            _ => Connection::open(&url, self.protocol).await.map_err(say).ok()?,
        };
        let answer = connection.ask_within(PATIENCE_WITH_MANY, &url, ask).await;
        let answer = answer.map_err(say).ok()?;
        self.connection = Some(connection);
        Some(answer)
    }
}

/// Why there is no answer, for whoever reads of a failed test.
fn say(error: impl std::fmt::Debug) {
    eprintln!("no answer: {error:?}");
}

/// The browser takes what an answer tells it to keep.
pub(crate) fn take(browser: &Browser, answer: &Answer) {
    for line in answer.set_cookies() {
        browser.jar().take(&browser.home, line).unwrap();
    }
}
