//! The end of all sessions of a user, or of one sign-in at the provider: found in the index, ended one
//! by one on every gateway, and told apart from a word that comes again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::super::change::Unavailable;
use super::super::{Logout, LogoutRefused, Memory, SessionId};
use super::WRITE_TIME;
use super::index::Index;
use super::news::session_id;
use super::record::Records;
use crate::clock::Timestamp;

/// One logout on its way.
pub(super) struct Ending {
    pub(super) index: Rc<Index>,
    pub(super) records: Rc<Records>,
    /// This gateway's own.
    pub(super) memory: Arc<Memory>,
    pub(super) logout: Logout,
    /// When no session that it ends could be alive.
    pub(super) until: Timestamp,
}

impl Ending {
    /// Carries it out unless that was done before.
    pub(super) async fn run_once(&self) -> Result<(), LogoutRefused> {
        let owner = SessionId::random().ok_or_else(|| Unavailable("no randomness".to_owned()))?;
        if !self.index.claim(&self.logout, &owner.to_string(), deadline()).await? {
            return Err(LogoutRefused::Replayed);
        }
        Ok(self.run().await?)
    }

    /// Carries it out. It may be run again, and ends what is left.
    pub(super) async fn run(&self) -> Result<(), Unavailable> {
        // First: what is saved from now on is held against it, what was saved before is found.
        self.index.mark(&self.logout, deadline()).await?;
        loop {
            let Some(found) = self.index.find(&self.logout, deadline()).await? else {
                return self.index.keep(&self.logout, deadline()).await;
            };
            let id = |member: &Vec<u8>| session_id(std::str::from_utf8(member).ok()?);
            let ids = || found.members.iter().filter_map(id);
            // Here all at once, whatever Redis does.
            for id in ids() {
                self.memory.end(id, self.until, Timestamp::now());
            }
            for id in ids() {
                self.records.end(id, self.until, deadline()).await?;
            }
            self.index.remove(&found, deadline()).await?;
        }
    }
}

fn deadline() -> Instant {
    Instant::now() + WRITE_TIME
}
