//! Which origin a request names, and what it asks for there.

use http::Request;

use super::*;
use crate::config::{Route, sample};

/// A configuration whose public origins and routes are these.
fn configured(origins: &[(&str, u16)], routes: &[(Option<&str>, &str, Access)]) -> Config {
    let mut config = sample::config();
    let origin = |(host, port): &(&str, u16)| Origin { host: (*host).to_owned(), port: *port };
    config.server.public_urls = origins.iter().map(origin).collect();
    let route = |(host, path, access): &(Option<&str>, &str, Access)| Route {
        host: host.map(str::to_owned),
        path: (*path).to_owned(),
        access: *access,
        ..sample::route()
    };
    config.routes = routes.iter().map(route).collect();
    config
}

const APP: (&str, u16) = ("app.example", 443);
const OTHER: (&str, u16) = ("other.example", 8443);

fn two_hosts() -> Routes {
    Routes::new(&configured(
        &[APP, OTHER, ("app.example", 8443), ("[::1]", 8443)],
        &[(None, "/", Access::Login)],
    ))
}

/// A request's head; without a host it is one of HTTP/2.
fn head(target: &str, hosts: &[&str]) -> Parts {
    let version = if hosts.is_empty() { Version::HTTP_2 } else { Version::HTTP_11 };
    let mut request = Request::get(target).version(version);
    for host in hosts {
        request = request.header(HOST, *host);
    }
    request.body(()).unwrap().into_parts().0
}

fn origin(target: &str, hosts: &[&str]) -> Result<usize, u16> {
    two_hosts().origin(&head(target, hosts)).map_err(|failure| failure.status.as_u16())
}

/// What is named letter by letter as configured is found without being parsed, and is the same.
#[test]
fn an_origin_named_as_configured_is_the_one_that_parsing_finds() {
    let routes = two_hosts();
    for (index, guarded) in routes.origins.iter().enumerate() {
        let name = guarded.authority.as_str();
        for (target, hosts) in [("/", &[name][..]), (&format!("https://{name}/"), &[])] {
            let request = head(target, hosts);
            assert_eq!(routes.named_as_configured(&request), Some(index), "{name}");
            assert_eq!(routes.parsed_origin(&request).ok(), Some(index), "{name}");
        }
        assert_eq!(routes.named_as_configured(&head("/", &[name, name])), None, "{name} twice");
        let other = format!("https://{name}/");
        assert_eq!(routes.named_as_configured(&head(&other, &[name])), None, "{name} and target");
    }
}

/// CVE-2026-27587.
#[test]
fn a_host_is_the_same_in_every_spelling() {
    for (host, index) in [
        ("app.example", 0),
        ("APP.Example", 0),
        ("app.example.", 0),
        ("app.example:443", 0),
        ("app.example.:443", 0),
        ("app.example:", 0),
        ("app.example:8443", 2),
        ("other.example:8443", 1),
        ("[::1]:8443", 3),
        // A port that somebody maps before the gateway.
        ("other.example", 1),
        ("app.example:9999", 0),
    ] {
        assert_eq!(origin("/", &[host]), Ok(index), "{host}");
    }
}

#[test]
fn a_host_that_is_not_served_is_misdirected() {
    for host in [
        "evil.example",
        "app.example.evil.example",
        "evil-app.example",
        "xapp.example",
        "app.example..",
        "127.0.0.1",
        "[::2]",
        "localhost",
        "app",
        "example",
    ] {
        assert_eq!(origin("/", &[host]), Err(421), "{host}");
    }
}

