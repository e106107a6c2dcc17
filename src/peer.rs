//! The other end of a connection: found out once, at its beginning, and the same for every request
//! on it. It knows no headers.

use std::any::Any;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Who is connected, and to whom they think they are.
pub struct Peer {
    /// The address; an IPv4 address is never written as an IPv6 one.
    pub address: IpAddr,
    /// The name in the TLS handshake (RFC 6066, section 3), in lower case.
    pub server_name: Option<String>,
    /// Whether a name is served with the certificate of this connection.
    pub same_certificate: Box<dyn Fn(&str) -> bool>,
    /// The client's own certificate, verified.
    pub certificate: Option<Rc<ClientCertificate>>,
}

/// In the extensions of a request over HTTP/2 that is to become a WebSocket (RFC 8441), in the form
/// that it has over HTTP/1.1: a GET. As long as it lives its connection is in use.
#[derive(Clone)]
pub struct Tunnel {
    _use: Arc<dyn Any + Send + Sync>,
}

impl Tunnel {
    /// `in_use` is dropped with the last clone.
    pub fn new(in_use: impl Any + Send + Sync) -> Self {
        Self { _use: Arc::new(in_use) }
    }
}

/// What is told of a client's certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whose it is, as RFC 4514 writes it; visible ASCII and spaces alone.
    pub subject: Option<String>,
    /// The SHA-256 of its DER form, in 64 hexadecimal digits.
    pub fingerprint: String,
}

/// Whoever may be one client: an IPv4 address, or a network of IPv6 (RFC 4291, section 2.5.4), of
/// which each client has all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// One address.
    V4(u32),
    /// The first 64 bits.
    V6(u64),
}

impl Network {
    /// Where an address belongs.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                Self::V6(u64::try_from(address.to_bits() >> 64).unwrap_or_default())
            }
        }
    }
}

impl Peer {
    /// Whether a request for `host` may come over this connection.
    ///
    // SECURITY: domain fronting: who passed a filter for one name must not ask for another that
    // has a certificate of its own (RFC 9110, section 7.4: 421).
    pub fn may_ask_for(&self, host: &str) -> bool {
        match &self.server_name {
            None => true,
            Some(name) => name == host || (self.same_certificate)(host),
        }
    }
}
