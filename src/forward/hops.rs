//! The addresses that a request's proxies name, the nearest first: those of `X-Forwarded-For`, or of
//! `Forwarded` (RFC 7239), or of both as far as they name the same. Whose word counts it does not
//! know.

use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, ValueIter};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::forwarded::FOR;

/// Reads the headers from their end.
///
// SECURITY: a proxy that writes one of the two may pass on whatever its client sends as the other,
// and nobody but who runs it knows which. To prefer either would let the clients of some proxies be
// whom they like. So an address counts only if every header that is there names it: a client can keep
// itself from being named, and can name nobody else.
pub(super) struct Hops<'a> {
    listed: Option<Peekable<Elements<'a>>>,
    forwarded: Option<Peekable<Elements<'a>>>,
    /// Whether it ended because the two name different addresses.
    pub(super) differ: bool,
}

/// The elements of one header, from the last to the first.
struct Elements<'a> {
    lines: ValueIter<'a, HeaderValue>,
    /// What is left of a line.
    line: Option<&'a [u8]>,
    read: fn(&str) -> Option<IpAddr>,
}

impl<'a> Hops<'a> {
    pub(super) fn of(fields: &'a HeaderMap) -> Self {
        let elements = |name: &HeaderName, read| {
            let lines = fields.get_all(name).iter();
            let mut elements = Elements { lines, line: None, read }.peekable();
            // A header without an element is as good as none (RFC 9110, section 5.6.1.2).
            elements.peek().is_some().then_some(elements)
        };
        let (listed, forwarded) = (elements(&FOR, address), elements(&FORWARDED, named));
        Self { listed, forwarded, differ: false }
    }
}

impl Iterator for Hops<'_> {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        match (&mut self.listed, &mut self.forwarded) {
            (None, None) => None,
            (Some(only), None) | (None, Some(only)) => only.next().flatten(),
            (Some(one), Some(other)) => {
                let (one, other) = (one.next().flatten(), other.next().flatten());
                self.differ |= one != other;
                one.filter(|_| !self.differ)
            }
        }
    }
}

impl Iterator for Elements<'_> {
    /// Nothing, for one that names no address.
    type Item = Option<IpAddr>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.line.take() {
                Some(line) => line,
                None => self.lines.next_back()?.as_bytes(),
            };
            let comma = last_comma(line);
            self.line = comma.and_then(|comma| line.get(..comma));
            let element = line.get(comma.map_or(0, |comma| comma + 1)..)?.trim_ascii();
            if !element.is_empty() {
                return Some(std::str::from_utf8(element).ok().and_then(self.read));
            }
        }
    }
}

/// The last comma that is not within quotes (RFC 9110, section 5.6.4).
///
// SECURITY: it is looked for from the end, which is what the nearest proxy has written: a quote that a
// client has left open in front of it takes nothing of that in.
fn last_comma(line: &[u8]) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        let before = || line.get(..at).unwrap_or_default().iter().rev();
        match byte {
            b',' if !quoted => return Some(at),
            // Behind an odd number of backslashes it is one of the text's own.
            b'"' if before().take_while(|byte| **byte == b'\\').count() % 2 == 0 => {
                quoted = !quoted;
            }
            _ => {}
        }
    }
    None
}

/// Whom an element of `Forwarded` names: pairs with semicolons between them, one of them `for` (RFC
/// 7239, section 4). One that is not written so names nobody.
fn named(mut pairs: &str) -> Option<IpAddr> {
    let mut found = None;
    loop {
        pairs = pairs.trim_start_matches([';', ' ', '\t']);
        if pairs.is_empty() {
            return found;
        }
        let (name, rest) = pairs.split_once('=')?;
        HeaderName::from_bytes(name.as_bytes()).ok()?;
        let (value, rest) = value(rest)?;
        let rest = rest.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
        pairs = rest;
        if name.eq_ignore_ascii_case("for") {
            // No parameter stands twice.
            if found.is_some() {
                return None;
            }
            found = Some(node(&value)?);
        }
    }
}

/// The value at the beginning of `text`, and what stands behind it. Without quotes it may hold what a
/// token may not: many write addresses so.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end)?;
        return (!value.contains(['"', '\\'])).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            other => value.push(other),
        }
    }
}

