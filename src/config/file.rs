//! The file as it is written: TOML with positions. A [`Reading`] goes on after a fault and
//! remembers it, so that all are found at once; a key that nobody asked for is one too. It knows
//! no key by name; `config/table.rs` asks for them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::diagnostic::{self, Diagnostic, Diagnostics, Fault, Severity};
use super::files::SourceFile;
use super::parse::{self, Wrong};
use super::table::Table;

/// A file larger than this is refused unread: no one writes 1 MiB of gateway.toml.
const LARGEST: u64 = 1024 * 1024;

/// The file's text; what goes wrong on the way to it has a diagnostic like everything else.
pub(super) fn text(path: &Path) -> Result<String, Diagnostics> {
    let name = path.display().to_string();
    let whole = |message: String, remedy: &str| {
        let fault = Fault {
            severity: Severity::Error,
            span: None,
            key: String::new(),
            message,
            remedy: remedy.to_owned(),
        };
        diagnostic::place(&name, "", vec![fault], &[])
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| whole(format!("cannot be read: {error}"), "name the file with -c FILE"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(whole("is larger than 1 MiB".to_owned(), "name the right file with -c FILE"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = String::from_utf8_lossy(valid).matches('\n').count() + 1;
        whole(format!("is not UTF-8 in line {line}"), "save it as UTF-8")
    })
}

/// What one reading of the file has met.
pub(super) struct Reading<'f> {
    /// The directory that relative paths start from.
    pub(super) directory: PathBuf,
    /// Where `{ env = "…" }` is looked up.
    pub(super) environment: &'f dyn Fn(&str) -> Option<String>,
    files: &'f RefCell<Vec<SourceFile>>,
    faults: RefCell<Vec<Fault>>,
    masked: RefCell<Vec<Range<usize>>>,
    known: RefCell<Known>,
    unknown: RefCell<Vec<Unknown>>,
}

/// Every key that was asked for, by table, with its default as TOML.
pub(super) type Known = BTreeMap<String, BTreeMap<&'static str, Option<&'static str>>>;

struct Unknown {
    table: String,
    key: String,
    span: Range<usize>,
}

impl<'f> Reading<'f> {
    /// Reads `source` with `root`. The value is there only if nothing is wrong; warnings stand
    /// beside it. What it names is added to `files`.
    pub(super) fn run<T>(
        name: &str,
        source: &str,
        directory: PathBuf,
        environment: &'f dyn Fn(&str) -> Option<String>,
        files: &'f RefCell<Vec<SourceFile>>,
        root: impl FnOnce(&mut Table<'_>) -> Option<T>,
    ) -> Result<(T, Vec<Diagnostic>), Diagnostics> {
        let reading = Reading {
            directory,
            environment,
            files,
            faults: RefCell::default(),
            masked: RefCell::default(),
            known: RefCell::default(),
            unknown: RefCell::default(),
        };
        let (document, errors) = DeTable::parse_recoverable(source);
        let value = if errors.is_empty() {
            let mut table = Table::root(document.get_ref(), &reading);
            let value = root(&mut table);
            table.finish();
            value
        } else {
            reading.not_toml(source, errors);
            None
        };
        reading.suggest(source);
        let Reading { faults, masked, .. } = reading;
        let faults = faults.into_inner();
        let failed = faults.iter().any(|fault| fault.severity == Severity::Error);
        let found = diagnostic::place(name, source, faults, &masked.into_inner());
        match value {
            Some(value) if !failed => Ok((value, found.list)),
            _ => Err(found),
        }
    }

    /// Remembers that a file is about to be read.
    pub(super) fn name_file(&self, path: &Path) {
        self.files.borrow_mut().push(SourceFile::look(path));
    }

    /// Remembers a fault at `span`.
    pub(super) fn fault(
        &self,
        severity: Severity,
        span: Option<Range<usize>>,
        key: &str,
        wrong: Wrong,
    ) {
        let Wrong { message, remedy } = wrong;
        let fault = Fault { severity, span, key: key.to_owned(), message, remedy };
        self.faults.borrow_mut().push(fault);
    }

    /// Keeps the bytes of `span` from being shown.
    pub(super) fn mask(&self, span: Range<usize>) {
        self.masked.borrow_mut().push(span);
    }

    /// Remembers that `key` means something in `table`, and what it is when it is absent.
    pub(super) fn ask(&self, table: &str, key: &'static str, default: Option<&'static str>) {
        let mut known = self.known.borrow_mut();
        if !known.contains_key(table) {
            known.insert(table.to_owned(), BTreeMap::new());
        }
        if let Some(keys) = known.get_mut(table) {
            keys.insert(key, default);
        }
    }

    /// Remembers a key if nobody has asked `table` for it.
    pub(super) fn meet(&self, table: &str, key: &str, span: Range<usize>) {
        if !self.known.borrow().get(table).is_some_and(|keys| keys.contains_key(key)) {
            let (table, key) = (table.to_owned(), key.to_owned());
            self.unknown.borrow_mut().push(Unknown { table, key, span });
        }
    }

    /// What has been asked for so far.
    #[cfg(test)]
    pub(super) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// The first fault of each line: the others are mostly its echo.
    fn not_toml(&self, source: &str, mut errors: Vec<toml::de::Error>) {
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        let mut shown_to = None;
        for error in errors {
            let span = error.span().unwrap_or_default();
            if shown_to.is_some_and(|end| span.start <= end) {
                continue;
            }
            let line = line_at(source, span.start);
            shown_to = Some(line.end);
            let wrong = Wrong::new(
                format!("is not TOML: {}", error.message()),
                "see https://toml.io for how TOML is written",
            );
            self.mask_unparsed(source, line);
            self.fault(Severity::Error, Some(span), "", wrong);
        }
    }

    /// SECURITY: in a line that does not parse, anything may be part of a secret. Only what stands
    /// before the first `=` or quote, or in brackets at the start, is surely none; and not even
    /// that inside a text of several lines, as a private key is.
    fn mask_unparsed(&self, source: &str, line: Range<usize>) {
        let text = source.get(line.clone()).unwrap_or_default();
        let before = source.get(..line.start).unwrap_or_default();
        let inside = |quotes| before.matches(quotes).count() % 2 == 1;
        let from = match text.find(['=', '"', '\'']) {
            _ if inside("\"\"\"") || inside("'''") => 0,
            Some(at) => at + 1,
            None if text.starts_with('[') => text.len(),
            None => 0,
        };
        self.mask_value(source, line.start + from..line.end);
    }

    /// Masks what `span` holds, but for the blanks before it.
    fn mask_value(&self, source: &str, span: Range<usize>) {
        let text = source.get(span.clone()).unwrap_or_default();
        let blanks = text.len() - text.trim_start().len();
        self.mask(span.start + blanks..span.end);
    }

    /// Turns keys that nobody asked for into faults, once it is known what is asked for elsewhere.
    fn suggest(&self, source: &str) {
        let known = self.known.borrow();
        for Unknown { table, key, span } in self.unknown.take() {
            // SECURITY: a misspelt `client_secret` still holds the secret.
            let line = line_at(source, span.start);
            let after = source.get(span.end..line.end).unwrap_or_default();
            if let Some(at) = after.find('=') {
                self.mask_value(source, span.end + at + 1..line.end);
            }
            let here = known.get(&table);
            let near = here.and_then(|keys| nearest(&key, keys.keys().copied()));
            let elsewhere = known
                .iter()
                .find(|(name, keys)| **name != table && keys.contains_key(key.as_str()));
            let remedy = match (near, elsewhere, here) {
                (Some(near), ..) => format!("did you mean {near}?"),
                (None, Some((other, _)), _) if other.is_empty() => {
                    "move it to the top of the file, before the first table".to_owned()
                }
                (None, Some((other, _)), _) => format!("it belongs to {other}"),
                (None, None, Some(keys)) => {
                    let keys: Vec<_> = keys.keys().copied().collect();
                    format!("known here: {}", keys.join(", "))
                }
                (None, None, None) => "leave it out".to_owned(),
            };
            // SECURITY: a name of any length and content would go to the terminal; the line that
            // is shown is cut and cleaned.
            let plain = key.len() <= 40 && key.bytes().all(parse::is_bare);
            let name = if plain { join(&table, &key) } else { table };
            self.fault(Severity::Error, Some(span), &name, Wrong::new("unknown key", remedy));
        }
    }
}

/// The line that holds the byte `at`, without its newline.
fn line_at(source: &str, at: usize) -> Range<usize> {
    let (before, after) = source.split_at_checked(at).unwrap_or((source, ""));
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    start..after.find('\n').map_or(source.len(), |newline| before.len() + newline)
}

/// `table.key`; the key alone at the top of the file.
pub(super) fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// The known key that `key` is most likely a misspelling of.
fn nearest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if key.len() > 40 {
        return None;
    }
    let key = key.to_ascii_lowercase().replace('-', "_");
    let near = known.map(|known| (distance(&key, known), known)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

/// How many letters have to be put in, left out or changed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, a) in one.bytes().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(other.bytes()) {
            let best = (diagonal + usize::from(a != b)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_levenshteins() {
        for (one, other, away) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("acess", "access", 1),
            ("upstraem", "upstream", 2),
        ] {
            assert_eq!(distance(one, other), away, "{one} {other}");
            assert_eq!(distance(other, one), away, "{other} {one}");
        }
    }

    #[test]
    fn the_nearest_key_is_suggested_only_if_it_is_near() {
        let known = ["host", "path", "upstream", "client_id"];
        let nearest = |key| nearest(key, known.iter().copied());
        assert_eq!(nearest("upstraem"), Some("upstream"));
        assert_eq!(nearest("Client-ID"), Some("client_id"));
        assert_eq!(nearest("pth"), Some("path"));
        assert_eq!(nearest("color"), None);
        assert_eq!(nearest(&"p".repeat(100_000)), None);
    }
}
