//! One HTTPS connection from the load's side, blocking: for what is checked, held open, or opened
//! again and again. Response heads are read here for all; bodies are counted, not kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// Nothing on loopback takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// A response head of more bytes is an error.
const LONGEST_HEAD: usize = 16 * 1024;

/// A proxy, as a client sees it.
#[derive(Clone)]
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Target {
    /// A proxy on this address, asked for `localhost` over TLS 1.3 and HTTP/1.1, with a full
    /// handshake on every connection.
    pub(crate) fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { address, tls: Arc::new(trusting(b"http/1.1")?) })
    }

    /// The authority under which the proxy knows itself.
    pub(crate) fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// A request for `path`, with this `Cookie` field if there is one.
    pub(crate) fn request(&self, path: &str, cookie: Option<&str>) -> Vec<u8> {
        let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        let host = self.authority();
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: load\r\nAccept: */*\r\n{cookie}\r\n"
        )
        .into_bytes()
    }
}

/// TLS 1.3 for one protocol (RFC 7301), with a full handshake on every connection.
pub(crate) fn trusting(protocol: &[u8]) -> Result<ClientConfig> {
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// SECURITY: believes any certificate. It is only ever shown the one that was just made, over
/// loopback, and checking it would cost the load more than the handshake costs what is measured.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A connection whose handshake is done.
pub(crate) struct Connection {
    /// The socket, blocking.
    pub(crate) stream: TcpStream,
    /// What is said over it.
    pub(crate) tls: ClientConnection,
}

impl Connection {
    /// Connects and shakes hands.
    pub(crate) fn open(target: &Target) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&target.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut tls = ClientConnection::new(target.tls.clone(), "localhost".try_into()?)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).context("the handshake failed")?;
        }
        Ok(Self { stream, tls })
    }

    /// Sends a request and reads its whole answer.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        let mut stream = rustls::Stream::new(&mut self.tls, &mut self.stream);
        stream.write_all(request)?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                bail!("the connection ended within an answer");
            }
            text.extend_from_slice(buffer.get(..read).unwrap_or_default());
            if let Some(head) = Head::parse(&text)? {
                let body = text.get(head.length..).unwrap_or_default();
                if body.len() >= head.body {
                    let head_text = text.get(..head.length).unwrap_or_default();
                    return Ok(Answer {
                        status: head.status,
                        head: String::from_utf8_lossy(head_text).into_owned(),
                        body: String::from_utf8_lossy(body).into_owned(),
                    });
                }
            }
        }
    }

    /// Closes without waiting in `TIME_WAIT` (RFC 9293, section 3.6.1): thousands of connections a
    /// second would use up the ports.
    pub(crate) fn reset(self) -> Result<()> {
        Ok(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?)
    }
}

/// An answer.
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The status line and the fields.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: String,
}

/// What the load needs to know of a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    /// The status code.
    pub(crate) status: u16,
    /// Bytes of the head, its empty line included.
    pub(crate) length: usize,
    /// Bytes of the body.
    pub(crate) body: usize,
    /// The first `Set-Cookie` field's value, as it came.
    pub(crate) cookie: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// The head at the beginning of `text`, once it is whole.
    ///
    /// # Errors
    /// When it is malformed, too long, or without `Content-Length`: the origin's answers have one,
    /// and nothing that passes them on has a reason to take it away.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = response.parse(text)? else {
            if text.len() > LONGEST_HEAD {
                bail!("a response head of more than {LONGEST_HEAD} bytes");
            }
            return Ok(None);
        };
        let field = |name| {
            let mut fields = response.headers.iter();
            let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let status = response.code.unwrap_or_default();
        let body = match field("content-length").and_then(|length| length.parse().ok()) {
            Some(body) => body,
            None if status == 204 => 0,
            None => bail!("an answer with status {status} has no Content-Length"),
        };
        Ok(Some(Self { status, length, body, cookie: field("set-cookie") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nset-cookie: a=b; Secure\r\n\r\nabc";
        let (length, cookie) = (text.len() - 3, Some("a=b; Secure"));
        assert_eq!(Head::parse(text).unwrap(), Some(Head { status: 200, length, body: 7, cookie }));
        assert_eq!(Head::parse(&text[..30]).unwrap(), None);
    }

    #[test]
    fn an_answer_of_unknown_length_is_an_error() {
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
