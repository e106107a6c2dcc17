//! Certificates, byte by byte (X.690, RFC 5280): their subject and their validity. Whatever is not as it
//! should be is none. It verifies nothing, and does not know whose a certificate is.

use crate::clock::Timestamp;

pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Bytes that are read element by element.
pub(super) struct Der<'a>(pub(super) &'a [u8]);

/// A tag, what is in it, and the whole.
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) inside: &'a [u8],
    pub(super) whole: &'a [u8],
}

impl<'a> Der<'a> {
    fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// What is in the next element, if it has this tag.
    pub(super) fn inside(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element().filter(|element| element.tag == tag).map(|element| element.inside)
    }

    pub(super) fn element(&mut self) -> Option<Element<'a>> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            // X.690, section 8.1.3.5: so many bytes of length follow.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (inside, rest) = rest.split_at_checked(length)?;
        let whole = self.0.get(..self.0.len() - rest.len())?;
        self.0 = rest;
        Some(Element { tag: *tag, inside, whole })
    }
}

/// What a certificate says of itself.
pub(super) struct Body<'a> {
    /// From when until when it holds.
    pub(super) validity: (Timestamp, Timestamp),
    /// The sets of names of its subject.
    pub(super) subject: Der<'a>,
}

/// Reads a certificate.
pub(super) fn body(certificate: &[u8]) -> Option<Body<'_>> {
    // RFC 5280, section 4.1: version, serial number, algorithm, issuer, validity, subject.
    const VERSION: u8 = 0xa0;
    let mut certificate = Der(Der(certificate).inside(SEQUENCE)?);
    let mut body = Der(certificate.inside(SEQUENCE)?);
    if body.next_is(VERSION) {
        body.element()?;
    }
    for _ in 0..3 {
        body.element()?;
    }
    let mut times = Der(body.inside(SEQUENCE)?);
    let validity = (time(&times.element()?)?, time(&times.element()?)?);
    Some(Body { validity, subject: Der(body.inside(SEQUENCE)?) })
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, section 4.1.2.5).
fn time(element: &Element<'_>) -> Option<Timestamp> {
    let digits = std::str::from_utf8(element.inside).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (element.tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let pair = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
    let days = days(year, pair(0)?, pair(2)?)?;
    Some(Timestamp(days * 86_400 + pair(4)? * 3600 + pair(6)? * 60 + pair(8)?))
}

/// From 1970-01-01 to this day of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March: the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    before.checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for ((year, month, day), expected) in [
            ((1970, 1, 1), 0),
            ((1970, 3, 1), 59),
            ((1972, 2, 29), 789),
            ((2000, 2, 29), 11_016),
            ((2026, 11, 25), 20_782),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days(year, month, day), Some(expected));
        }
        for (year, month, day) in [(1969, 12, 31), (2000, 13, 1), (2000, 0, 1), (2000, 1, 32)] {
            assert_eq!(days(year, month, day), None);
        }
    }

    #[test]
    fn a_certificate_says_from_when_until_when_it_holds() {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 11, 25);
        params.not_after = rcgen::date_time_ymd(2100, 3, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let validity = body(certificate.der()).unwrap().validity;
        assert_eq!(validity, (Timestamp(20_782 * 86_400), Timestamp(47_541 * 86_400)));
        let noon = Element { tag: UTC_TIME, inside: b"700101120102Z", whole: b"" };
        assert_eq!(time(&noon), Some(Timestamp(43_262)));
        for (tag, text) in [(UTC_TIME, "700101120102"), (0x16, "700101120102Z"), (UTC_TIME, "Z")] {
            assert_eq!(time(&Element { tag, inside: text.as_bytes(), whole: b"" }), None);
        }
    }
}
