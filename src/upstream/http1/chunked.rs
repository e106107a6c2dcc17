//! A chunked body (RFC 9112, section 7.1), as strict as its grammar: a line end is CR LF, a size is
//! hexadecimal digits. It is fed what was read, and knows no connection.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use httparse::Status;
use memchr::memchr;
use thiserror::Error;

use super::head;
use crate::digits;

/// The longest line of a chunk's size with its extensions, in bytes.
const SIZE_LINE: usize = 4 * 1024;
/// The longest trailers, in bytes.
const TRAILERS: usize = 64 * 1024;
/// The most fields of trailers.
const FIELDS: usize = 100;

/// What is wrong with a chunked body.
#[derive(Debug, Error)]
pub enum BadChunk {
    /// No digits, too many, or a line end that is none.
    #[error("a chunk's size that is none")]
    Size,
    /// Over 4 KiB.
    #[error("a chunk's line is too long")]
    LongLine,
    /// No CR LF behind its data.
    #[error("a chunk that does not end where it should")]
    End,
    /// What is wrong with a line of them.
    #[error("trailers: {0}")]
    Trailers(&'static str),
    /// Over 64 KiB.
    #[error("the trailers are too long")]
    LongTrailers,
}

/// Where in a chunked body the reader is.
#[derive(Default)]
pub enum Chunked {
    /// Before a chunk's size.
    #[default]
    Size,
    /// In a chunk, of which this many bytes are yet to come.
    Data(u64),
    /// Behind a chunk's data.
    End,
    /// Behind the last chunk.
    Trailers,
}

/// What a body is made of.
pub enum Piece {
    /// Some of the body, at least a byte.
    Data(Bytes),
    /// The body is over; the trailers, if there are any.
    End(Option<HeaderMap>),
}

impl Chunked {
    /// Takes the next piece off `read`, if it is there.
    ///
    /// # Errors
    /// When it is no chunked body.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, BadChunk> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(read)? else { return Ok(None) };
                    let size = size(read.get(..line).unwrap_or_default())?;
                    read.advance(line + 2);
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    let length = read.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    if length == 0 {
                        return Ok(None);
                    }
                    *left -= length as u64;
                    if *left == 0 {
                        *self = Self::End;
                    }
                    return Ok(Some(Piece::Data(read.split_to(length).freeze())));
                }
                Self::End => match read.get(..2) {
                    Some(b"\r\n") => {
                        read.advance(2);
                        *self = Self::Size;
                    }
                    None if b"\r\n".starts_with(read) => return Ok(None),
                    _ => return Err(BadChunk::End),
                },
                Self::Trailers => return trailers(read).map(|end| end.map(Piece::End)),
            }
        }
    }
}

/// How long the line at the beginning is, without its end.
fn line(read: &[u8]) -> Result<Option<usize>, BadChunk> {
    match memchr(b'\n', read) {
        None if read.len() > SIZE_LINE => Err(BadChunk::LongLine),
        None => Ok(None),
        Some(end) if end > SIZE_LINE => Err(BadChunk::LongLine),
        // SECURITY: a bare LF is a line's end to some and not to others.
        Some(end) => match end.checked_sub(1) {
            Some(line) if read.get(line) == Some(&b'\r') => Ok(Some(line)),
            _ => Err(BadChunk::Size),
        },
    }
}

/// A chunk's size. Extensions are passed over (section 7.1.1), and so is white space before them,
/// which some servers pad a size with.
fn size(line: &[u8]) -> Result<u64, BadChunk> {
    let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let digits = line.get(..digits).unwrap_or_default().trim_ascii_end();
    // SECURITY: a size that overflows is read as a small one by some (CVE-2013-2028).
    if digits.is_empty() || digits.len() > 16 || line.contains(&b'\r') {
        return Err(BadChunk::Size);
    }
    digits.iter().try_fold(0, |size, byte| {
        digits::hex(*byte).map(|digit| (size << 4) | u64::from(digit)).ok_or(BadChunk::Size)
    })
}

