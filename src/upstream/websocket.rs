//! The key with which a WebSocket begins over HTTP/1.1, and its answer. Over HTTP/2 there is neither
//! (RFC 8441, section 5): who stands between the two makes up what the other side needs.

use http::HeaderValue;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use ring::rand::{SecureRandom, SystemRandom};

/// RFC 6455, section 4.1: 16 bytes that nobody has foreseen.
pub fn key() -> HeaderValue {
    let mut bytes = [0; 16];
    // It is no secret: a key of zeros does as well.
    let _ = SystemRandom::new().fill(&mut bytes);
    let key = base64_simd::STANDARD.encode_to_string(bytes);
    HeaderValue::try_from(key).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What who understands WebSockets makes of a key (RFC 6455, section 4.2.2); nothing if it is none.
pub fn accepted(key: &HeaderValue) -> Option<HeaderValue> {
    let bytes = base64_simd::STANDARD.decode_to_vec(key.as_bytes()).ok()?;
    if bytes.len() != 16 {
        return None;
    }
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64_simd::STANDARD.encode_to_string(hash.finish()).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_key_is_accepted_as_the_standard_says() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(super::key(), super::key());
        assert!(accepted(&super::key()).is_some());
    }

    #[test]
    fn what_is_not_16_bytes_of_base64_is_no_key() {
        for text in
            ["", "k", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZQ==", "dGhl!HNhbXBsZSBub25jZQ=="]
        {
            assert_eq!(accepted(&HeaderValue::from_static(text)), None, "{text}");
        }
    }
}
