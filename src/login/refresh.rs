//! The refresh of a session's tokens: one call at the provider however many requests wait for it, on
//! whichever worker, and on whichever gateway if they share their sessions. With rotating refresh
//! tokens a second call would end the session. Nobody waits long for a slow provider while the token
//! that is there is still good.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Login, provider_unavailable, sessions_unavailable};
use crate::clock::Timestamp;
use crate::error::Failure;
use crate::lock::lock;
use crate::observe::metrics::{LoginOutcome, WorkerMetrics};
use crate::session::{
    Change, CommitRefused, Identity, Lease, Session, SessionId, Sessions, Tokens, Turn, Visit,
};

use super::provider::{Provider, ProviderError};

/// How long requests wait for a new token while the old one is good, counted from when it was first
/// asked for.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// How long another gateway is waited for: as long as the provider may take.
const LONG_WAIT: Duration = Duration::from_secs(10);
/// After a failure the old token is used for so long, if it is good, before the next try.
const PAUSE: Duration = Duration::from_secs(5);
/// Failures that are remembered.
const MOST_FAILURES: usize = 10_000;
/// How long new tokens are tried to be kept while the store is away, and how often: the old refresh
/// token may be spent.
const KEEP_TRYING: Duration = Duration::from_secs(30);
const KEEP_AGAIN: Duration = Duration::from_millis(250);

/// The refreshes under way and those that have just failed, by session; one for all workers.
#[derive(Default)]
pub struct Refreshes {
    states: Mutex<HashMap<SessionId, State, ahash::RandomState>>,
}

enum State {
    UnderWay(UnderWay),
    Failed(Instant),
}

/// A refresh that somebody makes.
#[derive(Clone)]
struct UnderWay {
    since: Instant,
    /// It never changes: it closes when it is done.
    done: watch::Receiver<()>,
}

/// A refresh that this request makes; its end lets the others go on.
struct Lead {
    all: Arc<Refreshes>,
    id: SessionId,
    failed: bool,
    _done: watch::Sender<()>,
}

enum Part {
    Lead(Lead, UnderWay),
    Follow(UnderWay),
    /// One has just failed, and the token is good.
    Pause,
}

impl Refreshes {
    /// `good`: whether the token that is there can be used.
    fn join(self: &Arc<Self>, id: SessionId, good: bool) -> Part {
        let mut states = lock(&self.states);
        match states.get(&id) {
            Some(State::UnderWay(under_way)) => return Part::Follow(under_way.clone()),
            Some(State::Failed(at)) if good && at.elapsed() < PAUSE => return Part::Pause,
            _ => {}
        }
        let (sender, done) = watch::channel(());
        let under_way = UnderWay { since: Instant::now(), done };
        states.insert(id, State::UnderWay(under_way.clone()));
        Part::Lead(Lead { all: self.clone(), id, failed: false, _done: sender }, under_way)
    }

    /// Ends when nothing is under way: what the provider has given out is kept.
    pub(super) async fn settled(&self) {
        let next = || {
            lock(&self.states).values().find_map(|state| match state {
                State::UnderWay(under_way) => Some(under_way.done.clone()),
                State::Failed(_) => None,
            })
        };
        while let Some(mut done) = next() {
            let _ = done.changed().await;
        }
    }
}

impl UnderWay {
    /// Waits until it is done, or for a short while if the token is `good`.
    async fn wait(mut self, good: bool) {
        if good {
            let _ = timeout_at(self.since + SHORT_WAIT, self.done.changed()).await;
        } else {
            let _ = self.done.changed().await;
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut states = lock(&self.all.states);
        states.remove(&self.id);
        if self.failed {
            if states.len() >= MOST_FAILURES {
                states.retain(|_, state| matches!(state, State::UnderWay(_)));
            }
            states.insert(self.id, State::Failed(Instant::now()));
        }
    }
}

impl Login {
    /// Brings the access token up to date, for a request that needs it. Afterwards the visit has
    /// the newest session, or none if the provider has ended it.
    ///
    /// # Errors
    /// 503 if the token has expired and the provider cannot be reached; the session lives on.
    pub async fn refresh(&self, visit: &mut Visit, now: Timestamp) -> Result<(), Failure> {
        let Some(session) = visit.session().filter(|session| is_due(session, now)) else {
            return Ok(());
        };
        let good = is_good(session, now);
        let under_way = match self.refreshes.join(session.id, good) {
            Part::Pause => return Ok(()),
            Part::Follow(under_way) => under_way,
            Part::Lead(lead, under_way) => {
                // At once: were this request to end in between, those who follow it would wait for
                // nothing.
                self.lead(lead, visit.without_cookies(), now);
                under_way
            }
        };
        under_way.wait(good).await;
        self.sessions.reload(visit, now).await.map_err(sessions_unavailable)?;
        let expired = |session: &Session| session.tokens.expires_at.is_some_and(|at| at <= now);
        if visit.session().is_some_and(|session| is_due(session, now) && expired(session)) {
            return Err(provider_unavailable("the access token has expired and was not refreshed"));
        }
        Ok(())
    }

