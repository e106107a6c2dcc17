//! The command.

use std::process::ExitCode;

use vestibule::cli::{self, Command};

fn main() -> ExitCode {
    match cli::parse() {
        Command::Check { config } => cli::check(&config),
        Command::Keygen => cli::keygen(),
        Command::Serve { config } => cli::serve(&config),
        #[cfg(feature = "demo")]
        Command::Demo { config, listen } => match vestibule::demo::run(&config, listen) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cli::complain(&error),
        },
    }
}
