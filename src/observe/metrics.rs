//! The numbers. Each worker counts in atomics of its own that nobody else writes, so that counting
//! costs a request no shared cache line; a scrape adds them up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet as NoLabels};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::session::Memory;
use crate::session::update::UpdateRefused;

/// Upper bounds of the histograms' buckets, in microseconds.
const BUCKETS: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000,
    10_000_000,
];
/// Statuses from 100 to 599; whatever else an app sends is counted as 599.
const STATUSES: usize = 500;

/// Which route a request had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteLabel {
    /// The route with this index.
    Route(usize),
    /// The gateway's own endpoints.
    Auth,
    /// None.
    None,
}

/// What became of a login, a logout or a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginOutcome {
    /// A browser was sent to the provider.
    Started,
    /// There is a session.
    Succeeded,
    /// The answer was not good, or was a no.
    Refused,
    /// The provider or the gateway failed.
    Failed,
    /// A session was ended by its user.
    LoggedOut,
    /// Sessions were ended by the provider.
    LoggedOutByProvider,
    /// Tokens were refreshed.
    Refreshed,
    /// The provider refused to refresh them.
    RefreshRefused,
    /// The provider could not be asked.
    RefreshFailed,
}

const OUTCOMES: [(LoginOutcome, &str); 9] = [
    (LoginOutcome::Started, "started"),
    (LoginOutcome::Succeeded, "succeeded"),
    (LoginOutcome::Refused, "refused"),
    (LoginOutcome::Failed, "failed"),
    (LoginOutcome::LoggedOut, "logged_out"),
    (LoginOutcome::LoggedOutByProvider, "logged_out_by_provider"),
    (LoginOutcome::Refreshed, "refreshed"),
    (LoginOutcome::RefreshRefused, "refresh_refused"),
    (LoginOutcome::RefreshFailed, "refresh_failed"),
];

/// What is counted of one upstream, by whoever asks it.
#[derive(Clone, Debug)]
pub struct UpstreamNumbers {
    /// As configured.
    pub upstream: String,
    /// Whether it is asked like any other.
    pub is_in: bool,
    /// How often it was left out because it failed.
    pub ejections: u64,
    /// How many health checks have passed and how many have failed, if there are any.
    pub checks: Option<[u64; 2]>,
}

/// Reads the upstreams' numbers.
type Upstreams = Box<dyn Fn() -> Vec<UpstreamNumbers> + Send + Sync>;

/// The numbers of all workers.
pub struct Metrics {
    routes: Vec<String>,
    memory: Arc<Memory>,
    upstreams: Upstreams,
    workers: Mutex<Vec<Arc<Counters>>>,
}

/// One worker's numbers.
pub struct WorkerMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    /// `STATUSES` for each route, then for the gateway's own endpoints, then for none.
    requests: Vec<AtomicU64>,
    gateway: Histogram,
    upstream: Histogram,
    logins: [AtomicU64; OUTCOMES.len()],
    applied: AtomicU64,
    lost: AtomicU64,
    refused: [AtomicU64; UpdateRefused::ALL.len()],
    connections: AtomicU64,
    dropped_lines: AtomicU64,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(bucket) {
            add(bucket);
        }
        self.micros.fetch_add(micros, Relaxed);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Metrics {
    /// For these routes, by the names that they have in the numbers. `upstreams` is asked at each
    /// scrape.
    pub fn new(
        routes: Vec<String>,
        memory: Arc<Memory>,
        upstreams: impl Fn() -> Vec<UpstreamNumbers> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let upstreams = Box::new(upstreams);
        Arc::new(Self { routes, memory, upstreams, workers: Mutex::default() })
    }

    /// The numbers of one more worker.
    pub fn worker(&self) -> WorkerMetrics {
        let slots = (self.routes.len() + 2) * STATUSES;
        let counters = Arc::new(Counters {
            requests: std::iter::repeat_with(AtomicU64::default).take(slots).collect(),
            gateway: Histogram::default(),
            upstream: Histogram::default(),
            logins: Default::default(),
            applied: AtomicU64::default(),
            lost: AtomicU64::default(),
            refused: Default::default(),
            connections: AtomicU64::default(),
            dropped_lines: AtomicU64::default(),
        });
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        WorkerMetrics(counters)
    }

    /// Everything in the `OpenMetrics` text format.
    pub fn encode(self: &Arc<Self>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(self.clone())));
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn sum(&self, read: impl Fn(&Counters) -> u64) -> u64 {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|c| read(c)).sum()
    }
}

impl WorkerMetrics {
    /// A request was answered. `upstream` is the part of `total` that its app took.
    pub fn request(
        &self,
        route: RouteLabel,
        status: StatusCode,
        total: Duration,
        upstream: Option<Duration>,
    ) {
        let routes = self.0.requests.len() / STATUSES - 2;
        let row = match route {
            RouteLabel::Route(index) => index.min(routes),
            RouteLabel::Auth => routes,
            RouteLabel::None => routes + 1,
        };
        let column = usize::from(status.as_u16()).saturating_sub(100).min(STATUSES - 1);
        if let Some(counter) = self.0.requests.get(row * STATUSES + column) {
            add(counter);
        }
        self.0.gateway.observe(total.saturating_sub(upstream.unwrap_or_default()));
        if let Some(upstream) = upstream {
            self.0.upstream.observe(upstream);
        }
    }

