//! The frames of a WebSocket (RFC 6455, section 5.2), as far as it takes to end one between two
//! frames: where a frame ends, and the frame that says goodbye. It reads no payload.

use std::cell::Cell;

/// Close, unmasked as a server's frames are, with status 1008, "policy violation" (RFC 6455,
/// sections 5.5.1 and 7.4.1), and a word of why.
pub(super) const SESSION_ENDED: [u8; 17] = *b"\x88\x0f\x03\xf0session ended";

/// The opcode of Close (RFC 6455, section 11.8).
const CLOSE: u8 = 0x8;
/// The longest header: two bytes, eight of length, four of mask.
const LONGEST: usize = 14;

/// How far a stream of frames has come; shared with who wants to end it.
#[derive(Default)]
pub(super) struct Frames {
    at: Cell<Place>,
    closing: Cell<bool>,
}

#[derive(Clone, Copy)]
enum Place {
    /// So many bytes of a header.
    Header([u8; LONGEST], usize),
    /// So many bytes of payload are to come; not 0.
    Payload(u64),
}

impl Default for Place {
    fn default() -> Self {
        Self::Header([0; LONGEST], 0)
    }
}

impl Frames {
    /// Whether the last frame is whole and none has begun.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.at.get(), Place::Header(_, 0))
    }

    /// Whether the stream has said goodbye itself; nothing may follow that (RFC 6455, section
    /// 5.5.1).
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Goes on by these bytes.
    pub(super) fn pass(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = bytes.get(self.step(bytes)..).unwrap_or_default();
        }
    }

    /// How many of these bytes belong to the frame under way.
    pub(super) fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let ahead = Self { at: self.at.clone(), closing: Cell::new(false) };
        let mut passed = 0;
        while !ahead.is_between()
            && let Some(rest @ [_, ..]) = bytes.get(passed..)
        {
            passed += ahead.step(rest);
        }
        passed
    }

    /// One step: a byte of a header or as much payload as there is. Returns its length.
    fn step(&self, bytes: &[u8]) -> usize {
        let (place, length) = match self.at.get() {
            Place::Payload(left) => {
                let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(left);
                let place = match left - here {
                    0 => Place::default(),
                    left => Place::Payload(left),
                };
                (place, usize::try_from(here).unwrap_or(bytes.len()))
            }
            Place::Header(mut header, have) => {
                if let (Some(slot), Some(byte)) = (header.get_mut(have), bytes.first()) {
                    *slot = *byte;
                }
                let place = match payload(&header, have + 1) {
                    None => Place::Header(header, have + 1),
                    Some(length) => {
                        let [first, ..] = header;
                        self.closing.set(self.closing.get() || first & 0x0f == CLOSE);
                        if length == 0 { Place::default() } else { Place::Payload(length) }
                    }
                };
                (place, 1)
            }
        };
        self.at.set(place);
        length
    }
}

/// The length of the payload, once the header is complete.
fn payload(header: &[u8; LONGEST], have: usize) -> Option<u64> {
    let [_, second, rest @ ..] = header;
    let (extended, length) = match second & 0x7f {
        126 => (2, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
        short => (0, u64::from(short)),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    (have >= 2 + extended + mask).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match payload {
            0..=125 => frame.push(mask + u8::try_from(payload).unwrap()),
            126..=0xffff => {
                frame.push(mask + 126);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask + 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend([0x88; 4].iter().take(if masked { 4 } else { 0 }));
        // What looks like headers is payload.
        frame.extend(std::iter::repeat_n(0x88, payload));
        frame
    }

    #[test]
    fn the_goodbye_is_one_whole_frame() {
        let frames = Frames::default();
        frames.pass(&SESSION_ENDED);
        assert!(frames.is_between() && frames.is_closing());
        assert_eq!(u16::from_be_bytes([SESSION_ENDED[2], SESSION_ENDED[3]]), 1008);
        assert_eq!(usize::from(SESSION_ENDED[1]) + 2, SESSION_ENDED.len());
    }

    #[test]
    fn only_a_close_frame_is_a_goodbye() {
        for opcode in [0, 1, 2, 8, 9, 10] {
            let frames = Frames::default();
            frames.pass(&frame(opcode, false, 300));
            assert_eq!(frames.is_closing(), opcode == 8, "{opcode}");
        }
    }

    proptest! {
        #[test]
        fn a_boundary_is_found_wherever_the_bytes_are_cut(
            shapes in prop::collection::vec((prop::sample::select(vec![0_u8, 1, 2, 9]), any::<bool>(),
                prop::sample::select(vec![0_usize, 1, 125, 126, 127, 65_535, 65_536, 70_000])), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole: Vec<Vec<u8>> = shapes.iter().map(|(o, m, p)| frame(*o, *m, *p)).collect();
            let bytes = whole.concat();
            let cut = cut.index(bytes.len() + 1);
            let mut ends = vec![0];
            for frame in &whole {
                ends.push(ends.last().unwrap() + frame.len());
            }
            let frames = Frames::default();
            frames.pass(&bytes[..cut]);
            prop_assert_eq!(frames.is_between(), ends.contains(&cut));
            let next = *ends.iter().find(|end| **end >= cut).unwrap();
            prop_assert_eq!(frames.rest_of_frame(&bytes[cut..]), next - cut);
            let part = (next - cut) / 2;
            prop_assert_eq!(frames.rest_of_frame(&bytes[cut..cut + part]), part);
            frames.pass(&bytes[cut..next]);
            prop_assert!(frames.is_between() && !frames.is_closing());
        }
    }
}
