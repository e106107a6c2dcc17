//! What several fuzz targets need: a configuration out of a text, and a stream cut in pieces. It
//! knows nothing of what is asserted.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use vestibule::config::diagnostic::Diagnostics;
use vestibule::config::{Loaded, load_with};

/// What every name in the environment holds, but for those that begin with `NO`.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A directory of this process's, in memory where there is such a place: a certificate and a key, a
/// secret, and the configuration in turn.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = place.join(format!("vestibule-fuzz-{}", std::process::id()));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let made = made.expect("a certificate");
    std::fs::create_dir_all(&directory).expect("a directory");
    for (name, text) in [
        ("c.pem", made.cert.pem()),
        ("k.pem", made.signing_key.serialize_pem()),
        ("s", SECRET.to_owned()),
    ] {
        std::fs::write(directory.join(name), text).expect("a file");
    }
    directory
});

/// What the gateway makes of this file.
///
/// # Errors
/// As [`load_with`].
pub fn load(text: &str) -> Result<Loaded, Diagnostics> {
    let file = DIRECTORY.join("gateway.toml");
    std::fs::write(&file, text).expect("a file");
    load_with(&file, &|name| (!name.starts_with("NO")).then(|| SECRET.to_owned()))
}

/// The lengths of the pieces in which a stream comes, over and over: first all at once, then by
/// the byte, then as the fuzzer says.
pub fn ways(said: u8) -> [[usize; 3]; 3] {
    let said = usize::from(said);
    [[usize::MAX; 3], [1; 3], [said % 7 + 1, said / 7 + 1, said + 1]]
}

/// `stream` in pieces of these lengths, in turn.
pub fn pieces<'a>(mut stream: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    lengths.iter().cycle().map_while(move |length| {
        let (piece, rest) = stream.split_at((*length).min(stream.len()));
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
