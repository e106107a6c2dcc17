//! How fast a request's body comes, as far as that is its client's doing: the time in which its app
//! takes no more of it does not count.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::room::Rooms;

/// What comes more slowly than this, in bytes a second, is a drip.
const LEAST: u128 = 1024;
/// Such a part of the time between two pieces is waited before anything is called that.
const PATIENCE: u32 = 4;

/// A body's pace.
pub(super) struct Pace {
    /// The longest time between two pieces.
    time: Duration,
    rooms: Rc<Rooms>,
    /// Bytes that have come.
    came: u64,
    /// How long they were waited for.
    waited: Duration,
    /// Since when the next piece is.
    since: Option<Instant>,
    /// Set when something is waited for, and kept for the next time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(time: Duration, rooms: Rc<Rooms>) -> Self {
        Self { time, rooms, came: 0, waited: Duration::ZERO, since: None, timer: None }
    }

    /// A piece has come.
    pub(super) fn came(&mut self, bytes: u64) {
        self.came += bytes;
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Nothing has come yet. Ready when that is not waited for any longer: nothing came for the whole
    /// time, or it `holds_room` that others want, and drips.
    pub(super) fn poll_late(&mut self, context: &mut Context<'_>, holds_room: bool) -> Poll<()> {
        if self.since.is_none() {
            if holds_room && self.drips(Duration::ZERO) {
                return Poll::Ready(());
            }
            let now = Instant::now();
            self.since = Some(now);
            self.look_again(now, now);
        }
        while let (Some(since), Some(timer)) = (self.since, &mut self.timer) {
            ready!(timer.as_mut().poll(context));
            let now = Instant::now();
            let silence = now.saturating_duration_since(since);
            if silence >= self.time || (holds_room && self.drips(silence)) {
                break;
            }
            self.look_again(since, now);
        }
        Poll::Ready(())
    }

    fn look_again(&mut self, since: Instant, now: Instant) {
        let at = (since + self.time).min(now + self.time / PATIENCE);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        timer.as_mut().reset(at);
    }

    /// SECURITY: who sends a byte now and then, on as many streams as he gets, is within every limit of
    /// his own, and holds the room of everybody (slow POST). Where there is enough for all, anybody may
    /// be slow.
    fn drips(&self, silence: Duration) -> bool {
        let waited = self.waited + silence;
        waited >= self.time / PATIENCE
            && u128::from(self.came) * 1000 < LEAST * waited.as_millis()
            && self.rooms.is_scarce()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const TIME: Duration = Duration::from_secs(60);

    /// Whether a body is waited for to its end, of which so many bytes come so often.
    async fn passes(rooms: &Rc<Rooms>, pieces: u32, bytes: u64, every: u64, holds: bool) -> bool {
        let mut pace = Pace::new(TIME, rooms.clone());
        for _ in 0..pieces {
            let piece = tokio::time::sleep(Duration::from_secs(every));
            tokio::select! {
                () = piece => pace.came(bytes),
                () = poll_fn(|context| pace.poll_late(context, holds)) => return false,
            }
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn what_drips_is_not_waited_for_where_room_is_scarce() {
        let rooms = Rc::new(Rooms::new(2));
        assert!(passes(&rooms, 100, 1, 50, true).await, "there is room");
        assert!(!passes(&rooms, 1, 1, 61, true).await, "it does not come");
        let _both = [rooms.take(), rooms.take()];
        assert!(!passes(&rooms, 100, 1, 1, true).await);
        assert!(!passes(&rooms, 100, 1, 50, true).await);
        assert!(!passes(&rooms, 100, 1000, 1, true).await, "under a kibibyte a second");
        assert!(passes(&rooms, 100, 1024, 1, true).await);
        assert!(passes(&rooms, 10, 1, 1, true).await, "so soon nothing is a drip");
        assert!(passes(&rooms, 100, 1, 50, false).await, "it holds no room");
        assert!(!passes(&rooms, 1, 1, 61, false).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_nothing_more_is_taken_does_not_count() {
        let rooms = Rc::new(Rooms::new(0));
        let mut pace = Pace::new(TIME, rooms.clone());
        let _all = rooms.take();
        pace.came(1024);
        tokio::time::sleep(TIME * 2).await;
        let wait = poll_fn(|context| pace.poll_late(context, true));
        let waited = tokio::time::timeout(TIME / (PATIENCE + 1), wait).await;
        assert!(waited.is_err());
    }
}
