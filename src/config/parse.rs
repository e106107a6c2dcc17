//! From the text of one value to the value: durations, sizes, names. Pure functions,
//! each with the sentence that says what is wrong and the one that says what to write. They know
//! neither keys nor the file. `config/address.rs` does the same for hosts, URLs and paths.

use std::time::Duration;

use http::HeaderName;

use super::value::{ClaimPath, Owner};

/// Why a text is not a value. Neither sentence repeats the text: it may be a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// `"90s"`, `"1h30m"`, `"3d"`, `"250ms"`: each unit once, from the largest down.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let wrong =
        || Wrong::new("is not a duration", r#"write a number and a unit: "90s", "1h30m", "3d""#);
    let (mut rest, mut units, mut total) = (text, UNITS.as_slice(), 0_u64);
    while !rest.is_empty() || total == 0 && units.len() == UNITS.len() {
        let (number, after) = rest.split_at(end_of(rest, |byte| byte.is_ascii_digit()));
        let (unit, after) = after.split_at(end_of(after, |byte| byte.is_ascii_alphabetic()));
        let at = units.iter().position(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let (_, milliseconds) = *units.get(at).ok_or_else(wrong)?;
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(milliseconds)?.checked_add(total))
            .ok_or_else(wrong)?;
        units = units.get(at + 1..).unwrap_or_default();
        rest = after;
    }
    Ok(Duration::from_millis(total))
}

/// `"64KiB"`, `"1MiB"`, `"512B"`.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    let (number, unit) = text.split_at(end_of(text, |byte| byte.is_ascii_digit()));
    let factor = match unit {
        "B" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(1024 * 1024),
        "GiB" => Some(1024 * 1024 * 1024),
        _ => None,
    };
    factor.and_then(|factor: u64| number.parse::<u64>().ok()?.checked_mul(factor)).ok_or_else(
        || Wrong::new("is not a size", r#"write a number and B, KiB, MiB or GiB: "64KiB""#),
    )
}

/// `user.org_id`, `session.features.beta`, `user."https://example.com/plan"`.
pub(super) fn claim_path(text: &str) -> Result<ClaimPath, Wrong> {
    let wrong = || {
        Wrong::new(
            "is no path into the session",
            r#"write user.NAME or session.NAME; a name with dots or slashes in double quotes: 'user."https://example.com/plan"'"#,
        )
    };
    let (owner, mut rest) = match text.split_once('.') {
        Some(("user", rest)) => (Owner::User, rest),
        Some(("session", rest)) => (Owner::Session, rest),
        _ => return Err(wrong()),
    };
    let mut members = Vec::new();
    loop {
        let (member, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(wrong)?,
            None => rest.split_at(end_of(rest, is_bare)),
        };
        if member.is_empty() || member.chars().any(char::is_control) {
            return Err(wrong());
        }
        members.push(member.to_owned());
        if after.is_empty() {
            return Ok(ClaimPath { owner, members });
        }
        rest = after.strip_prefix('.').ok_or_else(wrong)?;
    }
}

/// What may stand in a path into the session without quotes: TOML's bare keys.
pub(super) fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// The name of a cookie (RFC 6265, section 4.1.1).
pub(super) fn cookie_name(text: &str) -> Result<String, Wrong> {
    let remedy = "write letters, digits, - and _, at most 64: __Host-session";
    if text.is_empty() || text.len() > 64 || !text.bytes().all(is_token) {
        return Err(Wrong::new("is no name of a cookie", remedy));
    }
    let part =
        text.rsplit_once('.').is_some_and(|(_, end)| end.bytes().all(|at| at.is_ascii_digit()));
    if part {
        return Err(Wrong::new("ends like one part of a split cookie", remedy));
    }
    if text.to_ascii_lowercase().starts_with("__host-login.") {
        return Err(Wrong::new("begins like the cookie of a login under way", remedy));
    }
    Ok(text.to_owned())
}