    /// A login, logout or refresh came to this.
    pub fn login(&self, outcome: LoginOutcome) {
        for ((known, _), counter) in OUTCOMES.iter().zip(&self.0.logins) {
            if *known == outcome {
                add(counter);
            }
        }
    }

    /// An app's update was applied.
    pub fn update_applied(&self) {
        add(&self.0.applied);
    }

    /// An app's update could not be saved.
    pub fn update_lost(&self) {
        add(&self.0.lost);
    }

    /// An app's update was refused.
    pub fn update_refused(&self, reason: UpdateRefused) {
        for (known, counter) in UpdateRefused::ALL.iter().zip(&self.0.refused) {
            if *known == reason {
                add(counter);
            }
        }
    }

    /// A browser's connection is open until this is dropped.
    pub fn connection(&self) -> OpenConnection {
        add(&self.0.connections);
        OpenConnection(self.0.clone())
    }

    /// An access line could not be written in time.
    pub fn dropped_line(&self) {
        add(&self.0.dropped_lines);
    }
}

/// An open connection.
pub struct OpenConnection(Arc<Counters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct Scrape(Arc<Metrics>);

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").field("routes", &self.routes).finish_non_exhaustive()
    }
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = &self.0;
        let one = |value: u64| vec![(Labels::new(), value)];
        let upstreams = (all.upstreams)();
        let applied = all.sum(|c| c.applied.load(Relaxed));
        let lost = all.sum(|c| c.lost.load(Relaxed));
        let dropped = all.sum(|c| c.dropped_lines.load(Relaxed));
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
        let open = all.sum(|c| c.connections.load(Relaxed));
        let (name, help) = ("vestibule_open_connections", "Connections of browsers");
        encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&i64::try_from(open).unwrap_or(i64::MAX))?;
        let (name, help) = ("vestibule_upstream_up", "Whether an upstream is not left out");
        let mut up = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for one in &upstreams {
            up.encode_family(&upstream(one))?.encode_gauge(&i64::from(one.is_in))?;
        }
        for (name, help, of) in HISTOGRAMS {
            let kind = MetricType::Histogram;
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
            encode_histogram(all, of, metric)?;
        }
        Ok(())
    }
}

impl Metrics {
    fn requests(&self) -> Vec<(Labels, u64)> {
        let own = ["auth".to_owned(), "none".to_owned()];
        let mut rows = Vec::new();
        for (row, route) in self.routes.iter().chain(&own).enumerate() {
            for column in 0..STATUSES {
                let at = row * STATUSES + column;
                let count = self.sum(|c| c.requests.get(at).map_or(0, |c| c.load(Relaxed)));
                if count > 0 {
                    let status = (column + 100).to_string();
                    rows.push((vec![("route", route.clone()), ("status", status)], count));
                }
            }
        }
        rows
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::memory::Bounds;

    #[test]
    fn a_scrape_adds_up_what_the_workers_counted() {
        let memory = Arc::new(Memory::new(Bounds::default()));
        let metrics = Metrics::new(vec!["/app".to_owned()], memory, || {
            let upstream = |name: &str, checks: Option<[u64; 2]>| UpstreamNumbers {
                upstream: name.to_owned(),
                is_in: checks.is_some(),
                ejections: 2,
                checks,
            };
            vec![upstream("http://a", Some([5, 1])), upstream("http://b", None)]
        });
        for _ in 0..3 {
            let worker = metrics.worker();
            let time = Duration::from_millis(3);
            worker.request(RouteLabel::Route(0), StatusCode::OK, time, Some(time));
            worker.request(RouteLabel::Auth, StatusCode::SEE_OTHER, time, None);
            worker.request(RouteLabel::None, StatusCode::BAD_REQUEST, time, None);
            worker.login(LoginOutcome::Succeeded);
            worker.update_refused(UpdateRefused::TooDeep);
            std::mem::forget(worker.connection());
            drop(worker.connection());
        }
        let text = metrics.encode();
        for line in [
            r#"vestibule_requests_total{route="/app",status="200"} 3"#,
            r#"vestibule_requests_total{route="auth",status="303"} 3"#,
            r#"vestibule_requests_total{route="none",status="400"} 3"#,
            r#"vestibule_logins_total{outcome="succeeded"} 3"#,
            r#"vestibule_session_updates_refused_total{reason="too_deep"} 3"#,
            r#"vestibule_session_updates_refused_total{reason="not_json"} 0"#,
            "vestibule_session_updates_applied_total 0",
            r#"vestibule_upstream_ejections_total{upstream="http://a"} 2"#,
            r#"vestibule_upstream_checks_total{upstream="http://a",outcome="passed"} 5"#,
            r#"vestibule_upstream_checks_total{upstream="http://a",outcome="failed"} 1"#,
            r#"vestibule_upstream_up{upstream="http://a"} 1"#,
            r#"vestibule_upstream_up{upstream="http://b"} 0"#,
            "vestibule_open_connections 3",
            r#"vestibule_upstream_seconds_bucket{le="0.0025"} 0"#,
            r#"vestibule_upstream_seconds_bucket{le="0.005"} 3"#,
            r#"vestibule_upstream_seconds_bucket{le="+Inf"} 3"#,
            "vestibule_upstream_seconds_count 3",
            "vestibule_gateway_seconds_count 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
