//! Which of a route's upstreams a request goes to: of two that chance picks the one with fewer
//! requests under way, or the one that the session has always had. It knows upstreams by their
//! weight, their condition and what is under way there, and nothing of how they are reached.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};

use super::Switched;
use super::condition::{Condition, State};
use crate::body::{Body, BodyError, Stream};

/// An upstream among others.
pub(super) struct Member {
    pub(super) weight: u32,
    pub(super) condition: Arc<Condition>,
    /// Requests of this worker that it has not answered to the end.
    pub(super) under_way: Arc<AtomicU32>,
    /// Its name, hashed: the same in every worker, every gateway and after every start.
    pub(super) spread: u64,
}

/// The upstreams of one route, for one worker.
pub(super) struct Balance {
    members: Vec<Member>,
    random: Cell<u64>,
}

/// Those that a request is not to go to: a bit each.
#[derive(Clone, Copy, Default)]
pub(super) struct Except(u64);

impl Except {
    /// With one more.
    pub(super) fn and(self, index: usize) -> Self {
        Self(self.0 | 1_u64.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0))
    }

    fn has(self, index: usize) -> bool {
        self.and(index).0 == self.0
    }
}

impl Balance {
    /// At most 64 upstreams.
    pub(super) fn new(members: Vec<Member>) -> Self {
        let random = ahash::RandomState::new().hash_one(Instant::now());
        Self { members, random: Cell::new(random) }
    }

    /// Where to send a request that was tried in vain at these; nowhere if all were tried. One
    /// that sticks gives its session's number.
    pub(super) fn choose(&self, tried: Except, session: Option<u64>) -> Option<usize> {
        let mut except = tried;
        for (index, member) in self.members.iter().enumerate() {
            if member.condition.state() == State::Out {
                except = except.and(index);
            }
        }
        loop {
            let Some(index) = self.pick(except, session) else {
                // Where none is good, any is better than none.
                return self.pick(tried, session);
            };
            let condition = &self.members.get(index)?.condition;
            if condition.state() == State::In || condition.try_it() {
                return Some(index);
            }
            except = except.and(index);
        }
    }

    fn pick(&self, except: Except, session: Option<u64>) -> Option<usize> {
        match session {
            Some(session) => self.own(except, session),
            None => self.less_busy(except),
        }
    }

    /// The less busy of two, by weight. Where neither is busy it is the first: so each gets its
    /// share.
    fn less_busy(&self, except: Except) -> Option<usize> {
        let one = self.any(except)?;
        let Some(other) = self.any(except.and(one)) else { return Some(one) };
        let load = |index: usize, beside: usize| {
            let (member, beside) = (self.members.get(index)?, self.members.get(beside)?);
            Some(u64::from(member.under_way.load(Relaxed)) * u64::from(beside.weight))
        };
        if load(other, one)? < load(one, other)? { Some(other) } else { Some(one) }
    }

    /// Any of them, by weight.
    fn any(&self, except: Except) -> Option<usize> {
        let open = || self.members.iter().enumerate().filter(|(index, _)| !except.has(*index));
        let total: u64 = open().map(|(_, member)| u64::from(member.weight)).sum();
        let mut at = self.random().checked_rem(total)?;
        for (index, member) in open() {
            match at.checked_sub(member.weight.into()) {
                Some(rest) => at = rest,
                None => return Some(index),
            }
        }
        None
    }

    /// The one that a session has: highest random weight, "rendezvous hashing". Where one is left
    /// out, its sessions alone go elsewhere, and come back when it does.
    fn own(&self, except: Except, session: u64) -> Option<usize> {
        let open = self.members.iter().enumerate().filter(|(index, _)| !except.has(*index));
        let score = |member: &Member| {
            let drawn = unit(mix(mix(session) ^ member.spread));
            f64::from(member.weight) / -drawn.ln()
        };
        open.max_by(|(_, one), (_, other)| score(one).total_cmp(&score(other))).map(|(at, _)| at)
    }

    /// `SplitMix64`: chance good enough for shares, in a nanosecond.
    fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        mix(state)
    }
}

