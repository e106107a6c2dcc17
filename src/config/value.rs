//! The small types of the configuration: each is made by parsing and cannot hold a wrong value.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// A public origin, `https://host[:port]`, as users see it (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Lower case, no trailing dot, IDNA-encoded; an IPv6 address in brackets.
    pub host: String,
    /// 443 when the URL names none.
    pub port: u16,
}

impl Origin {
    /// `host`, or `host:port` where the port is not 443: the form of a `Host` field.
    pub fn authority(&self) -> String {
        if self.port == 443 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "https://{}", self.authority())
    }
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes. Callers never log them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Where a route sends its requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamUrl {
    /// `http://host:port`.
    Http {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// 80 when the URL names none.
        port: u16,
    },
    /// `https://host:port`; the certificate must be good for `host`.
    Https {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// 443 when the URL names none.
        port: u16,
    },
    /// `unix:/path/to.sock`.
    Unix(PathBuf),
}

impl UpstreamUrl {
    /// The `Host` field of a request that is meant for nobody else.
    pub fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            url => url.to_string().split("//").nth(1).unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(formatter, "unix:{}", path.display()),
            Self::Http { host, port } => ("http", host, port),
            Self::Https { host, port } => ("https", host, port),
        };
        if host.contains(':') {
            write!(formatter, "{scheme}://[{host}]:{port}")
        } else {
            write!(formatter, "{scheme}://{host}:{port}")
        }
    }
}

/// Which top-level keys of the session a route may change or see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// `true`, the default.
    All,
    /// `false`.
    None,
    /// A list of names.
    Only(BTreeSet<String>),
}

impl Keys {
    /// Whether `key` is among them.
    pub fn allow(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(keys) => keys.contains(key),
        }
    }
}

/// What a value for a header of a route's own is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// `user.…`: the identity, which apps cannot change.
    User,
    /// `session.…`: the data, which apps put there.
    Session,
}

/// A path into the session: `user.org_id`, `session.features.beta`,
/// `user."https://example.com/plan"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    /// The first segment.
    pub owner: Owner,
    /// The others; at least one.
    pub members: Vec<String>,
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.owner {
            Owner::User => "user",
            Owner::Session => "session",
        })?;
        for member in &self.members {
            if member.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
                write!(formatter, ".{member}")?;
            } else {
                write!(formatter, ".\"{member}\"")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{address, parse};

    #[test]
    fn what_is_shown_can_be_written() {
        for text in ["http://127.0.0.1:80", "https://[::1]:8443", "unix:/run/app.sock"] {
            assert_eq!(address::upstream(text).unwrap().to_string(), text);
        }
        for text in ["user.org_id", "session.a.b-c", r#"user."https://example.com/plan".x"#] {
            assert_eq!(parse::claim_path(text).unwrap().to_string(), text);
        }
        for text in ["https://a.example", "https://[::1]:8443"] {
            assert_eq!(address::origin(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
