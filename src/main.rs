//! The command.

use std::process::ExitCode;

use vestibule::cli::{self, Command};

fn main() -> ExitCode {
    match cli::parse() {
        Command::Check { config } => cli::check(&config),
        Command::Keygen => cli::keygen(),
        // Serving and the demo are joined here.
        _ => ExitCode::FAILURE,
    }
}
