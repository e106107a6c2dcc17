//! The session cookie on the wire: found in `Cookie`, split and joined, written to `Set-Cookie`,
//! removed from what others see. It handles sealed text and never looks inside.
//!
//! A sealed text too long for one cookie is split into `name.0 … name.n`. Each part begins with the
//! text's generation, so that parts of two texts are never joined.

use std::time::Duration;

use cookie::{Cookie, CookieBuilder, SameSite};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use memchr::{memchr, memmem};

use crate::config;

/// The longest sealed session in bytes: beyond it an update is refused.
pub const MAX_SEALED: usize = 16 * 1024;
/// The longest `name=value` written; browsers keep 4,096 bytes (RFC 6265bis, section 5.6).
const MAX_PAIR: usize = 4000;
/// Parts that are ever written; a client's other numbers are not looked at.
const MAX_PARTS: usize = 6;
/// Characters of the sealed text's random nonce that name its generation.
const GENERATION: std::ops::Range<usize> = 2..10;
const GENERATION_LENGTH: usize = 8;

/// The session cookie's name and attributes, from the configuration.
pub struct SessionCookie {
    name: String,
    finder: memmem::Finder<'static>,
    same_site: SameSite,
    domain: Option<String>,
    transient: bool,
}

/// What of the session cookie a request carried: bit 0 the whole one, bit n+1 part n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brought(u8);

impl Brought {
    /// Whether the request carried none of it.
    pub fn nothing(self) -> bool {
        self.0 == 0
    }

    fn has(self, bit: usize) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// The session cookie's values in a request, not yet opened.
#[derive(Debug, Default)]
pub struct Found<'a> {
    wholes: [Option<&'a [u8]>; 2],
    parts: [Option<&'a [u8]>; MAX_PARTS],
    /// Which cookies there were.
    pub brought: Brought,
}

impl<'a> Found<'a> {
    fn add(&mut self, part: Option<usize>, value: &'a [u8]) {
        let (bit, slot) = match part {
            None => (0, self.wholes.iter_mut().find(|whole| whole.is_none())),
            Some(part) => (part + 1, self.parts.get_mut(part).filter(|part| part.is_none())),
        };
        if let Some(slot) = slot {
            *slot = Some(value);
            self.brought.0 |= 1 << bit;
        }
    }

    /// The sealed text, where it is one whole cookie and nothing else: the usual case.
    pub fn only(&self) -> Option<&'a [u8]> {
        match self.wholes {
            [Some(whole), None] if self.brought.0 == 1 => Some(whole),
            _ => None,
        }
    }

    /// Every sealed text that these cookies could be: each whole one, and the parts of one
    /// generation joined. At most three, for the client decides how many cookies it sends.
    pub fn candidates(&self) -> Vec<Vec<u8>> {
        let wholes = self.wholes.iter().flatten().map(|whole| whole.to_vec());
        wholes.chain(self.joined()).collect()
    }

    /// Part 0 and what follows it without a gap, as long as the generation is the same.
    fn joined(&self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        let mut generation = None;
        for part in self.parts.iter().map_while(|part| *part) {
            let (tag, chunk) = part.split_at_checked(GENERATION_LENGTH)?;
            if *generation.get_or_insert(tag) != tag {
                break;
            }
            text.extend_from_slice(chunk);
        }
        generation.map(|_| text)
    }
}

impl SessionCookie {
    /// The cookie as `[session] cookie` describes it.
    pub fn new(config: &config::Cookie) -> Self {
        Self {
            name: config.name.clone(),
            finder: memmem::Finder::new(config.name.as_bytes()).into_owned(),
            same_site: match config.same_site {
                config::SameSite::Strict => SameSite::Strict,
                config::SameSite::Lax => SameSite::Lax,
                config::SameSite::None => SameSite::None,
            },
            domain: config.domain.clone(),
            transient: config.transient,
        }
    }

