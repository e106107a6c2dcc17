//! The other end of a connection: found out once, at its beginning, and the same for every request
//! on it. It knows no headers.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::lock::lock;

/// Sends a client an interim response (RFC 9110, section 15.2) before the response to the request of
/// which the future is being polled.
pub type Tell = Rc<dyn Fn(StatusCode, HeaderMap)>;

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
    /// How it hears what comes before a response.
    pub tell: Tell,
}

/// In the extensions of a request over HTTP/2 that is to become a WebSocket (RFC 8441), in the form
/// that it has over HTTP/1.1: a GET. A response that says success opens it.
#[derive(Clone)]
pub struct Tunnel(Arc<Mutex<Option<Opened>>>);

/// What opens a tunnel.
pub type Opening = oneshot::Sender<Box<dyn Open>>;
type Opened = oneshot::Receiver<Box<dyn Open>>;

/// A tunnel that is open: as long as it lives its connection is in use.
pub trait Open: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Open for T {}

impl Tunnel {
    /// One that is not open.
    pub fn new() -> (Opening, Self) {
        let (opening, opened) = oneshot::channel();
        (opening, Self(Arc::new(Mutex::new(Some(opened)))))
    }

    /// The tunnel, once it is open; nothing if it never is, or somebody else has it.
    pub async fn opened(self) -> Option<Box<dyn Open>> {
        let opened = lock(&self.0).take()?;
        opened.await.ok()
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
