//! What sessions promise, as a model of a few lines, and random stories held against it: browsers
//! that share a session, requests whose steps cross each other in any order, answers that come late,
//! logouts by the provider, secrets that change under way. A failed story is told again by its seed.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use http::header::SET_COOKIE;
use serde_json::{Value, json};
use vestibule::clock::Timestamp;
use vestibule::config::value::Secret;
use vestibule::session::{Change, CommitRefused, Identity, Logout, SessionId, Visit, Whose};

use crate::contract::{
    ABSOLUTE, Gateway, INACTIVITY, ISSUER, Store, Worker, home, identity, local, tokens, update,
    view,
};
use crate::support::dice::Dice;
use crate::support::jar::Jar;
use crate::support::redis::Server;

/// Browsers in a story.
const BROWSERS: usize = 3;
/// Steps of a story.
const STEPS: usize = 60;
/// Requests under way at most.
const UNDER_WAY: usize = 6;
/// Users, and sign-ins at the provider of each.
const USERS: usize = 2;
const SIGN_INS: usize = 2;
/// Stories that are told at once.
const AT_ONCE: usize = 8;

/// A session as it should be.
#[derive(Clone, Debug)]
struct Expected {
    created: u64,
    /// By any request.
    used: u64,
    ended: bool,
    /// By whom the provider may end it.
    user: String,
    sign_in: String,
    /// The claim, and what an app has put over it.
    nickname: String,
    overlay: Option<String>,
    data: BTreeMap<String, i64>,
}

impl Expected {
    /// As the provider tells it.
    fn identity(&self, nickname: &str) -> Identity {
        identity(&json!({ "sub": self.user, "sid": self.sign_in, "nickname": nickname }))
    }

    fn view(&self) -> Value {
        let nickname = self.overlay.as_ref().unwrap_or(&self.nickname);
        let mut view = json!({ "user": self.identity(nickname).claims() });
        for (key, value) in &self.data {
            view[key] = (*value).into();
        }
        view
    }

    /// It is certainly over: nothing is said of one that was used on another browser only.
    fn is_over(&self, now: u64) -> bool {
        self.ended || now >= self.created + ABSOLUTE || now >= self.used + INACTIVITY
    }
}

/// What a browser should have.
#[derive(Clone, Default)]
struct Browser {
    jar: Jar,
    /// The session that its cookie is of, and when the use that it carries was.
    holds: Option<(SessionId, u64)>,
}

/// Who has read the file again goes on with what is under way.
struct Request {
    browser: usize,
    worker: Rc<Worker>,
    visit: Visit,
}

/// A gateway, how many of its workers are in the story, and how often its secrets have changed.
struct House {
    gateway: Gateway,
    workers: Vec<Rc<Worker>>,
    changes: usize,
}

impl House {
    fn new(mut gateway: Gateway, workers: usize) -> Self {
        gateway.reload(secrets(0));
        let workers = (0..workers).map(|_| Rc::new(gateway.worker())).collect();
        Self { gateway, workers, changes: 0 }
    }

    fn change_secrets(&mut self) {
        self.changes += 1;
        self.gateway.reload(secrets(self.changes));
        for worker in &mut self.workers {
            *worker = Rc::new(self.gateway.worker());
        }
    }
}

/// After so many changes: a new secret is the second first, then the first; none is dropped.
fn secrets(changes: usize) -> Vec<Secret> {
    let mut numbers: Vec<usize> = (0..=changes / 2).rev().collect();
    if changes % 2 == 1 {
        numbers.insert(1, changes / 2 + 1);
    }
    let secret = |number| Secret::new(format!("secret {number} of the tests, long enough for all"));
    numbers.into_iter().map(secret).collect()
}

/// One story.
struct Story {
    seed: u64,
    dice: Dice,
    now: u64,
    houses: Vec<House>,
    browsers: Vec<Browser>,
    under_way: Vec<Request>,
    expected: HashMap<SessionId, Expected>,
    /// What the provider has ended.
    logouts: Vec<Ended>,
    names: usize,
}

/// The sessions of a user or a sign-in that began up to this time.
struct Ended(Whose, u64);

impl Ended {
    fn covers(&self, session: &Expected) -> bool {
        let named = match &self.0 {
            Whose::User(user) => *user == session.user,
            Whose::SignIn(sign_in) => *sign_in == session.sign_in,
        };
        named && session.created <= self.1
    }
}

impl Story {
    fn new(seed: u64, houses: Vec<House>) -> Self {
        Self {
            seed,
            dice: Dice::new(seed),
            now: Timestamp::now().0,
            houses,
            browsers: vec![Browser::default(); BROWSERS],
            under_way: Vec::new(),
            expected: HashMap::new(),
            logouts: Vec::new(),
            names: 0,
        }
    }

