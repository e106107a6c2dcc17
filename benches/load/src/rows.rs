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
    pub(crate) contenders: Vec<Contender>,
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

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visitor {
    /// Somebody without a session.
    Stranger,
    /// A signed-in user, whose session nobody changes.
    User,
    /// Another one, whose session apps change.
    Changing,
}

/// A request through a proxy.
#[derive(Clone)]
pub(crate) struct Contender {
    /// As the table names it.
    pub(crate) label: String,
    /// Through which.
    pub(crate) proxy: Proxy,
    /// For what.
    pub(crate) path: &'static str,
    /// As whom.
    pub(crate) visitor: Visitor,
    /// The contenders that it is held against, by their place.
    pub(crate) against: Vec<usize>,
}

/// What can be chosen.
pub(crate) const KEYS: [&str; 6] = ["idle", "h1", "h2", "handshakes", "large", "update"];

/// All rows, in the order of [`KEYS`]. Memory is first: it is measured on processes that have done
/// nothing yet. `before`: the gateway's earlier build bears what the gateway bears.
pub(crate) fn rows(before: bool) -> Vec<Row> {
    let mut rows: Vec<_> = KEYS.iter().filter_map(|key| row(key)).collect();
    if before {
        for row in &mut rows {
            add_before(&mut row.contenders);
        }
    }
    rows
}

/// A path on the gateway's public route.
const PUBLIC: &str = "/public/";

fn row(key: &'static str) -> Option<Row> {
    use Proxy::{Haproxy, Nginx, NginxAgain, Vestibule};
    let (load, title, contenders) = match key {
        "idle" => (
            Load::Idle(2000),
            "Memory of an idle TLS connection, after one request",
            vec![
                plain("nginx", Nginx, "/", &[]),
                plain("HAProxy", Haproxy, "/", &[0]),
                with_cookie("**vestibule, signed in**", Vestibule, "/", &[0]),
            ],
        ),
        "h1" => (
            Load::ClosedLoop(64),
            "HTTP/1.1, 64 connections, 1 KiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                with_cookie("nginx again (A/A)", NginxAgain, "/", &[0]),
                with_cookie("nginx + auth_request", Nginx, "/checked/", &[0]),
                plain("nginx, without the cookie", Nginx, "/", &[0]),
                plain("HAProxy, without the cookie", Haproxy, "/", &[3]),
                plain("vestibule, public route, without the cookie", Vestibule, PUBLIC, &[3]),
                with_cookie("**vestibule, signed in**", Vestibule, "/", &[0, 2]),
            ],
        ),
        "h2" => (
            Load::Http2,
            "HTTP/2, 32 connections of 10 streams, 1 KiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                plain("nginx, without the cookie", Nginx, "/", &[0]),
                plain("HAProxy, without the cookie", Haproxy, "/", &[1]),
                with_cookie("**vestibule, signed in**", Vestibule, "/", &[0, 2]),
            ],
        ),
        "handshakes" => (
            Load::Handshakes(16),
            "Full TLS 1.3 handshakes, one request each",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                with_cookie("**vestibule, signed in**", Vestibule, "/", &[0]),
            ],
        ),
        "large" => (
            Load::ClosedLoop(8),
            "HTTP/1.1, 8 connections, 1 MiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, LARGE_PATH, &[]),
                with_cookie("**vestibule, signed in**", Vestibule, LARGE_PATH, &[0]),
            ],
        ),
        "update" => (
            Load::ClosedLoop(64),
            "A session update on every answer (HTTP/1.1, 64 connections, 1 KiB, one session)",
            vec![
                with_cookie("vestibule, no update", Vestibule, "/", &[]),
                Contender {
                    visitor: Visitor::Changing,
                    ..plain("**vestibule, update**", Vestibule, UPDATE_PATH, &[0])
                },
            ],
        ),
        _ => return None,
    };
    Some(Row { key, title, load, contenders })
}

fn plain(label: &str, proxy: Proxy, path: &'static str, against: &[usize]) -> Contender {
    let (label, against) = (label.to_owned(), against.to_vec());
    Contender { label, proxy, path, visitor: Visitor::Stranger, against }
}

fn with_cookie(label: &str, proxy: Proxy, path: &'static str, against: &[usize]) -> Contender {
    Contender { visitor: Visitor::User, ..plain(label, proxy, path, against) }
}

/// Adds the earlier build to a row, and holds the gateway against it.
fn add_before(contenders: &mut Vec<Contender>) {
    for at in 0..contenders.len() {
        let place = contenders.len();
        let Some(now) = contenders.get_mut(at) else { return };
        if now.proxy == Proxy::Vestibule {
            let label = format!("before: {}", now.label.trim_matches('*'));
            let earlier =
                Contender { label, proxy: Proxy::Before, against: Vec::new(), ..now.clone() };
            now.against.push(place);
            contenders.push(earlier);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_row() {
        assert!(rows(false).iter().map(|row| row.key).eq(KEYS));
    }

    #[test]
    fn each_contender_is_held_against_others_of_its_row() {
        for row in rows(true) {
            for (at, contender) in row.contenders.iter().enumerate() {
                let others = row.contenders.len();
                let sound = |other: &usize| *other != at && *other < others;
                assert!(contender.against.iter().all(sound), "{} {at}", row.key);
            }
        }
    }

    #[test]
    fn an_earlier_build_bears_what_the_gateway_bears() {
        for row in rows(true) {
            let of = |proxy| row.contenders.iter().filter(move |c| c.proxy == proxy);
            let asks = |c: &Contender| (c.path, c.visitor);
            assert!(of(Proxy::Vestibule).map(asks).eq(of(Proxy::Before).map(asks)), "{}", row.key);
        }
    }
}
