//! Whether an upstream is worth asking, as all workers have found out together: one that cannot be
//! reached, or breaks exchanges off one after another, is left out for a while, and for longer each
//! time it fails again; one that its checks find unwell is left out until they find it well. It
//! knows nothing of who else could be asked.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Exchanges that break off or bring nothing in time, one after another, before an upstream is left
/// out. A connection that cannot be had is enough by itself.
const BROKEN_IN_A_ROW: u32 = 5;
/// How long an upstream is left out at first; each time after that for twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST: Duration = Duration::from_secs(30);

/// What went wrong with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection.
    Unreachable,
    /// A connection, and no response over it.
    Broken,
}

/// Whether to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is as good as any other.
    In,
    /// It was left out for long enough: one request may try.
    Due,
    /// It is left out.
    Out,
}

/// One upstream's condition. Read on the way of every request to one of several upstreams, written
/// only when something changes.
#[derive(Debug)]
pub(super) struct Condition {
    /// For the log: the upstream as configured.
    name: String,
    made: Instant,
    /// Exchanges broken in a row.
    broken: AtomicU32,
    /// How often in a row it was left out.
    times: AtomicU32,
    /// Until when it is left out, in milliseconds since `made`; 0 if it is not.
    until: AtomicU64,
    /// How often it was left out after it had been good.
    ejections: AtomicU64,
    /// The checks that found it unwell: a bit each.
    unwell: AtomicU32,
    checks_passed: AtomicU64,
    checks_failed: AtomicU64,
}

impl Condition {
    /// Good, until something else is known.
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            made: Instant::now(),
            broken: AtomicU32::new(0),
            times: AtomicU32::new(0),
            until: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            unwell: AtomicU32::new(0),
            checks_passed: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
        }
    }

    /// Whether to ask it now.
    pub(super) fn state(&self) -> State {
        if self.unwell.load(Relaxed) != 0 {
            return State::Out;
        }
        match self.until.load(Relaxed) {
            0 => State::In,
            until if until > self.now() => State::Out,
            _ => State::Due,
        }
    }

    /// Whether the caller is the one who may try it, now that it is due. It stays out for the
    /// others, and for longer than before, until a response has come.
    pub(super) fn try_it(&self) -> bool {
        let until = self.until.load(Relaxed);
        let next = self.now() + self.pause();
        let ours = until <= self.now()
            && self.until.compare_exchange(until, next, Relaxed, Relaxed).is_ok();
        if ours {
            self.times.fetch_add(1, Relaxed);
        }
        ours
    }

    /// It has answered.
    pub(super) fn answered(&self) {
        if self.broken.load(Relaxed) != 0 {
            self.broken.store(0, Relaxed);
        }
        if self.until.load(Relaxed) != 0 && self.until.swap(0, Relaxed) != 0 {
            self.times.store(0, Relaxed);
            tracing::info!(upstream = self.name, "an upstream answers again");
        }
    }

    /// It has not.
    pub(super) fn failed(&self, fault: Fault) {
        let broken = self.broken.fetch_add(1, Relaxed).saturating_add(1);
        if fault == Fault::Broken && broken < BROKEN_IN_A_ROW {
            return;
        }
        let next = self.now() + self.pause();
        // Of many requests that fail at once the first leaves it out.
        if self.until.compare_exchange(0, next, Relaxed, Relaxed).is_ok() {
            self.times.fetch_add(1, Relaxed);
            self.ejections.fetch_add(1, Relaxed);
            tracing::warn!(upstream = self.name, ?fault, "an upstream is left out for a while");
        }
    }

    /// One of its checks has passed, or failed for this reason; it finds the upstream `well` or not.
    pub(super) fn checked(&self, check: usize, well: bool, reason: Option<io::Error>) {
        let passed = reason.is_none();
        let counter = if passed { &self.checks_passed } else { &self.checks_failed };
        counter.fetch_add(1, Relaxed);
        let bit = 1 << (check % 32);
        let upstream = &self.name;
        if well && self.unwell.fetch_and(!bit, Relaxed) & bit != 0 {
            tracing::info!(upstream, "an upstream is well again");
        } else if !well && self.unwell.fetch_or(bit, Relaxed) & bit == 0 {
            let reason = reason.map_or_else(String::new, |reason| reason.to_string());
            tracing::warn!(upstream, reason, "an upstream is not well, and left out");
        }
    }

    /// How many checks have passed, and how many have failed.
    pub(super) fn checks(&self) -> [u64; 2] {
        [&self.checks_passed, &self.checks_failed].map(|counter| counter.load(Relaxed))
    }

    /// How often it was left out.
    pub(super) fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Milliseconds for which it is left out the next time.
    fn pause(&self) -> u64 {
        let times = self.times.load(Relaxed).min(16);
        let pause = FIRST.saturating_mul(1 << times).min(LONGEST);
        u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since it was made, and never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).map_or(u64::MAX, |now| now + 1)
    }
}

