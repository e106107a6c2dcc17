//! How often one client may begin to log in. It remembers one number for each that did so within
//! the last minute, as many as it has room for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::error::Failure;
use crate::lock::lock;
use crate::peer::Network;

/// Within which a client may begin so often.
const MINUTE: Duration = Duration::from_secs(60);

/// Clients that are remembered.
// SECURITY: who has more addresses than this is not kept out by counting each of them.
const MOST: usize = 65_536;

/// Of all workers.
pub struct Pace {
    started: Instant,
    /// Until when a client's logins so far would last, were they spread evenly; since `started`.
    spent: Mutex<HashMap<Network, Duration>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { started: Instant::now(), spent: Mutex::default() }
    }
}

impl Pace {
    /// Whether this client may begin to log in: so many times a minute, all at once if need be.
    ///
    /// # Errors
    /// 429, with the time after which it may again (RFC 6585, section 4).
    pub(super) fn admit(&self, client: IpAddr, most: Option<u32>) -> Result<(), Failure> {
        let Some(most) = most else { return Ok(()) };
        let wait = self.wait(client, MINUTE / most.max(1), self.started.elapsed());
        wait.map_or(Ok(()), |wait| Err(too_many(wait)))
    }

    fn wait(&self, client: IpAddr, every: Duration, now: Duration) -> Option<Duration> {
        let mut all = lock(&self.spent);
        let client = Network::of(client);
        let spent = all.get(&client).copied().unwrap_or_default().max(now) + every;
        let wait = spent.saturating_sub(now).checked_sub(MINUTE).filter(|wait| !wait.is_zero());
        if wait.is_some() {
            return wait;
        }
        if all.len() >= MOST && !all.contains_key(&client) {
            all.retain(|_, spent| *spent > now);
        }
        if all.len() < MOST || all.contains_key(&client) {
            all.insert(client, spent);
        }
        None
    }
}

fn too_many(wait: Duration) -> Failure {
    Failure::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_logins",
        "Too many sign-ins were begun from your address. Try again in a moment.",
    )
    // A part of a second is a second.
    .retry_after(wait + Duration::from_millis(999))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn so_many_at_once_and_then_evenly() {
        let (pace, every) = (Pace::default(), 10 * SECOND);
        let client = address("192.0.2.1");
        for _ in 0..6 {
            assert_eq!(pace.wait(client, every, 100 * SECOND), None);
        }
        assert_eq!(pace.wait(client, every, 100 * SECOND), Some(10 * SECOND));
        assert_eq!(pace.wait(client, every, 104 * SECOND), Some(6 * SECOND));
        assert_eq!(pace.wait(client, every, 110 * SECOND), None);
        assert_eq!(pace.wait(client, every, 110 * SECOND), Some(10 * SECOND));
        assert_eq!(pace.wait(address("192.0.2.2"), every, 110 * SECOND), None, "another client");
        for _ in 0..6 {
            assert_eq!(pace.wait(client, every, 200 * SECOND), None, "a minute later");
        }
    }

    /// Whoever has one IPv6 address has all of its network (RFC 4291, section 2.5.4).
    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (pace, every) = (Pace::default(), MINUTE);
        assert_eq!(pace.wait(address("2001:db8::1"), every, SECOND), None);
        assert!(pace.wait(address("2001:db8::ffff:2"), every, SECOND).is_some());
        assert_eq!(pace.wait(address("2001:db8:0:1::1"), every, SECOND), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_is_not_is_let_in() {
        let (pace, every) = (Pace::default(), MINUTE);
        let client = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        for number in 0..MOST + 10 {
            assert_eq!(pace.wait(client(number), every, SECOND), None);
        }
        assert_eq!(pace.spent.lock().unwrap().len(), MOST);
        assert!(pace.wait(client(0), every, SECOND).is_some());
        assert_eq!(pace.wait(client(MOST), every, 70 * SECOND), None);
        assert_eq!(pace.spent.lock().unwrap().len(), 1, "the others are over");
    }

    #[test]
    fn nothing_is_counted_where_no_limit_is_set() {
        let pace = Pace::default();
        assert!((0..1000).all(|_| pace.admit(address("192.0.2.1"), None).is_ok()));
        assert!(pace.spent.lock().unwrap().is_empty());
    }
}
