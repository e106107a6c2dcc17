//! From samples to the table: medians, ratios round by round with their spread, and a mark where a
//! number is not to be trusted. It measures nothing.

use std::fmt::Write;
use std::fs;
use std::ops::{Div, Sub};
use std::process::Command;
use std::time::Duration;

use crate::many::Growth;
use crate::rows::Row;

/// Below this the proxy waited for the load, and a ratio leans towards 1.
const BUSY: f64 = 0.95;

/// One contender in one round.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// Answers that arrived whole.
    pub(crate) count: usize,
    /// How long it took.
    pub(crate) wall: Duration,
    /// What the proxy spent on it.
    pub(crate) cpu: Duration,
    /// What Redis spent on it, if it keeps the sessions.
    pub(crate) redis: Option<Duration>,
    /// As the load saw it, where it says.
    pub(crate) latency: Option<Latency>,
}

impl Sample {
    /// The proxy's CPU time per answer, in microseconds.
    fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count(self.count)
    }

    /// Redis's CPU time per answer, in microseconds.
    fn redis_cost(&self) -> Option<f64> {
        Some(self.redis?.as_secs_f64() * 1e6 / count(self.count))
    }

    /// The part of its core that the proxy used.
    fn utilisation(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    fn per_second(&self) -> f64 {
        count(self.count) / self.wall.as_secs_f64()
    }
}

/// Time from a request to its whole answer.
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    median: Duration,
    p99: Duration,
}

impl Latency {
    /// Of these; none if there are none.
    pub(crate) fn of(mut latencies: Vec<Duration>) -> Option<Self> {
        latencies.sort_unstable();
        let rank = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
        Some(Self { median: rank(50)?, p99: rank(99)? })
    }
}

/// The table of a row in which CPU time was measured: for each contender, its samples in the
/// rounds' order.
pub(crate) fn cost_table(row: &Row, samples: &[Vec<Sample>]) -> String {
    let mut table = heading(row);
    table +=
        "| | CPU µs | per CPU s | ratio (min–max) | to | utilisation | per s | p50 µs | p99 µs |\n";
    table += "|---|--:|--:|--:|---|--:|--:|--:|--:|\n";
    for (contender, own) in row.contenders.iter().zip(samples) {
        let cost = median(own.iter().map(Sample::cost));
        let utilisation = median(own.iter().map(Sample::utilisation));
        let mark = if utilisation < BUSY { " (!)" } else { "" };
        let per_second = median(own.iter().map(Sample::per_second));
        let latency = |which: fn(&Latency) -> Duration| {
            let all = own.iter().filter_map(|sample| sample.latency.as_ref());
            let median = median(all.map(|latency| which(latency).as_secs_f64() * 1e6));
            if median.is_nan() { "–".to_owned() } else { format!("{median:.0}") }
        };
        let (p50, p99) = (latency(|latency| latency.median), latency(|latency| latency.p99));
        let mut ratios = contender.against.iter().filter_map(|&other| {
            let ratio = Spread::of(own, samples.get(other)?, Sample::cost, Div::div)?;
            Some((format!("{ratio:.2}"), row.contenders.get(other)?.label.as_str()))
        });
        let (ratio, other) = ratios.next().unwrap_or_default();
        let _ = writeln!(
            table,
            "| {} | {cost:.1} | {:.0} | {ratio} | {other} | {utilisation:.2}{mark} | {per_second:.0} | {p50} | {p99} |",
            contender.label,
            1e6 / cost,
        );
        for (ratio, other) in ratios {
            let _ = writeln!(table, "| | | | {ratio} | {other} | | | | |");
        }
    }
    table
}

