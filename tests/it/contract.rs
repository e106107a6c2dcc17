//! What every store of sessions promises, over the public calls that the gateway makes: the same
//! claims for the cookie with its memory, for one Redis and for a cluster. Time is handed in; it
//! starts at the machine's, for Redis lets go of what has expired by its own clock.
//!
//! | file | part |
//! |---|---|
//! | `claims` | what every store promises |
//! | `endings` | of ends that the provider decides, and of who does what alone |
//! | `open` | what is open at one gateway, and what happens at another |
//! | `redis` | what Redis adds, and what it must not learn |

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::task::LocalSet;
use url::Url;
use vestibule::clock::Timestamp;
use vestibule::config;
use vestibule::config::value::{Keys, Secret};
use vestibule::session::memory::Bounds;
use vestibule::session::redis_store::{self, Health};
use vestibule::session::{
    Change, CommitRefused, Followed, Identity, Logout, LogoutRefused, Memory, Sealer,
    SessionUpdate, Sessions, Tokens, Turn, Visit,
};

use crate::support::jar::{From, Jar};
use crate::support::redis::{Cluster, Sentinels, Server};

mod claims;
mod endings;
mod open;
mod redis;

/// `session.absolute` of every store here.
pub(crate) const ABSOLUTE: u64 = 3000;
/// `session.inactivity` of every store here.
pub(crate) const INACTIVITY: u64 = 1000;
/// Who has signed everybody in.
pub(crate) const ISSUER: &str = "https://tenant.auth0.com/";

/// How sessions are kept.
pub(crate) struct Store {
    config: config::Session,
}

impl Store {
    /// In cookies, or in this Redis.
    pub(crate) fn new(redis: Option<config::Redis>) -> Self {
        let config = config::Session {
            secrets: vec![Secret::new("a secret of the tests, long enough for all")],
            absolute: Duration::from_secs(ABSOLUTE),
            inactivity: Some(Duration::from_secs(INACTIVITY)),
            cookie: config::Cookie {
                name: "__Host-session".to_owned(),
                same_site: config::SameSite::Lax,
                domain: None,
                transient: false,
            },
            redis: redis.map(Arc::new),
        };
        Self { config }
    }

    /// The same sessions under other settings.
    pub(crate) fn with(&self, change: impl FnOnce(&mut config::Session)) -> Self {
        let mut config = self.config.clone();
        change(&mut config);
        Self { config }
    }

    /// Whether the sessions themselves are in Redis.
    pub(crate) fn is_redis(&self) -> bool {
        self.config.redis.is_some()
    }

    /// A gateway with a memory of its own, which hears from other gateways what has ended.
    pub(crate) fn gateway(&self) -> Gateway {
        let memory = Arc::new(Memory::new(Bounds::default()));
        let health = Arc::new(Health::default());
        if let Some(redis) = &self.config.redis {
            let follow = redis_store::follow(redis.clone(), memory.clone(), health.clone());
            tokio::task::spawn_local(follow);
        }
        Gateway { config: self.config.clone(), memory, health }
    }

    /// A gateway of one worker.
    pub(crate) fn worker(&self) -> Worker {
        self.gateway().worker()
    }
}

/// One gateway.
pub(crate) struct Gateway {
    config: config::Session,
    memory: Arc<Memory>,
    pub(crate) health: Arc<Health>,
}

impl Gateway {
    /// One of its workers.
    pub(crate) fn worker(&self) -> Worker {
        let sealer = Arc::new(Sealer::new(&self.config.secrets));
        Worker(Sessions::new(&self.config, sealer, self.memory.clone()))
    }

    /// Its workers seal with the first of these secrets from now on, and open with all.
    pub(crate) fn reload(&mut self, secrets: Vec<Secret>) {
        self.config.secrets = secrets;
    }
}

/// The sessions as one worker has them, with what requests and responses do to them.
pub(crate) struct Worker(Sessions);

impl Worker {
    /// A request with these cookies.
    pub(crate) async fn load(&self, jar: &Jar, now: Timestamp) -> Visit {
        self.0.load(&request(jar), now).await.unwrap()
    }

    /// What an app sees of the session that these cookies bring.
    pub(crate) async fn view(&self, jar: &Jar, now: Timestamp) -> Option<Value> {
        view(&self.load(jar, now).await)
    }

    /// Changes the visit's session.
    pub(crate) async fn commit(
        &self,
        visit: &mut Visit,
        change: Change,
        now: Timestamp,
    ) -> Result<(), CommitRefused> {
        self.0.commit(visit, change, now).await
    }

    /// The response's fields, as they are.
    pub(crate) fn response(&self, visit: &Visit, now: Timestamp) -> HeaderMap {
        let mut response = HeaderMap::new();
        self.0.answer(visit, &mut response, now);
        response
    }

    /// The response, taken by the browser.
    pub(crate) fn answer(&self, visit: &Visit, jar: &mut Jar, now: Timestamp) {
        for line in self.response(visit, now).get_all(SET_COOKIE) {
            jar.take(&home(), line.to_str().unwrap()).unwrap();
        }
    }

    /// Zoë logs in, in a browser that may have cookies already.
    pub(crate) async fn log_in(&self, jar: &mut Jar, now: Timestamp) {
        let mut visit = self.load(jar, now).await;
        let change = Change::Start { identity: identity(&json!({})), tokens: tokens("first") };
        self.commit(&mut visit, change, now).await.unwrap();
        self.answer(&visit, jar, now);
    }

