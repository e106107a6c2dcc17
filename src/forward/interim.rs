//! Interim responses on their way to the browser (RFC 9110, section 15.2): `103` above all, which
//! lets it fetch what a page needs while the app still works on the page. They pass as responses do,
//! without what is not for the browser; what one asks of the session counts for nothing. It does not
//! know how they are sent.

use std::cell::Cell;

use http::header::{CONTENT_LENGTH, TRAILER};
use http::{HeaderMap, StatusCode};

use super::{Forward, Way};

/// The most that pass before one response.
// SECURITY: an app that never comes to its answer must not make a client, or the gateway for a
// client that does not read, gather what it says instead.
const MOST: u32 = 32;
/// The most bytes of their fields.
const BYTES: usize = 32 * 1024;

/// What of them may pass still, before one response.
pub(super) struct Allowance {
    number: Cell<u32>,
    bytes: Cell<usize>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { number: Cell::new(MOST), bytes: Cell::new(BYTES) }
    }
}

impl Allowance {
    /// Whether one more may pass. Once one may not, no other may.
    fn take(&self, fields: &HeaderMap) -> bool {
        let length = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            name.as_str().len() + value.len() + 4
        };
        let number = self.number.get().checked_sub(1);
        let bytes = self.bytes.get().checked_sub(fields.iter().map(length).sum());
        self.number.set(number.filter(|_| bytes.is_some()).unwrap_or_default());
        self.bytes.set(bytes.unwrap_or_default());
        number.is_some() && bytes.is_some()
    }
}

impl Forward {
    /// Tells the client of an interim response, if it hears such and has not heard too many. The
    /// others end here: the response itself is what counts.
    pub(super) fn hint(
        &self,
        way: Way<'_>,
        allowance: &Allowance,
        status: StatusCode,
        mut fields: HeaderMap,
    ) {
        let Some(tell) = way.interim.filter(|_| allowance.take(&fields)) else { return };
        self.clean(&mut fields, way);
        // RFC 9110, section 8.6: nothing follows it that they could speak of.
        fields.remove(CONTENT_LENGTH);
        fields.remove(TRAILER);
        tell(status, fields);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn passed(fields: &HeaderMap, times: usize) -> usize {
        let allowance = Allowance::default();
        (0..times).filter(|_| allowance.take(fields)).count()
    }

    #[test]
    fn so_many_pass_and_so_much_and_no_more() {
        assert_eq!(passed(&HeaderMap::new(), 1000), MOST as usize);
        let long = |length: usize| -> HeaderMap {
            let value = HeaderValue::try_from("x".repeat(length)).unwrap();
            [(http::header::LINK, value)].into_iter().collect()
        };
        assert_eq!(passed(&long(10 * 1024), 1000), 3);
        assert_eq!(passed(&long(BYTES), 1), 0);
        let allowance = Allowance::default();
        assert!(!allowance.take(&long(BYTES)) && !allowance.take(&HeaderMap::new()));
    }
}
