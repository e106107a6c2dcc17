//! What a browser or a program sees of a failure: a short page or a small JSON object, by what it
//! accepts. It shows the public sentence and the request's id, never a cause and never input.

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Map, Value};

use crate::body::Body;
use crate::error::Failure;

/// The failure's page.
pub fn render(
    failure: &Failure,
    accept: Option<&HeaderValue>,
    method: &Method,
    request_id: &str,
) -> Response<Body> {
    let html = failure.login_url.is_none() && prefers_html(accept);
    let text = if html { page(failure, request_id) } else { json(failure, request_id) };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = failure.status;
    let fields = response.headers_mut();
    let kind = if html { "text/html; charset=utf-8" } else { "application/json" };
    let mut set = |name, value| drop(fields.insert(name, HeaderValue::from_static(value)));
    set(CONTENT_TYPE, kind);
    set(CACHE_CONTROL, "no-store");
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    // SECURITY: nothing on this page loads, runs or is framed.
    set(
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    );
    if failure.status == StatusCode::METHOD_NOT_ALLOWED {
        set(ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    }
    // RFC 9110, section 15.5.14: nobody waits for what is left of such a request.
    if matches!(failure.status.as_u16(), 408 | 413 | 501) {
        set(CONNECTION, "close");
    }
    if let Some(wait) = failure.retry_after {
        fields.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    if method == Method::HEAD {
        *response.body_mut() = Body::Empty;
    }
    response
}

/// The failure as a client of gRPC reads it: a status in a head that is the whole response
/// ("Trailers-Only" of gRPC over HTTP/2), never a page.
pub fn render_grpc(failure: &Failure) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert("grpc-status", grpc_status(failure.status).into());
    if let Ok(message) = HeaderValue::try_from(percent_encoded(failure.sentence)) {
        fields.insert("grpc-message", message);
    }
    response
}

/// What gRPC calls a status (its "HTTP to gRPC Status Code Mapping", and its status codes for what
/// is not on that list).
fn grpc_status(status: StatusCode) -> u16 {
    match status {
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => 8,
        status if status.is_client_error() => 13,
        _ => 2,
    }
}

/// As `grpc-message` wants it: printable ASCII as it is, but for `%`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded += &format!("%{byte:02X}"),
        }
        encoded
    })
}

/// Whether HTML suits the client better than JSON (RFC 9110, section 12.5.1). Who names neither,
/// as `curl` with its `*/*`, is a program.
pub fn prefers_html(accept: Option<&HeaderValue>) -> bool {
    let Some(accept) = accept.and_then(|accept| accept.to_str().ok()) else { return false };
    let mut html = None;
    let mut json = None;
    for range in accept.split(',').take(32) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(Some(1.0), |weight| weight.parse::<f32>().ok())
            .unwrap_or_default();
        let slot = if kind.eq_ignore_ascii_case("text/html") {
            &mut html
        } else if kind.eq_ignore_ascii_case("application/json") {
            &mut json
        } else {
            continue;
        };
        *slot = Some(weight);
    }
    html.is_some_and(|html| html > 0.0 && html >= json.unwrap_or_default())
}

fn json(failure: &Failure, request_id: &str) -> String {
    let mut object = Map::new();
    object.insert("error".to_owned(), failure.code.into());
    if let Some(login_url) = &failure.login_url {
        // Programs look for exactly these two.
        object.insert("login_url".to_owned(), login_url.as_str().into());
    } else {
        object.insert("message".to_owned(), failure.sentence.into());
        object.insert("request_id".to_owned(), request_id.into());
    }
    Value::Object(object).to_string()
}

fn page(failure: &Failure, request_id: &str) -> String {
    let title = failure.status.canonical_reason().unwrap_or("Error");
    let (sentence, status) = (failure.sentence, failure.status.as_u16());
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>:root{{color-scheme:light dark}}body{{font:17px/1.5 system-ui,sans-serif;\
         max-width:32em;margin:18vh auto;padding:0 1.5em}}small{{opacity:.6}}</style>\n\
         <h1>{title}</h1>\n<p>{sentence}</p>\n<p><small>{status} · request {request_id}</small></p>\n\
         </html>\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(response: Response<Body>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn accept(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn a_browser_gets_html_and_a_program_json() {
        for (accept_text, html) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("text/html", true),
            ("TEXT/HTML;q=0.5, application/json;q=0.4", true),
            ("text/html;q=0.4, application/json", false),
            ("text/html;q=0", false),
            ("text/html;q=x", false),
            ("application/json", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(prefers_html(Some(&accept(accept_text))), html, "{accept_text}");
        }
        assert!(!prefers_html(None));
    }

    #[tokio::test]
    async fn the_cause_is_not_shown() {
        let failure = Failure::new(StatusCode::BAD_GATEWAY, "app_unreachable", "It is down.")
            .because("10.0.0.7 refused")
            .retry_after(std::time::Duration::from_secs(5));
        for kind in ["text/html", "application/json"] {
            let page = render(&failure, Some(&accept(kind)), &Method::GET, "abc123");
            assert_eq!(page.status(), StatusCode::BAD_GATEWAY);
            assert_eq!(page.headers()[RETRY_AFTER], "5");
            assert_eq!(page.headers()[CACHE_CONTROL], "no-store");
            let text = text(page).await;
            assert!(text.contains("It is down.") && text.contains("abc123"), "{text}");
            assert!(!text.contains("10.0.0.7"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_program_that_must_log_in_is_told_where_even_if_it_takes_html() {
        let mut failure = Failure::new(StatusCode::UNAUTHORIZED, "login_required", "Sign in.");
        failure.login_url = Some("/auth/login".to_owned());
        let page = render(&failure, Some(&accept("text/html")), &Method::GET, "id");
        let text = text(page).await;
        assert_eq!(text, r#"{"error":"login_required","login_url":"/auth/login"}"#);
    }

    #[test]
    fn a_client_of_grpc_gets_a_status_of_its_own() {
        for (status, grpc) in [
            (401, "16"),
            (403, "7"),
            (404, "12"),
            (502, "14"),
            (503, "14"),
            (504, "4"),
            (429, "8"),
            (421, "13"),
            (500, "2"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = Failure::new(status, "code", "It is down: 100% é.").because("10.0.0.7");
            let response = render_grpc(&failure);
            assert_eq!(response.status(), 200);
            assert!(http_body::Body::is_end_stream(response.body()));
            assert_eq!(response.headers()["grpc-status"], grpc);
            assert_eq!(response.headers()["grpc-message"], "It is down: 100%25 %C3%A9.");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
        }
    }

    #[tokio::test]
    async fn a_head_request_gets_no_body() {
        let failure = Failure::new(StatusCode::NOT_FOUND, "not_found", "Nothing.");
        let page = render(&failure, None, &Method::HEAD, "id");
        assert_eq!(text(page).await, "");
    }
}
