//! Debian's curl, as a client that we did not write.

use std::process::Command;
use std::time::Duration;

use super::gateway::Gateway;
use super::program::Program;

/// What curl says and does, in full: `--verbose`, and how much it has sent.
pub(crate) fn curl(gateway: &Gateway, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    let authority = gateway.directory.path().join("authority.pem");
    command.args(["--silent", "--show-error", "--cacert"]).arg(authority);
    command.args(["--verbose", "--max-time", "20", "--write-out", "\nsent %{size_upload}\n"]);
    command.args(arguments);
    let mut program = Program::start(&mut command, "install Debian's curl, or run tests/run");
    tokio::task::block_in_place(|| program.wait(Duration::from_secs(25)));
    program.output()
}
