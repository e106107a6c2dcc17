//! The PROXY protocol, versions 1 and 2: what a load balancer says of the client before the first byte
//! of TLS. Read to its last byte and no further; whatever is not exactly a header is none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::lock::lock;

/// The first bytes of version 2. No header is shorter, of version 1 either.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end (section 2.1).
const LONGEST_LINE: usize = 107;
/// The most that may follow the fixed part of version 2: addresses, and extensions, which are skipped.
const LONGEST_REST: usize = 4096;

/// How often it is told that connections are closed.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why there is no client's address.
#[derive(Debug, Error)]
pub(super) enum NoHeader {
    /// SECURITY: who may write a header may be anybody.
    #[error("its address is none of server.trusted_proxies, which alone may speak for clients")]
    Untrusted,
    /// It is not one, or says what cannot be.
    #[error("it begins with no header of the PROXY protocol, or with one that is wrong")]
    Malformed,
    /// It ended, or broke off.
    #[error("it ended before its PROXY header: {0}")]
    Ended(#[from] io::Error),
}

impl NoHeader {
    /// Says so where somebody should look: a load balancer that is not set up, or is not known, is
    /// down for everybody. Not more often than [`TELL_EVERY`]: anybody may connect.
    pub(super) fn told(self, peer: IpAddr) -> io::Error {
        static LAST: Mutex<Option<Instant>> = Mutex::new(None);
        if let Self::Ended(error) = self {
            return error;
        }
        let mut last = lock(&LAST);
        if last.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
            *last = Some(Instant::now());
            tracing::warn!(%peer, error = %self, "a connection was closed");
        }
        io::Error::other(self)
    }
}

/// The address of the client for whom `peer`, one of `trusted`, speaks. It is the peer's own where it
/// speaks for itself, as load balancers do to see whether somebody is there.
pub(super) async fn client(
    stream: &mut TcpStream,
    peer: IpAddr,
    trusted: &[IpNet],
) -> Result<IpAddr, NoHeader> {
    if !trusted.iter().any(|network| network.contains(&peer)) {
        return Err(NoHeader::Untrusted);
    }
    Ok(read(stream).await?.unwrap_or(peer))
}

/// Reads the header: an address, or none (`LOCAL`, `UNKNOWN`).
async fn read(stream: &mut TcpStream) -> Result<Option<IpAddr>, NoHeader> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        return binary(stream).await;
    }
    if !first.starts_with(b"PROXY ") {
        return Err(NoHeader::Malformed);
    }
    let mut line = first.to_vec();
    while !line.ends_with(b"\n") {
        // What follows the line is TLS's: it is looked at before it is taken.
        let mut ahead = [0; LONGEST_LINE];
        let room = ahead.get_mut(line.len()..).filter(|room| !room.is_empty());
        let room = room.ok_or(NoHeader::Malformed)?;
        let there = stream.peek(room).await?;
        let ahead = room.get(..there).unwrap_or_default();
        let length = ahead.iter().position(|byte| *byte == b'\n').map_or(there, |at| at + 1);
        let before = line.len();
        line.resize(before + length.max(1), 0);
        stream.read_exact(line.get_mut(before..).unwrap_or_default()).await?;
    }
    text(&line)
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`, on one line.
fn text(line: &[u8]) -> Result<Option<IpAddr>, NoHeader> {
    let line = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    let words: Vec<&str> = line.ok_or(NoHeader::Malformed)?.split(' ').collect();
    let (from, to, ports) = match words.as_slice() {
        // Section 2.1: whatever else stands there is not to be looked at.
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", "TCP4", from, to, ports @ ..] => (v4(from), v4(to), ports),
        ["PROXY", "TCP6", from, to, ports @ ..] => (v6(from), v6(to), ports),
        _ => return Err(NoHeader::Malformed),
    };
    let digits =
        |port: &&str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    match (from, to, ports) {
        (Some(from), Some(_), [source, target]) if digits(source) && digits(target) => {
            Ok(Some(from))
        }
        _ => Err(NoHeader::Malformed),
    }
}

fn v4(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv4Addr>().ok().map(IpAddr::from)
}

fn v6(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv6Addr>().ok().map(|address| IpAddr::from(address).to_canonical())
}

/// Version 2, after its signature.
async fn binary(stream: &mut TcpStream) -> Result<Option<IpAddr>, NoHeader> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_REST {
        return Err(NoHeader::Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    addresses(command, family, &rest)
}

/// Section 2.2: the source's address comes first; after both addresses and ports come extensions.
fn addresses(command: u8, family: u8, rest: &[u8]) -> Result<Option<IpAddr>, NoHeader> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const UNSPECIFIED: u8 = 0x00;
    const TCP_OVER_4: u8 = 0x11;
    const TCP_OVER_6: u8 = 0x21;
    let from = match (command, family) {
        // Whatever it says of addresses is not to be looked at.
        (LOCAL, _) | (PROXY, UNSPECIFIED) => return Ok(None),
        (PROXY, TCP_OVER_4) if rest.len() >= 12 => {
            rest.first_chunk().map(|from: &[u8; 4]| IpAddr::from(*from))
        }
        (PROXY, TCP_OVER_6) if rest.len() >= 36 => {
            rest.first_chunk().map(|from: &[u8; 16]| IpAddr::from(*from).to_canonical())
        }
        _ => None,
    };
    from.map(Some).ok_or(NoHeader::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_tells_the_clients_address() {
        for (line, address) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Some("192.0.2.1")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n", Some("2001:db8::1")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some("192.0.2.1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        ] {
            let expected = address.map(|address| address.parse().unwrap());
            assert_eq!(text(line.as_bytes()).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_one_is_none() {
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 \r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
            "PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY \u{ff}\r\n",
            "PROXY\r\n",
        ] {
            assert!(text(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn bytes_tell_the_clients_address_and_extensions_are_skipped() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 0, 2];
        let with_more = [&four[..], &[0x04, 0, 1, 0xff]].concat();
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(addresses(0x21, 0x11, &four).unwrap(), address("192.0.2.1"));
        assert_eq!(addresses(0x21, 0x11, &with_more).unwrap(), address("192.0.2.1"));
        assert_eq!(addresses(0x21, 0x21, &six).unwrap(), address("2001:db8::1"));
        assert_eq!(addresses(0x20, 0x00, &[]).unwrap(), None);
        assert_eq!(addresses(0x20, 0x11, &four).unwrap(), None);
        assert_eq!(addresses(0x21, 0x00, &[1, 2]).unwrap(), None);
    }

    #[test]
    fn bytes_of_another_version_command_or_family_are_none() {
        let rest = [0; 216];
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x31, 216),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
        ] {
            let told = addresses(command, family, &rest[..length]);
            assert!(told.is_err(), "{command:x} {family:x} {length}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_does_no_harm(
            line in prop::collection::vec(any::<u8>(), 0..107),
            command: u8,
            family: u8,
        ) {
            let _ = text(&line);
            let _ = text(&[b"PROXY TCP4 ", line.as_slice(), b"\r\n"].concat());
            let _ = addresses(command, family, &line);
        }
    }
}
