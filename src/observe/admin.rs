//! What the admin listener answers: is the process alive, can it log people in, and the numbers. It
//! is never reached over the public listeners.

use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use super::metrics::Metrics;
use crate::body::Body;

/// Answers an operator's request. `ready`: the provider has been discovered.
pub fn answer(request: &Parts, ready: bool, metrics: &std::sync::Arc<Metrics>) -> Response<Body> {
    let json = "application/json";
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut refused =
            reply(StatusCode::METHOD_NOT_ALLOWED, json, r#"{"error":"method_not_allowed"}"#);
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri.path() {
        "/healthz" => reply(StatusCode::OK, json, r#"{"status":"ok"}"#),
        "/readyz" if ready => reply(StatusCode::OK, json, r#"{"status":"ok"}"#),
        "/readyz" => reply(
            StatusCode::SERVICE_UNAVAILABLE,
            json,
            r#"{"status":"not_ready","provider":"not reached since the gateway started"}"#,
        ),
        "/metrics" => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.encode(),
        ),
        _ => reply(StatusCode::NOT_FOUND, json, r#"{"error":"not_found"}"#),
    }
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
