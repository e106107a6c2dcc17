//! The bytes of an HTTP/1.1 connection before the parser gets them. It is more lenient than a
//! gateway may be, and its user cannot see what it has overlooked; so every head is looked at here
//! first, which needs to know where one begins: lengths and chunks are followed (`heads/chunks`).
//!
//! What must be refused is made unreadable: one byte of it becomes a NUL, which stands nowhere in
//! HTTP, and the message ends there. The parser then answers 400 in its turn, after the requests
//! before it, and closes the connection. Nothing is ever repaired.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::watch::Watch;

mod chunks;

use chunks::Chunks;

/// Where in the stream of requests the next byte stands.
#[derive(Debug, Default)]
enum Place {
    /// In a head, or before one.
    #[default]
    Head,
    /// This many bytes of a body are to come.
    Body(u64),
    /// In a body of chunks.
    Chunks(Chunks),
    /// Behind a refusal: no more is read, but for what is left here.
    Refused(&'static [u8]),
}

/// Ends a head, and trailers: the parser looks at nothing before the end has come.
const END: &[u8] = b"\r\n\r\n";

/// Follows the requests of one connection.
#[derive(Default)]
pub struct Heads {
    place: Place,
    /// A head of which the end has not come: rare, and as large as the parser lets it become.
    begun: Option<Box<Begun>>,
}

#[derive(Default)]
struct Begun {
    bytes: Vec<u8>,
    lines: Lines,
}

/// What is known of the lines of a head.
#[derive(Default)]
struct Lines {
    /// Where the next one begins.
    start: usize,
    any: bool,
    length: Option<u64>,
    chunked: bool,
}

/// Two parties could read it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

impl Heads {
    /// Whether a part of a head has come, and not its end.
    pub(super) fn is_within(&self) -> bool {
        self.begun.is_some()
    }

    /// What the parser gets in place of what comes after a refusal; nothing before one.
    fn instead(&mut self, most: usize) -> Option<&'static [u8]> {
        let Place::Refused(left) = &mut self.place else { return None };
        let (now, later) = left.split_at(most.min(left.len()));
        *left = later;
        Some(now)
    }

    /// Looks at what has come. A byte that becomes a NUL is where the last request is refused: what
    /// comes after it is not looked at, and no parser gets it.
    pub fn look(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.place {
                Place::Refused(_) => return,
                Place::Head => self.head(bytes),
                Place::Body(rest) => {
                    let used = usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len());
                    *rest -= used as u64;
                    if *rest == 0 {
                        self.place = Place::Head;
                    }
                    used
                }
                Place::Chunks(chunks) => {
                    let (used, step) = chunks.follow(bytes);
                    match step {
                        chunks::Step::More => {}
                        chunks::Step::End => self.place = Place::Head,
                        chunks::Step::Broken(by) => {
                            self.refuse(bytes, used.saturating_sub(1), by);
                        }
                    }
                    used
                }
            };
            bytes = bytes.get_mut(used..).unwrap_or_default();
        }
    }

    /// Looks at a head, or at more of it; how many bytes are its.
    fn head(&mut self, bytes: &mut [u8]) -> usize {
        // Nearly every head comes whole.
        let Some(mut begun) = self.begun.take() else {
            let mut lines = Lines::default();
            return match lines.read(bytes, 0) {
                Ok(Some(end)) => {
                    self.place = lines.body();
                    end
                }
                Ok(None) => {
                    self.begun = Some(Box::new(Begun { bytes: bytes.to_vec(), lines }));
                    bytes.len()
                }
                Err((Refused, at)) => self.refuse(bytes, at, 0),
            };
        };
        let before = begun.bytes.len();
        begun.bytes.extend_from_slice(bytes);
        match begun.lines.read(&begun.bytes, before) {
            Ok(Some(end)) => {
                self.place = begun.lines.body();
                end - before
            }
            Ok(None) => {
                self.begun = Some(begun);
                bytes.len()
            }
            Err((Refused, at)) => self.refuse(bytes, at - before, 0),
        }
    }

    /// Puts a byte in a place where it must not stand; all of what came is then looked at.
    fn refuse(&mut self, bytes: &mut [u8], at: usize, by: u8) -> usize {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = by;
        }
        self.place = Place::Refused(END);
        bytes.len()
    }
}

impl Lines {
    /// Reads the lines of a head of which the bytes up to `seen` were looked at before; where it
    /// ends, if it does. What is refused is refused at the end of a line.
    fn read(&mut self, head: &[u8], seen: usize) -> Result<Option<usize>, (Refused, usize)> {
        let mut from = seen;
        while let Some(at) = head.get(from..).and_then(|rest| memchr(b'\n', rest)) {
            let end = from + at;
            let line = head.get(self.start..end).unwrap_or_default();
            // SECURITY: a line that ends without a CR ends nowhere for who reads strictly (RFC
            // 9112, section 2.2).
            let Some(line) = line.strip_suffix(b"\r") else { return Err((Refused, end)) };
            from = end + 1;
            self.start = from;
            if line.is_empty() && self.any {
                return Ok(Some(from));
            }
            self.line(line).map_err(|refused| (refused, end))?;
        }
        Ok(None)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Refused> {
        if !self.any {
            // RFC 9112, section 2.2: an empty line before a request is none of it.
            self.any = !line.is_empty();
            // SECURITY: the parser drops a fragment, which no target has (RFC 9112, section 3.2).
            return memchr(b'#', line).map_or(Ok(()), |_| Err(Refused));
        }
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value(line, b"content-length:") {
                    let length = digits(value).ok_or(Refused)?;
                    if self.length.replace(length).is_some_and(|before| before != length) {
                        return Err(Refused);
                    }
                }
            }
            Some(b't' | b'T') => self.chunked |= value(line, b"transfer-encoding:").is_some(),
            _ => {}
        }
        // SECURITY: what one party reads as the end of this request is for another the middle of
        // its body (CVE-2021-40346 and its kin; RFC 9112, section 6.3).
        if self.chunked && self.length.is_some() { Err(Refused) } else { Ok(()) }
    }

    /// What follows this head.
    fn body(&self) -> Place {
        match self.length {
            _ if self.chunked => Place::Chunks(Chunks::default()),
            None | Some(0) => Place::Head,
            Some(length) => Place::Body(length),
        }
    }
}

