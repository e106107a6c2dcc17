//! What a scrape makes of the numbers: the workers' added up, by name and labels.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet as NoLabels};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{
    BUCKETS, Counters, Histogram, LoginOutcome, Metrics, OUTCOMES, RELOADS, ReloadOutcome,
    STATUSES, UpstreamNumbers,
};
use crate::lock::lock;
use crate::session::update::UpdateRefused;

#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Metrics>);

type Labels = Vec<(&'static str, String)>;

const TOO_MANY: &str = "Connections closed because their clients have too many";
const BROKEN: &str = "Connections closed because their clients break HTTP/2";

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = &self.0;
        let one = |value: u64| vec![(Labels::new(), value)];
        let upstreams = all.upstreams.get().map(|ask| ask()).unwrap_or_default();
        let applied = all.sum(|c| c.applied.load(Relaxed));
        let lost = all.sum(|c| c.lost.load(Relaxed));
        let dropped = all.sum(|c| c.dropped_lines.load(Relaxed));
        let refused = all.sum(|c| c.refused_connections.load(Relaxed));
        let broken = all.sum(|c| c.broken_http2.load(Relaxed));
        for (name, help, rows) in [
            ("vestibule_requests", "Requests answered", all.requests()),
            ("vestibule_logins", "Logins, logouts and refreshes by outcome", all.logins()),
            ("vestibule_session_updates_applied", "Updates applied", one(applied)),
            ("vestibule_session_updates_lost", "Updates that could not be saved", one(lost)),
            ("vestibule_session_updates_refused", "Updates refused by reason", all.refused()),
            (
                "vestibule_sessions_forgotten",
                "Sessions that left the memory early because it was full",
                one(all.memory.forgotten()),
            ),
            ("vestibule_access_lines_dropped", "Access lines not written", one(dropped)),
            (
                "vestibule_upstream_ejections",
                "How often an upstream was left out because it failed",
                upstreams.iter().map(|one| (upstream(one), one.ejections)).collect(),
            ),
            ("vestibule_upstream_checks", "Health checks by outcome", checks(&upstreams)),
            ("vestibule_config_reloads", "Configurations read while serving", all.reloads()),
            ("vestibule_connections_refused", TOO_MANY, one(refused)),
            ("vestibule_http2_connections_broken", BROKEN, one(broken)),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in &rows {
                if labels.is_empty() {
                    metric.encode_counter::<NoLabels, _, u64>(value, None)?;
                } else {
                    metric
                        .encode_family(labels)?
                        .encode_counter::<NoLabels, _, u64>(value, None)?;
                }
            }
        }
        encode_gauges(all, &upstreams, &mut encoder)?;
        for (name, help, of) in HISTOGRAMS {
            let kind = MetricType::Histogram;
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
            encode_histogram(all, of, metric)?;
        }
        Ok(())
    }
}

/// What goes up and down.
fn encode_gauges(
    all: &Metrics,
    upstreams: &[UpstreamNumbers],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let open = all.sum(|c| c.connections.load(Relaxed));
    let since = all.configured_at.load(Relaxed);
    let taken = "When the configuration in force was taken";
    for (name, help, unit, value) in [
        ("vestibule_open_connections", "Connections of browsers", None, open),
        ("vestibule_config_timestamp", taken, Some(&Unit::Seconds), since),
    ] {
        encoder
            .encode_descriptor(name, help, unit, MetricType::Gauge)?
            .encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
    }
    let (name, help) = ("vestibule_upstream_up", "Whether an upstream is not left out");
    let mut up = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in upstreams {
        up.encode_family(&upstream(one))?.encode_gauge(&i64::from(one.is_in))?;
    }
    Ok(())
}

impl Metrics {
    fn requests(&self) -> Vec<(Labels, u64)> {
        let workers = lock(&self.workers);
        let mut routes: Vec<(String, Vec<u64>)> = Vec::new();
        for worker in workers.iter() {
            for (name, row) in lock(&worker.rows).iter() {
                let at = routes.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                    routes.push((name.clone(), vec![0; STATUSES]));
                    routes.len() - 1
                });
                let Some((_, sums)) = routes.get_mut(at) else { continue };
                for (sum, count) in sums.iter_mut().zip(&row.0) {
                    *sum += count.load(Relaxed);
                }
            }
        }
        let counted = |(route, sums): (String, Vec<u64>)| {
            sums.into_iter().enumerate().filter(|(_, count)| *count > 0).map(
                move |(column, count)| {
                    let status = (column + 100).to_string();
                    (vec![("route", route.clone()), ("status", status)], count)
                },
            )
        };
        routes.into_iter().flat_map(counted).collect()
    }

    fn reloads(&self) -> Vec<(Labels, u64)> {
        let row = |((_, name), count): (&(ReloadOutcome, &str), &AtomicU64)| {
            (vec![("outcome", (*name).to_owned())], count.load(Relaxed))
        };
        RELOADS.iter().zip(&self.reloads).map(row).collect()
    }

    fn logins(&self) -> Vec<(Labels, u64)> {
        let row = |(at, (_, name)): (usize, &(LoginOutcome, &str))| {
            let count = self.sum(|c| c.logins.get(at).map_or(0, |c| c.load(Relaxed)));
            (vec![("outcome", (*name).to_owned())], count)
        };
        OUTCOMES.iter().enumerate().map(row).collect()
    }

    fn refused(&self) -> Vec<(Labels, u64)> {
        let row = |(at, refused): (usize, &UpdateRefused)| {
            let count = self.sum(|c| c.refused.get(at).map_or(0, |c| c.load(Relaxed)));
            (vec![("reason", refused.reason().to_owned())], count)
        };
        UpdateRefused::ALL.iter().enumerate().map(row).collect()
    }
}

/// The labels of an upstream's numbers.
fn upstream(numbers: &UpstreamNumbers) -> Labels {
    vec![("upstream", numbers.upstream.clone())]
}

fn checks(upstreams: &[UpstreamNumbers]) -> Vec<(Labels, u64)> {
    let rows = upstreams.iter().flat_map(|one| {
        let row = move |(outcome, count): (&str, u64)| {
            let mut labels = upstream(one);
            labels.push(("outcome", outcome.to_owned()));
            (labels, count)
        };
        let counts = one.checks.into_iter().flatten();
        ["passed", "failed"].into_iter().zip(counts).map(row)
    });
    rows.collect()
}

type Pick = fn(&Counters) -> &Histogram;

const HISTOGRAMS: [(&str, &str, Pick); 2] = [
    ("vestibule_gateway", "Time to the response's head, without the app's", |c| &c.gateway),
    ("vestibule_upstream", "Time from the request to the app's response head", |c| &c.upstream),
];

fn encode_histogram(all: &Metrics, of: Pick, mut metric: MetricEncoder<'_>) -> fmt::Result {
    let counts: Vec<u64> = (0..=BUCKETS.len())
        .map(|at| all.sum(|c| of(c).buckets.get(at).map_or(0, |c| c.load(Relaxed))))
        .collect();
    let bounds = BUCKETS.iter().map(|micros| seconds(*micros)).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    let sum = seconds(all.sum(|c| of(c).micros.load(Relaxed)));
    metric.encode_histogram::<NoLabels>(sum, counts.iter().sum(), &buckets, None)
}

#[expect(clippy::cast_precision_loss, reason = "a sum for people, exact to 2^53 microseconds")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
