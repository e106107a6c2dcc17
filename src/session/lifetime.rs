//! How long a session lives: pure rules, held against today's configuration on every read, so that
//! a shorter lifetime in gateway.toml holds for sessions that were made before it.

use std::time::Duration;

use super::Session;
use crate::clock::Timestamp;

/// A touch is written when this part of the inactivity period has passed since the last.
const TOUCH_PART: u32 = 10;

/// `absolute` and `inactivity` of `[session]`.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// From login, whatever happens.
    pub absolute: Duration,
    /// Since the last use; none: no rolling.
    pub inactivity: Option<Duration>,
}

impl Lifetimes {
    /// When the session dies if it is not used again. It is dead at this second.
    pub fn end(&self, session: &Session) -> Timestamp {
        self.end_after(session.created_at, session.touched_at)
    }

    /// When a session of this login dies if it is not used again after `last_use`.
    pub fn end_after(&self, created_at: Timestamp, last_use: Timestamp) -> Timestamp {
        let absolute = created_at.plus(self.absolute);
        self.inactivity.map_or(absolute, |inactivity| absolute.min(last_use.plus(inactivity)))
    }

    /// Whether the session is still alive.
    pub fn allow(&self, session: &Session, now: Timestamp) -> bool {
        now < self.end(session)
    }

    /// Whether its last use should be written down again.
    pub fn touch_is_due(&self, session: &Session, now: Timestamp) -> bool {
        self.inactivity.is_some_and(|inactivity| {
            now > session.touched_at && now.since(session.touched_at) * TOUCH_PART >= inactivity
        })
    }

    /// Until when a copy of the session's cookie, made at any time up to now, could be alive.
    pub fn end_of_copies(&self, session: &Session, now: Timestamp) -> Timestamp {
        self.end_after(session.created_at, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    const LIFETIMES: Lifetimes = Lifetimes {
        absolute: Duration::from_secs(1000),
        inactivity: Some(Duration::from_secs(100)),
    };

    fn used(created: u64, touched: u64) -> Session {
        Session { created_at: Timestamp(created), touched_at: Timestamp(touched), ..session() }
    }

    #[test]
    fn inactivity_ends_a_session_and_a_touch_keeps_it() {
        assert!(LIFETIMES.allow(&used(0, 0), Timestamp(99)));
        assert!(!LIFETIMES.allow(&used(0, 0), Timestamp(100)));
        assert!(LIFETIMES.allow(&used(0, 50), Timestamp(149)));
    }

    #[test]
    fn no_touch_extends_absolute_expiry() {
        assert!(LIFETIMES.allow(&used(0, 999), Timestamp(999)));
        assert!(!LIFETIMES.allow(&used(0, 999), Timestamp(1000)));
        assert_eq!(LIFETIMES.end_of_copies(&used(0, 0), Timestamp(990)), Timestamp(1000));
    }

    #[test]
    fn without_rolling_nothing_is_ever_touched() {
        let fixed = Lifetimes { inactivity: None, ..LIFETIMES };
        assert!(fixed.allow(&used(0, 0), Timestamp(999)));
        assert!(!fixed.touch_is_due(&used(0, 0), Timestamp(999)));
    }

    #[test]
    fn a_touch_is_due_after_a_tenth_of_the_inactivity_period() {
        assert!(!LIFETIMES.touch_is_due(&used(0, 0), Timestamp(9)));
        assert!(LIFETIMES.touch_is_due(&used(0, 0), Timestamp(10)));
    }
}
