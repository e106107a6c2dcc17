//! Where a body of chunks ends (RFC 9112, section 7.1). It knows no more of what is in it.

/// Where in a body of chunks the next byte stands.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    place: Place,
    /// The size as far as it was read; then the bytes that are to come.
    size: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At a size's first digit.
    #[default]
    Start,
    Size,
    /// Blanks before an extension.
    Blank,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// At the first byte of a trailer, or at the empty line.
    Line,
    Trailer,
    TrailerEnd,
    LastEnd,
}

/// What came of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The body goes on.
    More,
    /// It has ended.
    End,
    /// The byte looked at last is none that may stand there, nor is this one, which the parser
    /// refuses there.
    Broken(u8),
}

impl Chunks {
    /// Follows the body; how many bytes were looked at.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> (usize, Step) {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.place == Place::Data {
                let rest = bytes.len() - at;
                let used = usize::try_from(self.size).unwrap_or(usize::MAX).min(rest);
                self.size -= used as u64;
                at += used;
                if self.size == 0 {
                    self.place = Place::DataReturn;
                }
                continue;
            }
            at += 1;
            match self.next(*byte) {
                Some(Place::LastEnd) if *byte == b'\n' => return (at, Step::End),
                Some(place) => self.place = place,
                // In an extension the parser takes everything but the end of a line.
                None if self.place == Place::Extension => return (at, Step::Broken(b'\n')),
                None => return (at, Step::Broken(0)),
            }
        }
        (at, Step::More)
    }

    fn next(&mut self, byte: u8) -> Option<Place> {
        Some(match (self.place, byte) {
            (Place::Start | Place::Size, byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16)?;
                self.size = self.size.checked_mul(16)?.checked_add(u64::from(digit))?;
                Place::Size
            }
            (Place::Size | Place::Blank, b' ' | b'\t') => Place::Blank,
            (Place::Size | Place::Blank, b';') => Place::Extension,
            (Place::Size | Place::Blank | Place::Extension, b'\r') => Place::SizeEnd,
            (Place::Extension, byte) if byte != b'\n' => Place::Extension,
            (Place::SizeEnd, b'\n') if self.size == 0 => Place::Line,
            (Place::SizeEnd, b'\n') => Place::Data,
            (Place::DataReturn, b'\r') => Place::DataEnd,
            (Place::DataEnd, b'\n') => Place::Start,
            // With the line feed, the end.
            (Place::Line, b'\r') | (Place::LastEnd, b'\n') => Place::LastEnd,
            (Place::Trailer, b'\r') => Place::TrailerEnd,
            (Place::Line | Place::Trailer, byte) if byte != b'\n' => Place::Trailer,
            (Place::TrailerEnd, b'\n') => Place::Line,
            _ => return None,
        })
    }
}
