//! What a request asks for: which public origin, and there which route or endpoint of the gateway's
//! own. Pure: it looks at the request's head and at nothing else.
//!
//! The path that is matched is the path that is forwarded, byte for byte. On a host where any route
//! keeps somebody or something out, a path that the app could read differently is refused
//! (`route/path.rs`).

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode, Version};

use crate::config::value::Origin;
use crate::config::{Access, Config, Route};
use crate::error::Failure;
use crate::login::Endpoint;

mod path;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An endpoint of the gateway's own.
    Auth(Endpoint),
    /// The route with this index.
    Upstream(usize),
}

/// The origins and routes.
pub struct Routes {
    origins: Vec<Guarded>,
    /// The gateway's own endpoints, with the slash at the end.
    prefix: String,
    /// The longest path first, and of equal ones the one that names a host.
    rules: Vec<Rule>,
}

struct Guarded {
    origin: Origin,
    /// As browsers write it.
    authority: String,
    /// Whether any route of this host has a rule that another spelling of its path could get around.
    strict: bool,
}

struct Rule {
    host: Option<String>,
    path: String,
    index: usize,
}

impl Routes {
    /// The routes of a configuration.
    pub fn new(config: &Config) -> Self {
        let guarded = |origin: &Origin| Guarded {
            strict: is_strict(config, origin),
            authority: origin.authority(),
            origin: origin.clone(),
        };
        let mut rules: Vec<Rule> = config
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| Rule {
                host: route.host.clone(),
                path: route.path.clone(),
                index,
            })
            .collect();
        rules.sort_by_key(|rule| (std::cmp::Reverse(rule.path.len()), rule.host.is_none()));
        Self {
            origins: config.server.public_urls.iter().map(guarded).collect(),
            prefix: format!("{}/", config.auth.prefix),
            rules,
        }
    }

    /// The public origin that a request is for, by index.
    ///
    /// # Errors
    /// 400 if the request names no host or two, 421 if it names one that is not served here.
    pub fn origin(&self, request: &Parts) -> Result<usize, Failure> {
        self.named_as_configured(request).map_or_else(|| self.parsed_origin(request), Ok)
    }

    fn parsed_origin(&self, request: &Parts) -> Result<usize, Failure> {
        let authority = authority(request)?;
        let named = authority.host();
        let host = named.strip_suffix('.').unwrap_or(named);
        let port = match authority.as_str().get(named.len()..) {
            // RFC 3986, section 3.2.3: a port may be empty.
            None | Some("" | ":") => 443,
            Some(_) => authority.port_u16().ok_or_else(bad_host)?,
        };
        let same = |guarded: &&Guarded| guarded.origin.host.eq_ignore_ascii_case(host);
        // A port that somebody maps before us is no other origin of ours, if no other is configured.
        let exact = self.origins.iter().position(|g| same(&g) && g.origin.port == port);
        exact.or_else(|| self.origins.iter().position(|g| same(&g))).ok_or_else(misdirected)
    }

    /// The origin that is named once, letter by letter as browsers name it: nearly every request's.
    fn named_as_configured(&self, request: &Parts) -> Option<usize> {
        let mut fields = request.headers.get_all(HOST).iter();
        let name = match (request.uri.authority(), fields.next(), fields.next()) {
            (None, Some(field), None) => field.as_bytes(),
            (Some(target), None, _) if needs_no_host(request) => target.as_str().as_bytes(),
            _ => return None,
        };
        self.origins.iter().position(|guarded| guarded.authority.as_bytes() == name)
    }

    /// The origin with this index, as configured.
    pub fn origin_at(&self, index: usize) -> Option<&Origin> {
        self.origins.get(index).map(|guarded| &guarded.origin)
    }

    /// What a request for `origin` asks for.
    ///
    /// # Errors
    /// 405 for `CONNECT` and `TRACE`, 400 for a path that could be read in two ways, 404 for one
    /// that nobody serves.
    pub fn target(&self, request: &Parts, origin: usize) -> Result<Target, Failure> {
        // SECURITY: TRACE would echo the session cookie and what the gateway adds.
        if request.method == Method::CONNECT || request.method == Method::TRACE {
            return Err(Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "This method is not allowed here.",
            ));
        }
        let path = request.uri.path();
        let guarded = self.origins.get(origin).ok_or_else(misdirected)?;
        if !path.starts_with('/') {
            return Err(bad_path());
        }
        let target = self.lookup(&guarded.origin.host, path);
        if guarded.strict
            && let Some(read) = path::lenient(path).map_err(|_| bad_path())?
        {
            // SECURITY: `/%61dmin` and `/admin;x` are no way around the rule for `/admin`, nor is
            // `/admin%23` for who decodes first and then looks for parameters, a query or a
            // fragment, nor `/%2561dmin` for who decodes twice.
            let again = path::decoded_again(&read);
            let other = |read: &str| {
                let cut = read.split(['?', '#']).next().unwrap_or_default();
                let first = cut.split(';').next().unwrap_or_default();
                let bare = path::without_parameters(cut);
                [read, cut, first, &bare]
                    .into_iter()
                    .any(|read| self.lookup(&guarded.origin.host, read) != target)
            };
            if other(&read) || again.is_some_and(|again| other(&again)) {
                return Err(bad_path());
            }
        }
        target.ok_or_else(|| {
            Failure::new(StatusCode::NOT_FOUND, "not_found", "There is nothing at this address.")
        })
    }

    fn lookup(&self, host: &str, path: &str) -> Option<Target> {
        if let Some(name) = path.strip_prefix(self.prefix.as_str()) {
            return Endpoint::from_name(name).map(Target::Auth);
        }
        let matches = |rule: &&Rule| {
            rule.host.as_ref().is_none_or(|wanted| wanted == host) && covers(&rule.path, path)
        };
        self.rules.iter().find(matches).map(|rule| Target::Upstream(rule.index))
    }
}

