//! Paths that two parties could read differently. A rule for `/admin` holds only if the gateway and
//! the app agree on which requests are for `/admin`; so what they could disagree on is refused. It
//! knows no routes.

use crate::digits::hex;

/// The path as a lenient app reads it: percent-decoded once, without `;parameters`. Where it is the
/// path itself, nothing is made.
///
/// # Errors
/// When an app could read another path in it, whatever the routes are.
pub(super) fn lenient(path: &str) -> Result<Option<String>, Ambiguous> {
    let bytes = path.as_bytes();
    if !bytes.starts_with(b"/") {
        return Err(Ambiguous);
    }
    // Almost every path: nothing in it that anyone reads differently.
    let plain = |pair: &[u8]| !matches!(pair, [b'/', b'/' | b'.'] | [b'%' | b';' | b'\\', _]);
    if bytes.windows(2).all(plain) && !matches!(bytes, [.., b'%' | b';' | b'\\']) {
        return Ok(None);
    }
    let mut read = Vec::with_capacity(bytes.len());
    for segment in bytes.split(|byte| *byte == b'/').skip(1) {
        read.push(b'/');
        let start = read.len();
        decode(segment.split(|byte| *byte == b';').next().unwrap_or_default(), &mut read)?;
        // The parameters are dropped, but what is in them must be clean as well.
        decode(segment, &mut Vec::new())?;
        // Also `..;x`, which some servers read as `..` (CVE-2019-9901).
        if is_no_name(read.get(start..).unwrap_or_default()) {
            return Err(Ambiguous);
        }
    }
    // `//` and `/;x/`: some servers merge empty segments.
    if read.windows(2).any(|pair| pair == b"//") {
        return Err(Ambiguous);
    }
    let read = String::from_utf8_lossy(&read);
    Ok((read != path).then(|| read.into_owned()))
}

/// Whether a segment leads elsewhere (RFC 3986, section 5.2.4) or nowhere. SECURITY: for who decodes
/// first `..%3b` is `..;`, and `..%3f` is `..` before a query; for who decodes twice, so is `..%253b`.
fn is_no_name(segment: &[u8]) -> bool {
    let is_none = |segment: &[u8]| {
        let mut parts = segment.split(|byte| matches!(byte, b';' | b'?' | b'#'));
        matches!(parts.next(), Some(b"." | b"..")) || segment.starts_with(b";")
    };
    is_none(segment)
        || segment.contains(&b'%')
            && decoded_again(&String::from_utf8_lossy(segment))
                .is_some_and(|again| is_none(again.as_bytes()))
}

/// Every segment of what was read without its parameters.
pub(super) fn without_parameters(read: &str) -> String {
    let bare = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    read.split('/').map(bare).collect::<Vec<_>>().join("/")
}

/// What an app that decodes once more makes of what [`lenient`] has read; a bad escape stays as it
/// is. Where it is the same, nothing is made.
pub(super) fn decoded_again(read: &str) -> Option<String> {
    let again = unescaped(read.as_bytes());
    let again = String::from_utf8_lossy(&again);
    (again != read).then(|| again.into_owned())
}

/// Decoded as who never complains does it.
fn unescaped(read: &[u8]) -> Vec<u8> {
    let mut again = Vec::with_capacity(read.len());
    let mut rest = read;
    while let Some((byte, after)) = rest.split_first() {
        let escape = match after {
            [high, low, after @ ..] if *byte == b'%' => {
                hex(*high).zip(hex(*low)).map(|(high, low)| (high << 4 | low, after))
            }
            _ => None,
        };
        let (byte, after) = escape.unwrap_or((*byte, after));
        again.push(byte);
        rest = after;
    }
    again
}

/// It could be read in two ways.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ambiguous;

/// Decodes a segment onto `read`; what would be a delimiter or a control character is refused, and
/// so is an escape that is none, or that hides another one from who decodes only once.
fn decode(segment: &[u8], read: &mut Vec<u8>) -> Result<(), Ambiguous> {
    let start = read.len();
    let mut bytes = segment.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' | 0..=0x1f | 0x7f => return Err(Ambiguous),
            b'%' => {
                match (bytes.next().copied().and_then(hex), bytes.next().copied().and_then(hex)) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(Ambiguous),
                }
            }
            byte => *byte,
        };
        if matches!(byte, b'/' | b'\\' | 0..=0x1f | 0x7f) {
            return Err(Ambiguous);
        }
        read.push(byte);
    }
    // Of this segment alone: a path of a thousand segments is not looked through a thousand times.
    let read = read.get(start..).unwrap_or_default();
    // Decoded once more, `%252f` is a slash.
    let again = read.windows(3).any(|escape| match escape {
        [b'%', high, low] => hex(*high)
            .zip(hex(*low))
            .is_some_and(|(high, low)| matches!(high << 4 | low, b'/' | b'\\' | b'.' | 0..=0x1f)),
        _ => false,
    });
    let hidden = || read.contains(&b'%') && is_overlong(&unescaped(read));
    if again || is_overlong(read) || hidden() { Err(Ambiguous) } else { Ok(()) }
}

