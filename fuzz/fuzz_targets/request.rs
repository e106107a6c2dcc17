//! A client's stream of HTTP/1.1 requests: the gateway's look at it, the parser behind, the choice
//! of the route. However the stream is cut the same byte is refused; what the parser takes for one
//! request is one for a strict reader, too; and no app reads a path that another rule is for.

#![no_main]

use std::sync::LazyLock;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use httparse::Status;
use libfuzzer_sys::fuzz_target;
use vestibule::route::{Routes, Target};
use vestibule::server::heads::Heads;
use vestibule_fuzz::{load, pieces, ways};

const CONFIG: &str = r#"
[server]
https = "127.0.0.1:0"
public_urls = ["https://app.example", "https://open.example:8443"]
[[server.certificate]]
cert = "c.pem"
key = "k.pem"
[provider]
issuer = "http://127.0.0.1:9/"
client_id = "client"
client_secret = { file = "s" }
[session]
secrets = [{ file = "s" }]
"#;

/// The path, and whether it is public. The first is the default.
const RULES: [(&str, bool); 5] =
    [("/", true), ("/admin", false), ("/admin/open", true), ("/api/v1", false), ("/static", true)];

static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let mut text = CONFIG.to_owned();
    for (path, public) in RULES {
        let access = if public { "public" } else { "login" };
        text += &format!(
            "[[route]]\nhost = \"app.example\"\npath = \"{path}\"\naccess = \"{access}\"\n\
             upstream = [\"http://127.0.0.1:9\"]\n"
        );
    }
    text += "[[route]]\nhost = \"open.example\"\npath = \"/\"\naccess = \"public\"\n\
             upstream = [\"http://127.0.0.1:9\"]\n";
    Routes::new(&load(&text).expect("a configuration").config)
});

fuzz_target!(|data: &[u8]| {
    let [said, stream @ ..] = data else { return };
    let [whole, others @ ..] = ways(*said);
    let refused = refused_at(stream);
    let seen = looked_at(stream, &whole).0;
    // After a refusal nothing is read.
    let end = refused.map_or(seen.len(), |at| at + 1);
    for lengths in others {
        let (other, refuses) = looked_at(stream, &lengths);
        assert_eq!(refuses, refused.is_some(), "in pieces of {lengths:?}");
        assert_eq!(other[..end], seen[..end], "in pieces of {lengths:?}");
    }
    follow(&seen[..end], refused);
});

/// What the parser gets, and whether anything was refused.
fn looked_at(stream: &[u8], lengths: &[usize]) -> (Vec<u8>, bool) {
    let (mut heads, mut seen) = (Heads::default(), Vec::with_capacity(stream.len()));
    for piece in pieces(stream, lengths) {
        let start = seen.len();
        seen.extend_from_slice(piece);
        heads.look(&mut seen[start..]);
    }
    (seen, format!("{heads:?}").contains("Refused"))
}

/// The byte that is refused: what stands there may be what it is made, so that it cannot be seen.
fn refused_at(stream: &[u8]) -> Option<usize> {
    let refuses = |length: usize| looked_at(&stream[..length], &[usize::MAX]).1;
    let (mut fine, mut not) = (0, stream.len());
    if !refuses(not) {
        return None;
    }
    while not - fine > 1 {
        let middle = usize::midpoint(fine, not);
        *(if refuses(middle) { &mut not } else { &mut fine }) = middle;
    }
    Some(not - 1)
}

/// Request after request, as the parser reads them.
fn follow(seen: &[u8], refused: Option<usize>) {
    let mut at = 0;
    while let Some(rest) = seen.get(at..).filter(|rest| !rest.is_empty()) {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(Status::Complete(length)) = request.parse(rest) else { return };
        assert!(refused.is_none_or(|refused| refused >= at + length), "a refused head is read");
        strictly(&rest[..length]);
        let Some(parts) = parts(&request) else { return };
        route(&parts);
        at += length;
        let body = &seen[at..];
        let lengths: Vec<_> = parts.headers.get_all(CONTENT_LENGTH).iter().collect();
        let codings = parts.headers.get_all(TRANSFER_ENCODING).iter().last();
        assert!(lengths.is_empty() || codings.is_none(), "a length and a coding");
        assert!(lengths.windows(2).all(|two| number(two[0]) == number(two[1])), "two lengths");
        match (codings, lengths.first()) {
            (Some(coding), _) => {
                let last = coding.as_bytes().rsplit(|byte| *byte == b',').next();
                if !last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked")) {
                    return;
                }
                match chunks(body) {
                    Ok(Some(length)) => at += length,
                    Ok(None) => return,
                    Err(()) => {
                        assert!(refused.is_some(), "a chunk that is none is read");
                        return;
                    }
                }
            }
            (None, Some(length)) => {
                at = at.saturating_add(usize::try_from(number(length)).unwrap_or(usize::MAX));
            }
            (None, None) => {}
        }
    }
}

fn number(length: &HeaderValue) -> u64 {
    length.to_str().expect("digits").trim().parse().expect("a length")
}

