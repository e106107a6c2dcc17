//! The heads of an exchange: the request's as bytes, the response's as values. Which field frames a
//! body is decided here and in `framing`, never by what a client sent.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use httparse::{Header, ParserConfig, Status};
use memchr::memmem;

use super::upload::Outgoing;
use super::{ExchangeError, Framing, ROOM};
use crate::body::Body;

/// As many fields as nearly every response has.
const FIELDS: usize = 100;
/// The most fields of a response: about as many as an app can send over HTTP/2 in a head of the same
/// length, where each counts for 32 bytes more (RFC 9113, section 6.5.2).
const MOST_FIELDS: usize = 8192;
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// About as many as the gateway adds to a response.
const ADDED: usize = 6;

/// Writes a request's head: the target in origin form (RFC 9112, section 3.2.1), the fields as
/// they are, but for those that frame the body.
pub(super) fn write(head: &mut Vec<u8>, request: &Request<Body>, outgoing: Outgoing) {
    head.extend_from_slice(request.method().as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(target(request.uri()).as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        // SECURITY: request smuggling: what frames the body is what is done with it, below.
        if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
            continue;
        }
        field(head, name.as_str(), value.as_bytes());
    }
    match outgoing {
        Outgoing::Nothing => {}
        Outgoing::Length(length) => {
            field(head, CONTENT_LENGTH.as_str(), length.to_string().as_bytes());
        }
        Outgoing::Chunked => field(head, TRANSFER_ENCODING.as_str(), b"chunked"),
    }
    head.extend_from_slice(b"\r\n");
}

/// One line of a head or of trailers. Neither name nor value holds a line end: their types see to it.
pub(super) fn field(lines: &mut Vec<u8>, name: &str, value: &[u8]) {
    lines.extend_from_slice(name.as_bytes());
    lines.extend_from_slice(b": ");
    lines.extend_from_slice(value);
    lines.extend_from_slice(b"\r\n");
}

fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// A response's head.
pub struct Head {
    /// Never an interim one, but for 101.
    pub status: StatusCode,
    /// As they came.
    pub fields: HeaderMap,
    /// Where its body ends.
    pub framing: Framing,
    /// Whether the connection is good for another request after it (RFC 9112, section 9.3).
    pub keeps: bool,
    /// For how long, where it says so.
    pub keeps_for: Option<Duration>,
}

/// A head as it was written.
struct Raw {
    status: StatusCode,
    /// `HTTP/1.0`
    old: bool,
    fields: HeaderMap,
}

impl Head {
    /// Takes the head of the final response off `read`; nothing if it is not whole yet. Every interim
    /// one before it (RFC 9110, section 15.2) is given to `hear`.
    ///
    /// # Errors
    /// When it is none, or when two parties could see its body's end in two places.
    pub fn take(
        read: &mut BytesMut,
        method: &Method,
        mut hear: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Option<Self>, ExchangeError> {
        while let Some(Raw { status, old, fields }) = Raw::take(read)? {
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                hear(status, fields);
                continue;
            }
            let framing = Framing::of(method, status, old, &fields)?;
            let keeps = if old { says(&fields, b"keep-alive") } else { !says(&fields, b"close") };
            let keeps_for = keeps_for(&fields);
            return Ok(Some(Self { status, fields, framing, keeps, keeps_for }));
        }
        Ok(None)
    }
}

impl Raw {
    fn take(read: &mut BytesMut) -> Result<Option<Self>, ExchangeError> {
        if !may_be_whole(read) {
            return Ok(None);
        }
        let (mut few, mut many) = ([const { MaybeUninit::uninit() }; FIELDS], Vec::new());
        let mut response = httparse::Response::new(&mut []);
        let parser = ParserConfig::default();
        let mut parsed = parser.parse_response_with_uninit_headers(&mut response, read, &mut few);
        if matches!(parsed, Err(httparse::Error::TooManyHeaders)) {
            many.resize(MOST_FIELDS, MaybeUninit::uninit());
            response = httparse::Response::new(&mut []);
            parsed = parser.parse_response_with_uninit_headers(&mut response, read, &mut many);
        }
        let parsed = parsed.map_err(|error| ExchangeError::Head(reason(error)))?;
        let Status::Complete(length) = parsed else { return Ok(None) };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(ExchangeError::Head("no status code"))?;
        let old = response.version == Some(0);
        let fields = fields(read.get(..length).unwrap_or_default(), response.headers, ADDED)?;
        read.advance(length);
        Ok(Some(Self { status, old, fields }))
    }
}

/// Whether it is worth while to parse: a long head only once it has an end, or it would be parsed
/// from its beginning with each byte that comes.
pub(super) fn may_be_whole(read: &[u8]) -> bool {
    read.len() < ROOM
        || [&b"\n\r\n"[..], b"\n\n"].iter().any(|end| memmem::find(read, end).is_some())
}

/// The fields of these lines, all of which lie in `bytes`. One copy is made, which they share: what
/// was read is free for what comes next.
pub(super) fn fields(
    bytes: &[u8],
    lines: &[Header<'_>],
    more: usize,
) -> Result<HeaderMap, ExchangeError> {
    let start = bytes.as_ptr().addr();
    let shared = Bytes::copy_from_slice(bytes);
    let mut fields = HeaderMap::with_capacity(lines.len() + more);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(bad_field)?;
        let begin = line.value.as_ptr().addr() - start;
        // An empty value may lie anywhere.
        let value = match line.value.len() {
            0 => Bytes::new(),
            length => shared.slice(begin..begin + length),
        };
        fields.append(name, HeaderValue::from_maybe_shared(value).map_err(bad_field)?);
    }
    Ok(fields)
}

fn bad_field<E>(_: E) -> ExchangeError {
    ExchangeError::Head("a field that is none")
}

pub(super) fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a field name that is none",
        httparse::Error::HeaderValue => "a field value that is none",
        httparse::Error::NewLine => "a line end that is none",
        httparse::Error::Status => "no status code",
        httparse::Error::Token => "no status line",
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::Version => "another version",
    }
}

/// `Keep-Alive: timeout=5` (RFC 2068, section 19.7.1.1), less a second: what is sent at the very end
/// is on its way when the other side closes.
fn keeps_for(fields: &HeaderMap) -> Option<Duration> {
    let field = fields.get(KEEP_ALIVE)?.to_str().ok()?;
    let seconds = field.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_timeout = name.trim().eq_ignore_ascii_case("timeout");
        is_timeout.then(|| value.trim().trim_matches('"').parse::<u32>().ok()).flatten()
    })?;
    Some(Duration::from_secs(u64::from(seconds.saturating_sub(1))))
}

fn says(fields: &HeaderMap, option: &[u8]) -> bool {
    let options = fields.get_all(CONNECTION).into_iter();
    let mut options = options.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    options.any(|it| it.trim_ascii().eq_ignore_ascii_case(option))
}