/// The trailers and the empty line behind them; most bodies have the line alone.
#[expect(clippy::option_option, reason = "not there yet, and there but empty, are two things")]
fn trailers(read: &mut BytesMut) -> Result<Option<Option<HeaderMap>>, BadChunk> {
    match read.get(..2) {
        Some(b"\r\n") => {
            read.advance(2);
            return Ok(Some(None));
        }
        None => return Ok(None),
        Some(_) if !head::may_be_whole(read) => {
            return if read.len() > TRAILERS { Err(BadChunk::LongTrailers) } else { Ok(None) };
        }
        Some(_) => {}
    }
    let mut lines = [httparse::EMPTY_HEADER; FIELDS];
    let parsed = httparse::parse_headers(read, &mut lines);
    match parsed.map_err(|error| BadChunk::Trailers(head::reason(error)))? {
        Status::Partial if read.len() > TRAILERS => Err(BadChunk::LongTrailers),
        Status::Partial => Ok(None),
        Status::Complete((length, lines)) => {
            let bytes = read.get(..length).unwrap_or_default();
            let fields = head::fields(bytes, lines, 0)
                .map_err(|_| BadChunk::Trailers("a field that is none"))?;
            read.advance(length);
            Ok(Some(Some(fields)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything in a body that comes in pieces of these lengths, in turn.
    fn read(
        whole: &[u8],
        lengths: &[usize],
    ) -> Result<(Vec<u8>, Option<HeaderMap>, usize), String> {
        let (mut chunked, mut read, mut rest) = (Chunked::default(), BytesMut::new(), whole);
        let (mut body, mut lengths) = (Vec::new(), lengths.iter().cycle());
        loop {
            match chunked.take(&mut read).map_err(|error| error.to_string())? {
                Some(Piece::Data(bytes)) => body.extend_from_slice(&bytes),
                Some(Piece::End(trailers)) => return Ok((body, trailers, read.len() + rest.len())),
                None if rest.is_empty() => return Err("it has no end".to_owned()),
                None => {
                    let (next, after) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
                    read.extend_from_slice(next);
                    rest = after;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_in_whatever_pieces_it_comes(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..300), 0..4), 0..8),
            trailer in any::<bool>(),
            lengths in prop::collection::vec(1_usize..200, 1..6),
        ) {
            let (mut sent, mut body) = (Vec::new(), Vec::new());
            for (chunk, style) in chunks {
                let length = chunk.len();
                let line = match style {
                    0 => format!("{length:x}"),
                    1 => format!("{length:X};name=\"value\""),
                    2 => format!("{length:06x} "),
                    _ => format!("{length:x} ; a"),
                };
                sent.extend_from_slice(line.as_bytes());
                sent.extend_from_slice(b"\r\n");
                sent.extend_from_slice(&chunk);
                sent.extend_from_slice(b"\r\n");
                body.extend_from_slice(&chunk);
            }
            let end = if trailer { "0\r\nX-Sum: 7\r\n\r\n" } else { "00\r\n\r\n" };
            sent.extend_from_slice(end.as_bytes());
            sent.extend_from_slice(b"more");
            let (read, trailers, left) = read(&sent, &lengths).unwrap();
            prop_assert_eq!(read, body);
            prop_assert_eq!(left, 4);
            prop_assert_eq!(trailers.map(|fields| fields["x-sum"].clone()), trailer.then(|| "7".parse().unwrap()));
        }
    }

    #[test]
    fn what_two_parties_could_read_differently_is_no_chunked_body() {
        for bad in [
            "\r\n\r\n",
            "+4\r\nbody\r\n0\r\n\r\n",
            "-4\r\nbody\r\n0\r\n\r\n",
            "0x4\r\nbody\r\n0\r\n\r\n",
            " 4\r\nbody\r\n0\r\n\r\n",
            "4 4\r\nbody\r\n0\r\n\r\n",
            "4\nbody\r\n0\r\n\r\n",
            "4;a\nb\r\nbody\r\n0\r\n\r\n",
            "4\r;a\r\nbody\r\n0\r\n\r\n",
            "4\r\nbody\n0\r\n\r\n",
            "4\r\nbodyX\r\n0\r\n\r\n",
            "4\r\nbody0\r\n\r\n",
            "10000000000000004\r\nbody\r\n0\r\n\r\n",
            "ffffffffffffffff0\r\nbody",
            ";4\r\nbody\r\n0\r\n\r\n",
            "4g\r\nbody\r\n0\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nx : y\r\n\r\n",
            "0\r\nx: y\r\n folded\r\n\r\n",
            "0\r\nx: a\0b\r\n\r\n",
        ] {
            for length in [1, 2, 1000] {
                let got = read(bad.as_bytes(), &[length]);
                assert!(
                    got.as_ref().is_err_and(|error| error != "it has no end"),
                    "{bad:?}: {got:?}"
                );
            }
        }
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let line = format!("4;{}", "a".repeat(100_000));
        let trailers = format!("0\r\nx: {}", "a".repeat(1_000_000));
        let many: String = (0..101).map(|at| format!("x-{at}: y\r\n")).collect();
        for (bad, reason) in [
            (line, "a chunk's line is too long"),
            (trailers, "the trailers are too long"),
            (format!("0\r\n{many}\r\n"), "trailers: too many fields"),
        ] {
            assert_eq!(read(bad.as_bytes(), &[1000]).unwrap_err(), reason);
        }
    }
}
