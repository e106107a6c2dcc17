//! Sealing: bytes into text that fits a cookie, which nobody else can read, make or change.
//! It knows nothing of what is sealed.
//!
//! The construction is XAES-256-GCM (C2SP, <https://c2sp.org/XAES-256-GCM>): a random nonce of 192
//! bits picks a key per message, so that random nonces stay safe at any volume. The text is
//! base64url without padding of `format (1) ‖ nonce (24) ‖ ciphertext ‖ tag (16)`. The associated
//! data names format, purpose and cookie, so that nothing opens in another's place.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{Array, BlockCipherEncrypt};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use base64_simd::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::config::value::Secret;

/// The version of the sealed text's layout and of what is in it.
const FORMAT: u8 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;
const HEAD: usize = 1 + NONCE;

/// What a sealed text is for; bound into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session.
    Session,
    /// A login under way.
    Attempt,
    /// What the cookie says when Redis has the session.
    Ticket,
    /// A session in Redis.
    Record,
    /// The last use of a session in Redis.
    Use,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Session => b"session",
            Self::Attempt => b"attempt",
            Self::Ticket => b"ticket",
            Self::Record => b"record",
            Self::Use => b"use",
        }
    }
}

/// Nothing could be sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
    /// More than AES-GCM can encrypt at once (64 GiB).
    #[error("too long to be encrypted")]
    TooLong,
}

/// Seals with the first secret, opens with any.
pub struct Sealer {
    keys: Vec<Key>,
    random: SystemRandom,
}

impl Sealer {
    /// A sealer for these secrets; one that is given none opens nothing and seals with a key that
    /// is lost with it.
    pub fn new(secrets: &[Secret]) -> Self {
        let keys = secrets.iter().map(|secret| Key::derived(secret.expose())).collect();
        Self { keys, random: SystemRandom::new() }
    }

    /// A sealer for a key that was drawn at random, for one session alone.
    pub(super) fn of_key(key: &[u8; 32]) -> Self {
        Self { keys: vec![Key::new(key)], random: SystemRandom::new() }
    }

    /// Text that [`Sealer::open`] takes back for the same purpose and cookie name only.
    ///
    /// # Errors
    /// When there is no randomness, or the plaintext is absurdly long.
    pub fn seal(
        &self,
        purpose: Purpose,
        name: &str,
        plaintext: &[u8],
    ) -> Result<String, SealError> {
        let key = self.keys.first().ok_or(SealError::Random)?;
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = Vec::with_capacity(HEAD + plaintext.len() + TAG);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let body = sealed.get_mut(HEAD..).ok_or(SealError::TooLong)?;
        let tag = key.encrypt(&nonce, &context(purpose, name), body).ok_or(SealError::TooLong)?;
        sealed.extend_from_slice(&tag);
        Ok(URL_SAFE_NO_PAD.encode_to_string(&sealed))
    }

    /// What was sealed for this purpose and name with one of the secrets, or nothing. Why it did
    /// not open is not said: a flipped byte, another's cookie and an old secret look alike.
    pub fn open(&self, purpose: Purpose, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        self.open_with(purpose, name, sealed).map(|(plaintext, _)| plaintext)
    }

    /// The same, and which of the secrets it was sealed with; 0 is the one that seals now.
    pub(super) fn open_with(
        &self,
        purpose: Purpose,
        name: &str,
        sealed: &[u8],
    ) -> Option<(Vec<u8>, usize)> {
        let bytes = URL_SAFE_NO_PAD.decode_to_vec(sealed).ok()?;
        let (head, body) = bytes.split_first_chunk::<HEAD>()?;
        let (&format, nonce) = head.split_first()?;
        let nonce: &[u8; NONCE] = nonce.try_into().ok()?;
        let (ciphertext, tag) = body.split_last_chunk::<TAG>()?;
        if format != FORMAT {
            return None;
        }
        let context = context(purpose, name);
        self.keys.iter().enumerate().find_map(|(secret, key)| {
            let mut plaintext = ciphertext.to_vec();
            key.decrypt(nonce, &context, &mut plaintext, tag)?;
            Some((plaintext, secret))
        })
    }
}

/// The associated data: no two (format, purpose, name) give the same bytes, for no label and no
/// cookie name holds a NUL.
fn context(purpose: Purpose, name: &str) -> Vec<u8> {
    [b"vestibule\0", &[FORMAT][..], purpose.label(), b"\0", name.as_bytes()].concat()
}

/// One 256-bit key of XAES-256-GCM, with what can be computed before a nonce is known.
struct Key {
    cipher: Aes256,
    /// K1: the subkey of CMAC (NIST SP 800-38B) for a whole last block.
    subkey: [u8; 16],
}

