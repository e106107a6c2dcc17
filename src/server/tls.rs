//! Certificates and the TLS handshake's settings: which certificate a name gets, and who may resume a
//! session. A file that has become wrong changes nothing: the old certificates stay.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::client_certificate::verifier;
use crate::config::certificate::{CertificateError, is_good_for, load};
use crate::config::{self, ClientCertificates};

/// The certificates, replaced as a whole.
pub(super) struct Certificates {
    files: Vec<config::Certificate>,
    served: ArcSwap<Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Reads the files.
    pub(super) fn read(files: &[config::Certificate]) -> Result<Arc<Self>, CertificateError> {
        let served = ArcSwap::from_pointee(read(files)?);
        Ok(Arc::new(Self { files: files.to_owned(), served }))
    }

    /// Reads the files again, for as long as the rest of the configuration cannot be: a certificate
    /// must not expire because of a file that somebody has not finished.
    pub(super) fn reread(&self) {
        match read(&self.files) {
            Ok(certificates) => self.served.store(Arc::new(certificates)),
            Err(error) => {
                tracing::error!(%error, "a certificate is wrong; those read before stay in use");
            }
        }
    }

    /// Whether two names get the same certificate.
    pub(super) fn same(&self, one: &str, other: &str) -> bool {
        let served = self.served.load();
        pick(&served, one) == pick(&served, other)
    }
}

fn read(files: &[config::Certificate]) -> Result<Vec<Arc<CertifiedKey>>, CertificateError> {
    let one = |file: &config::Certificate| match file.is_yet_to_come().then(|| stand_in(file)) {
        Some(Some(certified)) => Ok(Arc::new(certified)),
        _ => load(file).map(Arc::new),
    };
    files.iter().map(one).collect()
}

/// What is served until an ordered certificate is there: browsers warn of it.
fn stand_in(file: &config::Certificate) -> Option<CertifiedKey> {
    let made = rcgen::generate_simple_self_signed(file.acme.clone()).ok()?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).ok()
}

/// The first certificate that is good for the name; the first of all if none is.
fn pick(served: &[Arc<CertifiedKey>], name: &str) -> usize {
    served.iter().position(|certified| is_good_for(certified, name)).unwrap_or(0)
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.served.load();
        let index = hello.server_name().map_or(0, |name| pick(&served, name));
        served.get(index).cloned()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Certificates({} files)", self.files.len())
    }
}

/// The keys that tickets are sealed with, so that a client may resume its session on any worker
/// (RFC 8446, section 2.2; RFC 5077): new ones every six hours, the ones before open for six more.
/// They are in this process alone.
#[derive(Clone)]
pub(super) struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    pub(super) fn new() -> Result<Self, rustls::Error> {
        rustls::crypto::ring::Ticketer::new().map(Self)
    }
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by tickets.
pub(super) fn settings(
    certificates: Arc<Certificates>,
    clients: Option<&ClientCertificates>,
    tickets: &Tickets,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(verifier(clients)?),
    };
    let mut settings = builder.with_cert_resolver(certificates);
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    settings.ticketer = tickets.0.clone();
    Ok(Arc::new(settings))
}

/// What the gateway trusts when it is the client: the machine's own roots.
pub(super) fn roots() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    roots_and(&[])
}

/// The machine's own roots, and these.
pub(super) fn roots_and(
    others: &[CertificateDer<'static>],
) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for other in others {
        roots.add(other.clone())?;
    }
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("this machine has no trusted roots: nothing can be called over https");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}