#[test]
fn a_request_names_one_host() {
    assert_eq!(origin("/", &[]), Err(400));
    assert_eq!(origin("/", &["app.example", "app.example"]), Err(400));
    assert_eq!(origin("/", &["app.example", "other.example"]), Err(400));
    for host in [
        "",
        " ",
        ".",
        "app.example, other.example",
        "app.example/",
        "app.example/x",
        "https://app.example",
        "user@app.example",
        "app.example@evil.example",
        "app.example:x",
        "app.example:99999",
        "app.example:-1",
        "app.example:443:443",
        "app.example#",
        "app.example?x",
        "app.example\\",
        "[::1",
        "::1",
        "app%2eexample",
    ] {
        let found = origin("/", &[host]);
        assert!(matches!(found, Err(400 | 421)), "{host}: {found:?}");
    }
}

/// CVE-2026-88009.
#[test]
fn an_absolute_target_names_the_host_that_the_field_names() {
    assert_eq!(origin("https://app.example/x", &["app.example"]), Ok(0));
    assert_eq!(origin("https://APP.example/x", &["app.EXAMPLE"]), Ok(0));
    // HTTP/2 has it in `:authority` alone.
    assert_eq!(origin("https://other.example:8443/x", &[]), Ok(1));
    assert_eq!(origin("https://app.example/x", &["other.example:8443"]), Err(400));
    assert_eq!(origin("https://app.example/x", &["app.example:8443"]), Err(400));
    assert_eq!(origin("https://evil.example/x", &["evil.example"]), Err(421));
    assert_eq!(origin("https://u:p@app.example/x", &["u:p@app.example"]), Err(400));
    assert_eq!(origin("https://u@app.example/x", &[]), Err(400));
    let mut bare = head("https://app.example/x", &[]);
    bare.version = Version::HTTP_11;
    assert!(two_hosts().origin(&bare).is_err(), "RFC 9112, section 3.2: it has a Host as well");
}

/// What becomes of a path on the first origin.
fn target(routes: &Routes, path: &str) -> Result<Target, u16> {
    let parts = head(path, &["app.example"]);
    routes.target(&parts, 0).map_err(|failure| failure.status.as_u16())
}

#[test]
fn the_longest_path_wins_and_ends_at_a_segment() {
    let routes = Routes::new(&configured(
        &[APP],
        &[
            (None, "/", Access::Login),
            (None, "/app", Access::Login),
            (None, "/app/admin", Access::Login),
            (None, "/application", Access::Login),
        ],
    ));
    for (path, route) in [
        ("/", 0),
        ("/x", 0),
        ("/app", 1),
        ("/app/", 1),
        ("/app/x?y=/app/admin", 1),
        ("/app?x", 1),
        ("/apple", 0),
        ("/App", 0),
        ("/app/admin", 2),
        ("/app/admin/", 2),
        ("/app/admin/x", 2),
        ("/app/administrator", 1),
        ("/application", 3),
        ("/application/x", 3),
        ("/x/app/admin", 0),
    ] {
        assert_eq!(target(&routes, path), Ok(Target::Upstream(route)), "{path}");
    }
}

#[test]
fn a_route_of_the_host_wins_over_one_for_any_at_the_same_path() {
    let routes = Routes::new(&configured(
        &[APP, OTHER],
        &[
            (None, "/", Access::Login),
            (Some("app.example"), "/", Access::Login),
            (None, "/long", Access::Login),
            (Some("other.example"), "/other", Access::Login),
        ],
    ));
    let at = |path, origin| routes.target(&head(path, &["x"]), origin).ok();
    assert_eq!(at("/", 0), Some(Target::Upstream(1)));
    assert_eq!(at("/", 1), Some(Target::Upstream(0)));
    assert_eq!(at("/long", 0), Some(Target::Upstream(2)), "the longer path wins first");
    assert_eq!(at("/other", 0), Some(Target::Upstream(1)));
    assert_eq!(at("/other", 1), Some(Target::Upstream(3)));
    assert_eq!(at("/", 2), None, "there is no such origin");
}

#[test]
fn what_nobody_serves_is_not_found() {
    let routes = Routes::new(&configured(&[APP], &[(None, "/app", Access::Public)]));
    for path in ["/", "/ap", "/apps", "/x/app"] {
        assert_eq!(target(&routes, path), Err(404), "{path}");
    }
}