impl Key {
    /// The key that a configured secret stands for: HMAC-SHA-256 of a label under it, so that a
    /// secret of any form and length gives 256 bits that are used for this alone.
    fn derived(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&secret, b"vestibule cookie sealing key, format 1");
        let mut key = [0; 32];
        key.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Self::new(&key)
    }

    fn new(key: &[u8; 32]) -> Self {
        let cipher = Aes256::new(&Array::from(*key));
        let mut block = Array::from([0; 16]);
        cipher.encrypt_block(&mut block);
        let doubled = u128::from_be_bytes(block.into());
        let carry = if doubled >> 127 == 1 { 0x87 } else { 0 };
        Self { cipher, subkey: ((doubled << 1) ^ carry).to_be_bytes() }
    }

    /// The key for one message: two blocks of the KDF of NIST SP 800-108 in counter mode with
    /// CMAC, label `X`, context the first half of the nonce.
    fn message_cipher(&self, nonce: &[u8; NONCE]) -> (Aes256Gcm, [u8; 12]) {
        let (context, rest) = nonce.split_at(12);
        let mut key = [0; 32];
        for (half, counter) in key.chunks_exact_mut(16).zip(1..) {
            let mut block = [0, counter, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            block.iter_mut().skip(4).zip(context).for_each(|(to, from)| *to = *from);
            block.iter_mut().zip(self.subkey).for_each(|(to, from)| *to ^= from);
            let mut block = Array::from(block);
            self.cipher.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        let mut short = [0; 12];
        short.copy_from_slice(rest);
        (Aes256Gcm::new(&Array::from(key)), short)
    }

    fn encrypt(&self, nonce: &[u8; NONCE], context: &[u8], body: &mut [u8]) -> Option<[u8; TAG]> {
        let (cipher, nonce) = self.message_cipher(nonce);
        let tag = cipher.encrypt_inout_detached(&Nonce::from(nonce), context, body.into()).ok()?;
        Some(tag.into())
    }

    fn decrypt(
        &self,
        nonce: &[u8; NONCE],
        context: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG],
    ) -> Option<()> {
        let (cipher, nonce) = self.message_cipher(nonce);
        let (nonce, tag) = (Nonce::from(nonce), Tag::from(*tag));
        cipher.decrypt_inout_detached(&nonce, context, body.into(), &tag).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn sealer(secrets: &[&str]) -> Sealer {
        Sealer::new(&secrets.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The published vectors of the specification, one for each branch of the doubling.
    #[test]
    fn the_vectors_of_xaes_256_gcm_hold() {
        let vectors = [
            (1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (
                3,
                "c2sp.org/XAES-256-GCM",
                "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
            ),
        ];
        for (byte, context, expected) in vectors {
            let mut body = *b"XAES-256-GCM";
            let tag = Key::new(&[byte; 32])
                .encrypt(b"ABCDEFGHIJKLMNOPQRSTUVWX", context.as_bytes(), &mut body)
                .unwrap();
            assert_eq!(hex(&[&body[..], &tag[..]].concat()), expected);
        }
    }

    #[test]
    fn an_older_secret_still_opens_and_a_foreign_one_does_not() {
        let old = sealer(&["old"]).seal(Purpose::Session, "n", b"text").unwrap();
        let open = |secrets| sealer(secrets).open(Purpose::Session, "n", old.as_bytes());
        assert_eq!(open(&["new", "old"]).as_deref(), Some(&b"text"[..]));
        assert_eq!(open(&["new"]), None);
    }

    /// CVE-2021-32791: static nonce.
    #[test]
    fn of_ten_thousand_texts_no_two_share_a_nonce() {
        let sealer = sealer(&["secret"]);
        let nonces: HashSet<_> = (0..10_000)
            .map(|_| {
                let sealed = sealer.seal(Purpose::Session, "n", b"same").unwrap();
                URL_SAFE_NO_PAD.decode_to_vec(sealed).unwrap()[1..HEAD].to_vec()
            })
            .collect();
        assert_eq!(nonces.len(), 10_000);
    }

    #[test]
    fn another_name_or_purpose_does_not_open() {
        let sealer = sealer(&["secret"]);
        let sealed = sealer.seal(Purpose::Session, "name", b"text").unwrap();
        assert!(sealer.open(Purpose::Session, "name", sealed.as_bytes()).is_some());
        assert!(sealer.open(Purpose::Session, "names", sealed.as_bytes()).is_none());
        assert!(sealer.open(Purpose::Attempt, "name", sealed.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_as_it_was(plaintext: Vec<u8>) {
            let sealer = sealer(&["secret"]);
            let sealed = sealer.seal(Purpose::Session, "n", &plaintext).unwrap();
            prop_assert!(sealed.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            prop_assert_eq!(sealer.open(Purpose::Session, "n", sealed.as_bytes()), Some(plaintext));
        }

        #[test]
        fn any_flipped_bit_fails(plaintext: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let sealer = sealer(&["secret"]);
            let sealed = sealer.seal(Purpose::Session, "n", &plaintext).unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode_to_vec(&sealed).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let changed = URL_SAFE_NO_PAD.encode_to_string(&bytes);
            prop_assert_eq!(sealer.open(Purpose::Session, "n", changed.as_bytes()), None);
        }

        #[test]
        fn no_bytes_of_a_stranger_open(bytes: Vec<u8>) {
            prop_assert_eq!(sealer(&["secret"]).open(Purpose::Session, "n", &bytes), None);
        }
    }
}
