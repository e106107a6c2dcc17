//! Streams of bytes as they are written down: in lines, with escapes, each with what comes of it.

/// One stream.
pub(super) struct Story {
    pub(super) title: String,
    /// What is sent; its lines, for who reads them as commands.
    pub(super) lines: Vec<String>,
    /// What comes of it.
    pub(super) outcome: String,
}

/// Every stream of a file.
pub(super) fn stories(text: &str) -> Vec<Story> {
    let mut stories = Vec::new();
    let mut open: Option<Story> = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("== ") {
            assert!(open.is_none(), "{title}: the one before has no outcome");
            let (lines, outcome) = (Vec::new(), String::new());
            open = Some(Story { title: title.to_owned(), lines, outcome });
        } else if let Some(outcome) = line.strip_prefix("=> ") {
            let story = open.take().unwrap_or_else(|| panic!("an outcome of nothing: {outcome}"));
            stories.push(Story { outcome: outcome.to_owned(), ..story });
        } else if let Some(story) = &mut open {
            story.lines.push(line.to_owned());
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "not in a stream: {line}");
        }
    }
    assert!(open.is_none(), "the last stream has no outcome");
    stories
}

impl Story {
    /// What may come of it, the usual first.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &str> {
        self.outcome.split(" | ")
    }

    /// Its lines as bytes, with a CRLF behind each that does not end in a backslash.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let line = |line: &String| match line.strip_suffix('\\') {
            Some(line) => bytes(line),
            None => [bytes(line), b"\r\n".to_vec()].concat(),
        };
        self.lines.iter().flat_map(line).collect()
    }
}

/// The bytes that a text stands for.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some((repeated, after)) = repeated(rest) {
            bytes.extend(repeated);
            rest = after;
            continue;
        }
        let (sent, length) = match (first, rest.as_bytes().get(1)) {
            ('\\', Some(b'r')) => (b'\r', 2),
            ('\\', Some(b'n')) => (b'\n', 2),
            ('\\', Some(b't')) => (b'\t', 2),
            ('\\', Some(b's')) => (b' ', 2),
            ('\\', Some(b'0')) => (0, 2),
            ('\\', Some(b'\\')) => (b'\\', 2),
            ('\\', Some(b'x')) => (u8::from_str_radix(&rest[2..4], 16).unwrap(), 4),
            ('\\', _) => panic!("no such escape: {rest}"),
            _ => {
                assert!(first.is_ascii(), "write {first} in escapes");
                (first as u8, 1)
            }
        };
        bytes.push(sent);
        rest = &rest[length..];
    }
    bytes
}

/// `{x*3}` at the beginning of a text, and what is behind it.
fn repeated(text: &str) -> Option<(Vec<u8>, &str)> {
    let (inner, after) = text.strip_prefix('{')?.split_once('}')?;
    let (what, times) = inner.rsplit_once('*')?;
    Some((bytes(what).repeat(times.parse().ok()?), after))
}