#[test]
fn the_gateways_own_paths_never_reach_an_app() {
    let routes = Routes::new(&configured(&[APP], &[(None, "/", Access::Public)]));
    for (path, endpoint) in [
        ("/auth/login", Endpoint::Login),
        ("/auth/login?return_to=/x", Endpoint::Login),
        ("/auth/callback?code=c", Endpoint::Callback),
        ("/auth/logout", Endpoint::Logout),
        ("/auth/profile", Endpoint::Profile),
    ] {
        assert_eq!(target(&routes, path), Ok(Target::Auth(endpoint)), "{path}");
    }
    for path in ["/auth/", "/auth/nothing", "/auth/login/", "/auth/Login", "/auth/login/x"] {
        assert_eq!(target(&routes, path), Err(404), "{path}");
    }
    for path in ["/auth", "/authors", "/x/auth/login"] {
        assert_eq!(target(&routes, path), Ok(Target::Upstream(0)), "{path}");
    }
}

fn guarded() -> Routes {
    Routes::new(&configured(
        &[APP, OTHER],
        &[
            (None, "/", Access::Public),
            (Some("app.example"), "/public", Access::Public),
            (Some("app.example"), "/admin", Access::Login),
        ],
    ))
}

/// CVE-2026-33494, CVE-2019-9901, CVE-2026-41059, CVE-2023-45539, CVE-2021-39206.
#[test]
fn there_is_no_way_around_a_rule_by_another_spelling_of_its_path() {
    let routes = guarded();
    for path in [
        "/public/../admin",
        "/public/..",
        "/./admin",
        "//admin",
        "/public//admin",
        "/%2e%2e/admin",
        "/public/%2e%2e/admin",
        "/public%2f..%2fadmin",
        "/public%5c..%5cadmin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/..;x=y/admin",
        "/;/admin",
        "/admin;x",
        "/admin;x=y/z",
        "/%61dmin",
        "/adm%69n/x",
        "/admin%00",
        "/admin%0a",
        "/admin%3fx",
        "/admin%3Fx/y",
        "/admin%23x",
        "/admin%23",
        "/public%23/../admin",
        "/%2561dmin%252f",
        "/%c0%ae%c0%ae/admin",
        "/%e0%81%a1dmin",
        "/admin%",
        "/admin%2",
        "/admin%zz",
    ] {
        let Ok(request) = Request::get(path).header(HOST, "app.example").body(()) else {
            continue; // It is no target at all, and refused before it comes here.
        };
        let found = routes.target(&request.into_parts().0, 0).map_err(|f| f.status.as_u16());
        assert_eq!(found, Err(400), "{path}");
    }
    // What is dropped from a target is dropped for the app, too: `/public` is what it is sent.
    let cut = head("/public#/../admin", &[]);
    assert_eq!(cut.uri.path_and_query().unwrap(), "/public");
}

/// For who decodes first, each segment may have parameters, and a way up.
#[test]
fn escaped_parameters_are_no_way_into_a_rule_below() {
    let routes = Routes::new(&configured(
        &[APP],
        &[(None, "/", Access::Public), (None, "/api/v1", Access::Login)],
    ));
    for path in [
        "/api%3bx/v1/y",
        "/api%253bx/v1",
        "/api%3b/v1%3fx",
        "/a/..%3b/api/v1",
        "/a/..%253b/api/v1",
        "/a/..%3f",
        "/%3bx/api/v1",
    ] {
        assert_eq!(
            routes.target(&head(path, &[]), 0).map_err(|f| f.status.as_u16()),
            Err(400),
            "{path}"
        );
    }
    assert_eq!(routes.target(&head("/api%3bx/v2", &[]), 0).ok(), Some(Target::Upstream(0)));
}