/// Whether a character is written in more bytes than it takes, which is no UTF-8 (RFC 3629,
/// sections 3 and 10). SECURITY: old decoders read `%c0%ae`, `%e0%80%ae` and `%f0%80%80%ae` as a dot
/// (CVE-2008-2938).
fn is_overlong(read: &[u8]) -> bool {
    read.windows(2).any(|pair| match pair {
        [0xc0 | 0xc1, next] => matches!(next, 0x80..=0xbf),
        [0xe0, next] => matches!(next, 0x80..=0x9f),
        [0xf0, next] => matches!(next, 0x80..=0x8f),
        [0xf8, next] => matches!(next, 0x80..=0x87),
        [0xfc, next] => matches!(next, 0x80..=0x83),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_that_everyone_reads_alike_passes_as_it_is() {
        for path in
            ["/", "/a", "/a/b.c/d..e/...", "/a/", "/-_~!$&'()*+,=:@", "/a.", "/ä", "/.well-known/x"]
        {
            assert_eq!(lenient(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn escapes_and_parameters_are_read_as_a_lenient_app_reads_them() {
        for (path, read) in [
            ("/%61dmin", "/admin"),
            ("/admin;a=b/c", "/admin/c"),
            ("/a%20b", "/a b"),
            ("/100%25", "/100%"),
            ("/a%3Bb", "/a;b"),
            ("/%C3%AB", "/ë"),
            ("/%E2%82%AC", "/€"),
            ("/%E0%A4%85", "/अ"),
            ("/%F0%9F%98%80", "/😀"),
            ("/%25C3%25AB", "/%C3%AB"),
            // Latin-1: no UTF-8 at all.
            ("/%E0.html", "/\u{fffd}.html"),
            ("/%C0.html", "/\u{fffd}.html"),
        ] {
            assert_eq!(lenient(path), Ok(Some(read.to_owned())), "{path}");
        }
    }

    #[test]
    fn what_is_decoded_twice_is_known() {
        for (path, again) in
            [("/%61dmin", Some("/admin")), ("/100%", None), ("/a%zz%41", Some("/a%zzA"))]
        {
            assert_eq!(decoded_again(path).as_deref(), again, "{path}");
        }
    }

    /// CVE-2026-33494, CVE-2019-9901, CVE-2021-39206 and their kin.
    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        for path in [
            "",
            "a",
            "*",
            "/public/../admin",
            "/public/..",
            "/./admin",
            "/.",
            "/public/%2e%2e/admin",
            "/public/.%2E/admin",
            "/public/..;/admin",
            "/public/..;a=b/admin",
            "/.;/admin",
            "//admin",
            "/a//b",
            "/a//",
            "/;/admin",
            "/public/..%3b/admin",
            "/public/..%3B",
            "/public/.%3b/admin",
            "/public/..%3f",
            "/public/..%23/admin",
            "/public/..%253b/admin",
            "/public/%3b/admin",
            "/%3Bx/admin",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/\\evil",
            "/a%00",
            "/a%0d%0ab",
            "/a%7f",
            "/%",
            "/%2",
            "/%zz",
            "/a%2",
            "/a%252fb",
            "/%252e%252e/x",
            "/a%255cb",
            "/a%2500",
            "/x;%2f",
            "/x;%",
            "/a;..%2f",
            "/%c0%ae%c0%ae/admin",
            "/a%C0%AFb",
            "/a%c1%9cb",
            "/%e0%80%ae/x",
            "/%E0%9F%BF",
            "/%f0%80%80%ae/x",
            "/%f0%8f%bf%bf",
            "/%f8%80%80%80%ae",
            "/%fc%80%80%80%80%ae",
            "/%25c0%25ae/x",
            "/%c0%25ae/x",
            "/%25e0%2580%25ae",
            "/x;%25c0%25ae",
        ] {
            assert_eq!(lenient(path), Err(Ambiguous), "{path}");
        }
    }

    proptest! {
        /// Whoever decodes, drops parameters and resolves dots arrives at what was judged.
        #[test]
        fn a_path_that_passes_has_one_reading(path in "(/|%2e|%2f|%5c|;|\\.|a|%61|%25|\\\\|%)*") {
            let path = format!("/{path}");
            if let Ok(read) = lenient(&path) {
                let read = read.unwrap_or(path);
                let segments: Vec<_> = read.split('/').skip(1).collect();
                let (last, middle) = segments.split_last().unwrap();
                prop_assert!(middle.iter().all(|s| !s.is_empty() && *s != "." && *s != ".."));
                prop_assert!(*last != "." && *last != "..");
                prop_assert!(!read.contains('\\'));
            }
        }
    }
}
