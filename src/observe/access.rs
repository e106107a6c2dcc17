//! One line a request, on standard output. A request only formats it into its worker's buffer; a
//! thread of its own writes, so that a slow reader of the log never holds a request up. Lines that
//! it cannot keep up with are dropped and counted.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::metrics::WorkerMetrics;
use crate::config::LogFormat;
use crate::digits;

/// A buffer of this many bytes is handed over without waiting for the clock.
const FULL: usize = 32 * 1024;
/// Buffers that may wait for the writer.
const WAITING: usize = 64;
/// How long a line may stay in its buffer.
const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Bytes of a path that are written.
const LONGEST_PATH: usize = 1024;

/// What is written of a request. No query: it may hold codes and personal data.
pub struct AccessLine<'a> {
    /// The request's id.
    pub request_id: &'a str,
    /// The method.
    pub method: &'a str,
    /// The public origin's authority, or nothing if it had none.
    pub host: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// The status.
    pub status: u16,
    /// The user's `sub`, hashed.
    pub user: Option<&'a str>,
    /// Who asked.
    pub client: IpAddr,
    /// To the response's head.
    pub total: Duration,
    /// The app's part of it.
    pub upstream: Option<Duration>,
}

/// The writing thread.
pub struct Writer {
    lines: SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
}

/// One worker's buffer.
pub struct AccessLog {
    format: Cell<LogFormat>,
    lines: SyncSender<Vec<u8>>,
    buffer: RefCell<String>,
    stamp: RefCell<Stamp>,
    metrics: Rc<WorkerMetrics>,
}

/// The second of the last line, as it is written.
#[derive(Default)]
struct Stamp {
    second: u64,
    text: String,
}

impl Writer {
    /// Starts the thread; `None` if the machine has none left.
    pub fn start() -> Option<Self> {
        let (lines, waiting) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let thread = thread.spawn(move || write_all(&waiting)).ok()?;
        Some(Self { lines, thread })
    }

    /// A handle for a worker's thread to make its buffer with.
    pub fn sender(&self) -> LogSender {
        LogSender(self.lines.clone())
    }

    /// Waits until every buffer is written; call it when the workers are gone.
    pub fn finish(self) {
        drop(self.lines);
        // A panic of the thread was reported already.
        let _ = self.thread.join();
    }
}

/// Goes to a worker's thread.
#[derive(Clone)]
pub struct LogSender(SyncSender<Vec<u8>>);

impl LogSender {
    /// The worker's buffer.
    pub fn log(self, format: LogFormat, metrics: Rc<WorkerMetrics>) -> Rc<AccessLog> {
        Rc::new(AccessLog {
            format: Cell::new(format),
            lines: self.0,
            buffer: RefCell::default(),
            stamp: RefCell::default(),
            metrics,
        })
    }
}

fn write_all(waiting: &Receiver<Vec<u8>>) {
    let mut out = io::stdout();
    while let Ok(lines) = waiting.recv() {
        // Who closed the pipe wants no lines.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
    }
}

impl AccessLog {
    /// Hands the buffer over now and then; runs as long as the worker does.
    pub async fn flush_regularly(self: Rc<Self>) {
        loop {
            tokio::time::sleep(FLUSH_EVERY).await;
            self.flush();
        }
    }

    /// Lines look like this from now on.
    pub fn set_format(&self, format: LogFormat) {
        self.format.set(format);
    }

