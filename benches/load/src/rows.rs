//! What is measured: requests, the proxies they go through, and which is held against which. How
//! it is measured and shown is not known here.

use crate::origin::{LARGE_PATH, UPDATE_PATH};
use crate::proxies::Proxy;

/// One table.
pub(crate) struct Row {
    /// How it is chosen on the command line.
    pub(crate) key: &'static str,
    /// Its heading.
    pub(crate) title: &'static str,
    /// The load.
    pub(crate) load: Load,
    /// Who bears it, in the table's order.
    pub(crate) contenders: &'static [Contender],
}

/// A kind of load.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// This many connections that have served one request and stay open.
    Idle(usize),
    /// HTTP/1.1, this many connections with one request under way each.
    ClosedLoop(usize),
    /// HTTP/2.
    Http2,
    /// From this many threads, connections with one request each.
    Handshakes(usize),
}

/// A request through a proxy.
pub(crate) struct Contender {
    /// As the table names it.
    pub(crate) label: &'static str,
    /// Through which.
    pub(crate) proxy: Proxy,
    /// For what.
    pub(crate) path: &'static str,
    /// Whether the session cookie is sent.
    pub(crate) cookie: bool,
    /// The contenders that it is held against, by their place.
    pub(crate) against: &'static [usize],
}

/// All rows. Memory is first: it is measured on processes that have done nothing yet.
pub(crate) const ROWS: [Row; 6] = [
    Row {
        key: "idle",
        title: "Memory of an idle TLS connection, after one request",
        load: Load::Idle(2000),
        contenders: &[
            plain("nginx", Proxy::Nginx, "/", &[]),
            plain("HAProxy", Proxy::Haproxy, "/", &[0]),
            with_cookie("vestibule, signed in", Proxy::Vestibule, "/", &[0]),
        ],
    },
    Row {
        key: "h1",
        title: "HTTP/1.1, 64 connections, 1 KiB answers",
        load: Load::ClosedLoop(64),
        contenders: &[
            with_cookie("nginx, the same request", Proxy::Nginx, "/", &[]),
            with_cookie("nginx again (A/A)", Proxy::NginxAgain, "/", &[0]),
            with_cookie("nginx + auth_request", Proxy::Nginx, "/checked/", &[0]),
            plain("nginx, without the cookie", Proxy::Nginx, "/", &[0]),
            plain("HAProxy, without the cookie", Proxy::Haproxy, "/", &[3]),
            plain("vestibule, public route, without the cookie", Proxy::Vestibule, PUBLIC, &[3]),
            with_cookie("**vestibule, signed in**", Proxy::Vestibule, "/", &[0, 2]),
        ],
    },
    Row {
        key: "h2",
        title: "HTTP/2, 32 connections of 10 streams, 1 KiB answers",
        load: Load::Http2,
        contenders: &[
            with_cookie("nginx, the same request", Proxy::Nginx, "/", &[]),
            plain("nginx, without the cookie", Proxy::Nginx, "/", &[0]),
            plain("HAProxy, without the cookie", Proxy::Haproxy, "/", &[1]),
            with_cookie("**vestibule, signed in**", Proxy::Vestibule, "/", &[0, 2]),
        ],
    },
    Row {
        key: "handshakes",
        title: "Full TLS 1.3 handshakes, one request each",
        load: Load::Handshakes(16),
        contenders: &[
            with_cookie("nginx, the same request", Proxy::Nginx, "/", &[]),
            with_cookie("**vestibule, signed in**", Proxy::Vestibule, "/", &[0]),
        ],
    },
    Row {
        key: "large",
        title: "HTTP/1.1, 8 connections, 1 MiB answers",
        load: Load::ClosedLoop(8),
        contenders: &[
            with_cookie("nginx, the same request", Proxy::Nginx, LARGE_PATH, &[]),
            with_cookie("**vestibule, signed in**", Proxy::Vestibule, LARGE_PATH, &[0]),
        ],
    },
    Row {
        key: "update",
        title: "A session update on every answer (HTTP/1.1, 64 connections, 1 KiB)",
        load: Load::ClosedLoop(64),
        contenders: &[
            with_cookie("vestibule, no update", Proxy::Vestibule, "/", &[]),
            with_cookie("vestibule, update", Proxy::Vestibule, UPDATE_PATH, &[0]),
        ],
    },
];

/// A path on the gateway's public route.
const PUBLIC: &str = "/public/";

const fn plain(
    label: &'static str,
    proxy: Proxy,
    path: &'static str,
    against: &'static [usize],
) -> Contender {
    Contender { label, proxy, path, cookie: false, against }
}

const fn with_cookie(
    label: &'static str,
    proxy: Proxy,
    path: &'static str,
    against: &'static [usize],
) -> Contender {
    Contender { cookie: true, ..plain(label, proxy, path, against) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_is_held_against_others_of_its_row() {
        for row in &ROWS {
            for (at, contender) in row.contenders.iter().enumerate() {
                assert!(contender.against.iter().all(|other| *other < at), "{}", row.key);
            }
        }
    }
}
