//! The connections of `http2.txt`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::script::{Story, bytes, stories};
use super::{Behind, Request, requests};
use crate::support::{Gateway, PATIENCE, Protocol, Provider, Raw};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The stream of the request that shows whether the connection stays.
const NEXT: u32 = 1_000_001;

/// What comes of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// What each stream gets: a status, or `reset`.
    streams: BTreeMap<u32, String>,
    goaway: bool,
    /// None where any are good.
    seen: Option<Vec<Request>>,
}

impl Outcome {
    fn parse(text: &str) -> Self {
        let (words, seen) = text.split_once("; ").unwrap_or((text, ""));
        let any = words == "any" || seen == "any";
        let streams = words.split(' ').filter_map(|word| word.split_once(':'));
        Self {
            streams: streams.map(|(id, got)| (id.parse().unwrap(), got.to_owned())).collect(),
            goaway: words.contains("goaway"),
            seen: (!any).then(|| requests(seen)),
        }
    }
}

/// A frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as a literal without indexing (RFC 7541, section 6.2.2).
fn field(line: &str) -> Vec<u8> {
    let (name, value) = line.split_once(' ').unwrap_or_else(|| panic!("no field: {line}"));
    let name = if name == "\"\"" { Vec::new() } else { bytes(name) };
    [vec![0], text(&name), text(&bytes(value))].concat()
}

