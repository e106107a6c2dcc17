//! The command line of what `benches/compare` runs. It knows three things to do; how is in the files
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
//! | `process` | a program started and stopped, its CPU time and memory |
//! | `client` | one TLS connection, blocking |
//! | `closed_loop` | many connections, each with one request under way |
//! | `handshakes` | connections that serve one request each |
//! | `h2load` | HTTP/2, by nghttp2's load generator |
//! | `report` | medians, ratios, the table |
//! | `origin` | the app behind the proxies |

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;

mod client;
mod closed_loop;
mod compare;
mod h2load;
mod handshakes;
mod memory;
mod origin;
mod process;
mod proxies;
mod redis;
mod report;
mod rows;
mod session;

/// Measures the gateway beside nginx and HAProxy.
#[derive(Parser)]
#[command(name = "compare")]
enum Command {
    /// Start everything, measure, print a Markdown table.
    Compare(compare::Options),
    /// Change many sessions of each store, print what each costs in memory.
    Memory(memory::Options),
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
        Command::Origin { address } => origin::serve(address),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}
