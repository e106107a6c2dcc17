//! The time as responses tell it (RFC 9110, section 6.6.1), written once a second.

use std::cell::{Cell, RefCell};
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderValue;

use crate::clock::Timestamp;

/// One worker's `Date`.
pub(super) struct Dates {
    second: Cell<Timestamp>,
    text: RefCell<HeaderValue>,
}

impl Default for Dates {
    fn default() -> Self {
        let start = Timestamp::default();
        Self { second: Cell::new(start), text: RefCell::new(written(start)) }
    }
}

impl Dates {
    /// The value of the field.
    pub(super) fn now(&self) -> HeaderValue {
        self.at(Timestamp::now())
    }

    fn at(&self, now: Timestamp) -> HeaderValue {
        if self.second.replace(now) != now {
            self.text.replace(written(now));
        }
        self.text.borrow().clone()
    }
}

fn written(time: Timestamp) -> HeaderValue {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.0));
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9110, section 5.6.7.
    #[test]
    fn the_date_is_written_anew_when_it_is_another() {
        let dates = Dates::default();
        assert_eq!(dates.at(Timestamp(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(dates.at(Timestamp(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(dates.at(Timestamp(784_111_778)), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}
