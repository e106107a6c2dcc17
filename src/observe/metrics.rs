//! The numbers. Each worker counts in atomics of its own that nobody else writes, so that counting
//! costs a request no shared cache line; a scrape adds them up.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::registry::Registry;

use crate::lock::lock;
use crate::session::Memory;
use crate::session::update::UpdateRefused;

mod scrape;

use scrape::Scrape;

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
        lock(&self.workers).push(counters.clone());
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
        lock(&self.workers).iter().map(|c| read(c)).sum()
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

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl Counters {
    /// The row of a route, which is made if it is not there.
    fn row(&self, name: &str) -> Arc<Row> {
        let mut rows = lock(&self.rows);
        if let Some((_, row)) = rows.iter().find(|(known, _)| known == name) {
            return row.clone();
        }
        let row = std::iter::repeat_with(AtomicU64::default).take(STATUSES);
        let row = Arc::new(Row(row.collect()));
        rows.push((name.to_owned(), row.clone()));
        row
    }
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