    /// Adds a line.
    pub fn write(&self, line: &AccessLine<'_>) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.capacity() == 0 {
            // At once: growing to it would copy every line several times.
            buffer.reserve(FULL + LONGEST_PATH);
        }
        let mut stamp = self.stamp.borrow_mut();
        match self.format.get() {
            LogFormat::Text => text(&mut buffer, &mut stamp, line),
            LogFormat::Json => json(&mut buffer, &mut stamp, line),
        }
        if buffer.len() >= FULL {
            drop(buffer);
            self.flush();
        }
    }

    /// Hands the buffer to the writer.
    pub fn flush(&self) {
        let lines = self.buffer.take();
        if lines.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(lines) | TrySendError::Disconnected(lines)) =
            self.lines.try_send(lines.into_bytes())
        {
            lines.split_inclusive(|byte| *byte == b'\n').for_each(|_| self.metrics.dropped_line());
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

// Every request pays for its line: the pieces are put together by hand, for `write!` would take
// several times as long.
fn text(out: &mut String, stamp: &mut Stamp, line: &AccessLine<'_>) {
    stamp.write(out);
    out.push(' ');
    digits::address(out, line.client);
    push(out, &[" ", line.method, " "]);
    digits::number(out, line.status.into());
    push(out, &[" ", line.host]);
    escaped(out, line.path);
    push(out, &[" route=", line.route, " total="]);
    digits::number(out, micros(line.total));
    out.push_str("us");
    if let Some(upstream) = line.upstream {
        out.push_str(" upstream=");
        digits::number(out, micros(upstream));
        out.push_str("us");
    }
    if let Some(user) = line.user {
        push(out, &[" user=", user]);
    }
    push(out, &[" id=", line.request_id, "\n"]);
}

fn json(out: &mut String, stamp: &mut Stamp, line: &AccessLine<'_>) {
    out.push_str("{\"time\":\"");
    stamp.write(out);
    out.push_str("\",\"client\":\"");
    digits::address(out, line.client);
    out.push_str("\",\"method\":\"");
    escaped(out, line.method);
    out.push_str("\",\"status\":");
    digits::number(out, line.status.into());
    push(out, &[",\"host\":\"", line.host, "\",\"path\":\""]);
    escaped(out, line.path);
    out.push_str("\",\"route\":\"");
    escaped(out, line.route);
    out.push_str("\",\"total_us\":");
    digits::number(out, micros(line.total));
    if let Some(upstream) = line.upstream {
        out.push_str(",\"upstream_us\":");
        digits::number(out, micros(upstream));
    }
    if let Some(user) = line.user {
        push(out, &[",\"user\":\"", user, "\""]);
    }
    push(out, &[",\"request_id\":\"", line.request_id, "\"}\n"]);
}

fn push(out: &mut String, pieces: &[&str]) {
    for piece in pieces {
        out.push_str(piece);
    }
}

/// Whole microseconds.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// SECURITY: a path must not begin a new line or a new field (log injection); what is not plain is
/// written as `%` and two digits, which no JSON or terminal reads as anything else.
fn escaped(out: &mut String, text: &str) {
    for byte in text.bytes().take(LONGEST_PATH) {
        if matches!(byte, b'!' | b'#'..=b'[' | b']'..=b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

impl Stamp {
    /// Writes the time: RFC 3339, in UTC, with milliseconds.
    fn write(&mut self, out: &mut String) {
        #[expect(clippy::disallowed_methods, reason = "for people: nothing is decided by it")]
        let now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second || self.text.is_empty() {
            self.second = since.as_secs();
            self.text.clear();
            let (days, rest) = (self.second / 86_400, self.second % 86_400);
            let (year, month, day) = date(days);
            let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
            // Writing to a string does not fail.
            let _ = write!(
                self.text,
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}."
            );
        }
        out.push_str(&self.text);
        let millis = since.subsec_millis();
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            digits::number(out, digit.into());
        }
        out.push('Z');
    }
}

/// The date so many days after 1970-01-01, in the Gregorian calendar: years counted from March in
/// cycles of 400 years, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(path: &'a str, user: Option<&'a str>) -> AccessLine<'a> {
        AccessLine {
            request_id: "00ff",
            method: "GET",
            host: "app.example",
            path,
            route: "/",
            status: 200,
            user,
            client: "192.0.2.1".parse().unwrap(),
            total: Duration::from_micros(1500),
            upstream: Some(Duration::from_micros(1200)),
        }
    }

    #[test]
    fn a_line_holds_what_it_should() {
        let mut out = String::new();
        text(&mut out, &mut Stamp::default(), &line("/a", Some("u1")));
        let (_, rest) = out.split_once("Z ").unwrap();
        assert_eq!(
            rest,
            "192.0.2.1 GET 200 app.example/a route=/ total=1500us upstream=1200us user=u1 id=00ff\n"
        );
    }

    #[test]
    fn a_hostile_path_stays_in_its_line_and_field() {
        let hostile = "/a\"b\\c\nd\u{1b}[31m ë%0a";
        for format in [text, json] {
            let mut out = String::new();
            format(&mut out, &mut Stamp::default(), &line(hostile, None));
            assert_eq!(out.matches('\n').count(), 1);
            assert!(out.contains("/a%22b%5Cc%0Ad%1B[31m%20%C3%AB%0a"), "{out}");
        }
        let mut out = String::new();
        json(&mut out, &mut Stamp::default(), &line(hostile, Some("u")));
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["total_us"], 1500);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (10_956, (1999, 12, 31)),
            (11_016, (2000, 2, 29)),
            (20_781, (2026, 11, 24)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }
}
