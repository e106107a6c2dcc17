//! The refresh of a session's tokens: one call at the provider however many requests wait for it,
//! on whichever worker. With rotating refresh tokens a second call would end the session.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Login, provider_unavailable, sessions_unavailable};
use crate::clock::Timestamp;
use crate::error::Failure;
use crate::observe::metrics::{LoginOutcome, WorkerMetrics};
use crate::session::{Change, CommitRefused, Session, SessionId, Sessions, Visit};

use super::provider::Provider;

/// The refreshes under way, by session; one for all workers.
#[derive(Default)]
pub struct Refreshes {
    under_way: Mutex<HashMap<SessionId, watch::Receiver<()>, ahash::RandomState>>,
}

/// A refresh that this request makes; its end lets the others go on.
struct Lead {
    all: Arc<Refreshes>,
    id: SessionId,
    _done: watch::Sender<()>,
}

enum Part {
    Lead(Lead, watch::Receiver<()>),
    Follow(watch::Receiver<()>),
}

impl Refreshes {
    fn join(self: &Arc<Self>, id: SessionId) -> Part {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = under_way.get(&id) {
            return Part::Follow(done.clone());
        }
        let (sender, receiver) = watch::channel(());
        under_way.insert(id, receiver.clone());
        Part::Lead(Lead { all: self.clone(), id, _done: sender }, receiver)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.all.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Login {
    /// Brings the access token up to date, for a request that needs it. Afterwards the visit has
    /// the newest session, or none if the provider has ended it.
    ///
    /// # Errors
    /// 503 if the token has expired and the provider cannot be reached; the session lives on.
    pub async fn refresh(&self, visit: &mut Visit, now: Timestamp) -> Result<(), Failure> {
        if !visit.session().is_some_and(|session| is_due(session, now)) {
            return Ok(());
        }
        let Some(id) = visit.session().map(|session| session.id) else { return Ok(()) };
        let mut done = match self.refreshes.join(id) {
            Part::Follow(done) => done,
            Part::Lead(lead, done) => {
                // Somebody else may have refreshed between the load and now.
                self.sessions.reload(visit, now).await.map_err(sessions_unavailable)?;
                if visit.session().is_some_and(|session| is_due(session, now)) {
                    self.lead(lead, visit.without_cookies(), now);
                } else {
                    drop(lead);
                }
                done
            }
        };
        // It never changes: it closes when the leader is done.
        let _ = done.changed().await;
        self.sessions.reload(visit, now).await.map_err(sessions_unavailable)?;
        let expired = |session: &Session| session.tokens.expires_at.is_some_and(|at| at <= now);
        if visit.session().is_some_and(|session| is_due(session, now) && expired(session)) {
            return Err(provider_unavailable("the access token has expired and was not refreshed"));
        }
        Ok(())
    }

    /// In a task of its own: a browser that goes away must not lose the new refresh token.
    fn lead(&self, lead: Lead, visit: Visit, now: Timestamp) {
        let (provider, sessions) = (self.provider.clone(), self.sessions.clone());
        let metrics = self.metrics.clone();
        tokio::task::spawn_local(async move {
            make(&provider, &sessions, &metrics, visit, now).await;
            drop(lead);
        });
    }
}

async fn make(
    provider: &Arc<Provider>,
    sessions: &Rc<Sessions>,
    metrics: &Rc<WorkerMetrics>,
    mut visit: Visit,
    now: Timestamp,
) {
    let Some(session) = visit.session() else { return };
    let Some(refresh_token) = session.tokens.refresh_token.clone() else { return };
    match provider.refresh(session, &refresh_token, now).await {
        Ok((identity, tokens)) => {
            metrics.login(LoginOutcome::Refreshed);
            let newest = tokens.refresh_token.clone();
            let change = Change::Refresh { identity, tokens };
            let refused = sessions.commit(&mut visit, change, now).await;
            match refused {
                Ok(()) => {}
                // The user signed out meanwhile: nobody needs the new token.
                Err(CommitRefused::NoSession) => {
                    if let Some(token) = newest {
                        let _ = provider.revoke(&token, now).await;
                    }
                }
                Err(error) => tracing::error!(%error, "refreshed tokens could not be kept"),
            }
        }
        Err(error) if error.is_refusal() => {
            metrics.login(LoginOutcome::RefreshRefused);
            tracing::info!(%error, "the provider ended a session at its refresh");
            let _ = sessions.commit(&mut visit, Change::End, now).await;
        }
        Err(error) => {
            metrics.login(LoginOutcome::RefreshFailed);
            tracing::warn!(%error, "tokens could not be refreshed");
        }
    }
}

/// Whether the access token needs to be replaced and can be.
fn is_due(session: &Session, now: Timestamp) -> bool {
    session.tokens.refresh_at.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_requests_one_leads_and_the_rest_follow_until_it_is_done() {
        let (all, id) = (Arc::<Refreshes>::default(), SessionId([1; 16]));
        for _ in 0..100 {
            let led: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| all.join(id))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let leads = led.iter().filter(|part| matches!(part, Part::Lead(..))).count();
            assert_eq!(leads, 1);
        }
        assert!(all.under_way.lock().unwrap().is_empty());
        assert!(matches!(all.join(id), Part::Lead(..)));
    }
}