    /// The name of the whole cookie, to which the sealed text is bound.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The session cookie's values in every `Cookie` field (HTTP/2 may split it: RFC 9113,
    /// section 8.2.3).
    pub fn find<'a>(&self, headers: &'a HeaderMap) -> Found<'a> {
        let mut found = Found::default();
        for field in headers.get_all(COOKIE) {
            let field = field.as_bytes();
            for at in self.finder.find_iter(field) {
                let (before, rest) = field.split_at_checked(at).unwrap_or_default();
                // SECURITY: only where a pair begins. Within a value that a neighbouring domain has
                // set (`a=b __Host-session=…`) it would pass the prefix by which browsers keep
                // other domains' cookies out, and go on to the app with the rest of that value.
                if !matches!(before.trim_ascii_end(), [] | [.., b';']) {
                    continue;
                }
                let pair = rest.split_at_checked(memchr(b';', rest).unwrap_or(rest.len()));
                let suffix = pair.and_then(|(pair, _)| pair.get(self.name.len()..));
                if let Some((part, value)) = suffix.and_then(parse_suffix) {
                    found.add(part, value.trim_ascii_end());
                }
            }
        }
        found
    }

    /// Whether a cookie of this name is the session's, whole or in part, of any number.
    pub fn owns(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.name.as_bytes()).is_some_and(|suffix| {
            suffix.is_empty()
                || suffix.strip_prefix(b".").is_some_and(|n| n.iter().all(u8::is_ascii_digit))
        })
    }

    /// Writes the sealed text, in parts if it is too long for one cookie, and deletes what the
    /// request carried and the text no longer needs.
    pub fn write(&self, sealed: &str, brought: Brought, age: Duration, response: &mut HeaderMap) {
        let mut written = 0;
        if self.name.len() + 1 + sealed.len() <= MAX_PAIR {
            written = 1;
            self.append(response, self.name.clone(), sealed.to_owned(), Some(age));
        } else {
            let generation = sealed.get(GENERATION).unwrap_or_default();
            let room = MAX_PAIR - self.name.len() - "._=".len() - GENERATION_LENGTH;
            for (part, chunk) in chunks(sealed, room).enumerate() {
                written |= 1 << (part + 1);
                let name = format!("{}.{part}", self.name);
                self.append(response, name, format!("{generation}{chunk}"), Some(age));
            }
        }
        self.delete(Brought(brought.0 & !written), response);
    }

    /// Deletes what the request carried, with the attributes it was set with.
    pub fn delete(&self, brought: Brought, response: &mut HeaderMap) {
        if brought.has(0) {
            self.append(response, self.name.clone(), String::new(), None);
        }
        for part in (0..MAX_PARTS).filter(|part| brought.has(part + 1)) {
            self.append(response, format!("{}.{part}", self.name), String::new(), None);
        }
    }

    /// One `Set-Cookie` line; without an age it deletes.
    fn append(&self, response: &mut HeaderMap, name: String, value: String, age: Option<Duration>) {
        let mut line = own_cookie(name, value).same_site(self.same_site);
        if let Some(domain) = &self.domain {
            line = line.domain(domain.clone());
        }
        let seconds = age.map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        if age.is_none() || !self.transient {
            line = line.max_age(cookie::time::Duration::seconds(seconds));
        }
        append_set_cookie(response, &line.build());
    }
}

/// A cookie with what every cookie of the gateway has: `Path=/`, `Secure`, `HttpOnly`.
pub fn own_cookie(name: String, value: String) -> CookieBuilder<'static> {
    Cookie::build((name, value)).path("/").secure(true).http_only(true)
}

/// Adds a `Set-Cookie` line beside those that are there.
pub fn append_set_cookie(response: &mut HeaderMap, cookie: &Cookie<'_>) {
    if let Ok(line) = HeaderValue::try_from(cookie.to_string()) {
        response.append(SET_COOKIE, line);
    }
}

/// The name and value of each pair in the `Cookie` fields, untouched but for white space.
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.get_all(COOKIE).into_iter().flat_map(|field| {
        split(field.as_bytes()).map(|pair| {
            let equals = memchr(b'=', pair).unwrap_or(pair.len());
            let (name, value) = pair.split_at_checked(equals).unwrap_or_default();
            (name.trim_ascii(), value.get(1..).unwrap_or_default().trim_ascii())
        })
    })
}