/// The address of a node (RFC 7239, section 6), whose port may be a made-up name. `unknown`, and made-up
/// names of nodes, have none.
fn node(node: &str) -> Option<IpAddr> {
    let without = || {
        let (node, port) = node.rsplit_once(':')?;
        port.starts_with('_').then_some(node)
    };
    address(without().unwrap_or(node))
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let socket = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let address: IpAddr = bracketed.unwrap_or(text).parse().ok().or_else(socket)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hops(listed: &[&[u8]], forwarded: &[&[u8]]) -> (Vec<String>, bool) {
        let mut fields = HeaderMap::new();
        for (name, lines) in [(FOR, listed), (FORWARDED, forwarded)] {
            for line in lines {
                fields.append(&name, HeaderValue::from_bytes(line).unwrap());
            }
        }
        let mut hops = Hops::of(&fields);
        let all = hops.by_ref().map(|address| address.to_string()).collect();
        (all, hops.differ)
    }

    fn forwarded(line: &str) -> Vec<String> {
        hops(&[], &[line.as_bytes()]).0
    }

    /// RFC 7239, sections 4 and 6.
    #[test]
    fn a_node_is_read_as_the_standard_writes_it() {
        for (line, address) in [
            ("for=192.0.2.43", "192.0.2.43"),
            ("for=\"192.0.2.43:47011\"", "192.0.2.43"),
            ("for=\"192.0.2.43:_gazonk\"", "192.0.2.43"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::17"),
            ("for=\"[2001:db8::17]:_p\"", "2001:db8::17"),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("proto=http; FOR=192.0.2.60 ;host=\"a;b,c\\\"d\";", "192.0.2.60"),
            ("for=\"192.0.2\\.60\"", "192.0.2.60"),
            ("for=\"[::ffff:192.0.2.60]\"", "192.0.2.60"),
            ("for=192.0.2.60:80", "192.0.2.60"),
            ("for=[2001:db8::17]", "2001:db8::17"),
            ("for=2001:db8::17", "2001:db8::17"),
        ] {
            assert_eq!(forwarded(line), [address], "{line}");
        }
    }

    #[test]
    fn what_names_no_address_ends_it() {
        for element in [
            "for=unknown",
            "for=_hidden",
            "for=_SEVKISEK:80",
            "for=\"\"",
            "for=",
            "for",
            "192.0.2.1",
            "proto=https",
            "for=192.0.2.1;for=192.0.2.1",
            "for=192.0.2.1;for=unknown",
            "for =192.0.2.1",
            "for= 192.0.2.1",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "for=\"192.0.2.1\"x",
            "for=192.0.2.1 x",
            "for=192.0.2.1;x",
            "for=192.0.2.1;x=\"\\",
            "for=\\192.0.2.1",
            "for=192.0.2.1:99999",
            "for=\"[192.0.2.1\"",
            "for=example.com",
        ] {
            let line = format!("for=198.51.100.1, {element}, for=10.0.0.9");
            assert_eq!(forwarded(&line), ["10.0.0.9"], "{element}");
        }
    }

    #[test]
    fn elements_are_read_from_the_end_over_all_lines() {
        let lines: [&[u8]; 3] = [b"6.6.6.6, 10.0.0.9", b" , ", b"[2001:db8::1]:99,,"];
        assert_eq!(hops(&lines, &[]).0, ["2001:db8::1", "10.0.0.9", "6.6.6.6"]);
        let lines: [&[u8]; 2] =
            [b"for=6.6.6.6", b"host=\"a, for=7.7.7.7\";for=8.8.8.8, for=9.9.9.9"];
        assert_eq!(hops(&[], &lines).0, ["9.9.9.9", "8.8.8.8", "6.6.6.6"]);
        assert!(hops(&[b"unknown, 6.6.6.6, not-one"], &[]).0.is_empty());
    }

    #[test]
    fn where_both_are_there_an_address_counts_that_both_name() {
        let both = |one: &str, other: &str| hops(&[one.as_bytes()], &[other.as_bytes()]);
        let agreed = |addresses: &[&str], differ| {
            (addresses.iter().copied().map(str::to_owned).collect::<Vec<_>>(), differ)
        };
        assert_eq!(both("1.1.1.1, 2.2.2.2", "for=1.1.1.1, for=2.2.2.2").0.len(), 2);
        let parted = both("1.1.1.1, 2.2.2.2", "for=6.6.6.6, for=2.2.2.2");
        assert_eq!(parted, agreed(&["2.2.2.2"], true));
        assert_eq!(both("2.2.2.2", "for=6.6.6.6, for=2.2.2.2"), agreed(&["2.2.2.2"], true));
        assert_eq!(both("6.6.6.6, 2.2.2.2", "for=2.2.2.2"), agreed(&["2.2.2.2"], true));
        assert_eq!(both("1.1.1.1", "for=6.6.6.6"), agreed(&[], true));
        assert_eq!(both("1.1.1.1", "nonsense"), agreed(&[], true));
        assert_eq!(both("unknown", "for=unknown"), agreed(&[], false));
        for empty in ["", " ", ",", " , ,"] {
            assert_eq!(both("1.1.1.1", empty), agreed(&["1.1.1.1"], false));
            assert_eq!(both(empty, "for=1.1.1.1"), agreed(&["1.1.1.1"], false));
        }
    }

    /// What a client may send as a header: everything, but more often what means something.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::sample::select(vec![
                "for=6.6.6.6",
                "6.6.6.6",
                "\"",
                "\\",
                ",",
                ";",
                "=",
                " ",
                "for=\"",
                "[",
                "]",
                ":",
                "_",
                "unknown",
                "192.0.2.1",
                "for=192.0.2.1",
                "for=\"[2001:db8::1]\"",
                "2001:db8::1",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(
                (0x20_u8..=0xff).prop_filter("a control", |byte| *byte != 0x7f),
                0..4
            ),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_client_is_taken_for_another_whichever_header_its_proxy_writes(
            listed in hostile(), forwarded in hostile(),
            writes_forwarded in any::<bool>(), six in any::<bool>(), own_line in any::<bool>(),
        ) {
            let real = if six { "2001:db8::1" } else { "192.0.2.1" };
            let written = match (writes_forwarded, six) {
                (true, true) => "for=\"[2001:db8::1]\"",
                (true, false) => "for=192.0.2.1;proto=https",
                (false, _) => real,
            };
            let (client, other) = if writes_forwarded { (&forwarded, &listed) } else { (&listed, &forwarded) };
            let line = [client, b", ".as_slice(), written.as_bytes()].concat();
            let lines = if own_line { vec![client.as_slice(), written.as_bytes()] } else { vec![line.as_slice()] };
            let nearest = |other: &[&[u8]]| {
                let (all, differ) = if writes_forwarded { hops(other, &lines) } else { hops(&lines, other) };
                (all.first().cloned(), differ)
            };
            prop_assert_eq!(nearest(&[]), (Some(real.to_owned()), false));
            match nearest(&[other.as_slice()]) {
                (Some(address), _) => prop_assert_eq!(address, real),
                (None, differ) => prop_assert!(differ),
            }
        }
    }
}
