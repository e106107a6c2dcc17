//! The numbers. Each worker counts in atomics of its own that nobody else writes, so that counting
//! costs a request no shared cache line; a scrape adds them up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
/// What is counted beside the routes: the gateway's own endpoints, and what has no route.
const OWN: [&str; 2] = ["auth", "none"];

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

/// What became of a configuration that was read while serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// It is in force.
    Applied,
    /// It was wrong, or could not be taken; the one before stays in force.
    Refused,
}

const RELOADS: [(ReloadOutcome, &str); 2] =
    [(ReloadOutcome::Applied, "applied"), (ReloadOutcome::Refused, "refused")];

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
    /// The routes of the start.
    routes: Vec<String>,
    memory: Arc<Memory>,
    upstreams: OnceLock<Upstreams>,
    workers: Mutex<Vec<Arc<Counters>>>,
    reloads: [AtomicU64; RELOADS.len()],
    /// When the configuration in force was taken, in seconds since 1970.
    configured_at: AtomicU64,
}

/// One worker's numbers, for the routes of one configuration.
pub struct WorkerMetrics {
    counters: Arc<Counters>,
    /// One for each route, then the gateway's own endpoints, then none.
    rows: Box<[Arc<Row>]>,
}

/// Requests of one route by status.
#[derive(Debug)]
struct Row(Box<[AtomicU64]>);

#[derive(Debug)]
struct Counters {
    /// By name. A route that is not configured any more keeps what was counted.
    rows: Mutex<Vec<(String, Arc<Row>)>>,
    gateway: Histogram,
    upstream: Histogram,
    logins: [AtomicU64; OUTCOMES.len()],
    applied: AtomicU64,
    lost: AtomicU64,
    refused: [AtomicU64; UpdateRefused::ALL.len()],
    connections: AtomicU64,
    dropped_lines: AtomicU64,
    broken_http2: AtomicU64,
    refused_connections: AtomicU64,
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
    /// For these routes, by the names that they have in the numbers.
    pub fn new(routes: Vec<String>, memory: Arc<Memory>) -> Arc<Self> {
        Arc::new(Self {
            routes,
            memory,
            upstreams: OnceLock::new(),
            workers: Mutex::default(),
            reloads: Default::default(),
            configured_at: AtomicU64::default(),
        })
    }

    /// Whom to ask for the upstreams' numbers at each scrape; once.
    pub fn ask_upstreams(&self, ask: impl Fn() -> Vec<UpstreamNumbers> + Send + Sync + 'static) {
        let _ = self.upstreams.set(Box::new(ask));
    }

    /// A configuration is in force since this time (seconds since 1970).
    pub fn configured(&self, at: u64) {
        self.configured_at.store(at, Relaxed);
    }

    /// A configuration was read while serving, and this came of it.
    pub fn reload(&self, outcome: ReloadOutcome) {
        for ((known, _), counter) in RELOADS.iter().zip(&self.reloads) {
            if *known == outcome {
                add(counter);
            }
        }
    }

