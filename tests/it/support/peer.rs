//! The app's end of a connection: reads a request to the letter, writes what it is given. It does
//! not know what is right to answer.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::Stream;

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Every byte of its head and body.
    pub(crate) raw: Vec<u8>,
    pub(crate) method: String,
    /// The request target as it was sent.
    pub(crate) target: String,
    /// Every field line in order, names as they were sent.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// Decoded, if it was chunked.
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
}

impl Seen {
    /// The one line of a field, as text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.all(name);
        assert!(lines.len() < 2, "several lines of {name}: {lines:?}");
        lines.pop()
    }

    /// All lines of a field, as text.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// Every value that a CGI program would find under `name`: of the fields and trailers whose
    /// names fold to the same variable.
    pub(crate) fn as_cgi(&self, name: &str) -> Vec<String> {
        let fold = |name: &str| -> String {
            let letter =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            name.chars().map(letter).collect()
        };
        let lines = self.headers.iter().chain(&self.trailers);
        let named = lines.filter(|(known, _)| fold(known) == fold(name));
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The session that the app is told of.
    pub(crate) fn session(&self) -> Option<serde_json::Value> {
        self.header("x-session").map(|text| serde_json::from_str(&text).unwrap())
    }

    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Whether these bytes came, anywhere.
    pub(crate) fn holds(&self, needle: &str) -> bool {
        memchr::memmem::find(&self.raw, needle.as_bytes()).is_some()
    }
}

/// The app's end of a connection.
pub(crate) struct Peer {
    stream: Box<dyn Stream>,
    ahead: Vec<u8>,
    log: Arc<Mutex<Vec<Seen>>>,
}

impl Peer {
    pub(crate) fn new(stream: Box<dyn Stream>, log: Arc<Mutex<Vec<Seen>>>) -> Self {
        Self { stream, ahead: Vec::new(), log }
    }

    /// The next request, whole; none when the gateway has closed. It is recorded.
    pub(crate) async fn request(&mut self) -> Option<Seen> {
        let mut seen = self.head().await?;
        self.body(&mut seen).await?;
        self.record(&seen);
        Some(seen)
    }

    /// Remembers a request for `App::seen`.
    pub(crate) fn record(&self, seen: &Seen) {
        self.log.lock().unwrap().push(seen.clone());
    }

    /// The head of the next request.
    pub(crate) async fn head(&mut self) -> Option<Seen> {
        let raw = self.take_until(b"\r\n\r\n").await?;
        let text = raw.strip_suffix(b"\r\n\r\n").unwrap();
        let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let first = String::from_utf8_lossy(lines.next().unwrap()).into_owned();
        let mut words = first.split(' ').map(str::to_owned);
        let method = words.next().unwrap_or_default();
        let target = words.next().unwrap_or_default();
        let headers = lines.map(field).collect();
        Some(Seen { raw, method, target, headers, ..Seen::default() })
    }

    /// The body that belongs to a head (RFC 9112, section 6.3).
    pub(crate) async fn body(&mut self, seen: &mut Seen) -> Option<()> {
        if seen.all("transfer-encoding").iter().any(|coding| coding.ends_with("chunked")) {
            return self.chunks(seen).await;
        }
        let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
        let body = self.take(length).await?;
        seen.raw.extend(&body);
        seen.body = body;
        Some(())
    }

    async fn chunks(&mut self, seen: &mut Seen) -> Option<()> {
        loop {
            let line = self.take_until(b"\r\n").await?;
            seen.raw.extend(&line);
            let size = String::from_utf8_lossy(&line);
            let size = size.trim().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            let mut chunk = self.take(size + 2).await?;
            seen.raw.extend(&chunk);
            chunk.truncate(size);
            seen.body.extend(chunk);
        }
        loop {
            let line = self.take_until(b"\r\n").await?;
            seen.raw.extend(&line);
            if line == b"\r\n" {
                return Some(());
            }
            seen.trailers.push(field(line.trim_ascii()));
        }
    }

    /// Sends bytes as they are.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Whatever comes next; nothing at the end.
    pub(crate) async fn some(&mut self) -> Vec<u8> {
        if !self.ahead.is_empty() {
            return std::mem::take(&mut self.ahead);
        }
        let mut buffer = vec![0; 64 * 1024];
        let length = self.stream.read(&mut buffer).await.unwrap_or(0);
        buffer.truncate(length);
        buffer
    }

    /// The stream itself, for another protocol; nothing may have been read ahead.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        assert!(self.ahead.is_empty());
        self.stream
    }

    async fn take_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead, end) {
                let rest = self.ahead.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.ahead, rest));
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < length {
            self.more().await?;
        }
        let rest = self.ahead.split_off(length);
        Some(std::mem::replace(&mut self.ahead, rest))
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = vec![0; 64 * 1024];
        let length = self.stream.read(&mut buffer).await.ok()?;
        self.ahead.extend(&buffer[..length]);
        (length > 0).then_some(())
    }
}

fn field(line: &[u8]) -> (String, Vec<u8>) {
    let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
    let value = line.get(colon + 1..).unwrap_or_default().trim_ascii().to_vec();
    (String::from_utf8_lossy(&line[..colon]).into_owned(), value)
}
