//! Secrets: from the environment, from a file, or written out. They leave here as [`Secret`] and
//! are shown nowhere; what they are for is not known here.

use std::io::Read;

use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::parse::Wrong;
use super::table::{Item, file_path};
use super::value::Secret;

/// RFC 5869, section 3.1 and the strength of AES-256: as many bytes as the keys made from it.
const SHORTEST_SESSION_SECRET: usize = 32;
/// A file of this size is no secret.
const LARGEST: u64 = 64 * 1024;

/// `"…"`, `{ env = "NAME" }` or `{ file = "path" }`; not empty.
pub(super) fn secret(item: &Item<'_>) -> Option<Secret> {
    let bytes = if item.is_text() { literal(item)? } else { referred(item)? };
    if bytes.is_empty() {
        return item.wrong(Wrong::new("is empty", "put the secret where this looks for it"));
    }
    Some(Secret::new(bytes))
}

/// A client's secret: printable text (RFC 6749, appendix A.2).
pub(super) fn client_secret(item: &Item<'_>) -> Option<Secret> {
    let secret = secret(item)?;
    let text = std::str::from_utf8(secret.expose());
    if !text.is_ok_and(|text| !text.contains(char::is_control)) {
        return item.wrong(Wrong::new(
            "is a secret that is not printable text",
            "put nothing but the secret, on one line, where this looks for it",
        ));
    }
    Some(secret)
}

/// A secret that sessions are sealed with.
pub(super) fn session_secret(item: &Item<'_>) -> Option<Secret> {
    let secret = secret(item)?;
    if secret.expose().len() < SHORTEST_SESSION_SECRET {
        return item.wrong(Wrong::new(
            "is a secret of fewer than 32 bytes",
            "make one with: vestibule keygen",
        ));
    }
    Some(secret)
}

/// A private key for RS256 or ES256 (RFC 7518, section 3.1), as PEM in PKCS#8 (RFC 5958).
pub(super) fn private_key(item: &Item<'_>) -> Option<Secret> {
    let secret = secret(item)?;
    let usable = match PrivateKeyDer::from_pem_slice(secret.expose()) {
        Ok(key @ PrivateKeyDer::Pkcs8(_)) => rustls::crypto::ring::sign::any_supported_type(&key)
            .is_ok_and(|key| {
                let offered =
                    [SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256];
                key.choose_scheme(&offered).is_some()
            }),
        _ => false,
    };
    if !usable {
        return item.wrong(Wrong::new(
            "is no private key that can sign with RS256 or ES256",
            "make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        ));
    }
    Some(secret)
}

fn literal(item: &Item<'_>) -> Option<Vec<u8>> {
    item.mask();
    item.warn(Wrong::new(
        "is written out: whoever can read this file has the secret",
        r#"write { env = "NAME" } or { file = "path" }"#,
    ));
    item.text().map(|text| text.as_bytes().to_vec())
}

fn referred(item: &Item<'_>) -> Option<Vec<u8>> {
    if !item.is_table() {
        item.mask();
        return item.other_than(r#"{ env = "NAME" } or { file = "path" }"#);
    }
    item.table(|table| {
        let given = (table.has("env"), table.has("file"));
        let variable = table.optional("env", |i| text(i).and_then(|()| variable(i)));
        let file = table.optional("file", |i| text(i).and_then(|()| file(i)));
        match given {
            (true, false) => variable,
            (false, true) => file,
            _ => item.wrong(Wrong::new(
                "has to name either a variable or a file",
                r#"write { env = "NAME" } or { file = "path" }"#,
            )),
        }
    })
}

/// SECURITY: what is no name may be the secret itself.
fn text(item: &Item<'_>) -> Option<()> {
    if !item.is_text() {
        item.mask();
    }
    item.text().map(|_| ())
}

fn variable(item: &Item<'_>) -> Option<Vec<u8>> {
    let name = item.text()?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if name.is_empty() || !plain {
        // SECURITY: the secret itself may have been written in place of the name.
        item.mask();
        return item.wrong(Wrong::new(
            "is no name of a variable",
            "write letters, digits and underscores: VESTIBULE_SECRET",
        ));
    }
    let value = (item.reading().environment)(name);
    value.map(String::into_bytes).or_else(|| {
        item.wrong(Wrong::new(
            "is a variable that the environment does not have",
            format!("set it: export {name}=\"…\""),
        ))
    })
}

fn file(item: &Item<'_>) -> Option<Vec<u8>> {
    let path = file_path(item)?;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(&path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let message = format!("{} cannot be read: {error}", path.display());
        return item.wrong(Wrong::new(message, "name a file that the gateway may read"));
    }
    if bytes.len() as u64 > LARGEST {
        return item
            .wrong(Wrong::new("is a file of more than 64 KiB", "name the secret's own file"));
    }
    // Editors and `echo` put a newline after what they write.
    if bytes.pop_if(|last| *last == b'\n').is_some() {
        bytes.pop_if(|last| *last == b'\r');
    }
    Some(bytes)
}