/// The table of a row about sessions, with what Redis spends: for each contender, its samples in the
/// rounds' order.
pub(crate) fn session_table(row: &Row, samples: &[Vec<Sample>]) -> String {
    let mut table = heading(row);
    table += "| | CPU µs | ratio (min–max) | more, µs (min–max) | to | utilisation | per s | \
              ratio (min–max) | Redis, CPU µs |\n";
    table += "|---|--:|--:|--:|---|--:|--:|--:|--:|\n";
    for (contender, own) in row.contenders.iter().zip(samples) {
        let cost = median(own.iter().map(Sample::cost));
        let utilisation = median(own.iter().map(Sample::utilisation));
        let mark = if utilisation < BUSY { " (!)" } else { "" };
        let per_second = median(own.iter().map(Sample::per_second));
        let redis = median(own.iter().filter_map(Sample::redis_cost));
        let redis = if redis.is_nan() { String::new() } else { format!("{redis:.1}") };
        let mut others = contender.against.iter().filter_map(|&other| {
            let theirs = samples.get(other)?;
            Some([
                format!("{:.2}", Spread::of(own, theirs, Sample::cost, Div::div)?),
                format!("{:.1}", Spread::of(own, theirs, Sample::cost, Sub::sub)?),
                row.contenders.get(other)?.label.trim_matches('*').to_owned(),
                format!("{:.2}", Spread::of(own, theirs, Sample::per_second, Div::div)?),
            ])
        });
        let [ratio, more, other, rate] = others.next().unwrap_or_default();
        let _ = writeln!(
            table,
            "| {} | {cost:.1} | {ratio} | {more} | {other} | {utilisation:.2}{mark} | {per_second:.0} | {rate} | {redis} |",
            contender.label,
        );
        for [ratio, more, other, rate] in others {
            let _ = writeln!(table, "| | | {ratio} | {more} | {other} | | | {rate} | |");
        }
    }
    table
}

/// The table of a row in which memory was measured: bytes per connection.
pub(crate) fn memory_table(row: &Row, bytes: &[f64]) -> String {
    let mut table = heading(row);
    table += "| | KiB per connection | ratio | to |\n|---|--:|--:|---|\n";
    for (contender, own) in row.contenders.iter().zip(bytes) {
        let mut ratios = contender.against.iter().filter_map(|&other| {
            let ratio = format!("{:.2}", own / bytes.get(other)?);
            Some((ratio, row.contenders.get(other)?.label.as_str()))
        });
        let (ratio, other) = ratios.next().unwrap_or_default();
        let own = own / 1024.0;
        let _ = writeln!(table, "| {} | {own:.1} | {ratio} | {other} |", contender.label);
        for (ratio, other) in ratios {
            let _ = writeln!(table, "| | | {ratio} | {other} |");
        }
    }
    table
}

/// The table of idle connections and of WebSockets beside them.
pub(crate) fn many_table(row: &Row, growths: &[[Growth; 2]]) -> String {
    let mut table = heading(row);
    table +=
        "| | idle: KiB resident | ratio | PSS | WebSocket: KiB resident | ratio | PSS | to |\n";
    table += "|---|--:|--:|--:|--:|--:|--:|---|\n";
    for (contender, own) in row.contenders.iter().zip(growths) {
        let other = contender.against.first();
        let others = other.and_then(|&other| growths.get(other));
        let [idle, socket] = [0, 1].map(|which| {
            let Some(own) = own.get(which) else { return String::new() };
            let ratio = others.and_then(|others| others.get(which));
            let ratio = ratio.map(|other| format!("{:.2}", own.resident / other.resident));
            let (resident, proportional) = (own.resident / 1024.0, own.proportional / 1024.0);
            format!("{resident:.1} | {} | {proportional:.1}", ratio.unwrap_or_default())
        });
        let other = other.and_then(|&other| row.contenders.get(other));
        let other = other.map(|other| other.label.as_str()).unwrap_or_default();
        let _ = writeln!(table, "| {} | {idle} | {socket} | {other} |", contender.label);
    }
    table
}

/// What the numbers were measured on and with, as far as it says.
pub(crate) fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1)).unwrap_or("a processor");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{model}; Linux {}; {}; {}; {}; {}\n",
        kernel.trim(),
        version("nginx", "-v"),
        version("haproxy", "-v"),
        version("h2load", "--version"),
        version("redis-server", "--version").split(" sha").next().unwrap_or_default(),
    )
}

