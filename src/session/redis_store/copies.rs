//! How many copies of a write are enough. Redis answers before its replicas have what was written; any
//! of them may become the primary, also while this one lives on, cut off from them: so each that was
//! connected a moment ago must have a change before it counts. One that stays away, or hangs, is not
//! waited for any more after a while in which no other server has become the primary.
//!
//! What one primary has written is a history, with a name (`master_replid`): the next one begins another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long a replica that has gone is missed: sentinels that put it in the primary's place say so
/// before.
const MISSED: Duration = Duration::from_secs(10);
/// A history in which something was written so long ago is one that goes on.
const RECENT: Duration = Duration::from_secs(2);
/// A history in which nothing is written for so long is forgotten.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What a worker knows of the replicas.
pub(super) struct Copies {
    /// Never more are waited for.
    most: usize,
    histories: RefCell<HashMap<String, History>>,
}

struct History {
    /// Replicas that were connected at the last write.
    online: usize,
    /// So many must have a write.
    needed: usize,
    /// Since when fewer have what is written.
    short_since: Option<Instant>,
    written: Instant,
}

/// Whether a write counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Enough have it.
    Safe,
    /// So many were not waited for.
    Wait(usize),
    /// Some that should have it do not, and these can be waited for.
    Short(usize),
}

impl Copies {
    pub(super) fn new(most: usize) -> Self {
        Self { most, histories: RefCell::default() }
    }

    /// Whether copies matter.
    pub(super) fn matter(&self) -> bool {
        self.most > 0
    }

    /// How many are waited for where it is not known which history will be written. A replica that
    /// is not there would keep everybody waiting.
    pub(super) fn usual(&self, now: Instant) -> usize {
        let histories = self.histories.borrow();
        let recent = histories.values().filter(|known| known.since(now) < RECENT);
        recent.map(History::reachable).min().unwrap_or(0)
    }

    /// What to think of a write into `history` of a primary with so many replicas `online`, of which
    /// so many were `waited` for and so many have it `copied`.
    pub(super) fn judge(
        &self,
        history: &str,
        online: usize,
        waited: usize,
        copied: usize,
        now: Instant,
    ) -> Verdict {
        let mut histories = self.histories.borrow_mut();
        histories.retain(|name, known| name == history || known.since(now) < REMEMBERED);
        let known = histories.entry(history.to_owned()).or_insert_with(|| History {
            online: 0,
            needed: 0,
            short_since: None,
            written: now,
        });
        known.written = now;
        if online > known.online {
            known.needed = known.needed.max(online.min(self.most));
        }
        known.online = online;
        if copied >= known.needed {
            known.short_since = None;
            return Verdict::Safe;
        }
        if waited < known.reachable() {
            return Verdict::Wait(known.reachable());
        }
        let since = *known.short_since.get_or_insert(now);
        if now.saturating_duration_since(since) < MISSED {
            return Verdict::Short(known.reachable());
        }
        known.needed = copied;
        known.short_since = None;
        Verdict::Safe
    }
}

impl History {
    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.written)
    }

    fn reachable(&self) -> usize {
        self.needed.min(self.online)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn every_replica_that_is_connected_must_have_a_write() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.usual(start), 0);
        assert_eq!(copies.judge("a", 2, 0, 0, start), Verdict::Wait(2));
        assert_eq!(copies.judge("a", 2, 2, 1, start), Verdict::Short(2));
        assert_eq!(copies.judge("a", 2, 2, 2, start), Verdict::Safe);
        assert_eq!(copies.usual(start), 2);
        let one_joins = copies.judge("a", 3, 2, 2, start);
        assert_eq!(one_joins, Verdict::Wait(3));
    }

    #[test]
    fn no_more_are_waited_for_than_the_file_says() {
        let (copies, start) = (Copies::new(1), Instant::now());
        assert_eq!(copies.judge("a", 2, 0, 0, start), Verdict::Wait(1));
        assert_eq!(copies.judge("a", 2, 1, 1, start), Verdict::Safe);
        assert_eq!(copies.judge("a", 1, 1, 1, start), Verdict::Safe);
    }

    #[test]
    fn a_replica_that_has_gone_is_missed_for_a_while() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.judge("a", 2, 2, 2, start), Verdict::Safe);
        assert_eq!(copies.judge("a", 1, 2, 1, at(start, 60)), Verdict::Short(1));
        assert_eq!(copies.judge("a", 0, 1, 0, at(start, 69)), Verdict::Short(0));
        assert_eq!(copies.judge("a", 1, 1, 1, at(start, 70)), Verdict::Safe);
        assert_eq!(copies.judge("a", 1, 1, 1, at(start, 70)), Verdict::Safe);
        let back = copies.judge("a", 2, 1, 1, at(start, 71));
        assert_eq!(back, Verdict::Wait(2));
    }

    #[test]
    fn a_replica_that_hangs_is_not_waited_for_for_ever_though_it_is_connected() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.judge("a", 2, 2, 2, start), Verdict::Safe);
        assert_eq!(copies.judge("a", 2, 2, 1, start), Verdict::Short(2));
        assert_eq!(copies.judge("a", 2, 2, 1, at(start, 10)), Verdict::Safe);
        assert_eq!(copies.usual(at(start, 10)), 1);
        assert_eq!(copies.judge("a", 2, 1, 1, at(start, 11)), Verdict::Safe);
    }

    #[test]
    fn who_has_everything_again_is_missed_anew() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.judge("a", 1, 1, 1, start), Verdict::Safe);
        assert_eq!(copies.judge("a", 0, 1, 0, start), Verdict::Short(0));
        assert_eq!(copies.judge("a", 1, 1, 1, at(start, 8)), Verdict::Safe);
        assert_eq!(copies.judge("a", 0, 1, 0, at(start, 12)), Verdict::Short(0));
    }

    #[test]
    fn a_new_primary_is_not_measured_by_the_old_one() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.judge("a", 2, 2, 2, start), Verdict::Safe);
        assert_eq!(copies.judge("b", 0, 2, 0, start), Verdict::Safe);
        assert_eq!(copies.judge("a", 0, 0, 0, start), Verdict::Short(0));
        assert_eq!(copies.judge("b", 1, 0, 0, at(start, 3)), Verdict::Wait(1));
        assert_eq!(copies.usual(at(start, 3)), 1, "nobody writes the old one any more");
    }

    #[test]
    fn a_history_that_nobody_writes_is_forgotten() {
        let (copies, start) = (Copies::new(5), Instant::now());
        assert_eq!(copies.judge("a", 2, 2, 2, start), Verdict::Safe);
        assert_eq!(copies.judge("b", 0, 0, 0, at(start, 600)), Verdict::Safe);
        assert_eq!(copies.judge("a", 0, 0, 0, at(start, 600)), Verdict::Safe);
    }
}