#[cfg(test)]
impl Condition {
    /// As if so much time had passed.
    pub(super) fn age(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap();
        let until = self.until.load(Relaxed);
        if until != 0 {
            self.until.store(until.saturating_sub(time).max(1), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition() -> Condition {
        Condition::new("http://127.0.0.1:9".to_owned())
    }

    #[test]
    fn one_that_cannot_be_reached_is_left_out_at_once_and_one_that_breaks_off_after_five() {
        let one = condition();
        assert_eq!(one.state(), State::In);
        one.failed(Fault::Unreachable);
        assert_eq!(one.state(), State::Out);
        let one = condition();
        for _ in 0..4 {
            one.failed(Fault::Broken);
        }
        assert_eq!(one.state(), State::In);
        one.answered();
        for _ in 0..4 {
            one.failed(Fault::Broken);
        }
        assert_eq!(one.state(), State::In, "an answer begins the count anew");
        one.failed(Fault::Broken);
        assert_eq!(one.state(), State::Out);
    }

    #[test]
    fn it_is_tried_by_one_request_at_a_time_after_pauses_that_double() {
        let one = condition();
        one.failed(Fault::Unreachable);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            one.age(Duration::from_millis(seconds * 1000 - 500));
            assert_eq!(one.state(), State::Out, "before {seconds} s");
            assert!(!one.try_it());
            one.age(Duration::from_millis(600));
            assert_eq!(one.state(), State::Due, "after {seconds} s");
            assert!(one.try_it());
            assert!(!one.try_it(), "another tries it already");
            one.failed(Fault::Unreachable);
        }
        one.answered();
        assert_eq!((one.state(), one.ejections()), (State::In, 1));
        one.failed(Fault::Unreachable);
        one.age(Duration::from_millis(1100));
        assert_eq!((one.state(), one.ejections()), (State::Due, 2));
    }

    #[test]
    fn one_that_any_check_finds_unwell_is_left_out_whatever_it_answers() {
        let one = condition();
        let failed = || Some(io::ErrorKind::TimedOut.into());
        one.checked(0, true, None);
        one.checked(1, false, failed());
        one.answered();
        assert_eq!(one.state(), State::Out);
        one.checked(0, true, None);
        assert_eq!(one.state(), State::Out);
        one.checked(1, true, None);
        assert_eq!((one.state(), one.checks()), (State::In, [3, 1]));
        one.checked(0, true, failed());
        assert_eq!(one.state(), State::In, "one failure is no verdict");
    }

    #[test]
    fn many_failures_at_once_are_one_reason_to_leave_it_out() {
        let one = condition();
        for _ in 0..50 {
            one.failed(Fault::Unreachable);
        }
        one.age(Duration::from_millis(1100));
        assert_eq!((one.state(), one.ejections()), (State::Due, 1));
    }
}
