//! Connections that serve one request each: connect, full handshake, one answer, close. What a
//! proxy spends on a visitor's first request, most of it cryptography.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::client::{Connection, Target};
use crate::process::Process;
use crate::report::{Latency, Sample};

/// Opens connections from `threads` threads for `time`. They share one core; that they block
/// keeps a handshake's steps in order, at the price of a few switches.
pub(crate) fn run(
    target: &Target,
    request: &[u8],
    threads: usize,
    time: Duration,
    proxy: &Process,
) -> Result<Sample> {
    let cpu = proxy.cpu_time()?;
    let begin = Instant::now();
    let latencies = thread::scope(|scope| {
        let visitors: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| visit(target, request, begin + time))).collect();
        let mut latencies = Vec::new();
        for visitor in visitors {
            latencies.extend(visitor.join().map_err(|_| anyhow!("a visitor panicked"))??);
        }
        anyhow::Ok(latencies)
    })?;
    Ok(Sample {
        count: latencies.len(),
        wall: begin.elapsed(),
        cpu: proxy.cpu_time()?.saturating_sub(cpu),
        redis: None,
        latency: Latency::of(latencies),
    })
}

fn visit(target: &Target, request: &[u8], end: Instant) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok(latencies);
        }
        let mut connection = Connection::open(target)?;
        let answer = connection.exchange(request)?;
        ensure!(answer.status == 200, "an answer has the status {}", answer.status);
        connection.reset()?;
        latencies.push(begin.elapsed());
    }
}