#[test]
fn escapes_that_change_no_rule_pass() {
    let routes = guarded();
    for (path, route) in [
        ("/admin/x%20y", 2),
        ("/admin/%C3%AB", 2),
        ("/admin/a;b=c", 2),
        ("/admin/What%3F", 2),
        ("/admin/c%23", 2),
        ("/public/100%25", 1),
        ("/wiki/What%3F", 0),
        ("/public/a.b/..c/d..", 1),
        ("/x?/../admin", 0),
        ("/x?%2e%2e//%zz", 0),
    ] {
        assert_eq!(target(&routes, path), Ok(Target::Upstream(route)), "{path}");
    }
}

#[test]
fn where_everything_is_public_every_path_passes_as_it_came() {
    let routes = Routes::new(&configured(
        &[APP, OTHER],
        &[(None, "/", Access::Public), (Some("other.example"), "/x", Access::Optional)],
    ));
    for path in ["/a//b", "/a/../b", "/%2e%2e/", "/a%2fb", "/a;b", "/%zz"] {
        assert_eq!(target(&routes, path), Ok(Target::Upstream(0)), "{path}");
        let strict = routes.target(&head(path, &[]), 1).map_err(|failure| failure.status.as_u16());
        let same = path == "/a;b";
        assert_eq!(strict.is_ok(), same, "a host with one optional route is guarded: {path}");
    }
    // Not even there is a request for the gateway itself hidden from it.
    assert_eq!(target(&routes, "/auth/login"), Ok(Target::Auth(Endpoint::Login)));
}

/// What else than who is signed in keeps somebody out is a rule as well.
#[test]
fn a_path_is_guarded_by_whatever_only_some_routes_of_its_host_ask_for() {
    let all_public = configured(
        &[APP, OTHER],
        &[(None, "/", Access::Public), (Some("app.example"), "/own", Access::Public)],
    );
    let mut certified = all_public.clone();
    certified.routes[1].client_certificate = true;
    let mut limited = all_public.clone();
    limited.routes[1].body_bytes = Some(1024);
    let mut same = limited.clone();
    same.server.limits.body_bytes = Some(1024);
    let paths = ["//own", "/%6fwn", "/x/../own", "/own;x", "/own%2f"];
    for (config, guarded) in
        [(&all_public, false), (&certified, true), (&limited, true), (&same, false)]
    {
        let routes = Routes::new(config);
        for path in paths {
            assert_eq!(target(&routes, path) == Err(400), guarded, "{path}");
            let other = routes.target(&head(path, &[]), 1);
            assert_eq!(other.ok(), Some(Target::Upstream(0)), "another host's business: {path}");
        }
        assert_eq!(target(&routes, "/own/x"), Ok(Target::Upstream(1)));
    }
}

#[test]
fn a_target_that_is_no_path_is_refused() {
    let routes = guarded();
    for target in ["*", "app.example:443", "app.example"] {
        for origin in [0, 1] {
            let found = routes.target(&head(target, &["app.example"]), origin);
            assert_eq!(found.map_err(|failure| failure.status.as_u16()), Err(400), "{target}");
        }
    }
    // RFC 9112, section 3.2.1: an empty path of an absolute target is `/`.
    let found = routes.target(&head("https://app.example", &[]), 0);
    assert_eq!(found.ok(), Some(Target::Upstream(0)));
}

#[test]
fn methods_that_would_tunnel_or_echo_are_refused() {
    let routes = guarded();
    for method in [Method::CONNECT, Method::TRACE] {
        for target in ["/public", "*", "app.example:443"] {
            let mut request = head(target, &["app.example"]);
            request.method = method.clone();
            let found = routes.target(&request, 0).map_err(|failure| failure.status.as_u16());
            assert_eq!(found, Err(405), "{method} {target}");
        }
    }
    for method in [Method::OPTIONS, Method::DELETE, Method::from_bytes(b"PROPFIND").unwrap()] {
        let mut request = head("/admin", &["app.example"]);
        request.method = method;
        assert_eq!(routes.target(&request, 0).ok(), Some(Target::Upstream(2)));
    }
}
