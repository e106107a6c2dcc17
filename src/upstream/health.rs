//! Asks upstreams from time to time whether they are well, where the configuration says so: in one
//! place for all workers, over a connection of its own each time, so that it finds out what a new
//! user would.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request};

use super::connect::{Stream, connect};
use super::directory::{Directory, Known, Ways};
use super::http1::{Connection, Failed};
use super::http2;
use crate::body::Body;
use crate::config::upstream::HealthCheck;

/// Checks all upstreams of `directory` that have checks, as long as anybody else holds it.
pub(super) fn watch(directory: &Arc<Directory>) {
    for (upstream, known) in directory.known.iter().enumerate() {
        for check in 0..known.checks.len() {
            let directory = Arc::downgrade(directory);
            tokio::task::spawn_local(async move { look(directory, upstream, check).await });
        }
    }
}

async fn look(directory: Weak<Directory>, upstream: usize, check: usize) {
    let mut row = Row::default();
    while let Some(pause) = once(&directory, upstream, check, &mut row).await {
        tokio::time::sleep(pause).await;
    }
}

/// One check; says when the next is due.
async fn once(
    directory: &Weak<Directory>,
    upstream: usize,
    number: usize,
    row: &mut Row,
) -> Option<Duration> {
    let directory = directory.upgrade()?;
    let known = directory.known.get(upstream)?;
    let check = known.checks.get(number)?;
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut));
    let asked = tokio::time::timeout(check.timeout, ask(known, check)).await;
    let outcome = asked.unwrap_or_else(|_| late());
    known.condition.checked(number, row.verdict(outcome.is_ok(), check), outcome.err());
    Some(check.interval)
}

/// What the checks have found lately.
#[derive(Default)]
struct Row {
    /// Checks in a row with the last one's outcome.
    length: u32,
    passed: bool,
    /// What it came to.
    well: Option<bool>,
}

impl Row {
    /// Whether the upstream is well, now that one more check has passed or failed. The first check of
    /// all decides alone.
    fn verdict(&mut self, passed: bool, check: &HealthCheck) -> bool {
        self.length = if passed == self.passed { self.length.saturating_add(1) } else { 1 };
        self.passed = passed;
        let needed = if passed { check.up_after } else { check.down_after };
        if self.well.is_none() || self.length >= needed {
            self.well = Some(passed);
        }
        self.well.unwrap_or(true)
    }
}

async fn ask(known: &Known, check: &HealthCheck) -> io::Result<()> {
    let (url, request) = (&known.upstream.url, request(known, check)?);
    let status = match &known.ways {
        Ways::Http1(reach) => {
            ask_http1(connect(url, reach, check.timeout).await?, request, check.timeout).await?
        }
        Ways::Http2(reach) => {
            http2::ask(connect(url, reach, check.timeout).await?, url, request).await?
        }
        Ways::Either { http2: reach, .. } => {
            let stream = connect(url, reach, check.timeout).await?;
            if stream.protocol() == Some(b"h2") {
                http2::ask(stream, url, request).await?
            } else {
                ask_http1(stream, request, check.timeout).await?
            }
        }
    };
    if check.allows(status) {
        return Ok(());
    }
    Err(io::Error::other(format!("it answered with status {status}")))
}

fn request(known: &Known, check: &HealthCheck) -> io::Result<Request<Body>> {
    let host = check.host.clone().unwrap_or_else(|| known.upstream.url.authority());
    let host = HeaderValue::try_from(host).map_err(io::Error::other)?;
    let mut request = Request::new(Body::Empty);
    *request.uri_mut() = check.path.clone().into();
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("vestibule-health-check"));
    Ok(request)
}

/// As a user would over a new connection: what breaks a user's exchange fails a check.
async fn ask_http1(stream: Stream, mut request: Request<Body>, limit: Duration) -> io::Result<u16> {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let mut connection = Connection::new(stream, Arc::default());
    let asked = connection.exchange(&mut request, limit, &|_, _| {}).await;
    let (head, _) = asked.map_err(|Failed { error, .. }| io::Error::other(error))?;
    Ok(head.status.as_u16())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[test]
    fn it_takes_several_checks_in_a_row_to_change_ones_mind_but_one_to_make_it_up() {
        let check = HealthCheck {
            path: "/".parse().unwrap(),
            host: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            status: None,
            down_after: 3,
            up_after: 2,
        };
        let mut row = Row::default();
        for (passed, well) in [
            (true, true),
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ] {
            assert_eq!(row.verdict(passed, &check), well);
        }
        assert!(!Row::default().verdict(false, &check));
    }

    #[tokio::test]
    async fn what_would_break_a_users_exchange_fails_a_check() {
        tokio::task::LocalSet::new()
            .run_until(async {
                for (answer, status) in [
                    ("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 Gone\r\n\r\n", Some(204)),
                    ("HTTP/1.1 503 Busy\r\ncontent-length: 9\r\n\r\n", Some(503)),
                    ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", None),
                    (
                        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
                        None,
                    ),
                    ("HTTP/1.1 200 OK\r\nbroken\r\n\r\n", None),
                    ("HTTP/1.1 200 O", None),
                    ("", None),
                ] {
                    let (here, mut there) = UnixStream::pair().unwrap();
                    let mut request = Request::new(Body::Empty);
                    request.headers_mut().insert(HOST, HeaderValue::from_static("a"));
                    let asking = ask_http1(Stream::Unix(here), request, Duration::from_secs(5));
                    let serving = async {
                        let mut head = vec![0; 1000];
                        let length = there.read(&mut head).await.unwrap();
                        there.write_all(answer.as_bytes()).await.unwrap();
                        there.shutdown().await.unwrap();
                        String::from_utf8(head[..length].to_vec()).unwrap()
                    };
                    let (asked, head) = tokio::join!(asking, serving);
                    assert_eq!(asked.ok(), status, "{answer}");
                    assert_eq!(head, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                }
            })
            .await;
    }
}