    async fn tell(mut self) {
        for _ in 0..STEPS {
            match self.dice.below(22) {
                20 => self.log_out_by_the_provider().await,
                21 => self.change_secrets(),
                0 => self.log_in().await,
                1 => {
                    let (from, to) = (self.dice.below(BROWSERS), self.dice.below(BROWSERS));
                    self.browsers[to] = self.browsers[from].clone();
                }
                2 => {
                    let steps = [1, 50, 150, 400];
                    self.now += steps[self.dice.below(steps.len())];
                }
                3..=9 if self.under_way.len() < UNDER_WAY => self.ask().await,
                10..=15 => self.change().await,
                _ => self.answer(),
            }
        }
        while !self.under_way.is_empty() {
            self.answer();
        }
        for browser in 0..BROWSERS {
            let worker = self.worker();
            self.load(browser, &worker).await;
        }
    }

    /// Any of all.
    fn worker(&mut self) -> Rc<Worker> {
        let house = self.dice.below(self.houses.len());
        let workers = self.houses[house].workers.len();
        self.houses[house].workers[self.dice.below(workers)].clone()
    }

    /// One gateway is told, of those whose turn it is. That takes its time.
    fn change_secrets(&mut self) {
        self.now += 1;
        let least = self.houses.iter().map(|house| house.changes).min().unwrap();
        let mut behind: Vec<_> =
            self.houses.iter_mut().filter(|house| house.changes == least).collect();
        let next = self.dice.below(behind.len());
        behind[next].change_secrets();
    }

    /// Of a user or of one sign-in, said now or a while ago.
    async fn log_out_by_the_provider(&mut self) {
        let (user, sign_in) = self.somebody();
        let whose = match self.dice.below(2) {
            0 => Whose::User(user),
            _ => Whose::SignIn(sign_in),
        };
        let issued_at = self.now - [0, 0, 60, 200][self.dice.below(4)];
        self.names += 1;
        let logout = Logout {
            name: format!("{}-{}", self.seed, self.names),
            issuer: ISSUER.to_owned(),
            whose: whose.clone(),
            issued_at: Timestamp(issued_at),
            expires: self.time().plus(Duration::from_secs(300)),
        };
        assert!(self.worker().end_all(&logout, self.time()).await, "it is the first to say so");
        let ended = Ended(whose, issued_at);
        for expected in self.expected.values_mut() {
            expected.ended |= ended.covers(expected);
        }
        self.logouts.push(ended);
    }

    /// A user of this story alone, and a sign-in.
    fn somebody(&mut self) -> (String, String) {
        let (user, sign_in) = (self.dice.below(USERS), self.dice.below(SIGN_INS));
        let user = format!("auth0|{}-{user}", self.seed);
        (user.clone(), format!("{user}-{sign_in}"))
    }