    /// Ends when no refresh is under way.
    pub async fn settled(&self) {
        self.refreshes.settled().await;
    }

    /// In a task of its own: a browser that goes away must not lose the new refresh token.
    fn lead(&self, mut lead: Lead, visit: Visit, now: Timestamp) {
        let refresh = Refresh {
            provider: self.provider.clone(),
            sessions: self.sessions.clone(),
            metrics: self.metrics.clone(),
            visit,
            now,
        };
        tokio::task::spawn_local(async move {
            lead.failed = Box::pin(refresh.make()).await.is_err();
            drop(lead);
        });
    }
}

/// One refresh.
struct Refresh {
    provider: Arc<Provider>,
    sessions: Rc<Sessions>,
    metrics: Rc<WorkerMetrics>,
    visit: Visit,
    now: Timestamp,
}

/// There are no new tokens, and the session has not ended. It was told to whom it concerns.
struct Failed;

/// Why there are no new tokens.
enum Unmade {
    /// The provider could not be asked.
    Failed,
    /// It takes this refresh token no more.
    Refused(String, ProviderError),
}

impl Refresh {
    /// Asks the provider when it is this gateway's turn, unless another one has done so meanwhile.
    async fn make(mut self) -> Result<(), Failed> {
        // Somebody else may have refreshed since this request's load.
        self.sessions.reload(&mut self.visit, self.now).await.map_err(|_| Failed)?;
        if !self.visit.session().is_some_and(|session| is_due(session, self.now)) {
            return Ok(());
        }
        let deadline = std::time::Instant::now() + LONG_WAIT;
        let lease = loop {
            match self.sessions.turn(&self.visit, deadline).await {
                Ok(Turn::Ours(lease)) => break lease,
                Ok(Turn::Changed) => {
                    let reloaded = self.sessions.reload(&mut self.visit, self.now).await;
                    reloaded.map_err(|_| Failed)?;
                    // An app's change is no refresh.
                    if !self.visit.session().is_some_and(|session| is_due(session, self.now)) {
                        return Ok(());
                    }
                    if std::time::Instant::now() > deadline {
                        return Err(Failed);
                    }
                }
                Ok(Turn::Failed) => return Err(Failed),
                Err(error) => {
                    // Without the store the new tokens would be lost.
                    self.metrics.login(LoginOutcome::RefreshFailed);
                    tracing::warn!(%error, "tokens could not be refreshed");
                    return Err(Failed);
                }
            }
        };
        let made = match lease.hold(Box::pin(self.ask())).await {
            Ok(()) => Ok(()),
            Err(Unmade::Failed) => Err(Failed),
            Err(Unmade::Refused(token, error)) => self.refused(&token, &error, &lease).await,
        };
        lease.end(made.is_err()).await;
        made
    }

    /// Ends the session if what the provider refuses is what it has. Over a slow provider another
    /// gateway may have come to have the lease, and to spend this token for a newer one.
    async fn refused(
        &mut self,
        token: &str,
        error: &ProviderError,
        lease: &Lease,
    ) -> Result<(), Failed> {
        self.metrics.login(LoginOutcome::RefreshRefused);
        self.sessions.reload(&mut self.visit, self.now).await.map_err(|_| Failed)?;
        let current = self.visit.session().and_then(|it| it.tokens.refresh_token.as_deref());
        if current != Some(token) {
            tracing::info!(%error, "the provider refused a refresh token that had been replaced");
            return Ok(());
        }
        // Whoever has it now knows better in a moment.
        if !lease.is_ours().await {
            tracing::warn!(%error, "the provider refused a refresh, and the lease was lost");
            return Err(Failed);
        }
        tracing::info!(%error, "the provider ended a session at its refresh");
        let _ = self.sessions.commit(&mut self.visit, Change::End, self.now).await;
        Ok(())
    }

    async fn ask(&mut self) -> Result<(), Unmade> {
        let Some(session) = self.visit.session() else { return Ok(()) };
        let Some(refresh_token) = session.tokens.refresh_token.clone() else { return Ok(()) };
        match self.provider.refresh(session, &refresh_token, self.now).await {
            Ok((identity, tokens)) => {
                self.metrics.login(LoginOutcome::Refreshed);
                let identity = of_the_same_sign_in(identity, session);
                let newest = tokens.refresh_token.clone();
                match self.keep(identity, tokens).await {
                    Ok(()) => {}
                    // The user signed out meanwhile: nobody needs the new token.
                    Err(CommitRefused::NoSession) => {
                        if let Some(token) = newest {
                            let _ = self.provider.revoke(&token, self.now).await;
                        }
                    }
                    Err(error) => tracing::error!(%error, "refreshed tokens could not be kept"),
                }
                Ok(())
            }
            Err(error) if error.is_refusal() => Err(Unmade::Refused(refresh_token, error)),
            Err(error) => {
                self.metrics.login(LoginOutcome::RefreshFailed);
                tracing::warn!(%error, "tokens could not be refreshed");
                Err(Unmade::Failed)
            }
        }
    }

