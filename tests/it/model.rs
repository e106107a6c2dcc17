//! What sessions promise, as a model of a few lines, and random stories held against it: browsers
//! that share a session, requests whose steps cross each other in any order, answers that come late.
//! A failed story is told again by its seed.

use std::collections::{BTreeMap, HashMap};

use http::header::SET_COOKIE;
use serde_json::{Value, json};
use vestibule::clock::Timestamp;
use vestibule::session::{Change, CommitRefused, SessionId, Visit};

use crate::contract::{
    ABSOLUTE, INACTIVITY, Store, Worker, home, identity, local, tokens, update, view,
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

/// A session as it should be.
#[derive(Clone, Debug)]
struct Expected {
    created: u64,
    /// By any request.
    used: u64,
    ended: bool,
    /// The claim, and what an app has put over it.
    nickname: String,
    overlay: Option<String>,
    data: BTreeMap<String, i64>,
}

impl Expected {
    fn view(&self) -> Value {
        let nickname = self.overlay.as_ref().unwrap_or(&self.nickname);
        let claims = identity(&json!({ "nickname": nickname }));
        let mut view = json!({ "user": claims.claims() });
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

struct Request {
    browser: usize,
    worker: usize,
    visit: Visit,
}

/// One story.
struct Story<'a> {
    dice: Dice,
    now: u64,
    workers: &'a [Worker],
    browsers: Vec<Browser>,
    under_way: Vec<Request>,
    expected: HashMap<SessionId, Expected>,
    names: usize,
}

impl<'a> Story<'a> {
    fn new(seed: u64, workers: &'a [Worker]) -> Self {
        Self {
            dice: Dice::new(seed),
            now: Timestamp::now().0,
            workers,
            browsers: vec![Browser::default(); BROWSERS],
            under_way: Vec::new(),
            expected: HashMap::new(),
            names: 0,
        }
    }

    async fn tell(mut self) {
        for _ in 0..STEPS {
            match self.dice.below(20) {
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
            self.load(browser, 0).await;
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// A request of a browser, up to the app. It must see what every answer before it has changed.
    async fn load(&mut self, browser: usize, worker: usize) -> Visit {
        let now = self.time();
        let Browser { jar, holds } = &self.browsers[browser];
        let visit = self.workers[worker].load(jar, now).await;
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
        let (browser, worker) = (self.dice.below(BROWSERS), self.dice.below(self.workers.len()));
        let visit = self.load(browser, worker).await;
        self.under_way.push(Request { browser, worker, visit });
    }

    async fn log_in(&mut self) {
        let (browser, worker) = (self.dice.below(BROWSERS), self.dice.below(self.workers.len()));
        let mut visit = self.load(browser, worker).await;
        let old = visit.session().map(|session| session.id);
        let change = Change::Start { identity: identity(&json!({})), tokens: tokens("first") };
        self.workers[worker].commit(&mut visit, change, self.time()).await.unwrap();
        if let Some(old) = old {
            self.expected.get_mut(&old).unwrap().ended = true;
        }
        let expected = Expected {
            created: self.now,
            used: self.now,
            ended: false,
            nickname: "zoe".to_owned(),
            overlay: None,
            data: BTreeMap::new(),
        };
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
        let (change, apply) = self.some_change();
        let now = self.time();
        let Request { worker, visit, .. } = &mut self.under_way[place];
        let before = visit.session().map(|session| (session.id, session.touched_at.0));
        let committed = self.workers[*worker].commit(visit, change, now).await;
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

    fn some_change(&mut self) -> (Change, Apply) {
        let key = format!("k{}", self.dice.below(4));
        let value = i64::try_from(self.dice.below(1000)).unwrap();
        self.names += 1;
        let name = format!("name-{}", self.names);
        match self.dice.below(12) {
            0 => (Change::End, Apply::LogOut),
            1 => (update(&Value::Null), Apply::End),
            2 | 3 => {
                let claims = identity(&json!({ "nickname": name }));
                let change = Change::Refresh { identity: claims, tokens: tokens(&name) };
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
        let response = self.workers[*worker].response(visit, self.time());
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

/// Tells so many stories, each to workers that have heard of none before.
async fn stories(count: usize, workers: impl Fn() -> Vec<Worker>) {
    let mut dice = Dice::rolled();
    // A seed that is given is the story's own.
    let given = std::env::var("SEED").is_ok();
    for number in 0..if given { 1 } else { count } {
        let seed = if given { dice.seed() } else { dice.any() };
        let _shown = Shown(seed, number);
        local(async { Story::new(seed, &workers()).tell().await }).await;
    }
    eprintln!("{count} stories of {STEPS} steps");
}

/// Says which story it was.
struct Shown(u64, usize);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("story {}: tell it again with SEED={}", self.1, self.0);
        }
    }
}

#[tokio::test]
async fn cookies_do_what_the_model_says() {
    let store = Store::new(None);
    stories(3000, || {
        let gateway = store.gateway();
        vec![gateway.worker(), gateway.worker()]
    })
    .await;
}

#[tokio::test]
async fn redis_does_what_the_model_says() {
    let server = Server::start().await;
    let store = Store::new(Some(server.config()));
    stories(300, || {
        let gateway = store.gateway();
        vec![gateway.worker(), gateway.worker(), store.worker()]
    })
    .await;
}
