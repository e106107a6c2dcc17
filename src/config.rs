//! The configuration as it is meant: parsed, defaulted, cross-checked; nothing here can be wrong.
//! `config/file.rs` is the file as it is written, `config/check.rs` turns the one into the other
//! and finds every error, `config/diagnostic.rs` shows them. Nobody else reads the file.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use url::Url;

mod address;
pub mod certificate;
mod check;
pub mod diagnostic;
mod file;
pub mod files;
mod parse;
mod provider;
mod redis;
mod routes;
mod secrets;
mod server;
mod session;
mod table;
pub mod upstream;
pub mod value;

use diagnostic::{Diagnostic, Diagnostics};
use files::SourceFile;
use upstream::{HealthCheck, Upstream};
use value::{ClaimPath, Keys, Origin, Secret};

/// A configuration, and what somebody should look at.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Warnings, in the file's order; the first hundred.
    pub warnings: Vec<Diagnostic>,
}

/// One reading of the file.
#[derive(Debug)]
pub struct Read {
    /// The configuration, or everything that is wrong with the file.
    pub outcome: Result<Loaded, Diagnostics>,
    /// The file itself and every file that it names, as they were just before they were read.
    pub files: Vec<SourceFile>,
}

/// Reads the file at `path`, at most 1 MiB, and the certificates and secrets it names; these are
/// looked for from the file's own directory. `{ env = "NAME" }` is looked up in the process's
/// environment.
pub fn read(path: &Path) -> Read {
    read_with(path, &|name| std::env::var(name).ok())
}

/// The same with an environment of one's own.
///
/// # Errors
/// Everything that is wrong with the file, not the first only.
pub fn load_with(
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Diagnostics> {
    read_with(path, environment).outcome
}

fn read_with(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Read {
    let files = RefCell::new(vec![SourceFile::look(path)]);
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let name = path.display().to_string();
    let outcome = file::text(path).and_then(|source| {
        let (config, warnings) =
            file::Reading::run(&name, &source, directory, environment, &files, check::config)?;
        Ok(Loaded { config, warnings })
    });
    Read { outcome, files: files.into_inner() }
}

/// All of gateway.toml.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[provider]`
    pub provider: Provider,
    /// `[session]`
    pub session: Session,
    /// `[auth]`
    pub auth: Auth,
    /// `[log]`
    pub log: Log,
    /// `[[route]]`, in the file's order; at least one.
    pub routes: Vec<Route>,
}

/// `[server]`: sockets, certificates, limits.
#[derive(Clone, Debug)]
pub struct Server {
    /// `https`, default `0.0.0.0:8443`.
    pub https: SocketAddr,
    /// `http`: answers only with a redirect to https.
    pub http: Option<SocketAddr>,
    /// `admin`: `/healthz`, `/readyz`, `/metrics`.
    pub admin: Option<SocketAddr>,
    /// `handover`: a unix socket at which the next process gets the listening sockets.
    pub handover: Option<PathBuf>,
    /// `public_urls`: the origins that users see; at least one.
    pub public_urls: Vec<Origin>,
    /// `trusted_proxies`: whose `X-Forwarded-For` and `Forwarded` are believed, kept and added to, and
    /// whose PROXY headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// `proxy_protocol`, default none: which listeners want a PROXY header first.
    pub proxy_protocol: ProxyProtocol,
    /// `[[server.certificate]]`; at least one. Server names pick; the first is the default.
    pub certificates: Vec<Certificate>,
    /// `[server.acme]`; there where any certificate is ordered.
    pub acme: Option<Acme>,
    /// `[server.client_certificates]`; absent: clients are not asked for one.
    pub client_certificates: Option<ClientCertificates>,
    /// `workers`: threads that serve requests; default: one a core.
    pub workers: usize,
    /// `[server.limits]`
    pub limits: Limits,
}

/// `proxy_protocol`: the listeners that stand behind a load balancer which writes a PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// `"https"` is in the list.
    pub https: bool,
    /// `"http"` is in the list.
    pub http: bool,
}

/// `[[server.certificate]]`: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// `cert`: the chain, leaf first.
    pub cert: PathBuf,
    /// `key`: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// `acme`: the names for which the gateway orders it; empty: somebody else puts it there.
    pub acme: Vec<String>,
}

