//! Debian's nginx, as an app or as a reader of requests. It listens where its `server` blocks say,
//! keeps its files in a directory of its own, and ends with its value.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::program::Program;

/// A running nginx.
pub(crate) struct Nginx {
    /// The program; what it printed has its errors.
    pub(crate) program: Program,
    directory: TempDir,
}

impl Nginx {
    /// Starts one with what `lines` gives for the block `http`, and waits for it to listen on this
    /// port; `lines` is told the directory where its files are.
    pub(crate) async fn start(port: u16, lines: impl FnOnce(&Path) -> String) -> Self {
        let directory = TempDir::new().unwrap();
        let at = directory.path();
        let text = conf(at, &lines(at));
        std::fs::write(at.join("nginx.conf"), text).unwrap();
        let mut nginx = Self { program: run(at), directory };
        nginx.program.listens(port).await;
        nginx
    }

    /// Where a file of its directory is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Ends it when it has answered what it was asked, and starts it again with the same file.
    pub(crate) async fn restart(&mut self, port: u16) {
        self.program.signal("QUIT");
        self.program.ended().await;
        self.program = run(self.directory.path());
        self.program.listens(port).await;
    }
}

impl Drop for Nginx {
    /// Its workers would outlive a master that is killed.
    fn drop(&mut self) {
        self.program.terminate(Duration::from_secs(2));
    }
}

fn run(directory: &Path) -> Program {
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(directory.join("nginx.conf"));
    Program::start(&mut command, "install Debian's nginx, or run tests/run")
}

/// Where everything is; its workers may read the test's files whoever runs the test.
fn conf(at: &Path, lines: &str) -> String {
    let at = at.display();
    let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {at}/{name};\n"))
        .collect();
    format!(
        "user root; daemon off; worker_processes 1; pid {at}/pid; error_log stderr error;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_max_body_size 0;\n{places}{lines}}}\n"
    )
}
