//! Tables and items of the file: one is asked for a key, the other for a value of a type. What is
//! missing or of another type becomes a fault of the reading, and `None`. It knows no key by name.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Severity;
#[cfg(test)]
use super::file::Known;
use super::file::{Reading, join};
use super::parse::{self, Wrong};

/// A table whose keys are known by name.
pub(super) struct Table<'t> {
    name: String,
    span: Option<Range<usize>>,
    entries: &'t DeTable<'t>,
    reading: &'t Reading<'t>,
}

impl<'t> Table<'t> {
    /// The table at the top of a file.
    pub(super) fn root(entries: &'t DeTable<'t>, reading: &'t Reading<'t>) -> Self {
        Self { name: String::new(), span: None, entries, reading }
    }

    /// A key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Item<'_>) -> Option<T>,
    ) -> Option<T> {
        self.reading.ask(&self.name, key, None);
        self.item(key).and_then(|item| read(&item))
    }

    /// A key that must be there; `remedy` says what to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        remedy: &str,
        read: impl FnOnce(&Item<'_>) -> Option<T>,
    ) -> Option<T> {
        self.reading.ask(&self.name, key, None);
        match self.item(key) {
            Some(item) => read(&item),
            None => self.missing(key, remedy),
        }
    }

    /// A key with a default, which is written in TOML and read like any other value.
    pub(super) fn key<T>(
        &mut self,
        key: &'static str,
        default: &'static str,
        read: impl FnOnce(&Item<'_>) -> Option<T>,
    ) -> Option<T> {
        self.reading.ask(&self.name, key, Some(default));
        if let Some(item) = self.item(key) {
            return read(&item);
        }
        let value = DeValue::parse(default).ok()?;
        read(&Item {
            key: join(&self.name, key),
            span: self.span.clone(),
            key_span: self.span.clone(),
            value: value.get_ref(),
            reading: self.reading,
        })
    }

    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A fault of `key`, shown where it stands, or at the table if it does not.
    pub(super) fn wrong<T>(&self, key: &str, wrong: Wrong) -> Option<T> {
        self.reading.fault(Severity::Error, self.place(key), &join(&self.name, key), wrong);
        None
    }

    /// The fault that `key` is not there.
    pub(super) fn missing<T>(&self, key: &str, remedy: &str) -> Option<T> {
        self.wrong(key, Wrong::new("is missing", remedy))
    }

    /// Something to look at, shown where `key` stands.
    pub(super) fn warn(&self, key: &str, wrong: Wrong) {
        self.reading.fault(Severity::Warning, self.place(key), &join(&self.name, key), wrong);
    }

    /// Every key has been asked for: the others are unknown.
    pub(super) fn finish(self) {
        for key in self.entries.keys() {
            self.reading.meet(&self.name, key.get_ref(), key.span());
        }
    }

    /// Every key that has been asked for, of all tables.
    #[cfg(test)]
    pub(super) fn known(&self) -> Known {
        self.reading.known()
    }

    fn place(&self, key: &str) -> Option<Range<usize>> {
        let key = self.entries.get_key_value(key).map(|(key, _)| key.span());
        key.or_else(|| self.span.clone())
    }

    fn item(&self, key: &'static str) -> Option<Item<'t>> {
        let (name, value) = self.entries.get_key_value(key)?;
        Some(Item {
            key: join(&self.name, key),
            span: Some(value.span()),
            key_span: Some(name.span()),
            value: value.get_ref(),
            reading: self.reading,
        })
    }
}

/// A value of the file and where it stands.
pub(super) struct Item<'t> {
    key: String,
    span: Option<Range<usize>>,
    key_span: Option<Range<usize>>,
    value: &'t DeValue<'t>,
    reading: &'t Reading<'t>,
}

impl<'t> Item<'t> {
    /// The value is wrong.
    pub(super) fn wrong<T>(&self, wrong: Wrong) -> Option<T> {
        self.reading.fault(Severity::Error, self.span.clone(), &self.key, wrong);
        None
    }

    /// The key of a free name is wrong.
    pub(super) fn wrong_name<T>(&self, wrong: Wrong) -> Option<T> {
        self.reading.fault(Severity::Error, self.key_span.clone(), &self.key, wrong);
        None
    }

    /// The value works, but somebody should look.
    pub(super) fn warn(&self, wrong: Wrong) {
        self.reading.fault(Severity::Warning, self.span.clone(), &self.key, wrong);
    }

    /// What the reading was given: the directory and the environment.
    pub(super) fn reading(&self) -> &'t Reading<'t> {
        self.reading
    }

    /// SECURITY: keeps the value from being shown, whatever it is.
    pub(super) fn mask(&self) {
        self.reading.mask(self.span.clone().unwrap_or_default());
    }

    /// Whether it is a text.
    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    /// `true` or `false`, if it is one of them.
    pub(super) fn as_flag(&self) -> Option<bool> {
        self.value.as_bool()
    }

