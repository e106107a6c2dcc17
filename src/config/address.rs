//! From text to hosts, origins, upstreams, issuers and paths. Pure functions like those of
//! `config/parse.rs`; what two parties could read in two ways is refused.

use std::path::PathBuf;

use url::{Host, Url};

use super::parse::Wrong;
use super::value::{Origin, UpstreamUrl};

/// A public origin (RFC 6454): `https://host` or `https://host:port`.
pub(super) fn origin(text: &str) -> Result<Origin, Wrong> {
    let remedy = "write https://host or https://host:port, without a path";
    let rest = text
        .strip_prefix("https://")
        .ok_or_else(|| Wrong::new("is not an https origin", remedy))?;
    if rest.contains(['/', '?', '#']) {
        return Err(Wrong::new("has more than a host and a port", remedy));
    }
    let (host, port) = authority(rest)?;
    Ok(Origin { host: host.to_string(), port: port.unwrap_or(443) })
}

/// `http://host:port`, `https://host:port` or `unix:/path/to.sock`.
pub(super) fn upstream(text: &str) -> Result<UpstreamUrl, Wrong> {
    let remedy = "write http://host:port, https://host:port or unix:/path/to.sock";
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(path);
    }
    let (https, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(Wrong::new("is no upstream", remedy)),
    };
    if rest.contains(['/', '?', '#']) {
        return Err(Wrong::new(
            "has a path or a query: a request's own path is sent as it came",
            remedy,
        ));
    }
    let (host, port) = authority(rest)?;
    let host = match host {
        Host::Domain(name) => name,
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Ok(if https {
        UpstreamUrl::Https { host, port: port.unwrap_or(443) }
    } else {
        UpstreamUrl::Http { host, port: port.unwrap_or(80) }
    })
}

/// The length of `sockaddr_un.sun_path` without its final NUL (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

fn socket(path: &str) -> Result<UpstreamUrl, Wrong> {
    let remedy = "write unix: and an absolute path of at most 107 bytes: unix:/run/app.sock";
    let plain = path.starts_with('/') && !path.starts_with("//") && !path.ends_with('/');
    if !plain || path.len() > LONGEST_SOCKET_PATH || path.chars().any(char::is_control) {
        return Err(Wrong::new("is no path of a unix socket", remedy));
    }
    Ok(UpstreamUrl::Unix(PathBuf::from(path)))
}

/// A host name as [`Origin::host`] holds it: lower case, IDNA, no trailing dot, IPv6 in brackets.
pub(super) fn host(text: &str) -> Result<String, Wrong> {
    bare_host(text).map(|host| host.to_string())
}

/// A domain name: a [`host`] that is no address.
pub(super) fn domain(text: &str) -> Result<String, Wrong> {
    match bare_host(text)? {
        Host::Domain(name) => Ok(name),
        Host::Ipv4(_) | Host::Ipv6(_) => {
            Err(Wrong::new("is an address", "write a domain name: example.com"))
        }
    }
}

/// Whether a cookie for `domain` is sent to `host` (RFC 6265, section 5.1.3).
pub(super) fn host_matches(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn bare_host(text: &str) -> Result<Host, Wrong> {
    let wrong =
        || Wrong::new("is no host name", "write a bare host: app.example.com, 10.0.0.1, [::1]");
    let text = text.strip_suffix('.').unwrap_or(text);
    // The parser would decode an escape and drop tabs; a name that needs that is a mistake.
    if text.is_empty()
        || text.ends_with('.')
        || text.contains(|at: char| at == '%' || at.is_control())
    {
        return Err(wrong());
    }
    match Host::parse(text) {
        Ok(host) if host.to_string().len() <= 255 => Ok(host),
        _ => Err(wrong()),
    }
}

/// `host[:port]` (RFC 3986, section 3.2, without userinfo).
fn authority(text: &str) -> Result<(Host, Option<u16>), Wrong> {
    if text.contains('@') {
        return Err(Wrong::new(
            "holds a user name or a password",
            "leave out what stands before the @",
        ));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port = port.map(|digits| {
        let number =
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>());
        match number {
            Some(Ok(number)) if number > 0 => Ok(number),
            _ => Err(Wrong::new(
                "has a wrong port",
                "write a number from 1 to 65535 after the colon",
            )),
        }
    });
    Ok((bare_host(name)?, port.transpose()?))
}

/// An issuer (OpenID Connect Core, section 2), kept to the letter: https, or http on loopback.
pub(super) fn issuer(text: &str) -> Result<(String, Url), Wrong> {
    let remedy = "write the issuer as the provider shows it: https://TENANT.eu.auth0.com/";
    let wrong = |message| Wrong::new(message, remedy);
    // The parser drops white space, turns `\` to `/` and `https:x` to `https://x`.
    let odd = |at: char| at.is_whitespace() || at.is_control() || at == '\\';
    if text.contains(odd) || text.contains(":///") {
        return Err(wrong("is no URL"));
    }
    let secure = text.starts_with("https://");
    if !secure && !text.starts_with("http://") {
        return Err(wrong("is no https URL"));
    }
    let url = Url::parse(text).map_err(|_| wrong("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user name or a password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a query or a fragment"));
    }
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    // SECURITY: over http anyone on the way could hand out keys of their own.
    if !secure && !loopback {
        return Err(wrong(
            "is http on another machine, where anyone on the way could log in as anyone",
        ));
    }
    Ok((text.to_owned(), url))
}