/// What stands in a line behind `name`, which ends with the colon.
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, value) = line.split_at_checked(name.len())?;
    found.eq_ignore_ascii_case(name).then_some(value)
}

/// RFC 9110, section 8.6: digits, and nothing else.
fn digits(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    let digit = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    };
    let number = if value.is_empty() { None } else { value.iter().try_fold(0, digit) };
    // Nothing is that long, and who reads it into a signed number finds something else.
    number.filter(|number| i64::try_from(*number).is_ok())
}

impl fmt::Debug for Heads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Heads").field(&self.place).finish()
    }
}

/// A stream whose heads are looked at, until it is no HTTP any more.
pub(super) struct Guarded<T> {
    pub(super) inner: T,
    pub(super) heads: Heads,
    pub(super) watch: Arc<Watch>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(bytes) = this.heads.instead(buffer.remaining()) {
            buffer.put_slice(bytes);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        if !this.watch.is_upgraded() {
            this.heads.look(buffer.filled_mut().get_mut(before..).unwrap_or_default());
            this.watch.within_head(this.heads.is_within());
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of a stream that comes in pieces of this size, and where it is refused.
    fn looked_at(stream: &[u8], piece: usize) -> (Option<usize>, Heads) {
        let (mut heads, mut seen) = (Heads::default(), stream.to_vec());
        for bytes in seen.chunks_mut(piece) {
            heads.look(bytes);
        }
        (seen.iter().zip(stream).position(|(seen, sent)| seen != sent), heads)
    }

    const SIZES: [usize; 6] = [1, 2, 3, 7, 40, 10_000];

    #[test]
    fn what_everyone_reads_alike_is_not_touched() {
        for stream in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\n\n#\n\
             GET / HTTP/1.1\r\nX: #\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length:\t3 \r\nContent-Length: 3\r\n\r\n\n\n\n\
             POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;x=y\r\n\n\n\n\r\nA \r\n##########\r\n0\r\nX: y\r\n\r\n\
             GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST / HTTP/1.1\r\n\
             TRANSFER-ENCODING:chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Lengthy: 1\r\nTransfer-Encodings: x\r\nC:\r\nT:\r\n\r\n",
        ] {
            for piece in SIZES {
                let (refused, heads) = looked_at(stream.as_bytes(), piece);
                assert_eq!(refused, None, "{stream:?} by {piece}");
                assert!(matches!(heads.place, Place::Head) && !heads.is_within(), "{heads:?}");
            }
        }
    }

    #[test]
    fn what_two_parties_could_read_differently_is_made_unreadable() {
        let good = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        for (start, rest) in [
            ("GET / HTTP/1.1", "\n\r\n"),
            ("GET / HTTP/1.1\r\nX: y", "\nZ: a\r\n\r\n"),
            ("GET / HTTP/1.1\r\nX: y\r\n", "\n"),
            ("", "\nGET / HTTP/1.1\r\n\r\n"),
            ("GET /a#b HTTP/1.1\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ntransfer-encoding: x\r\nX: y\r\ncontent-length: 3\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 3, 3\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: +3\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length:\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r", "\n\r\n"),
        ] {
            for before in ["", good] {
                let stream = format!("{before}{start}{rest}");
                for piece in SIZES {
                    let at = before.len() + start.len();
                    assert_eq!(looked_at(stream.as_bytes(), piece).0, Some(at), "{stream:?}");
                }
            }
        }
    }

    #[test]
    fn a_head_is_begun_until_its_last_byte() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 1..head.len() {
            assert!(looked_at(&head[..length], 5).1.is_within(), "{length}");
        }
        assert!(!looked_at(head, 5).1.is_within());
    }

    proptest! {
        /// However a stream is cut, the same byte of it is refused.
        #[test]
        fn how_a_stream_is_cut_makes_no_difference(
            parts in prop::collection::vec(prop::sample::select(vec![
                "GET / HTTP/1.1\r\n", "Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n",
                "X: y\r\n", "\r\n", "\n", "\r", "ab", "2\r\nab\r\n", "0\r\n\r\n", "#", ";x\r\n",
            ]), 0..14),
            piece in 1_usize..30,
        ) {
            let stream = parts.concat();
            let whole = looked_at(stream.as_bytes(), usize::MAX).0;
            prop_assert_eq!(looked_at(stream.as_bytes(), piece).0, whole, "{:?}", stream);
        }
    }
}
