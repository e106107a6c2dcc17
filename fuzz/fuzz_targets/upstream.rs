//! What an upstream sends, as a stream of responses: however it is cut it is read the same, what is
//! accepted can be read in one way only, and written down again it reads as before.

#![no_main]

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use vestibule::upstream::http1::{Chunked, Framing, Head, Piece};
use vestibule_fuzz::{pieces, ways};

/// All that came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Read {
    responses: Vec<Response>,
    /// Why no more is read; nothing at the end of what there is.
    broken: Option<String>,
    /// Bytes that nobody has asked for.
    left: usize,
}

#[derive(Debug, PartialEq)]
struct Response {
    status: StatusCode,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    whole: bool,
}

fuzz_target!(|data: &[u8]| {
    let [kind, said, stream @ ..] = data else { return };
    let method = if kind % 4 == 0 { Method::HEAD } else { Method::GET };
    let [whole, others @ ..] = ways(*said);
    let expected = read(stream, &method, &whole);
    for lengths in others {
        assert_eq!(read(stream, &method, &lengths), expected, "in pieces of {lengths:?}");
    }
    let mut read = BytesMut::from(stream);
    while let Ok(Some(head)) = Head::take(&mut read, &method, |_, _| {}) {
        one_reading(&head, &method);
        if let Framing::Chunked(_) = head.framing {
            chunks(&read);
        }
    }
});

fn read(stream: &[u8], method: &Method, lengths: &[usize]) -> Read {
    let (mut read, mut all) = (BytesMut::new(), Read::default());
    let mut body: Option<Framing> = None;
    for piece in pieces(stream, lengths) {
        read.extend_from_slice(piece);
        loop {
            match (&mut body, all.responses.last_mut()) {
                (Some(framing), Some(response)) => match follow(framing, response, &mut read) {
                    Ok(true) => body = None,
                    Ok(false) => break,
                    Err(error) => return Read { broken: Some(error), ..all },
                },
                _ => match Head::take(&mut read, method, |_, _| {}) {
                    Ok(Some(Head { status, fields, framing, .. })) => {
                        let (body_so_far, trailers) = (Vec::new(), None);
                        all.responses.push(Response {
                            status,
                            fields,
                            body: body_so_far,
                            trailers,
                            whole: false,
                        });
                        body = Some(framing);
                    }
                    Ok(None) => break,
                    Err(error) => return Read { broken: Some(error.to_string()), ..all },
                },
            }
        }
    }
    Read { left: read.len(), ..all }
}

/// Whether the body is over.
fn follow(
    framing: &mut Framing,
    response: &mut Response,
    read: &mut BytesMut,
) -> Result<bool, String> {
    match framing {
        Framing::Length(left) => {
            let taken = read.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            response.body.extend_from_slice(&read.split_to(taken));
            *left -= taken as u64;
            response.whole = *left == 0;
        }
        Framing::Close => response.body.extend_from_slice(&read.split()),
        Framing::Chunked(chunked) => loop {
            match chunked.take(read).map_err(|error| error.to_string())? {
                None => break,
                Some(Piece::Data(bytes)) => {
                    assert!(!bytes.is_empty(), "a piece of nothing");
                    response.body.extend_from_slice(&bytes);
                }
                Some(Piece::End(trailers)) => {
                    (response.trailers, response.whole) = (trailers, true);
                    break;
                }
            }
        },
    }
    Ok(response.whole)
}

/// RFC 9112, sections 6.1 and 6.3: what frames the body stands there once, and reads as it is
/// written down again.
fn one_reading(head: &Head, method: &Method) {
    let lengths: Vec<_> = head.fields.get_all(CONTENT_LENGTH).iter().collect();
    let codings: Vec<_> = head.fields.get_all(TRANSFER_ENCODING).iter().collect();
    assert!(lengths.len() + codings.len() <= 1, "two that frame the body: {:?}", head.fields);
    let bodiless = *method == Method::HEAD || matches!(head.status.as_u16(), 100..=199 | 204 | 304);
    match head.framing {
        Framing::Length(0) if bodiless => {}
        Framing::Length(length) => assert_eq!(lengths[0].to_str().unwrap().parse(), Ok(length)),
        Framing::Chunked(_) => assert!(codings[0].as_bytes().eq_ignore_ascii_case(b"chunked")),
        Framing::Close => assert!(lengths.is_empty() && codings.is_empty()),
    }
    let mut written = BytesMut::from(format!("HTTP/1.1 {} \r\n", head.status.as_u16()).as_bytes());
    for (name, value) in &head.fields {
        let held = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        assert!(!value.as_bytes().iter().any(held), "a line within a value");
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            written.extend_from_slice(part);
        }
    }
    written.extend_from_slice(b"\r\n");
    let again = Head::take(&mut written, method, |_, _| {}).expect("still a head").expect("a whole head");
    assert_eq!((again.status, &again.fields), (head.status, &head.fields));
    assert_eq!(
        std::mem::discriminant(&again.framing),
        std::mem::discriminant(&head.framing),
        "another end of the body"
    );
    assert!(written.is_empty());
}

/// A body that is accepted is the one that a reader of the grammar alone finds.
fn chunks(stream: &[u8]) {
    let (mut chunked, mut read) = (Chunked::default(), BytesMut::from(stream));
    let mut body = Vec::new();
    loop {
        match chunked.take(&mut read) {
            Ok(Some(Piece::Data(bytes))) => body.extend_from_slice(&bytes),
            Ok(Some(Piece::End(_))) => break,
            Ok(None) | Err(_) => return,
        }
    }
    assert_eq!(by_the_grammar(stream).expect("a body by the grammar"), body);
}

/// RFC 9112, section 7.1, without the trailers.
fn by_the_grammar(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(rest[..end].split(|byte| *byte == b';').next()?).ok()?;
        let size =
            u64::from_str_radix(line.trim_end(), 16).ok().filter(|_| !line.starts_with('+'))?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        let (data, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        body.extend_from_slice(data);
        rest = after.strip_prefix(b"\r\n")?;
    }
}
