//! The whole way from gateway.toml to [`Config`]: what every key does, in `full`; what is said of a
//! key that is wrong, in `faults`, and of files, in `whole`; and that nothing said holds a secret,
//! in `secrets`.

use tempfile::TempDir;

use super::file::{Known, Reading};
use super::*;

mod faults;
mod full;
mod secrets;
mod whole;

/// A directory with a certificate for `localhost` and files that a gateway.toml can name.
struct Site(TempDir);

/// The tables without which there is no configuration.
const SERVER: &str = "[[server.certificate]]\ncert = 'a.pem'\nkey = 'a.key'\n";
const PROVIDER: &str =
    "[provider]\ndomain = 't.example'\nclient_id = 'c'\nclient_secret = { env = 'CLIENT' }\n";
const SESSION: &str = "[session]\nsecrets = [{ env = 'SEAL' }]\n";
const ROUTE: &str = "[[route]]\npath = '/'\nupstream = 'http://127.0.0.1:9000'\n";

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        site.certificate("a", &["localhost"]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Writes `name.pem` and `name.key`, good for `hosts`.
    fn certificate(&self, name: &str, hosts: &[&str]) {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        self.write(&format!("{name}.pem"), made.cert.pem());
        self.write(&format!("{name}.key"), made.signing_key.serialize_pem());
    }

    /// Reads `source` as gateway.toml of this directory, with every key that was asked for.
    fn read_knowing(&self, source: &str) -> (Result<Loaded, Diagnostics>, Known) {
        let mut known = Known::new();
        let root = |t: &mut table::Table<'_>| {
            let config = check::config(t);
            known = t.known();
            config
        };
        let directory = self.0.path().to_owned();
        let files = RefCell::default();
        let read = Reading::run("gateway.toml", source, directory, &environment, &files, root);
        (read.map(|(config, warnings)| Loaded { config, warnings }), known)
    }

    fn read(&self, source: &str) -> Result<Loaded, Diagnostics> {
        self.read_knowing(source).0
    }

    /// A configuration that is right; the warnings are not looked at.
    fn right(&self, source: &str) -> Config {
        self.read(source).unwrap_or_else(|wrong| panic!("{wrong}\n{source}")).config
    }

    /// All that is said of a file that is wrong.
    fn wrong(&self, source: &str) -> String {
        match self.read(source) {
            Ok(_) => panic!("nothing is wrong with\n{source}"),
            Err(wrong) => wrong.to_string(),
        }
    }

    /// What is said of a file that is right.
    fn warned(&self, source: &str) -> String {
        let loaded = self.read(source).unwrap_or_else(|wrong| panic!("{wrong}\n{source}"));
        loaded.warnings.iter().map(ToString::to_string).collect()
    }
}

fn environment(name: &str) -> Option<String> {
    match name {
        "CLIENT" => Some("hunter2-client".to_owned()),
        "SEAL" => Some("hunter2-0123456789abcdef0123456789abcdef".to_owned()),
        "EMPTY" => Some(String::new()),
        "SHORT" => Some("hunter2".to_owned()),
        "LINES" => Some("hunter2\nhunter3".to_owned()),
        _ => None,
    }
}

/// The least that is right.
fn least() -> String {
    [SERVER, PROVIDER, SESSION, ROUTE].concat()
}

/// The least that is right, with `more` in the table it is for.
fn with(table: &str, more: &str) -> String {
    let mut parts = [SERVER, PROVIDER, SESSION, ROUTE].map(str::to_owned);
    match table {
        "server" => parts[0].insert_str(0, &format!("[server]\n{more}\n")),
        "provider" => parts[1] += &format!("{more}\n"),
        "session" => parts[2] += &format!("{more}\n"),
        "route" => parts[3] += &format!("{more}\n"),
        other => return parts.concat() + &format!("[{other}]\n{more}\n"),
    }
    parts.concat()
}

/// What is said of a file that is wrong in one way, as `key: message`.
fn only_fault(site: &Site, source: &str) -> String {
    let wrong = site.read(source).err().unwrap_or_else(|| panic!("nothing is wrong:\n{source}"));
    let errors: Vec<_> = wrong
        .list
        .iter()
        .filter(|diagnostic| diagnostic.severity == diagnostic::Severity::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{wrong}\n{source}");
    format!("{}: {}", errors[0].key, errors[0].message)
}
