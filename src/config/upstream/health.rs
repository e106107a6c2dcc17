//! `route.health`: how the gateway finds out by itself whether an upstream is well.

use std::time::Duration;

use http::uri::PathAndQuery;

use crate::config::address;
use crate::config::parse::Wrong;
use crate::config::table::{Item, Table};

/// A request that is sent to each upstream of the route from time to time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `path`: what is asked for, with GET.
    pub path: PathAndQuery,
    /// `host`: whose `Host` field it has; absent: the upstream's own address.
    pub host: Option<String>,
    /// `interval`, default 10 s: between the end of one check and the next.
    pub interval: Duration,
    /// `timeout`, default 2 s: for the connection and the response's head.
    pub timeout: Duration,
    /// `status`: what the response's may be; absent: 200 to 399.
    pub status: Option<Vec<u16>>,
    /// `down_after`, default 3: checks that fail in a row before the upstream is left out.
    pub down_after: u32,
    /// `up_after`, default 2: checks that pass in a row before it is back.
    pub up_after: u32,
}

impl HealthCheck {
    /// Whether a response of this status is a good one.
    pub fn allows(&self, status: u16) -> bool {
        self.status.as_ref().map_or((200..400).contains(&status), |all| all.contains(&status))
    }
}

/// The table.
pub(in crate::config) fn health(t: &mut Table<'_>) -> Option<HealthCheck> {
    let path = t.required("path", r#"write path = "/healthz""#, path);
    let host = t.optional("host", |i| i.parse(address::host));
    let interval = t.key("interval", "'10s'", |i| i.time("100ms", "1h"));
    let timeout = t.key("timeout", "'2s'", |i| i.time("10ms", "1m"));
    let status = t.optional("status", statuses);
    let down_after = t.key("down_after", "3", |i| i.number(1, 100));
    let up_after = t.key("up_after", "2", |i| i.number(1, 100));
    Some(HealthCheck {
        path: path?,
        host,
        interval: interval?,
        timeout: timeout?,
        status,
        down_after: down_after?,
        up_after: up_after?,
    })
}

fn path(item: &Item<'_>) -> Option<PathAndQuery> {
    item.parse(|text| {
        let path = text.starts_with('/').then(|| text.parse().ok()).flatten();
        path.ok_or_else(|| Wrong::new("is no path", r#"write path = "/healthz""#))
    })
}

/// One status, or a list.
fn statuses(item: &Item<'_>) -> Option<Vec<u16>> {
    let status = |item: &Item<'_>| item.number(200, 599);
    if item.is_list() { item.some(status) } else { Some(vec![status(item)?]) }
}
