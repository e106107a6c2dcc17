//! What is measured: requests, the proxies they go through, and which is held against which. How
//! it is measured and shown is not known here.

use crate::origin::{LARGE_PATH, UPDATE_PATH};
use crate::proxies::Proxy;
use crate::session::Store;

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
    /// This many such connections, and WebSockets beside them.
    Many(usize, usize),
    /// HTTP/1.1, this many connections with one request under way each.
    ClosedLoop(usize),
    /// HTTP/2.
    Http2,
    /// From this many threads, connections with one request each.
    Handshakes(usize),
    /// As [`Load::ClosedLoop`] over [`CONNECTIONS`]: what the gateway does with sessions, and what
    /// Redis does for it.
    Sessions,
    /// No requests: sessions that changed, in each store's memory.
    ChangedSessions,
}

/// Connections with one request under way each.
pub(crate) const CONNECTIONS: usize = 64;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visitor {
    /// Somebody without a session.
    Stranger,
    /// A signed-in user, whose session nobody changes.
    User,
    /// As many of those as there are connections.
    Users,
    /// A user whose session apps change.
    Changing,
    /// As many of those as there are connections.
    AllChanging,
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
pub(crate) const KEYS: [&str; 9] =
    ["idle", "many", "h1", "h2", "handshakes", "large", "redis", "commit", "memory"];

/// All rows, in the order of [`KEYS`]. Idle connections are first: their memory it is measured on processes that have done
/// nothing yet. `before`: the gateway's earlier build bears what the gateway bears.
pub(crate) fn rows(before: bool) -> Vec<Row> {
    let mut rows: Vec<_> =
        KEYS.iter().filter_map(|key| row(key).or_else(|| session_row(key))).collect();
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
    use Proxy::{Haproxy, Nginx, NginxAgain};
    const VESTIBULE: Proxy = Proxy::Vestibule(Store::Cookie);
    let (load, title, contenders) = match key {
        "idle" => (
            Load::Idle(2000),
            "Memory of an idle TLS connection, after one request",
            vec![
                plain("nginx", Nginx, "/", &[]),
                plain("HAProxy", Haproxy, "/", &[0]),
                with_cookie("**vestibule, signed in**", VESTIBULE, "/", &[0]),
            ],
        ),
        "many" => (
            Load::Many(10_000, 2000),
            "Memory of 10,000 idle TLS connections, and of 2,000 WebSockets open at the same time",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                with_cookie("**vestibule, signed in**", VESTIBULE, "/", &[0]),
            ],
        ),
        "h1" => (
            Load::ClosedLoop(CONNECTIONS),
            "HTTP/1.1, 64 connections, 1 KiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                with_cookie("nginx again (A/A)", NginxAgain, "/", &[0]),
                with_cookie("nginx + auth_request", Nginx, "/checked/", &[0]),
                plain("nginx, without the cookie", Nginx, "/", &[0]),
                plain("HAProxy, without the cookie", Haproxy, "/", &[3]),
                plain("vestibule, public route, without the cookie", VESTIBULE, PUBLIC, &[3]),
                with_cookie("**vestibule, signed in**", VESTIBULE, "/", &[0, 2]),
            ],
        ),
        "h2" => (
            Load::Http2,
            "HTTP/2, 32 connections of 10 streams, 1 KiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                plain("nginx, without the cookie", Nginx, "/", &[0]),
                plain("HAProxy, without the cookie", Haproxy, "/", &[1]),
                with_cookie("**vestibule, signed in**", VESTIBULE, "/", &[0, 2]),
            ],
        ),
        "handshakes" => (
            Load::Handshakes(16),
            "Full TLS 1.3 handshakes, one request each",
            vec![
                with_cookie("nginx, the same request", Nginx, "/", &[]),
                with_cookie("**vestibule, signed in**", VESTIBULE, "/", &[0]),
            ],
        ),
        "large" => (
            Load::ClosedLoop(8),
            "HTTP/1.1, 8 connections, 1 MiB answers",
            vec![
                with_cookie("nginx, the same request", Nginx, LARGE_PATH, &[]),
                with_cookie("**vestibule, signed in**", VESTIBULE, LARGE_PATH, &[0]),
            ],
        ),
        _ => return None,
    };
    Some(Row { key, title, load, contenders })
}

/// The rows of the two stores.
fn session_row(key: &'static str) -> Option<Row> {
    use Store::{Cookie, Redis};
    use Visitor::{AllChanging, Changing, Users};
    let of = |label: &str, store, visitor, path, against: &[usize]| Contender {
        visitor,
        ..plain(label, Proxy::Vestibule(store), path, against)
    };
    let (load, title, contenders) = match key {
        "redis" => (
            Load::Sessions,
            "A signed-in request in each store: HTTP/1.1, 64 connections, a session each, 1 KiB answers",
            vec![
                of("cookie store", Cookie, Users, "/", &[]),
                of("cookie store again (A/A)", Cookie, Users, "/", &[0]),
                of("**Redis store**", Redis, Users, "/", &[0]),
            ],
        ),
        "commit" => (
            Load::Sessions,
            "An update on every answer: HTTP/1.1, 64 connections, 1 KiB answers",
            vec![
                of("cookie store, no update", Cookie, Users, "/", &[]),
                of("**cookie store, a session each**", Cookie, AllChanging, UPDATE_PATH, &[0]),
                of("cookie store, all one session", Cookie, Changing, UPDATE_PATH, &[0]),
                of("Redis store, no update", Redis, Users, "/", &[]),
                of("**Redis store, a session each**", Redis, AllChanging, UPDATE_PATH, &[3]),
                of("Redis store, all one session", Redis, Changing, UPDATE_PATH, &[3]),
            ],
        ),
        "memory" => (Load::ChangedSessions, "Memory of 100,000 changed sessions", vec![]),
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
        if let Proxy::Vestibule(store) = now.proxy {
            let label = format!("before: {}", now.label.trim_matches('*'));
            let earlier = Contender {
                label,
                proxy: Proxy::Before(store),
                against: Vec::new(),
                ..now.clone()
            };
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
            for store in [Store::Cookie, Store::Redis] {
                let of = |proxy| row.contenders.iter().filter(move |c| c.proxy == proxy);
                let asks = |c: &Contender| (c.path, c.visitor);
                let (now, before) = (of(Proxy::Vestibule(store)), of(Proxy::Before(store)));
                assert!(now.map(asks).eq(before.map(asks)), "{}", row.key);
            }
        }
    }
}
