//! `route.upstream`: where a route sends its requests, from the file to [`Upstream`]. What is said
//! of their health and of TLS stands in files below.

use std::fmt;
use std::sync::Arc;

use super::address;
use super::parse::Wrong;
use super::table::{Item, Table};
use super::value::UpstreamUrl;

mod health;
mod tls;

pub use health::HealthCheck;
pub(super) use health::health;
pub use tls::UpstreamTls;

/// The most upstreams of one route.
const MOST: usize = 64;

/// One of a route's upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// `url`
    pub url: UpstreamUrl,
    /// `weight`, default 1: its share of the requests beside that of the others; 1 to 100.
    pub weight: u32,
    /// `protocol`, default `auto`.
    pub protocol: UpstreamProtocol,
    /// `ca`, `cert`, `key`, `server_name`: for https, where it differs from the rest.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// `protocol`: what an upstream is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// Over https what the TLS handshake says (ALPN), else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, over clear text with prior knowledge (RFC 9113, section 3.3).
    Http2,
}

impl From<UpstreamUrl> for Upstream {
    fn from(url: UpstreamUrl) -> Self {
        Self { url, weight: 1, protocol: UpstreamProtocol::Auto, tls: None }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)?;
        let mut more = Vec::new();
        if self.weight != 1 {
            more.push(format!("weight {}", self.weight));
        }
        match self.protocol {
            UpstreamProtocol::Auto => {}
            UpstreamProtocol::Http1 => more.push("HTTP/1.1".to_owned()),
            UpstreamProtocol::Http2 => more.push("HTTP/2".to_owned()),
        }
        if let Some(tls) = &self.tls {
            more.extend(tls.server_name.as_ref().map(|name| format!("as {}", name.to_str())));
            more.extend(tls.ca.as_ref().map(|_| "own ca".to_owned()));
            more.extend(tls.identity.as_ref().map(|_| "own cert".to_owned()));
        }
        if more.is_empty() { Ok(()) } else { write!(formatter, " ({})", more.join(", ")) }
    }
}

/// One upstream, or a list; none twice.
pub(super) fn upstreams(item: &Item<'_>) -> Option<Vec<Upstream>> {
    if !item.is_list() {
        return upstream(item).map(|upstream| vec![upstream]);
    }
    let mut seen = Vec::new();
    let all = item.some(|item| {
        let upstream = upstream(item)?;
        if seen.contains(&upstream.url) {
            let remedy = "leave one of the two out; a weight gives one upstream more requests";
            return item.wrong(Wrong::new("is listed twice", remedy));
        }
        seen.push(upstream.url.clone());
        Some(upstream)
    })?;
    if all.len() > MOST {
        let remedy = format!("write at most {MOST}; a balancer of their own may have more");
        return item.wrong(Wrong::new("lists too many upstreams", remedy));
    }
    Some(all)
}

/// The URL alone, or a table.
fn upstream(item: &Item<'_>) -> Option<Upstream> {
    if item.is_table() {
        item.table(table)
    } else {
        item.parse(address::upstream).map(Upstream::from)
    }
}

fn table(t: &mut Table<'_>) -> Option<Upstream> {
    let url =
        t.required("url", r#"write url = "http://127.0.0.1:9000""#, |i| i.parse(address::upstream));
    let weight = t.key("weight", "1", |i| i.number(1, 100));
    let protocol = t.key("protocol", "'auto'", |i| {
        i.choice(&[
            ("auto", UpstreamProtocol::Auto),
            ("http1", UpstreamProtocol::Http1),
            ("http2", UpstreamProtocol::Http2),
        ])
    });
    let is_https = url.as_ref().is_none_or(|url| matches!(url, UpstreamUrl::Https { .. }));
    let tls = tls::tls(t, is_https);
    Some(Upstream { url: url?, weight: weight?, protocol: protocol?, tls })
}