    fn time(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// A request of a browser, up to the app. It must see what every answer before it has changed.
    async fn load(&mut self, browser: usize, worker: &Worker) -> Visit {
        let now = self.time();
        let Browser { jar, holds } = &self.browsers[browser];
        let visit = worker.load(jar, now).await;
        let seen = visit.session().map(|session| session.id);
        match holds.and_then(|(id, used)| Some((id, used, self.expected.get_mut(&id)?))) {
            None => assert_eq!(seen, None, "nobody is signed in"),
            Some((id, used, expected)) => {
                if expected.is_over(self.now) {
                    assert_eq!(view(&visit), None, "{expected:?} is over at {}", self.now);
                } else if self.now < used + INACTIVITY {
                    assert_eq!(seen, Some(id), "{expected:?} is alive at {}", self.now);
                }
                if seen.is_some() {
                    assert_eq!(view(&visit), Some(expected.view()));
                    expected.used = self.now;
                }
            }
        }
        visit
    }

    async fn ask(&mut self) {
        let (browser, worker) = (self.dice.below(BROWSERS), self.worker());
        let visit = self.load(browser, &worker).await;
        self.under_way.push(Request { browser, worker, visit });
    }

    async fn log_in(&mut self) {
        let (browser, worker) = (self.dice.below(BROWSERS), self.worker());
        let mut visit = self.load(browser, &worker).await;
        let old = visit.session().map(|session| session.id);
        let (user, sign_in) = self.somebody();
        let mut expected = Expected {
            created: self.now,
            used: self.now,
            ended: false,
            user,
            sign_in,
            nickname: "zoe".to_owned(),
            overlay: None,
            data: BTreeMap::new(),
        };
        // In the very second of a logout: it cannot be told that it began later.
        expected.ended = self.logouts.iter().any(|ended| ended.covers(&expected));
        let identity = expected.identity("zoe");
        let change = Change::Start { identity, tokens: tokens("first") };
        worker.commit(&mut visit, change, self.time()).await.unwrap();
        if let Some(old) = old {
            self.expected.get_mut(&old).unwrap().ended = true;
        }
        let id = visit.session().unwrap().id;
        assert!(self.expected.insert(id, expected).is_none(), "the id is new");
        self.deliver(&Request { browser, worker, visit });
    }

    /// The app's answer reaches the gateway.
    async fn change(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let place = self.dice.below(self.under_way.len());
        let session = self.under_way[place].visit.session();
        let before = session.map(|session| (session.id, session.touched_at.0));
        let (change, apply) = self.some_change(before.map(|(id, _)| id));
        let now = self.time();
        let Request { worker, visit, .. } = &mut self.under_way[place];
        let committed = worker.commit(visit, change, now).await;
        let Some((id, used)) = before else {
            // An end of nothing is no failure.
            assert!(matches!(committed, Ok(()) | Err(CommitRefused::NoSession)));
            return;
        };
        let expected = self.expected.get_mut(&id).unwrap();
        match committed {
            Ok(()) => {
                let ends = matches!(apply, Apply::End | Apply::LogOut);
                assert!(ends || !expected.is_over(self.now), "{expected:?} is over");
                let before = expected.view();
                apply.to(expected);
                // A change that changes nothing does not bring the visit up to date.
                if visit.session().is_some() && expected.view() != before {
                    assert_eq!(view(visit), Some(expected.view()));
                }
            }
            Err(CommitRefused::NoSession) => assert!(
                expected.is_over(self.now) || self.now >= used + INACTIVITY,
                "{expected:?} is alive at {}",
                self.now
            ),
            Err(refused) => panic!("{refused}"),
        }
    }

    fn some_change(&mut self, of: Option<SessionId>) -> (Change, Apply) {
        let key = format!("k{}", self.dice.below(4));
        let value = i64::try_from(self.dice.below(1000)).unwrap();
        self.names += 1;
        let name = format!("name-{}", self.names);
        match self.dice.below(12) {
            0 => (Change::End, Apply::LogOut),
            1 => (update(&Value::Null), Apply::End),
            2 | 3 => {
                let nicknamed = json!({ "nickname": name });
                let identity = match of.map(|id| &self.expected[&id]) {
                    Some(expected) => expected.identity(&name),
                    None => identity(&nicknamed),
                };
                let change = Change::Refresh { identity, tokens: tokens(&name) };
                (change, Apply::Nickname(name))
            }
            4 => (update(&json!({ "user": { "nickname": name } })), Apply::Overlay(name)),
            5 => (update(&json!({ &key: null })), Apply::Remove(key)),
            6..=8 => (update(&json!({ &key: { "$add": value } })), Apply::Add(key, value)),
            _ => (update(&json!({ &key: value })), Apply::Set(key, value)),
        }
    }

    /// An answer reaches its browser, perhaps long after it was made.
    fn answer(&mut self) {
        if !self.under_way.is_empty() {
            let place = self.dice.below(self.under_way.len());
            let request = self.under_way.swap_remove(place);
            self.deliver(&request);
        }
    }

    fn deliver(&mut self, Request { browser, worker, visit }: &Request) {
        let response = worker.response(visit, self.time());
        let browser = &mut self.browsers[*browser];
        for line in response.get_all(SET_COOKIE) {
            let line = line.to_str().unwrap();
            browser.jar.take(&home(), line).unwrap();
            browser.holds = visit.session().map(|session| (session.id, session.touched_at.0));
            assert_eq!(browser.holds.is_none(), line.contains("Max-Age=0"), "{line}");
        }
    }
}

/// What a change should do.
enum Apply {
    LogOut,
    End,
    Nickname(String),
    Overlay(String),
    Remove(String),
    Add(String, i64),
    Set(String, i64),
}

impl Apply {
    fn to(self, expected: &mut Expected) {
        match self {
            Self::LogOut | Self::End => expected.ended = true,
            Self::Nickname(name) => expected.nickname = name,
            Self::Overlay(name) => expected.overlay = Some(name),
            Self::Remove(key) => drop(expected.data.remove(&key)),
            Self::Add(key, value) => *expected.data.entry(key).or_default() += value,
            Self::Set(key, value) => drop(expected.data.insert(key, value)),
        }
    }
}

/// Tells so many stories, each to gateways that have heard of none before.
async fn stories(count: usize, houses: impl Fn() -> Vec<House>) {
    let mut dice = Dice::rolled();
    // A seed that is given is the story's own.
    let given = std::env::var("SEED").is_ok();
    let count = if given { 1 } else { count };
    let seeds: Vec<u64> =
        (0..count).map(|_| if given { dice.seed() } else { dice.any() }).collect();
    for seeds in seeds.chunks(AT_ONCE) {
        local(async {
            let told = seeds.iter().map(|seed| {
                let story = Story::new(*seed, houses());
                (seed, tokio::task::spawn_local(story.tell()))
            });
            for (seed, told) in told.collect::<Vec<_>>() {
                assert!(told.await.is_ok(), "tell it again with SEED={seed}");
            }
        })
        .await;
    }
    eprintln!("{count} stories of {STEPS} steps");
}

#[tokio::test]
async fn cookies_do_what_the_model_says() {
    let store = Store::new(None);
    stories(3000, || vec![House::new(store.gateway(), 2)]).await;
}

#[tokio::test]
async fn redis_does_what_the_model_says() {
    let server = Server::start().await;
    let store = Store::new(Some(server.config()));
    stories(2000, || vec![House::new(store.gateway(), 2), House::new(store.gateway(), 1)]).await;
}