/// Whether any route of this origin's host keeps out who may have another one: by its `access`, by a
/// certificate that it wants, or by the size of what it takes.
fn is_strict(config: &Config, origin: &Origin) -> bool {
    let here = |host: &Option<String>| host.as_ref().is_none_or(|host| *host == origin.host);
    let mut routes = config.routes.iter().filter(|route| here(&route.host)).peekable();
    let most = |route: &Route| route.body_bytes.or(config.server.limits.body_bytes);
    let first = routes.peek().map(|route| most(route));
    routes.any(|route| {
        route.access != Access::Public || route.client_certificate || Some(most(route)) != first
    })
}

/// Whether `prefix` is `path` or ends at one of its slashes.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

/// The one host that the request names, in its target or its `Host` (RFC 9112, section 3.2). Where
/// it names it in both they are the same: who comes after us may look at either.
fn authority(request: &Parts) -> Result<Authority, Failure> {
    let mut fields = request.headers.get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (_, Some(_)) => return Err(bad_host()),
        (None, None) => None,
        (Some(field), None) => Some(Authority::try_from(field.as_bytes()).map_err(|_| bad_host())?),
    };
    let authority = match (request.uri.authority(), field) {
        (Some(target), Some(field)) if *target != field => return Err(bad_host()),
        (Some(_), None) if !needs_no_host(request) => return Err(bad_host()),
        (Some(target), _) => target.clone(),
        (None, Some(field)) => field,
        (None, None) => return Err(bad_host()),
    };
    // RFC 3986, section 3.2.3: a port is digits; somebody may read anything else as part of the name.
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    let odd_port = authority.port_u16().is_none() && !matches!(port, "" | ":");
    if odd_port || authority.as_str().contains('@') {
        return Err(bad_host());
    }
    Ok(authority)
}

/// RFC 9112, section 3.2: an HTTP/1.1 request has a `Host`, whatever its target says.
fn needs_no_host(request: &Parts) -> bool {
    request.version != Version::HTTP_11
}

fn bad_host() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "bad_host",
        "The request names no host, or more than one.",
    )
}

fn bad_path() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "bad_path",
        "The address can be read in more than one way. Write it without escapes, dots or doubled slashes.",
    )
}

/// RFC 9110, section 15.5.20.
pub fn misdirected() -> Failure {
    Failure::new(
        StatusCode::MISDIRECTED_REQUEST,
        "misdirected_request",
        "This host is not served here.",
    )
}

#[cfg(test)]
mod tests;
