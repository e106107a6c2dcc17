//! Certificates and their keys, from PEM files to what rustls serves with. Also for whoever
//! rereads them while serving; it does not know when that is.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::Certificate;

/// A chain or a key is never larger.
const LARGEST: u64 = 1024 * 1024;

/// Why a certificate cannot be served.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read, or is larger than 1 MiB.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {wanted} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// A certificate, or a key.
        wanted: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// The two do not fit, or rustls does not support them.
    #[error("{cert} and {key} cannot be used together: {source}")]
    Unusable {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl CertificateError {
    /// Whether the file at `path` alone is to blame.
    pub fn is_about(&self, path: &Path) -> bool {
        match self {
            Self::Read { path: blamed, .. } | Self::Pem { path: blamed, .. } => blamed == path,
            Self::Unusable { .. } => false,
        }
    }
}

impl Certificate {
    /// Whether the gateway is to order it and neither of its files is there.
    pub fn is_yet_to_come(&self) -> bool {
        !self.acme.is_empty() && !self.cert.exists() && !self.key.exists()
    }
}

/// Reads a chain and its key, and checks that they belong together.
pub fn load(certificate: &Certificate) -> Result<CertifiedKey, CertificateError> {
    let Certificate { cert, key, .. } = certificate;
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|source| {
        CertificateError::Pem { path: key.clone(), wanted: "private key", source }
    })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|source| CertificateError::Unusable {
        cert: cert.clone(),
        key: key.clone(),
        source,
    })
}

/// Every certificate in a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|found| if found.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(found) })
        .map_err(|source| CertificateError::Pem {
            path: path.to_owned(),
            wanted: "certificate",
            source,
        })
}

/// Whether a browser would take the certificate for `host` (RFC 6125), as [`super::value::Origin`]
/// holds it.
pub fn is_good_for(certified: &CertifiedKey, host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(name) = ServerName::try_from(bare) else { return false };
    certified
        .end_entity_cert()
        .and_then(ParsedCertificate::try_from)
        .is_ok_and(|leaf| rustls::client::verify_server_name(&leaf, &name).is_ok())
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .and_then(|_| {
            if bytes.len() as u64 > LARGEST {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                Ok(())
            }
        })
        .map_err(|source| CertificateError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}
