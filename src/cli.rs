//! The command line: what can be asked of the binary, and the two commands that need no network.
//! Results go to standard output, faults to standard error.

use std::io::{self, Write};
#[cfg(feature = "demo")]
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::diagnostic::Diagnostics;
use crate::config::{self, Config, Loaded, Read};
use crate::observe;
use crate::server::{self, Addresses, Source};

mod explain;

/// What the binary is asked to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve; also when no command is given.
    Serve {
        /// `-c`, default `gateway.toml`.
        config: PathBuf,
    },
    /// [`check`]
    Check {
        /// `-c`, default `gateway.toml`.
        config: PathBuf,
    },
    /// [`keygen`]
    Keygen,
    /// The demo, on loopback.
    #[cfg(feature = "demo")]
    Demo {
        /// `-c`, default `gateway.toml`.
        config: PathBuf,
        /// `--listen`: a loopback address in place of the file's `server.https`.
        listen: Option<SocketAddr>,
    },
}

/// Reads the process's own arguments. Ends the process when they are wrong (exit status 2), and
/// after `--help` and `--version` (0).
pub fn parse() -> Command {
    Arguments::parse().into()
}

/// Reads the file as serving does, prints what it means, or all that is wrong with it. Status 0
/// or 1; warnings do not change it.
pub fn check(path: &Path) -> ExitCode {
    let Some(config) = right(config::read(path).outcome) else { return ExitCode::FAILURE };
    let name = path.display().to_string();
    finish(&explain::explain(&name, &config, &mut io::stdout().lock()))
}

/// Serves as the file says, until SIGTERM or SIGINT; prints where it listens. The file is read again
/// at SIGHUP and when it changes. Status 1 if it cannot start.
pub fn serve(path: &Path) -> ExitCode {
    let Read { outcome, files } = config::read(path);
    let Some(config) = right(outcome) else { return ExitCode::FAILURE };
    observe::log::start(&config.log);
    let source = Source { path: path.to_owned(), files };
    let served = server::serve(config, Some(source), |addresses| {
        // Who closed the pipe wants no word.
        let _ = announce(addresses, &mut io::stdout().lock());
    });
    served.map_or_else(|error| complain(&error), |()| ExitCode::SUCCESS)
}

/// One line a listener.
fn announce(addresses: &Addresses, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "https {}", addresses.https)?;
    for (name, address) in [("http ", addresses.http), ("admin", addresses.admin)] {
        if let Some(address) = address {
            writeln!(out, "{name} {address}")?;
        }
    }
    out.flush()
}

/// Prints why a command failed.
pub fn complain(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "vestibule: {error}");
    ExitCode::FAILURE
}

/// Prints a fresh secret for `session.secrets`: 32 random bytes in base64url (RFC 4648, section 5).
pub fn keygen() -> ExitCode {
    let mut bytes = [0; 32];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        let _ = writeln!(io::stderr(), "vestibule: the machine gives no random bytes");
        return ExitCode::FAILURE;
    }
    let secret = base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes);
    finish(&writeln!(io::stdout(), "{secret}"))
}

/// The configuration, for a command that needs it; prints warnings, or all that is wrong with it.
fn right(outcome: Result<Loaded, Diagnostics>) -> Option<Config> {
    match outcome {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                let _ = write!(io::stderr(), "{warning}");
            }
            Some(loaded.config)
        }
        Err(diagnostics) => {
            let _ = write!(io::stderr(), "{diagnostics}");
            None
        }
    }
}

/// What is not printed in full is a failure: someone may read it from a pipe.
fn finish(printed: &io::Result<()>) -> ExitCode {
    if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A reverse-proxy gateway that logs users in and lets apps change the session with one header.
#[derive(Parser)]
#[command(name = "vestibule", version)]
struct Arguments {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "gateway.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Chosen>,
}

#[derive(Subcommand)]
enum Chosen {
    /// Serve (the default).
    Serve,
    /// Read the file as serve would, print what it means, or everything that is wrong with it.
    Check,
    /// Print a fresh secret for session.secrets.
    Keygen,
    /// Try it out on this machine: a provider, an app and a certificate of its own.
    #[cfg(feature = "demo")]
    Demo {
        /// A loopback address in place of the file's server.https.
        #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
        listen: Option<SocketAddr>,
    },
}

impl From<Arguments> for Command {
    fn from(Arguments { config, command }: Arguments) -> Self {
        match command {
            None | Some(Chosen::Serve) => Self::Serve { config },
            Some(Chosen::Check) => Self::Check { config },
            Some(Chosen::Keygen) => Self::Keygen,
            #[cfg(feature = "demo")]
            Some(Chosen::Demo { listen }) => Self::Demo { config, listen },
        }
    }
}

/// SECURITY: the demo's provider believes any name; no other machine may reach it.
#[cfg(feature = "demo")]
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "write an IP address and a port: 127.0.0.1:8443".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("the demo binds loopback only: 127.0.0.1:8443 or [::1]:8443".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn command(words: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("vestibule").chain(words.split_whitespace());
        Arguments::try_parse_from(words).map(Command::from)
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_serves_gateway_toml() {
        let default = Command::Serve { config: "gateway.toml".into() };
        assert_eq!(command("").unwrap(), default);
        assert_eq!(command("serve").unwrap(), default);
    }

    #[test]
    fn the_file_may_be_named_before_and_after_the_command() {
        let check = Command::Check { config: "a.toml".into() };
        for words in ["check -c a.toml", "-c a.toml check", "check --config a.toml"] {
            assert_eq!(command(words).unwrap(), check, "{words}");
        }
        assert_eq!(command("-c a.toml").unwrap(), Command::Serve { config: "a.toml".into() });
        assert_eq!(command("keygen").unwrap(), Command::Keygen);
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for words in ["sreve", "check now", "serve --listen 127.0.0.1:1", "-c", "--nope"] {
            assert!(command(words).is_err(), "{words}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_listens_on_loopback_only() {
        let listen = |address| match command(&format!("demo --listen {address}")) {
            Ok(Command::Demo { listen, .. }) => listen,
            _ => None,
        };
        assert_eq!(listen("127.0.0.1:9443"), "127.0.0.1:9443".parse().ok());
        assert_eq!(listen("[::1]:0"), "[::1]:0".parse().ok());
        for address in ["0.0.0.0:8443", "[::]:8443", "192.0.2.1:1", "localhost:1", "127.0.0.1"] {
            assert_eq!(listen(address), None, "{address}");
        }
        assert!(matches!(command("demo"), Ok(Command::Demo { listen: None, .. })));
    }
}
