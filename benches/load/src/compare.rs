//! The course of a comparison: start everything once; for each row, rounds in which every
//! contender has its turn, in the order reversed each time; print the table. What is measured is
//! `rows`'s, what a slice of it means is the load's.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::client::Connection;
use crate::proxies::Bench;
use crate::report::{self, Sample};
use crate::rows::{Contender, KEYS, Load, Row, rows};
use crate::{closed_loop, h2load, handshakes};

/// What can be asked for.
#[derive(Args)]
pub(crate) struct Options {
    /// The gateway's binary.
    #[arg(long, default_value = "target/dist/vestibule")]
    gateway: PathBuf,
    /// An earlier build of the gateway, held against the first in the same rounds.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Where configurations and the programs' errors go; emptied first.
    #[arg(long, default_value = "benches/run")]
    directory: PathBuf,
    /// Rounds of each row.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Seconds of each slice: one contender in one round.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Rows: some of idle, h1, h2, handshakes, large, update.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Three short rounds: whether it works, not what it says.
    #[arg(long)]
    quick: bool,
}

/// Compares.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (rounds, seconds) =
        if options.quick { (3, 0.5) } else { (options.rounds, options.seconds) };
    ensure!((1..=1000).contains(&rounds), "--rounds has to be 1 to 1000");
    ensure!((0.1..=60.0).contains(&seconds), "--seconds has to be 0.1 to 60");
    let known = |key: &String| KEYS.contains(&key.as_str());
    ensure!(options.only.iter().all(known), "--only knows {}", KEYS.join(", "));
    let chosen = |row: &Row| options.only.is_empty() || options.only.iter().any(|k| k == row.key);

    let before = options.before.as_deref();
    let bench = Bench::start(&options.gateway, before, &options.directory)?;
    write!(std::io::stdout(), "{}", report::machine())?;
    for row in &rows(before.is_some()) {
        if !chosen(row) {
            continue;
        }
        let table = match row.load {
            Load::Idle(connections) => idle(&bench, row, connections)?,
            _ => cost(&bench, row, rounds, Duration::from_secs_f64(seconds))?,
        };
        write!(std::io::stdout(), "{table}")?;
    }
    write!(std::io::stdout(), "{}", report::notes(rounds, seconds))?;
    Ok(())
}

fn cost(bench: &Bench, row: &Row, rounds: usize, time: Duration) -> Result<String> {
    let mut samples = vec![Vec::with_capacity(rounds); row.contenders.len()];
    for contender in &row.contenders {
        slice(bench, row.load, contender, time.min(Duration::from_millis(500)))?;
    }
    for round in 0..rounds {
        eprintln!("{}: round {} of {rounds}", row.key, round + 1);
        let mut turns: Vec<_> = row.contenders.iter().zip(&mut samples).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (contender, own) in turns {
            own.push(slice(bench, row.load, contender, time)?);
        }
    }
    Ok(report::cost_table(row, &samples))
}

/// One contender's turn.
fn slice(bench: &Bench, load: Load, contender: &Contender, time: Duration) -> Result<Sample> {
    let running = bench.proxy(contender.proxy)?;
    let (target, process) = (&running.target, &running.process);
    let cookie = bench.cookie(contender.visitor);
    let request = target.request(contender.path, cookie);
    let sample = match load {
        Load::Idle(connections) | Load::ClosedLoop(connections) => {
            closed_loop::run(target, &request, connections, time, process)
        }
        Load::Http2 => h2load::run(target, contender.path, cookie, time, process),
        Load::Handshakes(threads) => handshakes::run(target, &request, threads, time, process),
    }?;
    ensure!(sample.count > 0, "{} answered nothing in {time:?}", contender.label);
    Ok(sample)
}

/// How much memory each contender's process grows by for a connection that is kept open.
fn idle(bench: &Bench, row: &Row, connections: usize) -> Result<String> {
    let mut bytes = Vec::new();
    for contender in &row.contenders {
        let running = bench.proxy(contender.proxy)?;
        let cookie = bench.cookie(contender.visitor);
        let request = running.target.request(contender.path, cookie);
        let open = || {
            let mut connection = Connection::open(&running.target)?;
            let answer = connection.exchange(&request)?;
            ensure!(answer.status == 200, "an answer has the status {}", answer.status);
            Ok(connection)
        };
        // What the first connections bring up once is not theirs.
        let first = (0..10).map(|_| open()).collect::<Result<Vec<_>>>()?;
        let before = running.process.memory()?;
        let held = (0..connections).map(|_| open()).collect::<Result<Vec<_>>>()?;
        let growth = running.process.memory()?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        bytes.push(growth as f64 / held.len().max(1) as f64);
        drop(first);
    }
    Ok(report::memory_table(row, &bytes))
}