/// A field at its semicolons. A session is a kilobyte without one: not byte by byte.
fn split(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(field);
    std::iter::from_fn(move || {
        let field = rest?;
        let end = memchr(b';', field);
        rest = end.and_then(|end| field.get(end + 1..));
        field.get(..end.unwrap_or(field.len()))
    })
}

/// Removes the cookies whose names `ours` knows from the request; every other passes as it came,
/// in one `Cookie` field (RFC 9113, section 8.2.3).
pub fn remove(headers: &mut HeaderMap, ours: impl Fn(&[u8]) -> bool) {
    let mut kept = Vec::new();
    for pair in headers.get_all(COOKIE).into_iter().flat_map(|field| split(field.as_bytes())) {
        let pair = pair.trim_ascii();
        let name = pair.split_at_checked(memchr(b'=', pair).unwrap_or(pair.len()));
        if pair.is_empty() || name.is_some_and(|(name, _)| ours(name.trim_ascii_end())) {
            continue;
        }
        if !kept.is_empty() {
            kept.extend_from_slice(b"; ");
        }
        kept.extend_from_slice(pair);
    }
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(kept)) {
        Ok(field) if !field.is_empty() => drop(headers.insert(COOKIE, field)),
        _ => drop(headers.remove(COOKIE)),
    }
}

/// The name in a `Set-Cookie` line, as a browser reads it (RFC 6265bis, section 5.6).
pub fn set_cookie_name(line: &[u8]) -> &[u8] {
    let pair = line.split(|byte| *byte == b';').next().unwrap_or_default();
    pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii()
}

/// What follows the name in a pair: `=value`, or `.n=value` with a part number that is ever written.
fn parse_suffix(suffix: &[u8]) -> Option<(Option<usize>, &[u8])> {
    match suffix {
        [b'=', value @ ..] => Some((None, value)),
        [b'.', digit @ b'0'..=b'9', b'=', value @ ..] => {
            Some((Some(usize::from(digit - b'0')), value))
        }
        _ => None,
    }
}