/// `[server.acme]`: the authority that the gateway orders certificates from (RFC 8555).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// `directory`, default Let's Encrypt's.
    pub directory: String,
    /// `contact`: whom the authority may write to, as `mailto:` URLs.
    pub contact: Vec<String>,
    /// `account`, default `acme-account.json`: where the account and its key are kept.
    pub account: PathBuf,
    /// `ca`: whom to trust beside the machine's own roots at the directory's address.
    pub authorities: Vec<CertificateDer<'static>>,
}

/// `[server.client_certificates]`: TLS in which the client proves itself, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// `ca`: a PEM file; whose certificates are accepted.
    pub authorities: Vec<CertificateDer<'static>>,
    /// `mode`, default `optional`.
    pub mode: ClientCertificatesMode,
}

/// `mode` of `[server.client_certificates]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificatesMode {
    /// `optional`: who has none is served, too.
    Optional,
    /// `required`: who has none is refused in the handshake.
    Required,
}

/// `[server.limits]`: everything a stranger could exhaust.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `header_bytes`: of one request head; default 64 KiB.
    pub header_bytes: usize,
    /// `headers`: fields of one request head; default 100.
    pub headers: usize,
    /// `target_bytes`: path and query of one request; default 16 KiB.
    pub target_bytes: usize,
    /// `header_time`: from the first byte of a connection's turn to the end of the head; default 10 s.
    pub header_time: Duration,
    /// `handshake_time`: for TLS; default 10 s.
    pub handshake_time: Duration,
    /// `idle_time`: a connection without a request under way; default 75 s.
    pub idle_time: Duration,
    /// `body_bytes`: of one request's body, where a route says nothing else; default none.
    pub body_bytes: Option<usize>,
    /// `body_time`: between two pieces of a request's body; default 60 s.
    pub body_time: Duration,
    /// `requests`: whose response has not begun, all workers together; default 10,000.
    pub requests: usize,
    /// `client_connections`: open at once from one client's address; default none.
    pub client_connections: Option<usize>,
    /// `client_logins`: begun within a minute from one client's address; default none.
    pub client_logins: Option<u32>,
    /// `connections`: open at once, all workers together; default 10,000.
    pub connections: usize,
    /// `streams`: at once on one HTTP/2 connection; default 100.
    pub streams: u32,
    /// `connect_time`: to an upstream, TLS included; default 5 s.
    pub connect_time: Duration,
    /// `response_time`: from the request sent to the upstream's response head; default 60 s.
    pub response_time: Duration,
    /// `drain_time`: for requests under way at SIGTERM; default 30 s.
    pub drain_time: Duration,
}

/// `[provider]`: the OpenID Provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// `issuer`, kept to the letter (the trailing slash counts); https, or http on loopback.
    /// `domain = "TENANT.eu.auth0.com"` is short for `https://TENANT.eu.auth0.com/`.
    pub issuer: String,
    /// The same, parsed.
    pub issuer_url: Url,
    /// `client_id`
    pub client_id: String,
    /// `client_secret` or `private_key`.
    pub authentication: ClientAuthentication,
    /// `scopes`, default `openid profile email offline_access`; holds `openid`.
    pub scopes: Vec<String>,
    /// `audience`: sent to `/authorize` (Auth0).
    pub audience: Option<String>,
    /// `login_params`: fixed extras for `/authorize`; none of OAuth's own parameters.
    pub login_params: Vec<(String, String)>,
    /// `groups_claim`, default `groups`: sent as `X-Forwarded-Groups`.
    pub groups_claim: String,
}

/// How the gateway proves itself at the token endpoint (OpenID Connect Core, section 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuthentication {
    /// `client_secret`: `client_secret_basic`, or `client_secret_post` where discovery offers only that.
    Secret(Secret),
    /// `private_key`: `private_key_jwt` with RS256 or ES256; a PEM key (PKCS#8).
    PrivateKey(Secret),
}

/// `[session]`
#[derive(Clone, Debug)]
pub struct Session {
    /// `secrets`: the first seals, all open; each at least 32 bytes; at least one.
    pub secrets: Vec<Secret>,
    /// `absolute`, default 3 d: from login, whatever happens.
    pub absolute: Duration,
    /// `inactivity`, default 1 d: since the last use; `false`: none.
    pub inactivity: Option<Duration>,
    /// `cookie`
    pub cookie: Cookie,
    /// `[session.redis]`; absent: the cookie store.
    pub redis: Option<Arc<Redis>>,
}

