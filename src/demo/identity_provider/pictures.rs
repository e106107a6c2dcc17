//! `/pictures/NAME.svg`: a picture for whoever has none, drawn from the name: its initials on a
//! colour of its own. It knows no users.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use ring::digest::{SHA256, digest};

use crate::demo::web::{self, Reply};

/// Letters of a name.
const MAX_NAME: usize = 100;

/// Answers for what follows `/pictures/`.
pub(super) fn answer(file: &str) -> Reply {
    let Some(svg) = file.strip_suffix(".svg").and_then(draw) else {
        return web::text(StatusCode::NOT_FOUND, "There is no such picture.");
    };
    let mut reply = Response::new(Full::new(Bytes::from(svg)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=86400"));
    // SECURITY: an image that is opened as a page runs nothing.
    let policy = HeaderValue::from_static("default-src 'none'; sandbox");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    reply
}

/// `None` for what is no name of ours: lower-case letters, digits and dots.
fn draw(name: &str) -> Option<String> {
    // SECURITY: what is drawn is a letter or a digit, and so cannot be markup.
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
    if name.len() > MAX_NAME || !name.bytes().all(plain) {
        return None;
    }
    let words = name.split('.').filter_map(|word| word.chars().next());
    let initials: String = words.take(2).collect::<String>().to_ascii_uppercase();
    let hash = digest(&SHA256, name.as_bytes());
    let hue = hash.as_ref().iter().take(2).fold(0, |sum, byte| sum * 256 + u32::from(*byte)) % 360;
    let face = if initials.is_empty() {
        // Nothing of the name is ASCII: a head and shoulders.
        "<circle cx=\"48\" cy=\"38\" r=\"16\" fill=\"#fff\"/>\
         <path d=\"M16 88a32 28 0 0 1 64 0z\" fill=\"#fff\"/>"
            .to_owned()
    } else {
        format!(
            "<text x=\"48\" y=\"49\" fill=\"#fff\" font-family=\"system-ui, sans-serif\" \
             font-size=\"42\" font-weight=\"600\" text-anchor=\"middle\" \
             dominant-baseline=\"central\">{initials}</text>"
        )
    };
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 96 96\" width=\"96\" \
         height=\"96\"><rect width=\"96\" height=\"96\" fill=\"hsl({hue} 45% 42%)\"/>{face}</svg>\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_its_initials_and_always_the_same_picture() {
        assert!(draw("ada.l.ovelace").unwrap().contains(">AL</text>"));
        assert_eq!(draw("zoe"), draw("zoe"));
        assert_ne!(draw("zoe"), draw("zed"));
        assert!(draw("").unwrap().contains("<circle"));
    }

    #[test]
    fn markup_is_no_name() {
        for name in ["<script>", "a&b", "a\"", "Zoe", "../zoe", "a%3c", &"x".repeat(101)] {
            assert_eq!(draw(name), None, "{name}");
        }
        assert_eq!(answer("zoe.png").status(), StatusCode::NOT_FOUND);
    }
}
