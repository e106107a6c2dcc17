//! How a fault in gateway.toml is shown: `gateway.toml:14:8: route.upstream: …`, the line, a caret
//! and the remedy. It owns places and layout and refuses to know what any key means.
//!
//! SECURITY: a line of the file may hold a secret, and what is shown here ends in terminals, logs
//! and bug reports. Whoever reads a secret names its bytes as masked; they are shown as `*`.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// So many are shown; a file that is wrong throughout does not fill the terminal.
const SHOWN: usize = 100;
/// So many characters of a line are shown.
const EXCERPT: usize = 160;

/// Whether the gateway can start all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One fault of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// An error or a warning.
    pub severity: Severity,
    /// The file, as it was named on the command line.
    pub file: String,
    /// Where; a table that is missing altogether has no place.
    pub place: Option<Place>,
    /// The key with its tables: `route.upstream`. Empty for what concerns the whole file.
    pub key: String,
    /// What is wrong. No secrets.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Where in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line; the first is 1.
    pub line: usize,
    /// The column in characters; the first is 1.
    pub column: usize,
    /// The line's text, masked, shortened, without control characters.
    text: String,
    /// Characters of `text` before the caret.
    before: usize,
    /// Carets; at least one.
    width: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.file)?;
        if let Some(place) = &self.place {
            write!(formatter, "{}:{}:", place.line, place.column)?;
        }
        if self.severity == Severity::Warning {
            write!(formatter, " warning:")?;
        }
        if !self.key.is_empty() {
            write!(formatter, " {}:", self.key)?;
        }
        writeln!(formatter, " {}", self.message)?;
        let mut gutter = 2;
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            gutter = number.len();
            let (before, width) = (place.before, place.width);
            writeln!(formatter, "{number} | {}", place.text)?;
            writeln!(formatter, "{:gutter$} | {:before$}{}", "", "", "^".repeat(width))?;
        }
        writeln!(formatter, "{:gutter$} = {}", "", self.remedy)
    }
}

/// Everything that is wrong with a file, in the file's order: at least one error.
#[derive(Debug)]
pub struct Diagnostics {
    /// The first hundred.
    pub list: Vec<Diagnostic>,
    /// How many further ones there are.
    pub more: usize,
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.list {
            write!(formatter, "{diagnostic}")?;
        }
        if self.more > 0 {
            writeln!(formatter, "… and {} more", self.more)?;
        }
        Ok(())
    }
}

impl Error for Diagnostics {}

/// A fault before it has been given its place.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) severity: Severity,
    /// Bytes of the file.
    pub(super) span: Option<Range<usize>>,
    pub(super) key: String,
    pub(super) message: String,
    pub(super) remedy: String,
}

/// Gives `faults` their places and orders them by these. `masked` are the bytes not to be shown.
pub(super) fn place(
    file: &str,
    source: &str,
    mut faults: Vec<Fault>,
    masked: &[Range<usize>],
) -> Diagnostics {
    faults.sort_by_key(|fault| fault.span.as_ref().map_or(0, |span| span.start));
    let more = faults.len().saturating_sub(SHOWN);
    faults.truncate(SHOWN);
    let list = faults.into_iter().map(|fault| Diagnostic {
        severity: fault.severity,
        file: file.to_owned(),
        place: fault.span.map(|span| locate(source, &span, masked)),
        key: fault.key,
        message: fault.message,
        remedy: fault.remedy,
    });
    Diagnostics { list: list.collect(), more }
}

fn locate(source: &str, span: &Range<usize>, masked: &[Range<usize>]) -> Place {
    let start = floor(source, span.start);
    let before = source.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = source.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
    let column = source.get(line_start..start).unwrap_or_default().chars().count();
    let end = floor(source, span.end).min(line_start + line.len());
    let width = source.get(start..end).unwrap_or_default().chars().count();

    // A long line is shown from a little before the caret on.
    let skipped = if column > EXCERPT * 3 / 4 { column - EXCERPT / 4 } else { 0 };
    let here = line_start..line_start + line.len();
    let meets = |range: &&Range<usize>| range.start < here.end && here.start < range.end;
    let masked: Vec<_> = masked.iter().filter(meets).collect();
    let hidden = |at: usize| masked.iter().any(|range| range.contains(&at));
    let text: String = line
        .char_indices()
        .skip(skipped)
        .take(EXCERPT)
        .map(|(at, character)| match character {
            _ if hidden(line_start + at) => '*',
            // SECURITY: a control character could drive the terminal.
            _ if character.is_control() => ' ',
            _ => character,
        })
        .collect();
    Place {
        line: before.matches('\n').count() + 1,
        column: column + 1,
        text: text.trim_end().to_owned(),
        before: column - skipped,
        width: width.clamp(1, (EXCERPT - (column - skipped)).max(1)),
    }
}

/// The nearest boundary between characters at or before `at`.
fn floor(source: &str, at: usize) -> usize {
    let at = at.min(source.len());
    (0..=at).rev().find(|&at| source.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str, span: Range<usize>, masked: &[Range<usize>]) -> String {
        let fault = Fault {
            severity: Severity::Error,
            span: Some(span),
            key: "a.b".into(),
            message: "is wrong".into(),
            remedy: "put it right".into(),
        };
        place("gateway.toml", source, vec![fault], masked).to_string()
    }

    #[test]
    fn a_fault_is_shown_with_line_caret_and_remedy() {
        assert_eq!(
            shown("one = 1\ntwo = 'x'\n", 14..17, &[]),
            "gateway.toml:2:7: a.b: is wrong\n2 | two = 'x'\n  |       ^^^\n  = put it right\n"
        );
    }

    #[test]
    fn columns_count_characters_and_spans_may_end_inside_one() {
        let text = shown("é = 'zoë'", 5..10, &[]);
        assert!(text.starts_with("gateway.toml:1:5:"), "{text}");
        assert!(text.contains("1 | é = 'zoë'\n  |     ^^^^\n"), "{text}");
    }

    #[test]
    fn masked_bytes_are_starred() {
        let text = shown("secret = 'hunter2', x = 1", 20..21, std::slice::from_ref(&(9..18)));
        assert!(!text.contains("hunter2") && text.contains("secret = *********, x = 1"), "{text}");
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let source = format!("key = [{}, oops]", "1,".repeat(500));
        let text = shown(&source, 1009..1013, &[]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() < 200), "{text}");
        let caret = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][caret..caret + 4], "oops");
    }

    #[test]
    fn places_at_and_beyond_the_end_are_shown() {
        for span in [3..3, 3..9, 90..99] {
            assert!(shown("a =", span, &[]).starts_with("gateway.toml:1:4:"));
        }
        assert!(shown("", 0..0, &[]).starts_with("gateway.toml:1:1:"));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert!(!shown("a = '\u{1b}[31m'", 0..1, &[]).contains('\u{1b}'));
    }

    #[test]
    fn no_more_than_a_hundred_are_shown() {
        let fault = |at| Fault {
            severity: Severity::Error,
            span: Some(at..at + 1),
            key: String::new(),
            message: "no".into(),
            remedy: "yes".into(),
        };
        let shown = place("f", &"x".repeat(500), (0..130).map(fault).collect(), &[]);
        assert_eq!((shown.list.len(), shown.more), (100, 30));
        assert!(shown.to_string().ends_with("… and 30 more\n"));
    }
}
