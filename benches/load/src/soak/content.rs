//! Bytes that follow from who asked for them and which request it was: what belongs to another user,
//! to another request or to another place of the same answer is not them. It knows no HTTP.

use bytes::{Bytes, BytesMut};

/// A body of bytes that can be made and checked piece by piece.
#[derive(Clone)]
pub(super) struct Content {
    seed: u64,
    at: usize,
    length: usize,
}

impl Content {
    /// The body of `length` bytes for this request.
    pub(super) fn new(user: &str, nonce: u64, length: usize) -> Self {
        let seed = user.bytes().fold(nonce, |seed, byte| mix(seed ^ u64::from(byte)));
        Self { seed, at: 0, length }
    }

    /// Bytes that are yet to come.
    pub(super) fn left(&self) -> usize {
        self.length - self.at
    }

    /// The next ones, at most so many.
    pub(super) fn take(&mut self, most: usize) -> Bytes {
        let end = self.at + most.min(self.left());
        let mut bytes = BytesMut::with_capacity(end - self.at + 8);
        while self.at < end {
            let word = mix(self.seed ^ (self.at / 8) as u64).to_le_bytes();
            let rest = word.get(self.at % 8..).unwrap_or_default();
            let rest = rest.get(..rest.len().min(end - self.at)).unwrap_or_default();
            bytes.extend_from_slice(rest);
            self.at += rest.len();
        }
        bytes.freeze()
    }

    /// Whether these are the next ones.
    pub(super) fn continues_with(&mut self, bytes: &[u8]) -> bool {
        bytes.len() <= self.left() && self.take(bytes.len()) == bytes
    }
}

/// Every bit of the result hangs on every bit of the number.
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Numbers that look like chance and are the same in every run.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// From 0 up to `below`.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % below.max(1)
    }

    /// A length: short ones are as likely as long ones.
    pub(super) fn length(&mut self, most_bits: u64) -> usize {
        let bits = self.below(most_bits + 1);
        usize::try_from(self.below(1 << bits)).unwrap_or_default()
    }

    /// A number for one request.
    pub(super) fn nonce(&mut self) -> u64 {
        self.below(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_in_whatever_pieces_it_is_made_and_nobody_elses() {
        let whole = Content::new("zoe", 7, 1000).take(1000);
        let mut pieces = Content::new("zoe", 7, 1000);
        assert!(
            [0, 1, 7, 8, 500, 484].iter().fold(0, |at, length| {
                assert!(pieces.continues_with(&whole[at..at + length]), "{length} at {at}");
                at + length
            }) == 1000
        );
        assert_eq!(pieces.left(), 0);
        for mut other in [Content::new("bob", 7, 1000), Content::new("zoe", 8, 1000)] {
            assert!(!other.continues_with(&whole));
        }
        assert!(!Content::new("zoe", 7, 999).continues_with(&whole));
        let mut shifted = Content::new("zoe", 7, 1000);
        assert!(!shifted.continues_with(&whole[8..]));
    }
}