/// A name's number: FNV-1a, the same wherever it is computed.
pub(super) fn spread(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A bijection that spreads neighbours far (`SplitMix64`).
fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number between 0 and 1, neither included.
#[expect(clippy::cast_precision_loss, reason = "the 52 bits that are left fit")]
fn unit(number: u64) -> f64 {
    ((number >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// A request under way, until this is dropped. Nobody counts but its worker: the atomic is for
/// WebSockets, which travel in what must be `Send`.
pub(super) struct UnderWay(Arc<AtomicU32>);

impl UnderWay {
    /// One more.
    pub(super) fn begin(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }

    /// It is under way until the response has come to its end, or nobody wants it any more.
    pub(super) fn until_the_end_of(self, mut response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            Switched::hold(&mut response, self);
            return response;
        }
        response.map(|body| match body {
            Body::Stream(stream) => Body::stream(Counted { stream, _under_way: self }),
            body => body,
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Counted {
    stream: Stream,
    _under_way: UnderWay,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stream.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::condition::Fault;
    use super::*;

    fn balance(weights: &[u32]) -> Balance {
        let member = |(at, weight): (usize, &u32)| Member {
            weight: *weight,
            condition: Arc::new(Condition::new(format!("http://127.0.0.1:{at}"))),
            under_way: Arc::default(),
            spread: spread(&format!("http://127.0.0.1:{at}")),
        };
        Balance::new(weights.iter().enumerate().map(member).collect())
    }

    /// How many of so many requests go where, if each ends at once.
    fn shares(balance: &Balance, requests: u64, sticky: bool) -> Vec<usize> {
        let mut shares = vec![0; balance.members.len()];
        for session in 0..requests {
            let session = sticky.then(|| mix(session));
            shares[balance.choose(Except::default(), session).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn each_gets_its_share_by_weight_whether_sessions_stick_or_not() {
        for sticky in [false, true] {
            let shares = shares(&balance(&[1, 2, 5]), 80_000, sticky);
            for (share, weight) in shares.iter().zip([1, 2, 5]) {
                let expected = 10_000 * weight;
                let near = expected * 95 / 100..expected * 105 / 100;
                assert!(near.contains(share), "{shares:?} sticky: {sticky}");
            }
        }
    }

    #[test]
    fn a_busy_upstream_gets_less() {
        let balance = balance(&[1, 1, 1]);
        balance.members[0].under_way.store(10, Relaxed);
        let shares = shares(&balance, 3000, false);
        assert_eq!(shares[0], 0, "another is always less busy");
        // Twice the weight bears twice the load.
        let balance = self::balance(&[2, 1]);
        balance.members[0].under_way.store(3, Relaxed);
        balance.members[1].under_way.store(2, Relaxed);
        assert_eq!(balance.choose(Except::default(), None), Some(0));
    }

    #[test]
    fn requests_that_last_are_spread_more_evenly_than_by_chance() {
        let balance = balance(&[1; 8]);
        for _ in 0..8000 {
            let index = balance.choose(Except::default(), None).unwrap();
            let member = &balance.members[index];
            member.under_way.fetch_add(1, Relaxed);
        }
        let all: Vec<_> =
            balance.members.iter().map(|member| member.under_way.load(Relaxed)).collect();
        assert!(all.iter().all(|count| (990..=1010).contains(count)), "{all:?}");
    }

    #[test]
    fn a_session_keeps_its_upstream_and_only_those_of_one_left_out_move() {
        let balance = balance(&[1; 5]);
        let own = |session| balance.choose(Except::default(), Some(mix(session))).unwrap();
        let before: Vec<_> = (0..1000).map(own).collect();
        assert_eq!((0..1000).map(own).collect::<Vec<_>>(), before);
        balance.members[2].condition.failed(Fault::Unreachable);
        for (session, before) in (0..1000).zip(&before) {
            let now = own(session);
            assert!(now != 2 && (now == *before || *before == 2));
        }
        balance.members[2].condition.answered();
        assert_eq!((0..1000).map(own).collect::<Vec<_>>(), before);
    }

    #[test]
    fn what_was_tried_or_is_left_out_is_not_asked_unless_there_is_nothing_else() {
        let balance = balance(&[1; 3]);
        for session in [None, Some(7)] {
            let mut tried = Except::default();
            let mut seen = Vec::new();
            while let Some(index) = balance.choose(tried, session) {
                seen.push(index);
                tried = tried.and(index);
            }
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2]);
        }
        for member in &balance.members[1..] {
            member.condition.failed(Fault::Unreachable);
        }
        for session in 0..100 {
            assert_eq!(balance.choose(Except::default(), Some(session)), Some(0));
            assert_eq!(balance.choose(Except::default(), None), Some(0));
        }
        assert!(balance.choose(Except::default().and(0), None).is_some());
        balance.members[0].condition.failed(Fault::Unreachable);
        assert!(shares(&balance, 300, false).iter().all(|share| *share > 0), "all are out");
    }

    #[test]
    fn one_that_is_due_is_asked_by_one_request() {
        let balance = balance(&[1, 1]);
        balance.members[1].condition.failed(Fault::Unreachable);
        balance.members[1].condition.age(Duration::from_millis(1100));
        assert_eq!(shares(&balance, 1000, false)[1], 1);
    }
}
