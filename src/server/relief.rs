//! Relieving the process before this one, and being relieved: a restart without a moment in which
//! nobody serves. How sockets are passed is in `handover`, which of them are needed in `listen`.

use std::net::TcpListener;

use super::StartError;
use super::generation::Generation;
use super::handover::{Predecessor, Successors};
use super::listen::{Given, Listeners};

/// The processes before and after this one, where they hand their sockets on.
pub(super) struct Relief {
    before: Option<Predecessor>,
    after: Option<ForNext>,
}

/// What the next process gets, and where.
pub(super) struct ForNext {
    sockets: Vec<TcpListener>,
    successors: Successors,
}

impl Relief {
    /// Opens the sockets, or gets those of the process before this one. That one goes on until this
    /// one [begins](Self::begin), and for good if this one cannot.
    pub(super) async fn open(first: &Generation) -> Result<(Self, Listeners), StartError> {
        let server = &first.config().server;
        let managed = Given::by_service_manager()?;
        let Some(path) = &server.handover else {
            let given = Given { managed, inherited: Vec::new() };
            let none = Self { before: None, after: None };
            return Ok((none, Listeners::open(server, given)?));
        };
        let failed = |source| StartError::Handover { path: path.clone(), source };
        let mut before = Predecessor::find(path).map_err(failed)?;
        if before.is_some() {
            let ready = first.reach_provider().await;
            ready.map_err(|refused| StartError::Unready(refused.into()))?;
        }
        let inherited =
            before.as_mut().map(|before| std::mem::take(&mut before.sockets)).unwrap_or_default();
        let listeners = Listeners::open(server, Given { managed, inherited })?;
        let successors = Successors::open(path).map_err(failed)?;
        let after = Some(ForNext { sockets: listeners.copies()?, successors });
        Ok((Self { before, after }, listeners))
    }

    /// This process serves: the one before it may stop.
    pub(super) fn begin(self) -> Option<ForNext> {
        if let Some(before) = self.before {
            before.relieve();
        }
        self.after
    }
}

impl ForNext {
    /// Ends when another process serves with these sockets.
    pub(super) async fn taken(&self) {
        self.successors.wait(&self.sockets).await;
    }
}
