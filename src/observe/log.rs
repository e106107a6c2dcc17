//! The log: what happened that somebody should know of, on standard error, as text or JSON. What is
//! written and how can change while the process runs.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// Replaces the filter of the process's one log.
static FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();
/// Whether lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts logging for the whole process; a second call does nothing but [`change`]. The level was
/// checked when the configuration was read.
pub fn start(config: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .event_format(Line {
            text: format::format().with_target(false),
            // Spans are libraries' own, and their fields are formatted once, as text.
            json: format::format()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_target(false),
        })
        .with_env_filter(filter(config))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    if builder.try_init().is_ok() {
        // Nobody else starts it: it fails only when the log is gone, with the process.
        let _ = FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
    change(config);
}

/// Logs as this says from now on.
pub fn change(config: &Log) {
    JSON.store(config.format == LogFormat::Json, Relaxed);
    if let Some(replace) = FILTER.get() {
        replace(filter(config));
    }
}

fn filter(config: &Log) -> EnvFilter {
    EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// One line of the log, for people or for programs.
struct Line {
    text: Format,
    json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if JSON.load(Relaxed) {
            self.json.format_event(context, writer, event)
        } else {
            self.text.format_event(context, writer, event)
        }
    }
}