/// `[session.redis]`: Redis 7 or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// `url`: `redis://host:port/database`, or `rediss:` for TLS; the server's, the sentinels', or
    /// some of the cluster's.
    pub urls: Vec<String>,
    /// `servers`, default `single`: who these are.
    pub servers: RedisServers,
    /// `username`: of an ACL.
    pub username: Option<String>,
    /// `password`
    pub password: Option<Secret>,
    /// `ca`: a PEM file, for `rediss:`; absent: the machine's trusted roots.
    pub ca: Option<Vec<u8>>,
    /// `prefix`, default `vestibule:`: what every name in Redis begins with.
    pub prefix: String,
    /// `replicas`, default 5 for `sentinel` and `cluster`: how many replicas, of those that are
    /// connected, must have a change before it counts as saved.
    pub replicas: usize,
}

/// What the addresses of `[session.redis]` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    /// `single`: one server.
    Single,
    /// `sentinel`: sentinels, which know where the primary is.
    Sentinel {
        /// `primary`: the name that they know it by.
        primary: String,
        /// `sentinel_password`: the sentinels' own.
        password: Option<Secret>,
    },
    /// `cluster`: some nodes of a Redis Cluster.
    Cluster,
}

/// `[session] cookie`
#[derive(Clone, Debug)]
pub struct Cookie {
    /// `name`, default `__Host-session`; an RFC 6265 token. `__Host-` forbids `domain`.
    pub name: String,
    /// `same_site`, default `lax`.
    pub same_site: SameSite,
    /// `domain`: for a session across subdomains.
    pub domain: Option<String>,
    /// `transient`, default false: the browser forgets the cookie when it closes.
    pub transient: bool,
}

/// `SameSite` (RFC 6265bis, section 4.1.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Not sent from other sites, not even when a link is followed.
    Strict,
    /// Sent from other sites when a link is followed.
    Lax,
    /// Sent from everywhere.
    None,
}

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// `prefix`, default `/auth`: no trailing slash.
    pub prefix: String,
    /// `after_logout`, default `/`: a path on our own origin.
    pub after_logout: String,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// `format`, default `text`.
    pub format: LogFormat,
    /// `level`, default `info`: a filter in tracing's form.
    pub level: String,
    /// `access`, default true: one line a request on standard output.
    pub access: bool,
}

/// `[log] format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[[route]]`
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own in the file")]
pub struct Route {
    /// `host`: one of the public hosts, as [`Origin::host`]; absent: any of them.
    pub host: Option<String>,
    /// `path`: starts with `/`; matches on segment boundaries.
    pub path: String,
    /// `upstream`: at least one.
    pub upstream: Vec<Upstream>,
    /// `sticky`, default false: one session's requests go to one upstream, as long as that can
    /// take them.
    pub sticky: bool,
    /// `health`: how its upstreams are checked; absent: by nothing but the users' requests.
    pub health: Option<HealthCheck>,
    /// `access`, default `login`.
    pub access: Access,
    /// `require`: claims that must match, all of them.
    pub require: Vec<Requirement>,
    /// `headers`: names to send and what they are read from.
    pub headers: Vec<(HeaderName, ClaimPath)>,
    /// `session_update`, default all.
    pub session_update: Keys,
    /// `session_header`, default all.
    pub session_header: Keys,
    /// `access_token`, default false: sends `Authorization: Bearer …`.
    pub access_token: bool,
    /// `client_certificate`, default false: who shows none gets 403.
    pub client_certificate: bool,
    /// `close_on_session_end`, default true: WebSockets, event streams and other open responses of
    /// a signed-in user are closed when the session has ended or expired.
    pub close_on_session_end: bool,
    /// `body_bytes`: of one request's body; default `[server.limits] body_bytes`.
    pub body_bytes: Option<usize>,
}

/// `access`: who may have a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Signed-in users; a page navigation is sent to log in.
    Login,
    /// Signed-in users; others get 401, never a redirect.
    Api,
    /// Anyone; a signed-in user is told to the app.
    Optional,
    /// Anyone; the session is not looked at.
    Public,
}

/// `require = { claim = ["any", "of"] }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// A claim of the identity.
    pub claim: String,
    /// The claim, or one element of it where it is an array, equals one of these.
    pub any_of: Vec<String>,
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
