//! One connection to an upstream: over TCP, over TLS, over a unix socket. It owns the connect
//! timeout and the settings of TLS; what is said over the connection is `pool`'s.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::names::Names;
use crate::config::upstream::UpstreamTls;
use crate::config::value::UpstreamUrl;
use crate::keepalive::notice_who_is_gone;

/// A connection to an upstream.
pub enum Stream {
    /// `http://…`
    Tcp(TcpStream),
    /// `https://…`
    Tls(Box<TlsStream<TcpStream>>),
    /// `unix:…`
    Unix(UnixStream),
}

/// How an upstream is reached, beside its URL.
#[derive(Clone)]
pub struct Reach {
    names: Names,
    connector: TlsConnector,
    /// In place of the URL's host.
    server_name: Option<ServerName<'static>>,
    /// How long one that is there may not read.
    patience: Duration,
}

impl Reach {
    /// Trusting whom `base` trusts, or as `settings` say; offers these protocols (ALPN, RFC 7301).
    /// An upstream that reads nothing for `patience` may be taken for one that is gone.
    pub(super) fn new(
        base: &Arc<ClientConfig>,
        settings: Option<&UpstreamTls>,
        protocols: &[&[u8]],
        names: Names,
        patience: Duration,
    ) -> Result<Self, rustls::Error> {
        let UpstreamTls { ca, identity, server_name } = settings.cloned().unwrap_or_default();
        let mut config = match ca {
            None => ClientConfig::clone(base),
            Some(roots) => ClientConfig::builder_with_provider(base.crypto_provider().clone())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth(),
        };
        if let Some(identity) = identity {
            let shown = SingleCertAndKey::from(CertifiedKey::clone(&identity));
            config.client_auth_cert_resolver = Arc::new(shown);
        }
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // SECURITY: a session that began under other authorities, or as somebody else, is not
        // resumed.
        config.resumption = Resumption::default();
        Ok(Self { names, connector: Arc::new(config).into(), server_name, patience })
    }
}

impl Stream {
    /// The protocol that the TLS handshake has settled on.
    pub(super) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Whether the kernel has neither a byte for us nor the other end's farewell.
    pub(super) fn is_silent(&self) -> bool {
        let socket = match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Tls(stream) => SockRef::from(stream.get_ref().0),
            Self::Unix(stream) => SockRef::from(stream),
        };
        // The sockets do not block: nothing is what is not waited for.
        let found = socket.peek(&mut [MaybeUninit::uninit()]);
        found.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Connects within `limit`, name resolution and the TLS handshake included. The addresses of a
/// name are tried in the resolver's order.
pub(super) async fn connect(
    url: &UpstreamUrl,
    reach: &Reach,
    limit: Duration,
) -> io::Result<Stream> {
    let establishing = establish(url, reach, Instant::now() + limit);
    tokio::time::timeout(limit, establishing).await.unwrap_or_else(|_| Err(late()))
}

async fn establish(url: &UpstreamUrl, reach: &Reach, until: Instant) -> io::Result<Stream> {
    let tcp = |host, port| tcp(reach, host, port, until);
    match url {
        UpstreamUrl::Http { host, port } => Ok(Stream::Tcp(tcp(host, *port).await?)),
        UpstreamUrl::Https { host, port } => {
            let name = match &reach.server_name {
                Some(name) => name.clone(),
                None => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
            };
            let stream = reach.connector.connect(name, tcp(host, *port).await?).await?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        UpstreamUrl::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
    }
}

/// Each address has its share of the time that is left, so that one which does not answer at all
/// leaves some for the others.
async fn tcp(reach: &Reach, host: &str, port: u16, until: Instant) -> io::Result<TcpStream> {
    let addresses = reach.names.resolve(host, port).await?;
    let mut failed = late();
    for (left, address) in
        (1..=u32::try_from(addresses.len()).unwrap_or(u32::MAX)).rev().zip(addresses)
    {
        let share = until.saturating_duration_since(Instant::now()) / left;
        let connected = tokio::time::timeout(share, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(late())) {
            Ok(stream) => {
                // A request's head and its first bytes must not wait for each other's
                // acknowledgement.
                stream.set_nodelay(true)?;
                notice_who_is_gone(&stream, reach.patience)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no connection within connect_time")
}

/// Calls `$method` of whichever stream it is.
macro_rules! either {
    ($self:expr, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tls(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write_vectored, context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
