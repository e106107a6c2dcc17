//! Whether a call at the token or revocation endpoint comes from the client
//! (RFC 6749, section 2.3.1). It knows no grants.

use base64_simd::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Request};
use url::form_urlencoded;

use super::Options;
use super::grants::sha256_text;
use super::oauth_error::OAuthError;
use crate::demo::web::Parameters;

/// The form that the client sent, once it has proved itself by `client_secret_basic` or
/// `client_secret_post`.
pub(super) fn form(request: &Request<Bytes>, options: &Options) -> Result<Parameters, OAuthError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(OAuthError::invalid_request("Send application/x-www-form-urlencoded."));
    }
    let form = Parameters::parse(request.body())?;
    authenticate(request.headers(), &form, options)?;
    Ok(form)
}

fn authenticate(
    headers: &HeaderMap,
    form: &Parameters,
    options: &Options,
) -> Result<(), OAuthError> {
    let (id, secret) = match (headers.get(AUTHORIZATION), form.get("client_secret")) {
        // One method at a time.
        (Some(_), Some(_)) => {
            return Err(OAuthError::invalid_request("The client proves itself twice."));
        }
        (Some(header), None) => {
            let pair = header.to_str().ok().and_then(basic).ok_or(OAuthError::invalid_client())?;
            if form.get("client_id").is_some_and(|id| id != pair.0) {
                return Err(OAuthError::invalid_client());
            }
            pair
        }
        (None, Some(secret)) => {
            (form.get("client_id").unwrap_or_default().to_owned(), secret.to_owned())
        }
        (None, None) => return Err(OAuthError::invalid_client()),
    };
    if id == options.client_id && same(&secret, &options.client_secret) {
        Ok(())
    } else {
        Err(OAuthError::invalid_client())
    }
}

/// The id and the secret of `Basic …`; each was form-encoded before they were joined.
fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, credentials) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = BASE64.decode_to_vec(credentials.trim()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (id, secret) = pair.split_once(':')?;
    Some((decode(id)?, decode(secret)?))
}

fn decode(text: &str) -> Option<String> {
    let pair = format!("v={text}");
    let (_, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
    Some(value.into_owned())
}

/// SECURITY: what the time of comparing two digests tells is of no use to find the secret.
fn same(one: &str, other: &str) -> bool {
    sha256_text(one) == sha256_text(other)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SECRET: &str = "s3cret: with + % & ë";

    fn check(authorization: Option<&str>, form: &str) -> &'static str {
        let options = Options::new("http://127.0.0.1:9080/", "client:1", SECRET);
        let mut headers = HeaderMap::new();
        if let Some(text) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(text).unwrap());
        }
        let form = Parameters::parse(form.as_bytes()).unwrap();
        authenticate(&headers, &form, &options).err().map_or("ok", OAuthError::code)
    }

    fn encoded(text: &str) -> String {
        form_urlencoded::byte_serialize(text.as_bytes()).collect()
    }

    fn basic_header(id: &str, secret: &str) -> String {
        let pair = format!("{}:{}", encoded(id), encoded(secret));
        format!("Basic {}", BASE64.encode_to_string(pair))
    }

    #[test]
    fn the_client_proves_itself_by_header_or_by_form() {
        assert_eq!(check(Some(&basic_header("client:1", SECRET)), ""), "ok");
        assert_eq!(check(Some(&basic_header("client:1", SECRET)), "client_id=client:1"), "ok");
        let form = format!("client_id={}&client_secret={}", encoded("client:1"), encoded(SECRET));
        assert_eq!(check(None, &form), "ok");
    }

    #[test]
    fn anybody_else_is_refused() {
        for (id, secret) in [("client:1", "wrong"), ("client", SECRET), ("", ""), ("client:1", "")]
        {
            assert_eq!(check(Some(&basic_header(id, secret)), ""), "invalid_client");
            let form = format!("client_id={}&client_secret={}", encoded(id), encoded(secret));
            assert_eq!(check(None, &form), "invalid_client");
        }
        for header in ["", "Basic", "Basic !", "Basic YQ==", "Bearer abc", "Basic /w=="] {
            assert_eq!(check(Some(header), ""), "invalid_client", "{header}");
        }
        assert_eq!(check(None, "client_id=client:1"), "invalid_client");
        let header = basic_header("client:1", SECRET);
        assert_eq!(check(Some(&header), "client_id=other"), "invalid_client");
        assert_eq!(check(Some(&header), "client_secret=x"), "invalid_request");
    }
}