    /// The numbers of one more worker, for the routes of the start.
    pub fn worker(&self) -> WorkerMetrics {
        let counters = Arc::new(Counters {
            rows: Mutex::default(),
            gateway: Histogram::default(),
            upstream: Histogram::default(),
            logins: Default::default(),
            applied: AtomicU64::default(),
            lost: AtomicU64::default(),
            refused: Default::default(),
            connections: AtomicU64::default(),
            dropped_lines: AtomicU64::default(),
            broken_http2: AtomicU64::default(),
            refused_connections: AtomicU64::default(),
        });
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        WorkerMetrics::of(counters, &self.routes)
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
    fn of(counters: Arc<Counters>, routes: &[String]) -> Self {
        let own = OWN.map(str::to_owned);
        let rows = routes.iter().chain(&own).map(|name| counters.row(name)).collect();
        Self { counters, rows }
    }

    /// The same numbers, for these routes.
    #[must_use]
    pub fn with_routes(&self, routes: &[String]) -> Self {
        Self::of(self.counters.clone(), routes)
    }

    /// A request was answered. `upstream` is the part of `total` that its app took.
    pub fn request(
        &self,
        route: RouteLabel,
        status: StatusCode,
        total: Duration,
        upstream: Option<Duration>,
    ) {
        self.count(route, status);
        self.counters.gateway.observe(total.saturating_sub(upstream.unwrap_or_default()));
        if let Some(upstream) = upstream {
            self.counters.upstream.observe(upstream);
        }
    }

    /// A request that could not be read was answered.
    pub fn unreadable(&self, status: StatusCode) {
        self.count(RouteLabel::None, status);
    }

    fn count(&self, route: RouteLabel, status: StatusCode) {
        let routes = self.rows.len() - OWN.len();
        let row = match route {
            RouteLabel::Route(index) => index.min(routes),
            RouteLabel::Auth => routes,
            RouteLabel::None => routes + 1,
        };
        let column = usize::from(status.as_u16()).saturating_sub(100).min(STATUSES - 1);
        if let Some(counter) = self.rows.get(row).and_then(|row| row.0.get(column)) {
            add(counter);
        }
    }

    /// A connection was closed because its client breaks HTTP/2.
    pub fn broken_http2(&self) {
        add(&self.counters.broken_http2);
    }

    /// A connection was closed because its client has too many.
    pub fn refused_connection(&self) {
        add(&self.counters.refused_connections);
    }

    /// A login, logout or refresh came to this.
    pub fn login(&self, outcome: LoginOutcome) {
        for ((known, _), counter) in OUTCOMES.iter().zip(&self.counters.logins) {
            if *known == outcome {
                add(counter);
            }
        }
    }

    /// An app's update was applied.
    pub fn update_applied(&self) {
        add(&self.counters.applied);
    }

    /// An app's update could not be saved.
    pub fn update_lost(&self) {
        add(&self.counters.lost);
    }

    /// An app's update was refused.
    pub fn update_refused(&self, reason: UpdateRefused) {
        for (known, counter) in UpdateRefused::ALL.iter().zip(&self.counters.refused) {
            if *known == reason {
                add(counter);
            }
        }
    }

    /// A browser's connection is open until this is dropped.
    pub fn connection(&self) -> OpenConnection {
        add(&self.counters.connections);
        OpenConnection(self.counters.clone())
    }

    /// An access line could not be written in time.
    pub fn dropped_line(&self) {
        add(&self.counters.dropped_lines);
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

impl Counters {
    /// The row of a route, which is made if it is not there.
    fn row(&self, name: &str) -> Arc<Row> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, row)) = rows.iter().find(|(known, _)| known == name) {
            return row.clone();
        }
        let row = std::iter::repeat_with(AtomicU64::default).take(STATUSES);
        let row = Arc::new(Row(row.collect()));
        rows.push((name.to_owned(), row.clone()));
        row
    }
}

impl Metrics {
    fn requests(&self) -> Vec<(Labels, u64)> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut routes: Vec<(String, Vec<u64>)> = Vec::new();
        for worker in workers.iter() {
            for (name, row) in worker.rows.lock().unwrap_or_else(PoisonError::into_inner).iter() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::memory::Bounds;

    #[test]
    fn a_scrape_adds_up_what_the_workers_counted() {
        let memory = Arc::new(Memory::new(Bounds::default()));
        let metrics = Metrics::new(vec!["/app".to_owned()], memory);
        metrics.ask_upstreams(|| {
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

    #[test]
    fn what_was_counted_of_a_route_stays_its_own_when_the_routes_change() {
        let memory = Arc::new(Memory::new(Bounds::default()));
        let metrics = Metrics::new(vec!["/a".to_owned(), "/b".to_owned()], memory);
        let before = metrics.worker();
        let after = before.with_routes(&["/b".to_owned(), "/c".to_owned()]);
        for (worker, route) in [(&before, 0), (&before, 1), (&after, 0), (&after, 1), (&before, 1)]
        {
            let route = RouteLabel::Route(route);
            worker.request(route, StatusCode::OK, Duration::ZERO, None);
        }
        metrics.reload(ReloadOutcome::Refused);
        metrics.configured(7);
        let text = metrics.encode();
        for line in [
            r#"vestibule_requests_total{route="/a",status="200"} 1"#,
            r#"vestibule_requests_total{route="/b",status="200"} 3"#,
            r#"vestibule_requests_total{route="/c",status="200"} 1"#,
            r#"vestibule_config_reloads_total{outcome="applied"} 0"#,
            r#"vestibule_config_reloads_total{outcome="refused"} 1"#,
            "vestibule_config_timestamp_seconds 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
