//! A program that we did not write, beside the gateway: what to install if it is missing, what it
//! printed, and its end. It does not know what the program is for.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::until;

/// A running program. It is killed with its value.
pub(crate) struct Program {
    name: String,
    child: Child,
    /// A directory of its own, which is gone when it is.
    pub(crate) directory: TempDir,
}

/// The repository's own file or directory of this name.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Program {
    /// Starts a command; `remedy` says what to do if there is none.
    pub(crate) fn start(command: &mut Command, remedy: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::create(directory.path().join("output")).unwrap();
        // What it leaves behind goes with it.
        command.env("HOME", directory.path()).env("TMPDIR", directory.path());
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => panic!("there is no {name}: {remedy}"),
            _ => panic!("{name} does not start: {error}"),
        });
        Self { name, child, directory }
    }

    /// Waits until it listens on this port of loopback.
    pub(crate) async fn listens(&mut self, port: u16) {
        let name = self.name.clone();
        until(&format!("{name} listens on {port}"), async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{name} ended with {status}:\n{}", self.output());
            }
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    pub(crate) fn terminate(&mut self, limit: Duration) {
        self.signal("TERM");
        self.wait(limit);
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let _ = Command::new("/bin/kill").args(["-s", name, &pid]).status();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) {
        let name = self.name.clone();
        until(&format!("{name} ends"), async || self.child.try_wait().unwrap()).await;
    }

    /// Gives it this long to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> String {
        let bytes = fs::read(self.directory.path().join("output")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what {} printed:\n{}", self.name, self.output());
        }
    }
}