/// A string, with its length (RFC 7541, section 5.2).
fn text(bytes: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    match bytes.len().checked_sub(127) {
        None => encoded.push(u8::try_from(bytes.len()).unwrap()),
        Some(mut rest) => {
            encoded.push(127);
            while rest >= 128 {
                encoded.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            encoded.push(u8::try_from(rest).unwrap());
        }
    }
    encoded.extend(bytes);
    encoded
}

/// The fields of a usual request.
pub(crate) fn usual(method: &str, path: &str) -> Vec<u8> {
    [":method ".to_owned() + method, ":scheme https".to_owned(), ":path ".to_owned() + path]
        .iter()
        .chain([&":authority localhost".to_owned()])
        .flat_map(|line| field(line))
        .collect()
}

/// A frame in the making: what further lines add to its block.
#[derive(Default)]
struct Open {
    frame: Option<(u8, u8, u32, Vec<u8>)>,
    sent: Vec<u8>,
}

impl Open {
    fn begin(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        self.end();
        self.frame = Some((kind, flags, stream, payload));
    }

    fn end(&mut self) {
        if let Some((kind, flags, stream, payload)) = self.frame.take() {
            self.sent.extend(frame(kind, flags, stream, &payload));
        }
    }

    fn add(&mut self, bytes: Vec<u8>) {
        self.frame.as_mut().unwrap().3.extend(bytes);
    }

    /// One line.
    fn line(&mut self, line: &str) {
        if let Some(line) = line.strip_prefix("  ") {
            return self.add(field(line));
        }
        let mut words = line.split(' ');
        let command = words.next().unwrap();
        if command == "FIELD" {
            return self.add(field(line.split_once(' ').unwrap().1));
        }
        let number = |word: Option<&str>| word.unwrap().parse::<u32>().unwrap();
        let four = |word: Option<&str>| number(word).to_be_bytes();
        if command == "BYTES" {
            self.end();
            return self.sent.extend(bytes(line.split_once(' ').unwrap().1));
        }
        if command == "PING" {
            return self.begin(6, 0, 0, b"12345678".to_vec());
        }
        if command == "FRAME" {
            let [kind, flags, stream] = [0; 3].map(|_| number(words.next()));
            let payload = line.splitn(5, ' ').nth(4).map(bytes).unwrap_or_default();
            let [kind, flags] = [kind, flags].map(|byte| u8::try_from(byte).unwrap());
            return self.begin(kind, flags, stream, payload);
        }
        if command == "SETTINGS" {
            let id = number(words.next()).to_be_bytes();
            let payload = [&id[2..], &four(words.next())].concat();
            return self.begin(SETTINGS, 0, 0, payload);
        }
        let stream = number(words.next());
        let rest: Vec<&str> = words.collect();
        let end = if rest.contains(&"open") { 0 } else { END_STREAM };
        let whole = if rest.contains(&"unfinished") { 0 } else { END_HEADERS };
        match command {
            "GET" => {
                let path = rest[0].replace("\\s", " ");
                self.begin(HEADERS, END_STREAM | END_HEADERS, stream, usual("GET", &path));
            }
            "POST" | "HANG" => {
                let path = rest[0].replace("\\s", " ");
                self.begin(HEADERS, END_HEADERS, stream, usual("POST", &path));
            }
            "RESET" => {
                self.begin(HEADERS, END_STREAM | END_HEADERS, stream, usual("GET", "/"));
                self.begin(RST_STREAM, 0, stream, 8_u32.to_be_bytes().to_vec());
            }
            "HEADERS" => self.begin(HEADERS, end | whole, stream, Vec::new()),
            "CONTINUATION" => self.begin(CONTINUATION, whole, stream, Vec::new()),
            "DATA" => {
                let text = rest.iter().skip(usize::from(end == 0)).copied().collect::<Vec<_>>();
                self.begin(DATA, end, stream, bytes(&text.join(" ")));
            }
            "RST" => self.begin(RST_STREAM, 0, stream, four(rest.first().copied()).to_vec()),
            "WINDOW" => self.begin(8, 0, stream, four(rest.first().copied()).to_vec()),
            "PRIORITY" => {
                let on = four(rest.first().copied());
                self.begin(2, 0, stream, [&on[..], &[15]].concat());
            }
            command => panic!("no such frame: {command}"),
        }
    }
}

/// All that a story sends.
fn sent(story: &Story) -> Vec<u8> {
    let mut open = Open::default();
    open.sent.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    open.begin(SETTINGS, 0, 0, Vec::new());
    let mut lines = story.lines.iter().peekable();
    while let Some(line) = lines.next() {
        let Some((times, line)) = line.strip_prefix('*').and_then(|rest| rest.split_once(' '))
        else {
            open.line(line);
            continue;
        };
        let mut fields = Vec::new();
        while let Some(field) = lines.next_if(|line| line.starts_with("  ")) {
            fields.push(field);
        }
        for turn in 0..times.parse().unwrap() {
            let number = (1 + 2 * turn).to_string();
            open.line(&line.replace("{i}", &number));
            for field in &fields {
                open.line(field);
            }
        }
    }
    open.end();
    open.sent
}

/// What comes back on a connection.
#[derive(Default)]
struct Answers {
    ahead: Vec<u8>,
    streams: BTreeMap<u32, String>,
    goaway: bool,
    closed: bool,
}

impl Answers {
    /// Reads until it is enough, or the connection ends.
    async fn read(&mut self, client: &mut Raw, time: Duration, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + time;
        loop {
            while self.frame(client).await {}
            let left = deadline.saturating_duration_since(Instant::now());
            if self.closed || left.is_zero() || enough(self) {
                return;
            }
            let (bytes, closed) = client.bytes_until_within(left, |bytes| !bytes.is_empty()).await;
            self.ahead.extend(bytes);
            self.closed |= closed;
        }
    }

    /// Takes a frame of what came.
    async fn frame(&mut self, client: &mut Raw) -> bool {
        let Some((head, rest)) = self.ahead.split_first_chunk::<9>() else { return false };
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let (length, kind, flags, stream) =
            (number(&head[..3]) as usize, head[3], head[4], number(&head[5..]));
        let Some(payload) = rest.get(..length).map(<[u8]>::to_vec) else { return false };
        self.ahead.drain(..9 + length);
        match kind {
            SETTINGS if flags & ACK == 0 => client.send(frame(SETTINGS, ACK, 0, &[])).await,
            HEADERS if !self.streams.contains_key(&stream) => {
                self.streams.insert(stream, status(&payload));
            }
            // What was answered and is then not listened to any more, is answered.
            RST_STREAM => drop(self.streams.entry(stream).or_insert_with(|| "reset".to_owned())),
            GOAWAY => self.goaway = true,
            _ => {}
        }
        true
    }
}

/// The status at the beginning of a response's block: of the static table (RFC 7541, appendix A),
/// or three digits, mostly in Huffman's code (appendix B).
fn status(block: &[u8]) -> String {
    let start = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap();
    match block[start..] {
        [byte @ 0x88..=0x8e, ..] => {
            ["200", "204", "206", "304", "400", "404", "500"][usize::from(byte - 0x88)].to_owned()
        }
        [0x48 | 0x08 | 0x18, 3, a, b, c, ..] => String::from_utf8(vec![a, b, c]).unwrap(),
        [0x48 | 0x08 | 0x18, length, ref rest @ ..] if length & 0x80 != 0 => {
            let bits: Vec<u8> = rest[..usize::from(length & 0x7f)]
                .iter()
                .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
                .collect();
            let mut bits = &bits[..];
            let mut take = |count: usize| {
                let (taken, rest) = bits.split_at(count);
                bits = rest;
                taken.iter().fold(0, |number, bit| number << 1 | bit)
            };
            let digit = |_| match take(5) {
                short @ 0..=2 => char::from(b'0' + short),
                long => char::from(b'3' + ((long << 1 | take(1)) - 0b01_1001)),
            };
            (0..3).map(digit).collect()
        }
        ref other => panic!("no status: {other:x?}"),
    }
}

async fn play(gateway: &Gateway, app: &Behind, story: &Story) -> Outcome {
    let expected = Outcome::parse(story.outcomes().next().unwrap());
    let before = app.count();
    let mut client = Raw::open_as(gateway, "localhost", Protocol::Http2).await;
    client.send(sent(story)).await;
    let mut answers = Answers::default();
    let whole = |answers: &Answers| {
        (!expected.goaway || answers.goaway)
            && expected.streams.keys().all(|id| answers.streams.contains_key(id))
    };
    answers.read(&mut client, PATIENCE, whole).await;
    if !answers.goaway && !answers.closed {
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, NEXT, &usual("GET", "/next"))).await;
        let next = |answers: &Answers| answers.goaway || answers.streams.contains_key(&NEXT);
        answers.read(&mut client, PATIENCE, next).await;
        let next = answers.streams.remove(&NEXT);
        answers.goaway |= next.is_none_or(|next| next != "200" && expected.seen.is_some());
    }
    drop(client);
    let mut count = app.count();
    while expected.seen.is_none() {
        // What is under way arrives before the next connection begins.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if std::mem::replace(&mut count, app.count()) == app.count() {
            break;
        }
    }
    let mut seen = app.since(before, &story.title);
    seen.retain(|seen| seen.target != "/next");
    if expected.seen.is_none() {
        answers.streams.clear();
    }
    Outcome {
        streams: answers.streams,
        goaway: answers.goaway || answers.closed,
        seen: expected.seen.map(|_| seen),
    }
}

/// What each connection comes to, and what the app gets of it, asked in this protocol.
async fn play_all(upstream: Protocol) {
    let provider = Provider::start().await;
    let app = Behind::asked_in(upstream).await;
    let gateway = app.route(Gateway::with(&provider).limits("body_time = \"1s\"")).start().await;
    let mut wrong = String::new();
    let stories = stories(include_str!("http2.txt"));
    for story in &stories {
        let outcome = play(&gateway, &app, story).await;
        if !story.outcomes().any(|expected| outcome == Outcome::parse(expected)) {
            let expected = &story.outcome;
            wrong += &format!("{}\n  expected {expected}\n  but      {outcome:?}\n", story.title);
        }
    }
    assert!(wrong.is_empty(), "of {} connections:\n{wrong}", stories.len());
    assert!(gateway.metric("vestibule_http2_connections_broken_total").await > 10, "counted");
}

#[tokio::test]
async fn every_connection_of_frames_has_its_answer() {
    play_all(Protocol::Http1).await;
}

/// What frames say of themselves is not passed on to where it would be read again.
#[tokio::test]
async fn every_connection_of_frames_has_its_answer_before_an_app_of_http2() {
    play_all(Protocol::Http2).await;
}
