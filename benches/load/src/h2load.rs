//! HTTP/2, by nghttp2's load generator: its command line and what it prints.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::Target;
use crate::process::Process;
use crate::report::Sample;

/// Connections, and requests under way on each.
const CLIENTS: &str = "-c32";
const STREAMS: &str = "-m10";

/// Asks for `path` for `time`. The handshakes of the connections are in the proxy's time: less
/// than a hundredth of it, for all alike.
pub(crate) fn run(
    target: &Target,
    path: &str,
    cookie: Option<&str>,
    time: Duration,
    proxy: &Process,
) -> Result<Sample> {
    let mut command = Command::new("h2load");
    command.args([CLIENTS, STREAMS, "-t1", &format!("--duration={}ms", time.as_millis())]);
    command.arg(format!("--connect-to={}", target.address));
    if let Some(cookie) = cookie {
        command.args(["-H", &format!("cookie: {cookie}")]);
    }
    command.arg(format!("https://{}{path}", target.authority()));
    let cpu = proxy.cpu_time()?;
    let begin = Instant::now();
    let output = command.output().context("h2load cannot be run (Debian: nghttp2-client)")?;
    let wall = begin.elapsed();
    let cpu = proxy.cpu_time()?.saturating_sub(cpu);
    let text = String::from_utf8_lossy(&output.stdout);
    let count = succeeded(&text).with_context(|| format!("h2load did not measure:\n{text}"))?;
    ensure!(text.contains("Application protocol: h2\n"), "h2load did not speak HTTP/2:\n{text}");
    Ok(Sample { count, wall, cpu, redis: None, latency: None })
}

/// The requests that were answered with 2xx, if no other was answered.
fn succeeded(text: &str) -> Option<usize> {
    let line = |label| text.lines().find_map(|line| line.strip_prefix(label));
    let mut codes = line("status codes: ")?.split(", ");
    let count = codes.next()?.strip_suffix(" 2xx")?.parse().ok()?;
    let others_none = codes.all(|code| code.starts_with("0 "));
    let failed_none = line("requests: ")?.contains(" 0 failed, 0 errored, 0 timeout");
    (count > 0 && others_none && failed_none).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "requests: 30 total, 32 started, 30 done, 30 succeeded, 0 failed, \
        0 errored, 0 timeout\nstatus codes: 30 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn only_a_run_without_a_failure_counts() {
        assert_eq!(succeeded(SAID), Some(30));
        assert_eq!(succeeded(&SAID.replace("0 4xx", "1 4xx")), None);
        assert_eq!(succeeded(&SAID.replace("0 errored", "1 errored")), None);
        assert_eq!(succeeded("nothing"), None);
    }
}
