//! Certificates of clients: whom the handshake trusts to have signed one, and what is told of it: its
//! subject as text and its fingerprint. rustls verifies; this only reads what was verified. It knows
//! no headers.

use std::fmt::Write as _;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::der::{self, Der, Element, OBJECT_IDENTIFIER, SEQUENCE, SET};
use crate::config::{ClientCertificates, ClientCertificatesMode};
use crate::peer::ClientCertificate;

/// A subject of more characters is left out: it would not fit into an app's header.
const LONGEST: usize = 2048;

/// Who may present a certificate, and whether everybody has to.
pub(super) fn verifier(
    config: &ClientCertificates,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &config.authorities {
        roots.add(certificate.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match config.mode {
        ClientCertificatesMode::Required => builder,
        ClientCertificatesMode::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| rustls::Error::General(error.to_string()))
}

/// What is told of a certificate that was verified.
pub(super) fn describe(certificate: &CertificateDer<'_>) -> ClientCertificate {
    let mut fingerprint = String::with_capacity(64);
    for byte in digest(&SHA256, certificate).as_ref() {
        // Writing to a string does not fail.
        let _ = write!(fingerprint, "{byte:02x}");
    }
    ClientCertificate { subject: subject(certificate), fingerprint }
}

/// The subject as RFC 4514 writes it, the last part first: `CN=Zo\C3\AB,O=Example`. ASCII alone:
/// everything else is escaped. None if there is none, or if it is too long.
fn subject(certificate: &[u8]) -> Option<String> {
    let mut names = der::body(certificate)?.subject;
    let mut parts = Vec::new();
    while !names.0.is_empty() {
        let mut values = Der(names.inside(SET)?);
        let mut part = String::new();
        while !values.0.is_empty() {
            let mut pair = Der(values.inside(SEQUENCE)?);
            let kind = pair.inside(OBJECT_IDENTIFIER)?;
            let value = pair.element()?;
            if !part.is_empty() {
                part.push('+');
            }
            attribute(&mut part, kind, &value);
        }
        parts.push(part);
    }
    parts.reverse();
    let subject = parts.join(",");
    (!subject.is_empty() && subject.len() <= LONGEST).then_some(subject)
}

/// `CN=Zoe`; a value that is no text, or of a kind without a name, as `1.2.3=#0c03…` (RFC 4514,
/// section 2.4).
fn attribute(out: &mut String, kind: &[u8], value: &Element<'_>) {
    let name = name(kind);
    match name {
        Some(name) => out.push_str(name),
        None => dotted(out, kind),
    }
    out.push('=');
    if let Some(text) = text(value).filter(|_| name.is_some()) {
        escape(out, &text);
        return;
    }
    out.push('#');
    for byte in value.whole {
        let _ = write!(out, "{byte:02x}");
    }
}

/// The names of RFC 4514, section 3, and three that are as usual.
fn name(kind: &[u8]) -> Option<&'static str> {
    Some(match kind {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "STREET",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x55, 4, 12] => "title",
        // 0.9.2342.19200300.100.1
        [9, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [9, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        // PKCS #9
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "emailAddress",
        _ => return None,
    })
}

/// X.690, section 8.19.
fn dotted(out: &mut String, kind: &[u8]) {
    let mut number: u64 = 0;
    let mut first = true;
    for byte in kind {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if first {
            let arc = (number / 40).min(2);
            let _ = write!(out, "{arc}.{}", number - arc * 40);
            first = false;
        } else {
            let _ = write!(out, ".{number}");
        }
        number = 0;
    }
}

/// `UTF8String`, `PrintableString`, `IA5String`, and `BMPString`.
fn text(value: &Element<'_>) -> Option<String> {
    match value.tag {
        0x0c | 0x13 | 0x16 => String::from_utf8(value.inside.to_vec()).ok(),
        0x1e => {
            let units = value.inside.chunks(2).map(|pair| match pair {
                [high, low] => u16::from_be_bytes([*high, *low]),
                _ => 0xd800,
            });
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        _ => None,
    }
}

/// RFC 4514, section 2.4.
///
/// SECURITY: the name is what the authority let somebody choose: no comma, plus or line break in it
/// begins another part or another header.
fn escape(out: &mut String, text: &str) {
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let edge = (at == 0 && matches!(byte, b' ' | b'#')) || (at == last && byte == b' ');
        if edge || matches!(byte, b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=') {
            out.push('\\');
            out.push(char::from(byte));
        } else if matches!(byte, b' '..=b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    fn certificate(names: &[(DnType, DnValue)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    fn subject_of(names: &[(DnType, DnValue)]) -> Option<String> {
        describe(&certificate(names)).subject
    }

    #[test]
    fn a_subject_is_written_from_its_last_part_to_its_first() {
        let names = [
            (DnType::CountryName, DnValue::PrintableString("CH".try_into().unwrap())),
            (DnType::OrganizationName, utf8("Example, Inc.")),
            (DnType::CommonName, utf8("Zoë")),
        ];
        assert_eq!(subject_of(&names).unwrap(), r"CN=Zo\C3\AB,O=Example\, Inc.,C=CH");
        let bmp = DnValue::BmpString("ë".try_into().unwrap());
        assert_eq!(subject_of(&[(DnType::CommonName, bmp)]).unwrap(), r"CN=\C3\AB");
    }

    #[test]
    fn nothing_in_a_name_begins_another_part_or_another_line() {
        let name = " #a,O=b+c\"d\\;<e>\r\nX: y\0 ";
        let subject = subject_of(&[(DnType::CommonName, utf8(name))]).unwrap();
        assert_eq!(subject, r#"CN=\ #a\,O\=b\+c\"d\\\;\<e\>\0D\0AX: y\00\ "#);
        let sharp = subject_of(&[(DnType::CommonName, utf8("#1"))]).unwrap();
        assert_eq!(sharp, r"CN=\#1");
    }

    #[test]
    fn a_kind_without_a_name_is_written_in_numbers() {
        let kind = DnType::CustomDnType(vec![2, 999, 1, 65_537]);
        assert_eq!(subject_of(&[(kind, utf8("x"))]).unwrap(), "2.999.1.65537=#0c0178");
        let teletex = DnValue::TeletexString("x".try_into().unwrap());
        assert_eq!(subject_of(&[(DnType::CommonName, teletex)]).unwrap(), "CN=#140178");
    }

    #[test]
    fn no_name_or_one_of_endless_length_is_left_out() {
        assert_eq!(subject_of(&[]), None);
        assert_eq!(subject_of(&[(DnType::CommonName, utf8(&"x".repeat(3000)))]), None);
    }

    #[test]
    fn the_fingerprint_is_that_of_the_whole_certificate() {
        let certificate = CertificateDer::from(b"abc".to_vec());
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let described = describe(&certificate);
        assert_eq!((described.fingerprint.as_str(), described.subject), (expected, None));
    }

    proptest! {
        #[test]
        fn bytes_that_are_changed_anywhere_do_no_harm(at in 0_usize..400, to in any::<u8>()) {
            let mut bytes = certificate(&[(DnType::CommonName, utf8("Zoe"))]).to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Some(subject) = subject(&bytes) {
                prop_assert!(subject.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }
    }
}