/// The text in pieces of at most `room` bytes; it is ASCII.
fn chunks(text: &str, room: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (chunk, more) = rest.split_at_checked(room).unwrap_or((rest, ""));
        rest = more;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn cookie() -> SessionCookie {
        SessionCookie::new(&config::Cookie {
            name: "__Host-session".to_owned(),
            same_site: config::SameSite::Lax,
            domain: None,
            transient: false,
        })
    }

    fn request(cookies: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(cookies).unwrap())])
    }

    /// A browser's jar: applies each line of a response.
    #[derive(Default)]
    struct Jar(BTreeMap<String, String>);

    impl Jar {
        fn apply(&mut self, response: &HeaderMap) {
            for line in response.get_all(SET_COOKIE) {
                let line = Cookie::parse(line.to_str().unwrap().to_owned()).unwrap();
                assert!(line.name().len() + 1 + line.value().len() <= MAX_PAIR);
                if line.max_age() == Some(cookie::time::Duration::ZERO) {
                    self.0.remove(line.name());
                } else {
                    self.0.insert(line.name().to_owned(), line.value().to_owned());
                }
            }
        }

        fn request(&self) -> HeaderMap {
            let pairs: Vec<_> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
            request(&pairs.join("; "))
        }
    }

    fn sealed(length: usize, seed: u8) -> String {
        let letters = b'a'..=b'z';
        letters.cycle().skip(seed.into()).take(length).map(char::from).collect()
    }

    #[test]
    fn a_whole_cookie_is_found_among_others() {
        for cookies in [
            "__Host-session=v",
            "a=b; __Host-session=v",
            "x__Host-session=no; __Host-session=v; __Host-sessions=no",
            ";;a;=; \t__Host-session=v ;",
        ] {
            assert_eq!(cookie().find(&request(cookies)).only(), Some(&b"v"[..]), "{cookies}");
        }
        assert!(cookie().find(&request("x=__Host-session=v;__Host-session")).brought.nothing());
    }

    /// `Set-Cookie: a="b __Host-session=…"; Domain=example.com` of a neighbour.
    #[test]
    fn a_session_within_another_cookies_value_is_none() {
        for cookies in
            ["a=b __Host-session=v", "a=\"b\t__Host-session=v\"", "a=b __Host-session.0=12345678v"]
        {
            let mut request = request(cookies);
            assert!(cookie().find(&request).brought.nothing(), "{cookies}");
            remove(&mut request, |name| cookie().owns(name));
            assert_eq!(request.get(COOKIE).unwrap(), cookies);
        }
    }

    /// CVE-2024-24814, CVE-2026-55149: the number of parts taken on trust.
    #[test]
    fn parts_with_numbers_that_are_never_written_are_not_looked_at() {
        let many: Vec<_> = (6..2000).map(|n| format!("__Host-session.{n}=x")).collect();
        assert!(cookie().find(&request(&many.join("; "))).brought.nothing());
        assert!(cookie().find(&request("__Host-session.99999999=x")).brought.nothing());
        assert!(cookie().owns(b"__Host-session.99999999"));
        assert!(!cookie().owns(b"__Host-session.x") && !cookie().owns(b"__Host-session2"));
    }

    #[test]
    fn parts_of_two_generations_are_never_joined() {
        let cookies = "__Host-session.0=generataa; __Host-session.1=generatbb";
        assert_eq!(cookie().find(&request(cookies)).candidates(), [b"a".to_vec()]);
        let gap = "__Host-session.0=generataa; __Host-session.2=generatac";
        assert_eq!(cookie().find(&request(gap)).candidates(), [b"a".to_vec()]);
        assert!(cookie().find(&request("__Host-session.0=short")).candidates().is_empty());
    }

    #[test]
    fn removal_leaves_every_other_cookie_as_it_was() {
        let mut headers = request("a=\"q; b\"; __Host-session=v;c=d=e; __Host-session.1=v;f");
        headers.append(COOKIE, HeaderValue::from_static("__Host-session.0=x; g=h"));
        remove(&mut headers, |name| cookie().owns(name));
        assert_eq!(headers.get_all(COOKIE).iter().count(), 1);
        assert_eq!(headers[COOKIE], "a=\"q; b\"; c=d=e; f; g=h");
        let mut own = request("__Host-session=v");
        remove(&mut own, |name| cookie().owns(name));
        assert!(!own.contains_key(COOKIE));
    }

    #[test]
    fn a_deletion_has_the_attributes_of_the_cookie() {
        let mut response = HeaderMap::new();
        cookie().delete(cookie().find(&request("__Host-session=v")).brought, &mut response);
        let line = response[SET_COOKIE].to_str().unwrap();
        let parts: Vec<_> = line.split("; ").collect();
        assert_eq!(parts[0], "__Host-session=");
        for attribute in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age=0"] {
            assert!(parts.contains(&attribute), "{attribute} in {line}");
        }
    }

    proptest! {
        #[test]
        fn a_text_of_any_size_survives_a_jar_that_grows_and_shrinks(
            sizes in prop::collection::vec(12..MAX_SEALED, 1..8),
        ) {
            let (mut jar, cookie) = (Jar::default(), cookie());
            for (seed, size) in (0..).zip(sizes) {
                let text = sealed(size, seed);
                let mut response = HeaderMap::new();
                let brought = cookie.find(&jar.request()).brought;
                cookie.write(&text, brought, Duration::from_secs(60), &mut response);
                jar.apply(&response);
                let request = jar.request();
                let candidates = cookie.find(&request).candidates();
                prop_assert_eq!(candidates, [text.into_bytes()]);
            }
        }

        #[test]
        fn no_cookie_header_panics(field: Vec<u8>) {
            if let Ok(field) = HeaderValue::from_bytes(&field) {
                let mut headers = HeaderMap::from_iter([(COOKIE, field)]);
                let _ = cookie().find(&headers).candidates();
                let _ = pairs(&headers).count();
                remove(&mut headers, |name| cookie().owns(name));
            }
        }
    }
}
