//! What the admin listener answers: is the process alive, can it log people in, and the numbers. It
//! is never reached over the public listeners.

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use super::metrics::Metrics;
use crate::body::Body;

/// What requests need beside the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// The provider has been reached since the start.
    pub provider: bool,
    /// The store of sessions was reached a moment ago.
    pub sessions: bool,
}

/// Answers an operator's request.
pub fn answer(request: &Parts, ready: Readiness, metrics: &Arc<Metrics>) -> Response<Body> {
    let json = "application/json";
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut refused =
            reply(StatusCode::METHOD_NOT_ALLOWED, json, r#"{"error":"method_not_allowed"}"#);
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri.path() {
        "/healthz" => reply(StatusCode::OK, json, r#"{"status":"ok"}"#),
        "/readyz" => readiness(ready),
        "/metrics" => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.encode(),
        ),
        _ => reply(StatusCode::NOT_FOUND, json, r#"{"error":"not_found"}"#),
    }
}

fn readiness(ready: Readiness) -> Response<Body> {
    let Readiness { provider, sessions } = ready;
    let word = |good, word: &'static str| if good { "ok" } else { word };
    let all = provider && sessions;
    let body = serde_json::json!({
        "status": word(all, "not_ready"),
        "provider": word(provider, "not reached since the gateway started"),
        "sessions": word(sessions, "Redis cannot be reached"),
    });
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(status, "application/json", body.to_string())
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
