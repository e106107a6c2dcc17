//! Who may know whom: the rules of `lib.rs`, read off the `use crate::` lines of the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those it may use. What is not here is used by nobody and uses what it likes.
const MAY_USE: [(&str, &[&str]); 22] = [
    ("body", &[]),
    ("clock", &[]),
    ("config", &["clock"]),
    ("digits", &[]),
    ("duplex", &[]),
    ("keepalive", &[]),
    ("lock", &[]),
    ("outbox", &["lock"]),
    ("error", &[]),
    ("peer", &["lock"]),
    ("room", &[]),
    ("session", &["clock", "config", "lock"]),
    ("upstream", &["body", "config", "digits", "duplex", "keepalive", "lock", "outbox"]),
    ("page", &["body", "error"]),
    ("observe", &["body", "config", "digits", "error", "lock", "session"]),
    ("access", &["config", "page", "session"]),
    ("route", &["config", "digits", "error", "login"]),
    (
        "forward",
        &[
            "body", "clock", "config", "digits", "error", "outbox", "peer", "room", "session",
            "upstream",
        ],
    ),
    (
        "login",
        &["body", "clock", "config", "digits", "error", "lock", "observe", "peer", "session"],
    ),
    (
        "gateway",
        &[
            "access", "body", "clock", "config", "error", "forward", "login", "observe", "outbox",
            "page", "peer", "room", "route", "session", "upstream",
        ],
    ),
    (
        "server",
        &[
            "body",
            "clock",
            "config",
            "duplex",
            "error",
            "gateway",
            "keepalive",
            "lock",
            "login",
            "observe",
            "outbox",
            "page",
            "peer",
            "route",
            "session",
            "upstream",
        ],
    ),
    ("demo", &["clock", "config", "lock", "observe", "server"]),
];

/// Every source file, with its path below `src`.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 50, "these are not the sources");
    found
}

/// `forward` for `forward.rs` and `forward/headers.rs`.
fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The modules that a file names in `crate::…`, but for its tests.
fn used(source: &str) -> BTreeSet<&str> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = code.split("#[cfg(test)]\npub").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = lines.flat_map(|line| line.split("crate::").skip(1));
    paths
        .map(|path| path.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
        .collect()
}

#[test]
fn no_module_uses_one_that_it_may_not_know() {
    for (file, source) in sources() {
        let Some((name, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module(&file)) else {
            continue;
        };
        for other in used(&source) {
            assert!(other == *name || allowed.contains(&other), "{file} uses crate::{other}");
        }
    }
}

#[test]
fn one_place_knows_the_crate_openidconnect() {
    for (file, source) in sources() {
        let may = matches!(file.as_str(), "login/provider.rs" | "login/id_token.rs" | "house.rs");
        assert!(may || !source.contains("openidconnect::"), "{file}");
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for (file, source) in sources() {
        assert!(source.starts_with("//! "), "{file}");
    }
}

#[test]
fn a_rule_can_be_broken() {
    let source =
        "//! crate::server\nuse crate::upstream::{Upstreams};\n let x = crate::page::y();\n";
    assert_eq!(used(source), ["page", "upstream"].into());
}