    /// Commits, and again for a while if the store cannot be reached.
    async fn keep(&mut self, identity: Identity, tokens: Tokens) -> Result<(), CommitRefused> {
        let begun = Instant::now();
        loop {
            let change = Change::Refresh { identity: identity.clone(), tokens: tokens.clone() };
            match self.sessions.commit(&mut self.visit, change, self.now).await {
                Err(CommitRefused::Unavailable(_)) if begun.elapsed() < KEEP_TRYING => {
                    sleep(KEEP_AGAIN).await;
                }
                kept => return kept,
            }
        }
    }
}

/// A refreshed ID token may not say of which sign-in at the provider it is (`sid`): it is still the
/// same, and a logout there must find the session.
fn of_the_same_sign_in(identity: Identity, session: &Session) -> Identity {
    match session.identity.claim("sid") {
        Some(sid) if identity.claim("sid").is_none() => {
            let mut claims = identity.claims().clone();
            claims.insert("sid".to_owned(), sid.clone());
            Identity::new(claims).unwrap_or(identity)
        }
        _ => identity,
    }
}

/// Whether the access token will be good for as long as requests wait for a new one.
fn is_good(session: &Session, now: Timestamp) -> bool {
    session.tokens.expires_at.is_some_and(|at| at > now.plus(SHORT_WAIT))
}

/// Whether the access token needs to be replaced and can be.
fn is_due(session: &Session, now: Timestamp) -> bool {
    session.tokens.refresh_at.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId([1; 16]);

    fn lead(all: &Arc<Refreshes>, good: bool) -> Option<(Lead, UnderWay)> {
        match all.join(ID, good) {
            Part::Lead(lead, under_way) => Some((lead, under_way)),
            _ => None,
        }
    }

    #[tokio::test]
    async fn of_many_requests_one_leads_and_the_rest_follow_until_it_is_done() {
        let all = Arc::<Refreshes>::default();
        for _ in 0..100 {
            let led: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| all.join(ID, true))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let leads = led.iter().filter(|part| matches!(part, Part::Lead(..))).count();
            assert_eq!(leads, 1);
        }
        assert!(lock(&all.states).is_empty());
        assert!(lead(&all, true).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_while_the_token_is_good() {
        let all = Arc::<Refreshes>::default();
        let (lead, first) = lead(&all, true).unwrap();
        let start = Instant::now();
        first.clone().wait(true).await;
        assert_eq!(start.elapsed(), SHORT_WAIT);
        let Part::Follow(late) = all.join(ID, true) else { panic!("it is under way") };
        late.clone().wait(true).await;
        assert_eq!(start.elapsed(), SHORT_WAIT, "who comes later does not wait at all");
        let waiting = tokio::spawn(late.wait(false));
        sleep(LONG_WAIT).await;
        assert!(!waiting.is_finished(), "without a good one all wait");
        drop(lead);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_a_good_token_is_used_for_a_while() {
        let all = Arc::<Refreshes>::default();
        let (mut failing, _) = lead(&all, true).unwrap();
        failing.failed = true;
        drop(failing);
        assert!(matches!(all.join(ID, true), Part::Pause));
        assert!(lead(&all, false).is_some(), "without a good one it is tried at once");
        let (mut failing, _) = lead(&all, true).unwrap();
        failing.failed = true;
        drop(failing);
        sleep(PAUSE).await;
        assert!(lead(&all, true).is_some());
        assert!(lock(&all.states).is_empty());
    }

    #[tokio::test]
    async fn failures_are_remembered_up_to_a_bound() {
        let all = Arc::<Refreshes>::default();
        let (_under_way, _) = lead(&all, true).unwrap();
        for number in 0..2 * MOST_FAILURES as u128 {
            let Part::Lead(mut failing, _) =
                all.join(SessionId((number << 8).to_be_bytes()), false)
            else {
                panic!("nobody else leads")
            };
            failing.failed = true;
            drop(failing);
            assert!(lock(&all.states).len() <= MOST_FAILURES);
        }
        assert!(matches!(all.join(ID, true), Part::Follow(_)), "what is under way stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_stops_waits_for_what_is_under_way() {
        let all = Arc::<Refreshes>::default();
        let (lead, _) = lead(&all, true).unwrap();
        let shared = all.clone();
        let settled = tokio::spawn(async move { shared.settled().await });
        sleep(LONG_WAIT).await;
        assert!(!settled.is_finished());
        drop(lead);
        settled.await.unwrap();
    }
}