/// The path of a route, or of our own origin: what can only be read in one way.
pub(super) fn path(text: &str) -> Result<String, Wrong> {
    let wrong = |message| {
        Wrong::new(message, "write / and plain segments, without a slash at the end: /app/admin")
    };
    let Some(rest) = text.strip_prefix('/') else {
        return Err(wrong("does not start with /"));
    };
    if rest.is_empty() {
        return Ok(text.to_owned());
    }
    // SECURITY: escapes, `;`, `\` and dot segments are read differently by different parties, so
    // a rule for such a path would not hold. `pchar` of RFC 3986, section 3.3, less `%` and `;`.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(&byte);
    if let Some(odd) = rest.chars().find(|&at| !u8::try_from(at).is_ok_and(plain)) {
        return Err(wrong(match odd {
            '%' => "holds an escape",
            '?' | '#' => "holds a query or a fragment",
            _ => "holds a character that has no place in a route's path",
        }));
    }
    if rest.ends_with('/') {
        return Err(wrong("ends with a slash: a path matches everything below it anyway"));
    }
    if rest.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(wrong("holds an empty segment, or one of dots"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_normalised() {
        for (text, host, port) in [
            ("https://localhost:8443", "localhost", 8443),
            ("https://App.Example.COM.", "app.example.com", 443),
            ("https://bücher.example", "xn--bcher-kva.example", 443),
            ("https://[::1]:9", "[::1]", 9),
            ("https://[0:0::1]", "[::1]", 443),
        ] {
            assert_eq!(origin(text), Ok(Origin { host: host.into(), port }), "{text}");
        }
    }

    #[test]
    fn what_is_more_or_less_than_an_origin_is_refused() {
        for text in [
            "http://a.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://a?b",
            "https://a#b",
            "https://u@a.example",
            "https://u:p@a",
            "https://a:0",
            "https://a:65536",
            "https://a:",
            "https://a:+1",
            "https://a b",
            "https:a",
            "https:///a",
            "https://a\\b",
            "https://a%62",
            "https://a\tb",
            "https://a..",
            "https://[::1",
            "https://::1:443",
            "",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn upstreams_have_a_host_and_a_port() {
        let http = |host: &str, port| Ok(UpstreamUrl::Http { host: host.into(), port });
        assert_eq!(upstream("http://127.0.0.1:9000"), http("127.0.0.1", 9000));
        assert_eq!(upstream("http://[::1]"), http("::1", 80));
        assert_eq!(upstream("http://my_app:80"), http("my_app", 80));
        assert_eq!(
            upstream("https://App"),
            Ok(UpstreamUrl::Https { host: "app".into(), port: 443 })
        );
        assert_eq!(upstream("unix:/run/a.sock"), Ok(UpstreamUrl::Unix("/run/a.sock".into())));
    }

    #[test]
    fn what_is_no_upstream_is_refused() {
        let long = format!("unix:/{}", "a".repeat(107));
        for text in [
            "",
            "127.0.0.1:9000",
            "ftp://a",
            "http://a/",
            "http://a/x",
            "http://a?b",
            "http://u:p@a",
            "http://",
            "http://:80",
            "http://a:b",
            "unix:",
            "unix:run/a",
            "unix:///run/a",
            "unix:/run/",
            "unix:/a\0",
            &long,
            "HTTP://a",
        ] {
            assert!(upstream(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_issuer_is_kept_to_the_letter() {
        for text in [
            "https://T.eu.auth0.com/",
            "https://a.example",
            "https://a.example:8443/realms/x",
            "http://localhost:8090/",
            "http://127.0.0.2/",
            "http://[::1]:1/",
        ] {
            assert_eq!(issuer(text).unwrap().0, text);
        }
    }

    #[test]
    fn an_issuer_over_http_or_with_more_than_a_path_is_refused() {
        for text in [
            "",
            "auth0.com",
            "http://a.example/",
            "http://localhost.evil.example/",
            "https://a/?b",
            "https://a/#",
            "https://u@a/",
            "https://u:p@a/",
            " https://a/",
            "https://a/\n",
            "https:a",
            "https://a\\b",
            "https://",
            "https:///a/",
            "ftp://a/",
            "http://10.0.0.1/",
        ] {
            assert!(issuer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_can_be_read_in_one_way_only() {
        for text in ["/", "/app", "/app/admin", "/a.b/~c", "/@x:y"] {
            assert_eq!(path(text), Ok(text.into()));
        }
        for text in [
            "", "app", "//", "//a", "/a//b", "/a/", "/.", "/..", "/a/../b", "/a%2fb", "/a?b",
            "/a#b", "/a\\b", "/a;b", "/a b", "/ä", "/a\0",
        ] {
            assert!(path(text).is_err(), "{text}");
        }
    }
}
