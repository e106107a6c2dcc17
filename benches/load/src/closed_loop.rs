//! Many connections on one thread, each with one request under way: the next is sent when the
//! answer has arrived whole, with the session cookie that it brought, as a browser does. It owns the
//! loop and its latencies; what a proxy spends on it is read off the proxy's process at the first
//! request and after the last answer, so that handshakes are not in it.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConnection;

use crate::client::{Connection, Head, PATIENCE, Target};
use crate::process::Process;
use crate::report::{Latency, Sample};
use crate::session;

/// Bytes read from a socket at once: four TLS records.
const READ: usize = 64 * 1024;

/// Sends `requests`, dealt out in turn, over `connections` connections for `time`, and waits for the
/// last answers.
pub(crate) fn run(
    target: &Target,
    requests: &[Vec<u8>],
    connections: usize,
    time: Duration,
    proxy: &Process,
) -> Result<Sample> {
    let mut poll = Poll::new()?;
    let mut lanes = Vec::with_capacity(connections);
    for (at, request) in requests.iter().cycle().take(connections).enumerate() {
        lanes.push(Lane::open(target, request.clone(), &poll, at)?);
    }
    let cpu = proxy.cpu_time()?;
    let begin = Instant::now();
    for lane in &mut lanes {
        lane.send()?;
    }
    let latencies = answers(&mut poll, &mut lanes, begin + time)?;
    Ok(Sample {
        count: latencies.len(),
        wall: begin.elapsed(),
        cpu: proxy.cpu_time()?.saturating_sub(cpu),
        redis: None,
        latency: Latency::of(latencies),
    })
}

/// Runs until `end`, then until nothing is under way.
fn answers(poll: &mut Poll, lanes: &mut [Lane], end: Instant) -> Result<Vec<Duration>> {
    let mut events = Events::with_capacity(lanes.len().max(1));
    let mut buffer = vec![0; READ];
    let mut latencies = Vec::with_capacity(1 << 20);
    let mut under_way = lanes.len();
    while under_way > 0 {
        match poll.poll(&mut events, Some(PATIENCE)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        ensure!(!events.is_empty(), "{under_way} requests have had no answer for {PATIENCE:?}");
        for event in &events {
            let Token(at) = event.token();
            let Some(lane) = lanes.get_mut(at) else { continue };
            if lane.receive(&mut buffer)? {
                let now = Instant::now();
                latencies.push(now - lane.sent_at);
                if now < end {
                    lane.sent_at = now;
                    lane.send()?;
                } else {
                    under_way -= 1;
                }
            }
        }
    }
    Ok(latencies)
}

/// A connection and the answer it waits for.
struct Lane {
    stream: TcpStream,
    tls: ClientConnection,
    /// What it sends again and again.
    request: Vec<u8>,
    sent_at: Instant,
    /// The beginning of the answer, until its head is whole.
    head: Vec<u8>,
    /// Bytes of the body still to come, once the head was whole.
    missing: Option<usize>,
}

impl Lane {
    fn open(target: &Target, request: Vec<u8>, poll: &Poll, at: usize) -> Result<Self> {
        let Connection { stream, tls } = Connection::open(target)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
        let sent_at = Instant::now();
        Ok(Self { stream, tls, request, sent_at, head: Vec::new(), missing: None })
    }

    fn send(&mut self) -> Result<()> {
        self.tls.writer().write_all(&self.request)?;
        while self.tls.wants_write() {
            // A request is far smaller than a socket's buffer, which is empty.
            self.tls.write_tls(&mut self.stream).context("a request could not be sent")?;
        }
        Ok(())
    }

    /// Takes what has arrived; whether the answer is whole.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => bail!("the proxy closed a connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let mut records = buffer.get(..read).unwrap_or_default();
            while !records.is_empty() {
                self.tls.read_tls(&mut records)?;
                let state = self.tls.process_new_packets()?;
                self.take(state.plaintext_bytes_to_read())?;
            }
            if self.missing == Some(0) {
                self.missing = None;
                return Ok(true);
            }
            // Less than asked for: the socket is empty, and epoll tells when that changes.
            if read < buffer.len() {
                return Ok(false);
            }
        }
    }

    /// Takes `length` bytes of plaintext.
    fn take(&mut self, mut length: usize) -> Result<()> {
        while length > 0 {
            let mut reader = self.tls.reader();
            let chunk = std::io::BufRead::fill_buf(&mut reader)?;
            let taken = chunk.len();
            length = length.saturating_sub(taken);
            let body = match self.missing {
                Some(_) => taken,
                None if self.head.is_empty() => begin(chunk, &mut self.missing, &mut self.request)?,
                None => {
                    self.head.extend_from_slice(chunk);
                    begin(&self.head, &mut self.missing, &mut self.request)?
                }
            };
            match &mut self.missing {
                Some(missing) => {
                    self.head.clear();
                    ensure!(body <= *missing, "an answer is longer than its Content-Length");
                    *missing -= body;
                }
                None if self.head.is_empty() => self.head.extend_from_slice(chunk),
                None => {}
            }
            std::io::BufRead::consume(&mut reader, taken);
        }
        Ok(())
    }
}

/// Reads the head that `text` begins with, if it is whole; how many bytes of the body follow it. The
/// next request brings the session cookie that this answer set.
fn begin(text: &[u8], missing: &mut Option<usize>, request: &mut Vec<u8>) -> Result<usize> {
    let Some(head) = Head::parse(text)? else { return Ok(0) };
    ensure!(head.status == 200, "an answer has the status {}", head.status);
    if let Some(cookie) = head.cookie {
        session::renew(request, cookie);
    }
    *missing = Some(head.body);
    Ok(text.len() - head.length)
}