    /// A text.
    pub(super) fn text(&self) -> Option<&'t str> {
        self.value.as_str().or_else(|| self.other_than("a text in quotes"))
    }

    /// A text that `parser` understands.
    pub(super) fn parse<T>(&self, parser: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<T> {
        let text = self.text()?;
        parser(text).map_or_else(
            |wrong| {
                // SECURITY: a URL may hold a password before the @.
                if text.contains('@') && text.contains("//") {
                    self.mask();
                }
                self.wrong(wrong)
            },
            Some,
        )
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.wrong(Wrong::new("is none of its words", format!("write {}", words.join(" or "))))
        })
    }

    /// A whole number within bounds.
    pub(super) fn number<T: TryFrom<u64>>(&self, least: u64, most: u64) -> Option<T> {
        let Some(digits) = self.value.as_integer() else {
            return self.other_than("a whole number, without quotes");
        };
        let number = u64::from_str_radix(digits.as_str(), digits.radix()).ok();
        number
            .filter(|number| (least..=most).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .or_else(|| self.outside(&least.to_string(), &most.to_string()))
    }

    /// A duration within bounds, which are written as in the file.
    pub(super) fn time(&self, least: &str, most: &str) -> Option<Duration> {
        let time = self.parse(parse::duration)?;
        let bounds = parse::duration(least).unwrap_or_default()
            ..=parse::duration(most).unwrap_or(Duration::MAX);
        if bounds.contains(&time) { Some(time) } else { self.outside(least, most) }
    }

    /// A size within bounds, which are written as in the file.
    pub(super) fn size(&self, least: &str, most: &str) -> Option<usize> {
        let size = self.parse(parse::size)?;
        let bounds = parse::size(least).unwrap_or_default()..=parse::size(most).unwrap_or(u64::MAX);
        let within = bounds.contains(&size).then(|| usize::try_from(size).ok()).flatten();
        within.or_else(|| self.outside(least, most))
    }

    /// A list, each of whose elements `read` understands.
    pub(super) fn list<T>(&self, mut read: impl FnMut(&Item<'_>) -> Option<T>) -> Option<Vec<T>> {
        let Some(list) = self.value.as_array() else {
            return self.other_than("a list in square brackets");
        };
        let read: Vec<_> = list
            .iter()
            .map(|element| {
                read(&Item {
                    key: self.key.clone(),
                    span: Some(element.span()),
                    key_span: Some(element.span()),
                    value: element.get_ref(),
                    reading: self.reading,
                })
            })
            .collect();
        read.into_iter().collect()
    }

    /// A list that is not empty.
    pub(super) fn some<T>(&self, read: impl FnMut(&Item<'_>) -> Option<T>) -> Option<Vec<T>> {
        if self.value.as_array().is_some_and(|list| list.is_empty()) {
            return self.wrong(Wrong::new("is empty", "write at least one"));
        }
        self.list(read)
    }

    /// A table whose keys are known by name.
    pub(super) fn table<T>(&self, read: impl FnOnce(&mut Table<'_>) -> Option<T>) -> Option<T> {
        let Some(entries) = self.value.as_table() else {
            return self.other_than(&format!("a table: [{}] or {{ … }}", self.key));
        };
        let (name, span) = (self.key.clone(), self.span.clone());
        let mut table = Table { name, span, entries, reading: self.reading };
        let value = read(&mut table);
        table.finish();
        value
    }

    /// Tables in double brackets; at least one.
    pub(super) fn tables<T>(
        &self,
        mut read: impl FnMut(&mut Table<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        if self.value.is_table() {
            return self.other_than(&format!("[[{}]], in double brackets", self.key));
        }
        self.some(|item| item.table(&mut read))
    }

    /// A table of free names, in the order of the file.
    pub(super) fn entries<T>(
        &self,
        mut read: impl FnMut(&str, &Item<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Some(entries) = self.value.as_table() else {
            return self.other_than("a table: { name = … }");
        };
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let read: Vec<_> = entries
            .into_iter()
            .map(|(name, value)| {
                let item = Item {
                    key: self.key.clone(),
                    span: Some(value.span()),
                    key_span: Some(name.span()),
                    value: value.get_ref(),
                    reading: self.reading,
                };
                read(name.get_ref(), &item)
            })
            .collect();
        read.into_iter().collect()
    }

    /// The value is of another type than `wanted`.
    pub(super) fn other_than<T>(&self, wanted: &str) -> Option<T> {
        let kind = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(Wrong::new(format!("is {kind}"), format!("write {wanted}")))
    }

    fn outside<T>(&self, least: &str, most: &str) -> Option<T> {
        let remedy = format!("write something from {least} to {most}");
        self.wrong(Wrong::new("is out of bounds", remedy))
    }
}

/// A text that is not empty and without control characters.
pub(super) fn filled(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(Wrong::new("is empty, or holds a control character", "write a text"));
        }
        Ok(text.to_owned())
    })
}

/// `true` or `false`.
pub(super) fn flag(item: &Item<'_>) -> Option<bool> {
    item.as_flag().or_else(|| item.other_than("true or false"))
}

/// The path of a file that is to be read, from the configuration's own directory.
pub(super) fn file_path(item: &Item<'_>) -> Option<PathBuf> {
    let path = path(item)?;
    item.reading.name_file(&path);
    Some(path)
}

/// A path, from the configuration's own directory.
pub(super) fn path(item: &Item<'_>) -> Option<PathBuf> {
    filled(item).map(|path| item.reading.directory.join(path))
}
