//! Very many connections at once: idle ones that have served a request, and WebSockets beside them
//! that have carried a message. What a proxy's memory grows by for each is read off its process. It
//! knows nothing of tables.

use std::fs;
use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};

use crate::client::{Connection, Target};
use crate::origin::{SOCKET_ACCEPT, SOCKET_KEY, SOCKET_PATH};
use crate::process::Process;

/// Opened before the first look: what a process brings up once is not theirs.
const FIRST: usize = 10;
/// The files that a proxy opens beside those of its connections, at most.
const OTHER_FILES: usize = 200;

/// What one connection costs, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    /// Resident memory.
    pub(crate) resident: f64,
    /// The same, what several processes share divided among them.
    pub(crate) proportional: f64,
}

/// What an idle connection costs a proxy, and what a WebSocket costs it that is open at the same
/// time.
pub(crate) fn run(
    target: &Target,
    request: &[u8],
    cookie: Option<&str>,
    proxy: &Process,
    (idle, sockets): (usize, usize),
) -> Result<[Growth; 2]> {
    enough_files(idle + 2 * sockets)?;
    let upgrade = upgrade(target, cookie);
    let first: Vec<_> = (0..FIRST)
        .flat_map(|_| [asked(target, request), upgraded(target, &upgrade)])
        .collect::<Result<_>>()?;
    let start = Memory::of(proxy)?;
    let mut held: Vec<_> = (0..idle).map(|_| asked(target, request)).collect::<Result<_>>()?;
    let with_idle = Memory::of(proxy)?;
    let open: Vec<_> = (0..sockets).map(|_| upgraded(target, &upgrade)).collect::<Result<_>>()?;
    let with_sockets = Memory::of(proxy)?;
    // None of them was given up meanwhile: the first is as good as the last.
    for at in [0, idle.saturating_sub(1)] {
        let connection = held.get_mut(at).context("no connection was opened")?;
        let answer = connection.exchange(request).context("an idle connection was closed")?;
        ensure!(answer.status == 200, "an idle connection is answered {}", answer.status);
    }
    for connection in first.into_iter().chain(held).chain(open) {
        connection.reset()?;
    }
    Ok([with_idle.since(&start, idle), with_sockets.since(&with_idle, sockets)])
}

struct Memory {
    resident: u64,
    proportional: u64,
}

impl Memory {
    fn of(process: &Process) -> Result<Self> {
        Ok(Self { resident: process.memory()?, proportional: process.proportional_memory()? })
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn since(&self, before: &Self, connections: usize) -> Growth {
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / connections as f64;
        Growth {
            resident: each(self.resident, before.resident),
            proportional: each(self.proportional, before.proportional),
        }
    }
}

/// Each proxy has as many files as this process may have, and needs one for each end.
fn enough_files(files: usize) -> Result<()> {
    let text = fs::read_to_string("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().next());
    let limit = limit.context("the kernel does not say how many files may be open")?;
    let enough =
        limit.parse::<usize>().map_or(limit == "unlimited", |limit| limit >= files + OTHER_FILES);
    let needed = files + OTHER_FILES;
    ensure!(
        enough,
        "may open only {limit} files, and the row `many` needs {needed}: ulimit -n {needed}"
    );
    Ok(())
}

fn asked(target: &Target, request: &[u8]) -> Result<Connection> {
    let mut connection = Connection::open(target)?;
    let answer = connection.exchange(request)?;
    ensure!(answer.status == 200, "an answer has the status {}", answer.status);
    Ok(connection)
}

/// RFC 6455, section 4.1.
fn upgrade(target: &Target, cookie: Option<&str>) -> Vec<u8> {
    let (host, key) = (target.authority(), SOCKET_KEY);
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
    format!(
        "GET {SOCKET_PATH} HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\n{cookie}\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    )
    .into_bytes()
}

/// A WebSocket over which a message went to the app and back.
fn upgraded(target: &Target, upgrade: &[u8]) -> Result<Connection> {
    let mut connection = Connection::open(target)?;
    let mut stream = rustls::Stream::new(&mut connection.tls, &mut connection.stream);
    stream.write_all(upgrade)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("a WebSocket's handshake breaks off")?;
        head.extend(byte);
        ensure!(head.len() < 16 * 1024, "a WebSocket's handshake does not end");
    }
    let head = String::from_utf8_lossy(&head);
    let switched = head.starts_with("HTTP/1.1 101 ") && head.contains(SOCKET_ACCEPT);
    ensure!(switched, "a WebSocket is refused: {head}");
    // RFC 6455, section 5.7: "Hello", masked; it comes back unmasked.
    stream.write_all(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")?;
    let mut echo = [0; 7];
    stream.read_exact(&mut echo).context("a WebSocket carries no message")?;
    ensure!(echo == *b"\x81\x05Hello", "a WebSocket carries another message: {echo:?}");
    Ok(connection)
}
