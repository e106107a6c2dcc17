//! Where a response's body ends (RFC 9112, section 6.3). What two parties could read differently is
//! an error: a gateway that picks one reading lets another response be smuggled in (section 11.2).

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};

use super::ExchangeError;
use super::chunked::Chunked;

/// How a body ends.
pub enum Framing {
    /// It has this many bytes yet to come.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunked),
    /// With the connection.
    Close,
}

impl Framing {
    /// `old` is HTTP/1.0.
    pub(super) fn of(
        method: &Method,
        status: StatusCode,
        old: bool,
        fields: &HeaderMap,
    ) -> Result<Self, ExchangeError> {
        let length = length(fields)?;
        let mut codings = fields.get_all(TRANSFER_ENCODING).into_iter();
        let chunked = match (codings.next(), codings.next()) {
            (None, _) => false,
            // Another coding would have to be undone, for the browser is not told of it. HTTP/1.0
            // knows none.
            (Some(coding), None)
                if coding.as_bytes().eq_ignore_ascii_case(b"chunked")
                    && length.is_none()
                    && !old =>
            {
                true
            }
            _ => return Err(ExchangeError::Ambiguous),
        };
        let none = method == Method::HEAD
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        Ok(match length {
            _ if none => Self::Length(0),
            _ if chunked => Self::Chunked(Chunked::default()),
            Some(length) => Self::Length(length),
            None => Self::Close,
        })
    }
}

/// `Content-Length`, once, and of digits alone (RFC 9110, section 8.6).
fn length(fields: &HeaderMap) -> Result<Option<u64>, ExchangeError> {
    let mut lengths = fields.get_all(CONTENT_LENGTH).into_iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    let digits = length.as_bytes();
    if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(ExchangeError::Ambiguous);
    }
    let length = length.to_str().ok().and_then(|digits| digits.parse().ok());
    length.map(Some).ok_or(ExchangeError::Ambiguous)
}
