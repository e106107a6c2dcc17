//! The course of a comparison: start everything once; for each row, rounds in which every
//! contender has its turn, in the order reversed each time; print the table. What is measured is
//! `rows`'s, what a slice of it means is the load's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::client::Connection;
use crate::process::Process;
use crate::proxies::Bench;
use crate::report::{self, Sample};
use crate::rows::{CONNECTIONS, Contender, KEYS, Load, Row, rows};
use crate::{closed_loop, h2load, handshakes, many};

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
    /// Rows: some of idle, many, h1, h2, handshakes, large, redis, commit, memory.
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
    let rows: Vec<_> = rows(before.is_some()).into_iter().filter(chosen).collect();
    let bench = Bench::start(&options.gateway, before, &options.directory, &rows)?;
    write!(std::io::stdout(), "{}", report::machine())?;
    for row in &rows {
        let table = match row.load {
            Load::Idle(connections) => idle(&bench, row, connections)?,
            Load::Many(connections, sockets) => at_once(&bench, row, (connections, sockets))?,
            Load::ChangedSessions => changed_sessions(row, &options.directory)?,
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
    Ok(match row.load {
        Load::Sessions => report::session_table(row, &samples),
        _ => report::cost_table(row, &samples),
    })
}

/// One contender's turn.
fn slice(bench: &Bench, load: Load, contender: &Contender, time: Duration) -> Result<Sample> {
    let running = bench.proxy(contender.proxy)?;
    let (target, process) = (&running.target, &running.process);
    let cookies = bench.cookies(contender.proxy, contender.visitor);
    let cookie = cookies.first().map(String::as_str);
    let request = target.request(contender.path, cookie);
    let redis = bench.redis(contender.proxy);
    let redis_before = redis.map(Process::cpu_time).transpose()?;
    let mut sample = match load {
        Load::Idle(connections) | Load::Many(connections, _) | Load::ClosedLoop(connections) => {
            closed_loop::run(target, &[request], connections, time, process)
        }
        Load::Sessions | Load::ChangedSessions => {
            let requests: Vec<_> = cookies
                .iter()
                .map(|cookie| target.request(contender.path, Some(cookie.as_str())))
                .collect();
            closed_loop::run(target, &requests, CONNECTIONS, time, process)
        }
        Load::Http2 => h2load::run(target, contender.path, cookie, time, process),
        Load::Handshakes(threads) => handshakes::run(target, &request, threads, time, process),
    }?;
    if let (Some(redis), Some(before)) = (redis, redis_before) {
        sample.redis = Some(redis.cpu_time()?.saturating_sub(before));
    }
    ensure!(sample.count > 0, "{} answered nothing in {time:?}", contender.label);
    Ok(sample)
}

/// What sessions that changed cost in memory: measured by a process of its own, which has done
/// nothing else.
fn changed_sessions(row: &Row, directory: &Path) -> Result<String> {
    eprintln!("{}: about a minute", row.key);
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["memory", "--directory"]).arg(directory.join("memory")).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", complaint.trim());
    let table = String::from_utf8(output.stdout).context("the table is no text")?;
    Ok(report::heading(row) + &table)
}

/// The same for very many, and for WebSockets beside them.
fn at_once(bench: &Bench, row: &Row, connections: (usize, usize)) -> Result<String> {
    let mut growths = Vec::new();
    for contender in &row.contenders {
        eprintln!("{}: {}", row.key, contender.label);
        let running = bench.proxy(contender.proxy)?;
        let cookie = bench.cookies(contender.proxy, contender.visitor).first().map(String::as_str);
        let request = running.target.request(contender.path, cookie);
        growths.push(many::run(&running.target, &request, cookie, &running.process, connections)?);
    }
    Ok(report::many_table(row, &growths))
}

/// How much memory each contender's process grows by for a connection that is kept open.
fn idle(bench: &Bench, row: &Row, connections: usize) -> Result<String> {
    let mut bytes = Vec::new();
    for contender in &row.contenders {
        let running = bench.proxy(contender.proxy)?;
        let cookie = bench.cookies(contender.proxy, contender.visitor).first();
        let request = running.target.request(contender.path, cookie.map(String::as_str));
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