/// `token` (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A header that a route may set: none that the gateway, HTTP or the app's own login owns.
pub(super) fn header_name(text: &str) -> Result<HeaderName, Wrong> {
    const OWNED: [&str; 25] = [
        // Hop by hop (RFC 9110, section 7.6.1; RFC 9113, section 8.2.2) and framing.
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
        "http2-settings",
        "content-length",
        "content-type",
        "content-encoding",
        "expect",
        // Who is asked, and who asks.
        "host",
        "cookie",
        "set-cookie",
        "authorization",
        "origin",
        // What CGI programs read as `HTTP_PROXY` (CVE-2016-5385).
        "proxy",
        // The gateway's own.
        "forwarded",
        "x-request-id",
        "x-real-ip",
        "traceparent",
        "tracestate",
    ];
    // `_` and `.` are left out because a CGI environment reads X_Session as X-Session.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let name = HeaderName::from_bytes(text.as_bytes())
        .ok()
        .filter(|name| name.as_str().bytes().all(plain))
        .ok_or_else(|| {
            Wrong::new("is no name of a header", "write letters, digits and hyphens: X-User-Plan")
        })?;
    let owned = OWNED.contains(&name.as_str())
        || name.as_str().starts_with("x-session")
        || name.as_str().starts_with("x-forwarded-")
        || name.as_str().starts_with("x-client-cert-");
    if owned {
        return Err(Wrong::new(
            "is a header that a route cannot set",
            "choose another name: X-User-Plan",
        ));
    }
    Ok(name)
}

/// The length of the prefix whose bytes are all `wanted`; a boundary between characters.
fn end_of(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !wanted(byte)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        for (text, milliseconds) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("3d", 259_200_000),
            ("250ms", 250),
            ("1m5ms", 60_005),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "1 h",
            "1h 30m",
            "30m1h",
            "1s1s",
            "-1s",
            "+1s",
            "1.5h",
            "1S",
            "1w",
            "99999999999999999999s",
            "999999999999999999d",
            "1é",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_in_powers_of_1024() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1MiB"), Ok(1_048_576));
        assert_eq!(size("2GiB"), Ok(2_147_483_648));
        assert_eq!(size("7B"), Ok(7));
        for text in [
            "",
            "64",
            "64KB",
            "64 KiB",
            "KiB",
            "-1B",
            "99999999999999999999B",
            "18446744073709551615MiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_into_the_session_has_an_owner_and_members() {
        let members = |text| claim_path(text).map(|path| (path.owner, path.members));
        assert_eq!(members("user.org_id"), Ok((Owner::User, vec!["org_id".into()])));
        assert_eq!(members("session.a.b-c"), Ok((Owner::Session, vec!["a".into(), "b-c".into()])));
        assert_eq!(
            members(r#"user."https://example.com/plan".tier"#),
            Ok((Owner::User, vec!["https://example.com/plan".into(), "tier".into()]))
        );
        for text in [
            "",
            "user",
            "user.",
            "tokenSet.x",
            "user..a",
            "user.a.",
            "user.\"a",
            "user.\"\"",
            "user.\"a\"b",
            "user.a/b",
            "User.a",
            "user.a b",
        ] {
            assert!(claim_path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cookies_name_is_a_token_that_no_part_can_have() {
        for text in ["__Host-session", "s", "a.b"] {
            assert_eq!(cookie_name(text), Ok(text.into()));
        }
        let long = "a".repeat(65);
        for text in ["", "a b", "a;b", "a=b", "é", "s.0", "s.", "__HOST-login.0123abcd", &long] {
            assert!(cookie_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_of_the_gateway_and_of_http_cannot_be_set_in_any_spelling() {
        for text in ["X-User-Plan", "x-team", "Remote-User"] {
            assert!(header_name(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "a b",
            "Host",
            "COOKIE",
            "Connection",
            "TE",
            "Content_Length",
            "Authorization",
            "X-Session",
            "X-Client-Cert-Subject",
            "x_session_update",
            "X.Session.Omitted",
            "X-Forwarded-User",
            "X_Forwarded.For",
            "Forwarded",
            "X-Sessionfoo",
            "Proxy-Authorization",
            "Proxy",
            "x:y",
            "x_team",
            "X.Team",
        ] {
            assert!(header_name(text).is_err(), "{text}");
        }
    }
}