    /// A request whose response carries this update.
    pub(crate) async fn update(
        &self,
        jar: &mut Jar,
        patch: Value,
        now: Timestamp,
    ) -> Result<(), CommitRefused> {
        let mut visit = self.load(jar, now).await;
        let committed = self.commit(&mut visit, update(&patch), now).await;
        self.answer(&visit, jar, now);
        committed
    }

    /// A request that logs out.
    pub(crate) async fn log_out(&self, jar: &mut Jar, now: Timestamp) {
        let mut visit = self.load(jar, now).await;
        self.commit(&mut visit, Change::End, now).await.unwrap();
        self.answer(&visit, jar, now);
    }

    /// The provider ends sessions. Whether it is the first to say so.
    pub(crate) async fn end_all(&self, logout: &Logout, now: Timestamp) -> bool {
        match self.0.end_all(logout, now).await {
            Ok(()) => true,
            Err(LogoutRefused::Replayed) => false,
            Err(LogoutRefused::Unavailable(error)) => panic!("{error}"),
        }
    }

    /// Whose turn it is to do something for the visit's session alone.
    pub(crate) async fn turn(&self, visit: &Visit, patience: Duration) -> Turn {
        self.0.turn(visit, Instant::now() + patience).await.unwrap()
    }

    /// Follows the visit's session.
    pub(crate) fn follow(&self, visit: &Visit) -> Followed {
        self.0.follow(visit.session().unwrap())
    }

    /// A browser in which Zoë has just logged in.
    pub(crate) async fn signed_in(&self, now: Timestamp) -> Jar {
        let mut jar = Jar::default();
        self.log_in(&mut jar, now).await;
        jar
    }
}

/// Where the browsers of these stories go.
pub(crate) fn home() -> Url {
    Url::parse("https://localhost/").unwrap()
}

/// The request that a browser with these cookies sends.
pub(crate) fn request(jar: &Jar) -> HeaderMap {
    let line = jar.line(&home(), From::SameSite);
    HeaderMap::from_iter(line.map(|line| (COOKIE, HeaderValue::try_from(line).unwrap())))
}

/// What an app sees of a visit's session.
pub(crate) fn view(visit: &Visit) -> Option<Value> {
    visit.session().map(|session| session.view().into())
}

/// What an app's response asks for.
pub(crate) fn update(patch: &Value) -> Change {
    let line = HeaderValue::from_str(&patch.to_string()).unwrap();
    Change::Update(SessionUpdate::parse([&line], &Keys::All).unwrap())
}

/// Zoë, with these claims over the usual ones.
pub(crate) fn identity(over: &Value) -> Identity {
    let mut claims = json!({
        "iss": ISSUER, "sub": "auth0|zoe", "aud": "client",
        "sid": "sign-in-1", "nickname": "zoe", "email": "zoe@example.com",
    });
    for (name, value) in over.as_object().unwrap() {
        claims[name] = value.clone();
    }
    Identity::new(claims.as_object().unwrap().clone()).unwrap()
}

/// The provider's tokens, told apart by a word.
pub(crate) fn tokens(word: &str) -> Tokens {
    Tokens {
        id_token: format!("id-token-{word}"),
        access_token: Some(format!("access-token-{word}")),
        refresh_token: Some(format!("refresh-token-{word}")),
        expires_at: None,
        refresh_at: None,
        scope: None,
    }
}

/// Runs a story in which workers of gateways live.
pub(crate) async fn local<T>(story: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(story).await
}

#[tokio::test]
async fn cookies_with_a_memory_keep_the_contract() {
    local(claims::hold(&|| Store::new(None))).await;
}

#[tokio::test]
async fn one_redis_keeps_the_contract() {
    let server = Server::start().await;
    local(claims::hold(&|| Store::new(Some(apart(server.config()))))).await;
}

#[tokio::test]
async fn a_redis_with_a_password_behind_tls_keeps_the_contract() {
    let password = Some("open sesame: 100%");
    let options = crate::support::redis::Options { password, tls: true, lines: vec![] };
    let server = Server::with(options).await;
    local(claims::hold(&|| Store::new(Some(apart(server.config()))))).await;
}

#[tokio::test]
async fn a_redis_that_sentinels_name_keeps_the_contract() {
    let sentinels = Sentinels::start(1).await;
    local(claims::hold(&|| Store::new(Some(apart(sentinels.config()))))).await;
}

/// Whoever gave up waiting for the first has learned something for the next.
#[tokio::test]
async fn sentinels_that_hang_keep_nobody_waiting_for_long() {
    let sentinels = Sentinels::start(1).await;
    for hanging in sentinels.sentinels.iter().take(2) {
        hanging.signal("STOP");
    }
    local(async {
        let worker = Store::new(Some(sentinels.config())).worker();
        let now = Timestamp::now();
        let jar = worker.signed_in(now).await;
        let start = Instant::now();
        assert!(worker.view(&jar, now).await.is_some());
        assert!(start.elapsed() < Duration::from_secs(2), "who has answered is asked again");
    })
    .await;
}

#[tokio::test]
async fn a_cluster_keeps_the_contract() {
    let cluster = Cluster::start().await;
    local(claims::hold(&|| Store::new(Some(apart(cluster.config()))))).await;
    for node in &cluster.nodes {
        let keys = node.keys("*").await;
        assert!(!keys.is_empty(), "every node has its share");
    }
}

/// The same servers, for a claim of its own.
fn apart(config: config::Redis) -> config::Redis {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let prefix = format!("claim-{}:", NEXT.fetch_add(1, Ordering::Relaxed));
    config::Redis { prefix, ..config }
}
