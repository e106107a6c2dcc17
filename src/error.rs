//! Which failure goes where. Modules have error types of their own; one that ends a request
//! becomes a [`Failure`]: the sentence that anyone may read, and the cause that only the log gets.
//!
//! | what | becomes |
//! |---|---|
//! | a request that breaks a rule (path, host, method) | 400, 421, 405: [`Failure::new`] |
//! | a user who may not | 401 or 403, by `access` |
//! | the provider is down or refuses | 503, 502 or 400, by `login` |
//! | an upstream is down, breaks off, is late | 502, 502, 504, by `forward` |
//!
//! `gateway` logs a failure once and `page` renders it; nobody else does either.

use std::error::Error;
use std::time::Duration;

use http::StatusCode;

/// Why a request ends with a page of the gateway's own.
#[derive(Debug)]
pub struct Failure {
    /// The status of the page.
    pub status: StatusCode,
    /// A stable word for programs: the `error` member of the JSON form (`login_required`).
    pub code: &'static str,
    /// What anyone may read: what happened and what to do. No secrets, no input echoed.
    pub sentence: &'static str,
    /// What only the log gets.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
    /// Sent as `Retry-After` (RFC 9110, section 10.2.3).
    pub retry_after: Option<Duration>,
    /// Where to log in, for a 401 that a program reads: a path on our own origin.
    pub login_url: Option<String>,
}

impl Failure {
    /// A failure without a private cause.
    pub fn new(status: StatusCode, code: &'static str, sentence: &'static str) -> Self {
        Self { status, code, sentence, cause: None, retry_after: None, login_url: None }
    }

    /// The same failure with what the log should say.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The same failure with a time after which trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}
