//! The files that a configuration was made of, as they were when they were read: whoever serves it
//! sees when one of them has changed. It knows neither what is in them nor when they are looked at.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that a reading of gateway.toml looked at; it may not have been there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    path: PathBuf,
    state: Option<State>,
}

/// What changes when a file is written to, or another is put in its place, also behind a symbolic
/// link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl SourceFile {
    /// The file as it is now.
    pub fn look(path: &Path) -> Self {
        let state = fs::metadata(path).ok().map(|data| State {
            device: data.dev(),
            inode: data.ino(),
            length: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
        });
        Self { path: path.to_owned(), state }
    }

    /// The same file as it is now.
    #[must_use]
    pub fn look_again(&self) -> Self {
        Self::look(&self.path)
    }

    /// Whether both are of one path.
    pub fn is_same_path(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_another_once_it_is_written_replaced_or_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let absent = SourceFile::look(&path);
        fs::write(&path, "one").unwrap();
        let first = absent.look_again();
        assert_ne!(absent, first);
        assert_eq!(first, first.look_again());
        fs::write(&path, "longer").unwrap();
        let written = first.look_again();
        assert_ne!(first, written);
        fs::write(path.with_extension("new"), "longer").unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        let replaced = first.look_again();
        assert_ne!(written, replaced);
        fs::remove_file(&path).unwrap();
        assert_eq!(replaced.look_again(), absent);
    }

    #[test]
    fn what_a_symbolic_link_leads_to_counts() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["one", "two"] {
            fs::write(at(name), "same").unwrap();
        }
        std::os::unix::fs::symlink(at("one"), at("link")).unwrap();
        let before = SourceFile::look(&at("link"));
        fs::remove_file(at("link")).unwrap();
        std::os::unix::fs::symlink(at("two"), at("link")).unwrap();
        assert_ne!(before, before.look_again());
    }
}