/// RFC 9112, section 2.2: CR LF ends each line, and the first empty one behind another the head.
fn strictly(head: &[u8]) {
    let mut begun = head;
    while let Some(rest) = begun.strip_prefix(b"\r\n") {
        begun = rest;
    }
    let end = begun.windows(4).position(|end| end == b"\r\n\r\n").map(|end| end + 4);
    assert_eq!(end, Some(begun.len()), "a head of another length");
    let lines = begun.split(|byte| *byte == b'\n');
    let cut = lines.rev().skip(1).any(|line| line.last() != Some(&b'\r'));
    assert!(!cut, "a line ends in LF alone");
    assert!(!begun.split(|byte| *byte == b'\r').next().unwrap_or_default().contains(&b'#'));
}

/// RFC 9112, section 7.1: the length of the body with its trailers; nothing if there is more to come.
fn chunks(body: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    loop {
        let rest = body.get(at..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let digits = rest[..end].split(|byte| *byte == b';').next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).map_err(drop)?.trim_end_matches([' ', '\t']);
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(digits, 16).ok().filter(|_| plain).ok_or(())?;
        at += end + 2;
        if size == 0 {
            break;
        }
        at = at.saturating_add(usize::try_from(size).map_err(drop)?);
        match body.get(at..).map(|rest| rest.get(..2).ok_or(rest)) {
            Some(Ok(b"\r\n")) => at += 2,
            None | Some(Err(b"" | b"\r")) => return Ok(None),
            Some(_) => return Err(()),
        }
    }
    let rest = &body[at..];
    if rest.starts_with(b"\r\n") {
        return Ok(Some(at + 2));
    }
    Ok(rest.windows(4).position(|end| end == b"\r\n\r\n").map(|end| at + end + 4))
}

fn parts(request: &httparse::Request<'_, '_>) -> Option<Parts> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(request.method?.as_bytes()).ok()?;
    parts.uri = Uri::try_from(request.path?).ok()?;
    let old = request.version == Some(0);
    parts.version = if old { Version::HTTP_10 } else { Version::HTTP_11 };
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        parts.headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(parts)
}

/// The rule by which a request is judged is the one for every path that an app may read in it.
fn route(parts: &Parts) {
    if let Ok(origin) = ROUTES.origin(parts) {
        let fields: Vec<_> = parts.headers.get_all(HOST).iter().collect();
        assert!(fields.len() <= 1, "two hosts");
        let said = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let said = said.or(fields.first().map(|field| field.as_bytes())).expect("a host");
        let host = said.split(|byte| *byte == b':').next().unwrap_or_default();
        let host = host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
        assert_eq!(host, ROUTES.origin_at(origin).expect("an origin").host.as_bytes());
    }
    let path = parts.uri.path().as_bytes();
    if let Ok(Target::Upstream(index)) = ROUTES.target(parts, 1) {
        assert_eq!(index, RULES.len());
    }
    let Ok(target) = ROUTES.target(parts, 0) else { return };
    let rule = match target {
        Target::Upstream(index) => Some(index),
        Target::Auth(_) => None,
    };
    for read in readings(path) {
        let shown = String::from_utf8_lossy(&read);
        assert_eq!(judged(&read), rule, "as {shown:?}");
    }
}

/// The place in [`RULES`]; nothing for the gateway's own.
fn judged(path: &[u8]) -> Option<usize> {
    let covers = |prefix: &str| {
        let rest = path.strip_prefix(prefix.as_bytes());
        rest.is_some_and(|rest| matches!(rest, [] | [b'/', ..]) || prefix.ends_with('/'))
    };
    if path.starts_with(b"/auth/") {
        return None;
    }
    let (at, _) = RULES
        .iter()
        .enumerate()
        .filter(|(_, rule)| covers(rule.0))
        .max_by_key(|(_, rule)| rule.0.len())?;
    Some(at)
}

/// The path as apps are known to read it: decoded up to twice, without parameters, with a
/// backslash for a slash, with slashes merged and dots resolved, cut where they see a query or a
/// fragment.
fn readings(path: &[u8]) -> Vec<Vec<u8>> {
    let once = decoded(path);
    let twice = decoded(&once);
    let mut all = Vec::new();
    for read in [path.to_vec(), once, twice] {
        let cut = read.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        for read in [&read[..], cut] {
            let slashes: Vec<u8> =
                read.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
            for read in [read, &slashes] {
                let bare = without_parameters(read);
                for read in [read, &bare] {
                    all.extend([read.to_vec(), resolved(read)]);
                }
            }
        }
    }
    all
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut read, mut at) = (Vec::new(), 0);
    while let Some(byte) = path.get(at) {
        let escape = match path.get(at..at + 3) {
            Some([b'%', high, low]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => read.push(high << 4 | low),
            None => read.push(*byte),
        }
        at += if escape.is_some() { 3 } else { 1 };
    }
    read
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let bare =
        |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
    path.split(|byte| *byte == b'/').map(bare).collect::<Vec<_>>().join(&b'/')
}

fn resolved(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut whole = b"/".to_vec();
    whole.extend_from_slice(&kept.join(&b'/'));
    if path.ends_with(b"/") && !kept.is_empty() {
        whole.push(b'/');
    }
    whole
}
