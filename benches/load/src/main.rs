//! The command line of what `benches/compare` and `benches/soak` run. It knows a few things to do; how is in the files
//! below.
//!
//! | file | what |
//! |---|---|
//! | `compare` | the course of a comparison |
//! | `rows` | what is measured: which request, through which proxy, against which other |
//! | `proxies` | nginx, HAProxy and the gateway: configured alike, started, checked |
//! | `redis` | the Redis that sessions are kept in |
//! | `session` | the users' sessions, and their cookies |
//! | `memory` | what changed sessions cost in the memory of each store |
//! | `many` | ten thousand idle connections, and thousands of WebSockets beside them |
//! | `process` | a program started and stopped, its CPU time and memory |
//! | `client` | one TLS connection, blocking |
//! | `closed_loop` | many connections, each with one request under way |
//! | `handshakes` | connections that serve one request each |
//! | `h2load` | HTTP/2, by nghttp2's load generator |
//! | `report` | medians, ratios, the table |
//! | `origin` | the app behind the proxies |
//! | `soak` | minutes of everything at once, every answer checked |

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

mod client;
mod closed_loop;
mod compare;
mod h2load;
mod handshakes;
mod many;
mod memory;
mod origin;
mod process;
mod proxies;
mod redis;
mod report;
mod rows;
mod session;
mod soak;

/// Measures the gateway beside nginx and HAProxy, or soaks it.
#[derive(Parser)]
#[command(name = "load")]
enum Command {
    /// Start everything, measure, print a Markdown table.
    Compare(compare::Options),
    /// Change many sessions of each store, print what each costs in memory.
    Memory(memory::Options),
    /// Ask for everything at once for some minutes, check every answer, print what came of it.
    Soak(soak::Options),
    /// The app of a soak, on this address; until it is stopped.
    SoakApp {
        /// A loopback address.
        address: SocketAddr,
        /// Where its certificate is.
        directory: PathBuf,
    },
    /// The app behind the proxies, on this address; until it is stopped.
    Origin {
        /// A loopback address.
        address: SocketAddr,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Compare(options) => compare::run(&options),
        Command::Memory(options) => memory::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::SoakApp { address, directory } => soak::app::serve(address, &directory),
        Command::Origin { address } => origin::serve(address),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
