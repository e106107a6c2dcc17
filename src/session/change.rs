//! What may become of a session, and why it may not. Pure: it makes the next session of one, and
//! knows no store.

use thiserror::Error;

use super::seal::SealError;
use super::update::{Outcome, UpdateRefused};
use super::{Identity, Session, SessionUpdate, Tokens};

/// A change of a session.
pub enum Change {
    /// A login: a new id, no data, and the session that the request brought ends.
    Start {
        /// Who the user is.
        identity: Identity,
        /// The provider's tokens.
        tokens: Tokens,
    },
    /// What an app asked for.
    Update(SessionUpdate),
    /// New tokens: the identity is replaced, the data stays.
    Refresh {
        /// Who the user is now.
        identity: Identity,
        /// The provider's tokens.
        tokens: Tokens,
    },
    /// The session ends, copied cookies too.
    End,
}

/// A change that was not made; the session is as it was.
#[derive(Debug, Error)]
pub enum CommitRefused {
    /// The update is not one that may be made.
    #[error("the update was refused: {0}")]
    Update(#[from] UpdateRefused),
    /// The session has ended, or there never was one.
    #[error("there is no active session")]
    NoSession,
    /// The sealed session would be over 16 KiB.
    #[error("the session does not fit: {0} bytes sealed, at most 16384")]
    TooLarge(usize),
    /// It could not be sealed.
    #[error("the session could not be sealed: {0}")]
    Seal(#[source] SealError),
    /// The store could not be written in time: nobody knows of the change.
    #[error("the session could not be saved: {0}")]
    Unavailable(#[from] Unavailable),
}

/// The store of sessions cannot be reached, or does not answer in time.
#[derive(Debug, Error)]
#[error("the session store cannot be reached: {0}")]
pub struct Unavailable(pub(super) String);

impl CommitRefused {
    /// The reason as the log and the counter have it; none where it is the gateway that failed.
    pub fn reason(&self) -> Option<UpdateRefused> {
        match self {
            Self::Update(refused) => Some(*refused),
            Self::NoSession => Some(UpdateRefused::NoSession),
            Self::TooLarge(_) => Some(UpdateRefused::SessionTooLarge),
            Self::Seal(_) | Self::Unavailable(_) => None,
        }
    }
}

/// A change of what is in a session. It is applied to the newest version, and again if somebody
/// was faster.
pub(super) enum Edit {
    /// What an app asked for.
    Update(SessionUpdate),
    /// What the provider said.
    Refresh(Identity, Tokens),
}

/// What an edit makes of a session.
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
pub(super) enum Next {
    /// This, but for its version.
    Session(Session),
    /// Nothing changes: there is nothing to write.
    Same,
    /// It ends.
    End,
}

impl Edit {
    /// Whether `session` ends of it.
    pub(super) fn ends(&self, session: &Session) -> bool {
        match self {
            Self::Update(update) => {
                update.wants_end() && matches!(update.apply(session), Ok(Outcome::End))
            }
            Self::Refresh(..) => false,
        }
    }

    /// What becomes of `session`.
    pub(super) fn apply(&self, session: &Session) -> Result<Next, UpdateRefused> {
        match self {
            Self::Update(update) => Ok(match update.apply(session)? {
                Outcome::Data(data) => Next::Session(Session { data, ..session.clone() }),
                Outcome::Unchanged => Next::Same,
                Outcome::End => Next::End,
            }),
            Self::Refresh(identity, tokens) => Ok(Next::Session(Session {
                identity: identity.clone(),
                tokens: tokens.clone(),
                ..session.clone()
            })),
        }
    }
}
