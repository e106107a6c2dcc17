//! What came of all requests, counted by kind; the first few that should not have come are told. It
//! knows neither clients nor the gateway.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

/// So many failures of a kind are told in full.
const TOLD: u64 = 20;

/// The counts of one run.
#[derive(Default)]
pub(super) struct Tally {
    counts: RefCell<BTreeMap<&'static str, u64>>,
    /// Answers of the gateway's own while the app was down.
    refused: RefCell<BTreeMap<u16, u64>>,
    failed: Cell<u32>,
}

impl Tally {
    /// One more of this kind.
    pub(super) fn count(&self, kind: &'static str) {
        *self.counts.borrow_mut().entry(kind).or_default() += 1;
    }

    /// One more answer with a 5xx status while the app was down.
    pub(super) fn refused(&self, status: u16) {
        *self.refused.borrow_mut().entry(status).or_default() += 1;
    }

    /// What should not have come.
    pub(super) fn fail(&self, kind: &'static str, what: &dyn fmt::Display) {
        self.count(kind);
        self.failed.set(self.failed.get() + 1);
        if self.of(kind) <= TOLD {
            eprintln!("{kind}: {what}");
        }
    }

    /// How many of those there were.
    pub(super) fn failures(&self) -> u32 {
        self.failed.get()
    }

    /// How many there were of a kind.
    pub(super) fn of(&self, kind: &str) -> u64 {
        self.counts.borrow().get(kind).copied().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in self.counts.borrow().iter() {
            writeln!(formatter, "| {kind} | {count} |")?;
        }
        for (status, count) in self.refused.borrow().iter() {
            writeln!(formatter, "| {status} while the app was down | {count} |")?;
        }
        Ok(())
    }
}
