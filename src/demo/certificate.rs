//! The self-signed certificate of the demo: made once, for localhost only. It knows two paths;
//! who reads the files, and for what listener, is not its business.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::clock::Timestamp;

/// The names the certificate is good for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// How long it is good for. Browsers refuse more than 398 days.
const LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// It begins in the past, for machines whose clock is behind.
const HEAD_START: Duration = Duration::from_secs(24 * 60 * 60);

/// What [`ensure`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Both files were there; they were not looked into.
    There,
    /// Neither was there; both were written.
    Made,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// One of the two files is there: writing the other would give a pair that does not match.
    #[error(
        "{} is there but {} is not: put the missing file back, or delete the first to have both made anew",
        present.display(),
        missing.display()
    )]
    HalfPair {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// A file or its directory could not be looked at or written.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificate could not be made.
    #[error("the certificate for localhost could not be made")]
    Make(#[source] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Makes a certificate for localhost (ECDSA P-256, a year) and its key if neither file is there;
/// never overwrites one that is. Missing directories are made. The key is readable by its owner
/// alone.
pub fn ensure(certificate: &Path, key: &Path, now: Timestamp) -> Result<Found, CertificateError> {
    match (exists(certificate)?, exists(key)?) {
        (true, true) => return Ok(Found::There),
        (true, false) => return Err(half(certificate, key)),
        (false, true) => return Err(half(key, certificate)),
        (false, false) => {}
    }
    let (certificate_pem, key_pem) = make(now)?;
    for path in [certificate, key] {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|source| file_error(directory, source))?;
        }
    }
    write_new(key, 0o600, &key_pem)?;
    if let Err(error) = write_new(certificate, 0o644, &certificate_pem) {
        // Our own file of a moment ago: left alone it would be half a pair next time.
        let _ = fs::remove_file(key);
        return Err(error);
    }
    Ok(Found::Made)
}

/// The certificate and its key, as PEM.
fn make(now: Timestamp) -> Result<(String, String), CertificateError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CertificateError::Random)?;
    // RFC 5280, section 4.1.2.2: the serial number is positive.
    serial[0] = serial[0] & 0x7f | 0x01;

    let names = NAMES.map(String::from);
    let mut parameters = CertificateParams::new(names).map_err(CertificateError::Make)?;
    let epoch = date_time_ymd(1970, 1, 1);
    let begin = now.since(Timestamp(HEAD_START.as_secs()));
    parameters.not_before = epoch + begin;
    parameters.not_after = epoch + begin + LIFE;
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "localhost (Vestibule's demo)");
    parameters.distinguished_name = name;
    // It can vouch for itself alone: trusting it in a browser trusts no other certificate.
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Make)?;
    let certificate = parameters.self_signed(&key).map_err(CertificateError::Make)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// A dangling link counts as there: it is somebody's, and is not written through.
fn exists(path: &Path) -> Result<bool, CertificateError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(file_error(path, source)),
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), CertificateError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|source| file_error(path, source))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(path);
        file_error(path, source)
    })
}

fn half(present: &Path, missing: &Path) -> CertificateError {
    CertificateError::HalfPair { present: present.into(), missing: missing.into() }
}

fn file_error(path: &Path, source: io::Error) -> CertificateError {
    CertificateError::File { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    #[test]
    fn a_pair_is_made_once_and_left_alone_after() {
        let directory = tempfile::tempdir().unwrap();
        let certificate = directory.path().join("certs/localhost.pem");
        let key = directory.path().join("certs/localhost.key");
        assert_eq!(ensure(&certificate, &key, NOW).unwrap(), Found::Made);
        let before = (fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
        assert_eq!(ensure(&certificate, &key, NOW).unwrap(), Found::There);
        assert_eq!(before, (fs::read(&certificate).unwrap(), fs::read(&key).unwrap()));
    }

    #[test]
    fn the_key_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("localhost.key");
        ensure(&directory.path().join("localhost.pem"), &key, NOW).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn half_a_pair_is_an_error_that_names_both_files() {
        for (present, missing) in [("a.pem", "a.key"), ("a.key", "a.pem")] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(present), "kept").unwrap();
            let path = |name| directory.path().join(name);
            let error = ensure(&path("a.pem"), &path("a.key"), NOW).unwrap_err().to_string();
            assert!(error.contains(&format!("{present} is there but")), "{error}");
            assert!(error.contains(&format!("{missing} is not")), "{error}");
            assert_eq!(fs::read(path(present)).unwrap(), b"kept");
            assert!(!path(missing).exists());
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_written_leaves_no_key_behind() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("a.key");
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(ensure(&directory.path().join("file/a.pem"), &key, NOW).is_err());
        assert!(!key.exists());
    }

    #[test]
    fn the_certificate_is_good_for_localhost_for_a_year_and_nothing_else() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = make(NOW).unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        );
        let verifier = verifier.build().unwrap();
        let good = |name: &'static str, at: u64| {
            let name = ServerName::try_from(name).unwrap();
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
            verifier.verify_server_cert(&certificate, &[], &name, &[], at).is_ok()
        };
        for name in NAMES {
            assert!(good(name, NOW.0), "{name}");
        }
        assert!(!good("example.com", NOW.0));
        assert!(!good("127.0.0.2", NOW.0));
        assert!(good("localhost", NOW.0 + 360 * 86_400));
        assert!(!good("localhost", NOW.0 + 366 * 86_400));
        assert!(!good("localhost", NOW.0 - 2 * 86_400));
        let server = rustls::ServerConfig::builder_with_provider(provider);
        let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        assert!(server.with_single_cert(vec![certificate.clone()], key).is_ok());
    }
}