/// The first line in which a program says its version.
fn version(program: &str, ask: &str) -> String {
    let said = Command::new(program).arg(ask).output().ok();
    let text = said.map(|said| [said.stdout, said.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or(program).trim_start_matches("nginx version: ").to_owned()
}

/// What stands above a row's table.
pub(crate) fn heading(row: &Row) -> String {
    format!("\n### {} (`{}`)\n\n", row.title, row.key)
}

/// How to read the tables.
pub(crate) fn notes(rounds: usize, seconds: f64) -> String {
    format!(
        "\nCPU is that of the proxy alone, per answer: the median of {rounds} rounds of {seconds} s. A \
         ratio is the median of the rounds' ratios, with the least and the greatest; a difference \
         of less than 5%, or within the spread of A/A, is none. (!) marks a proxy that was not \
         kept busy: its ratio leans towards 1. Redis shares a core with the load and the app. The \
         gateway runs with its access log and metrics on, nginx and HAProxy with their logs off.\n"
    )
}

/// How two contenders compare, round by round.
struct Spread {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Spread {
    /// Of what is looked at, by its ratio or its difference.
    fn of(
        own: &[Sample],
        other: &[Sample],
        look: impl Fn(&Sample) -> f64,
        compare: impl Fn(f64, f64) -> f64,
    ) -> Option<Self> {
        let compared: Vec<_> =
            own.iter().zip(other).map(|(own, other)| compare(look(own), look(other))).collect();
        let least = compared.iter().copied().reduce(f64::min)?;
        let greatest = compared.iter().copied().reduce(f64::max)?;
        Some(Self { median: median(compared), least, greatest })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, least, greatest } = self;
        let places = formatter.precision().unwrap_or(2);
        write!(formatter, "**{median:.places$}** ({least:.places$}–{greatest:.places$})")
    }
}

/// The median; not a number if there is none.
fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<_> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let upper = numbers.get(numbers.len() / 2).copied();
    let lower = numbers.get(numbers.len().saturating_sub(1) / 2).copied();
    upper.zip(lower).map_or(f64::NAN, |(upper, lower)| f64::midpoint(upper, lower))
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(microseconds: u64) -> Sample {
        let cpu = Duration::from_micros(microseconds * 1000);
        Sample { count: 1000, wall: cpu, cpu, redis: None, latency: None }
    }

    #[test]
    fn a_median_is_the_middle() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The machine was twice as slow in the second round: the ratio does not see it.
        let (own, other) =
            ([sample(8), sample(16), sample(9)], [sample(10), sample(20), sample(10)]);
        let ratio = Spread::of(&own, &other, Sample::cost, Div::div).unwrap();
        assert_eq!(format!("{ratio:.2}"), "**0.80** (0.80–0.90)");
        let more = Spread::of(&own, &other, Sample::cost, Sub::sub).unwrap();
        assert_eq!(format!("{more:.1}"), "**-2.0** (-4.0–-1.0)");
    }

    #[test]
    fn what_redis_spends_stands_in_its_own_column() {
        let rows = crate::rows::rows(false);
        let row = rows.iter().find(|row| row.key == "redis").unwrap();
        let with_redis = Sample { redis: Some(Duration::from_millis(7)), ..sample(30) };
        let samples = vec![vec![sample(20)], vec![sample(20)], vec![with_redis]];
        let table = report_line(&session_table(row, &samples), "Redis store");
        assert!(
            table.contains("| 30.0 | **1.50** (1.50–1.50) | **10.0** (10.0–10.0) |"),
            "{table}"
        );
        assert!(table.contains("| **0.67** (0.67–0.67) | 7.0 |"), "{table}");
    }

    fn report_line(table: &str, label: &str) -> String {
        table.lines().find(|line| line.contains(label)).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_proxy_that_waits_for_the_load_is_marked() {
        let row = &crate::rows::rows(false)[1];
        let lazy = Sample { wall: Duration::from_secs(1), ..sample(900) };
        let samples = vec![vec![sample(10)], vec![lazy]];
        let table = cost_table(row, &samples);
        let marked: Vec<_> = table.lines().filter(|line| line.contains("(!)")).collect();
        assert_eq!(marked.len(), 1);
        assert!(marked[0].contains("0.90 (!)"), "{table}");
    }
}
