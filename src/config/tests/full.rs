//! Every key: a file that sets all of them to something other than their defaults, and one that
//! sets none.

use std::collections::{BTreeMap, BTreeSet};

use super::super::upstream::UpstreamProtocol;
use super::super::value::Owner;
use super::*;

/// Every key there is, each with another value than its default.
const FULL: &str = r#"
[server]
https = "127.0.0.1:1443"
http = "127.0.0.1:1080"
admin = "[::1]:1090"
handover = "/run/v.sock"
public_urls = ["https://app.example.com", "https://Other.example.com:8443"]
trusted_proxies = ["10.0.0.0/8", "::1"]
proxy_protocol = ["https", "http"]
workers = 3

[[server.certificate]]
cert = "all.pem"
key = "all.key"

[[server.certificate]]
cert = "a.pem"
key = "a.key"
acme = ["localhost"]

[server.acme]
directory = "https://ca.example.com/acme"
contact = ["mailto:ops@example.com"]
account = "account.json"
ca = "all.pem"

[server.client_certificates]
ca = "all.pem"
mode = "required"

[server.limits]
header_bytes = "32KiB"
headers = 50
target_bytes = "8KiB"
header_time = "9s"
handshake_time = "8s"
idle_time = "1m"
body_bytes = "10MiB"
body_time = "30s"
requests = 300
client_connections = 40
client_logins = 30
connections = 500
streams = 20
connect_time = "1s500ms"
response_time = "2m"
drain_time = "1h"

[provider]
issuer = "https://tenant.example.com/realms/x"
client_id = "client"
client_secret = { env = "CLIENT" }
scopes = ["openid", "groups"]
audience = "https://api.example.com"
login_params = { connection = "ldap", max_age = "3600" }
groups_claim = "https://example.com/groups"

[session]
secrets = [{ env = "SEAL" }, { file = "old.secret" }]
absolute = "30d"
inactivity = "12h"
cookie = { name = "__Secure-s", same_site = "strict", domain = "example.com", transient = true }

[session.redis]
url = ["rediss://10.0.0.1:26379/2", "rediss://10.0.0.2:26379/2"]
servers = "sentinel"
primary = "main"
sentinel_password = { env = "CLIENT" }
username = "gateway"
password = { env = "SEAL" }
ca = "all.pem"
prefix = "login/"
replicas = 2

[auth]
prefix = "/_/auth"
after_logout = "/bye"

[log]
format = "json"
level = "warn,vestibule=debug"
access = false

[[route]]
host = "app.example.com"
path = "/admin"
upstream = [
    { url = "https://[::1]:9443", weight = 3, protocol = "http2", ca = "all.pem", cert = "a.pem", key = "a.key", server_name = "app.internal" },
    "http://127.0.0.1:9000",
    "unix:/run/app.sock",
]
sticky = true
health = { path = "/up?deep", host = "app.internal", interval = "5s", timeout = "1s", status = [200, 204], down_after = 4, up_after = 1 }
access = "api"
require = { roles = ["admin", "root"], email_verified = true }
headers = { "X-User-Plan" = "session.plan", "X-Team" = "user.org_id" }
session_update = ["theme", "features"]
session_header = ["theme"]
access_token = true
client_certificate = true
close_on_session_end = false
body_bytes = "1GiB"

[[route]]
path = "/"
upstream = "http://127.0.0.1:9001"
access = "public"
session_update = false
session_header = false
"#;

/// The keys that FULL cannot hold, for they stand in place of others.
const INSTEAD: [(&str, &str); 2] = [("provider", "domain"), ("provider", "private_key")];

fn full_site() -> Site {
    let site = Site::new();
    site.certificate("all", &["app.example.com", "other.example.com"]);
    site.write("old.secret", "hunter2-fedcba9876543210fedcba9876543210\n");
    site
}

#[test]
fn every_key_of_server_is_read() {
    let Server { limits, certificates, .. } = full_site().right(FULL).server;
    let server = full_site().right(FULL).server;
    assert_eq!(server.https, "127.0.0.1:1443".parse().unwrap());
    assert_eq!(server.http, Some("127.0.0.1:1080".parse().unwrap()));
    assert_eq!(server.admin, Some("[::1]:1090".parse().unwrap()));
    assert_eq!(server.handover, Some("/run/v.sock".into()));
    let urls: Vec<_> = server.public_urls.iter().map(ToString::to_string).collect();
    assert_eq!(urls, ["https://app.example.com", "https://other.example.com:8443"]);
    let proxies: Vec<_> = server.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1/128"]);
    assert_eq!(server.proxy_protocol, ProxyProtocol { https: true, http: true });
    assert_eq!(server.workers, 3);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let names: Vec<_> = certificates.iter().map(|c| (name(&c.cert), name(&c.key))).collect();
    assert_eq!(
        names,
        [("all.pem", "all.key"), ("a.pem", "a.key")].map(|(c, k)| (c.into(), k.into()))
    );
    assert!(certificates.iter().all(|c| c.cert.is_absolute()), "from the file's own directory");

    let ordered: Vec<_> = certificates.iter().map(|one| one.acme.as_slice()).collect();
    assert_eq!(ordered, [&[][..], &["localhost".to_owned()]]);
    let Acme { directory, contact, account, authorities } = server.acme.unwrap();
    assert_eq!(directory, "https://ca.example.com/acme");
    assert_eq!(contact, ["mailto:ops@example.com"]);
    assert_eq!((name(&account).as_str(), authorities.len()), ("account.json", 1));
    let clients = server.client_certificates.unwrap();
    assert_eq!((clients.authorities.len(), clients.mode), (1, ClientCertificatesMode::Required));

    let seconds = Duration::from_secs;
    assert_eq!((limits.header_bytes, limits.headers), (32 * 1024, 50));
    assert_eq!((limits.header_time, limits.handshake_time), (seconds(9), seconds(8)));
    assert_eq!((limits.idle_time, limits.connections, limits.streams), (seconds(60), 500, 20));
    assert_eq!((limits.target_bytes, limits.body_bytes), (8 * 1024, Some(10 * 1024 * 1024)));
    assert_eq!((limits.body_time, limits.requests), (seconds(30), 300));
    assert_eq!((limits.client_connections, limits.client_logins), (Some(40), Some(30)));
    assert_eq!(limits.connect_time, Duration::from_millis(1500));
    assert_eq!((limits.response_time, limits.drain_time), (seconds(120), seconds(3600)));
}

#[test]
fn every_key_of_provider_is_read() {
    let provider = full_site().right(FULL).provider;
    assert_eq!(provider.issuer, "https://tenant.example.com/realms/x");
    assert_eq!(provider.issuer_url.as_str(), provider.issuer);
    assert_eq!(provider.client_id, "client");
    let ClientAuthentication::Secret(secret) = provider.authentication else { panic!() };
    assert_eq!(secret.expose(), b"hunter2-client");
    assert_eq!(provider.scopes, ["openid", "groups"]);
    assert_eq!(provider.audience.unwrap(), "https://api.example.com");
    let parameters = [("connection", "ldap"), ("max_age", "3600")];
    assert_eq!(provider.login_params, parameters.map(|(n, v)| (n.to_owned(), v.to_owned())));
    assert_eq!(provider.groups_claim, "https://example.com/groups");
}

#[test]
fn a_domain_stands_for_an_issuer_and_a_private_key_for_a_secret() {
    let site = Site::new();
    // A certificate's key is a P-256 key in PKCS#8 as well.
    let source = format!(
        "{SERVER}{SESSION}{ROUTE}[provider]\ndomain = 'T.eu.auth0.com'\nclient_id = 'c'\n\
         private_key = {{ file = 'a.key' }}\n"
    );
    let provider = site.right(&source).provider;
    assert_eq!(provider.issuer, "https://t.eu.auth0.com/");
    assert!(matches!(provider.authentication, ClientAuthentication::PrivateKey(_)));
}

#[test]
fn every_key_of_session_auth_and_log_is_read() {
    let Config { session, auth, log, .. } = full_site().right(FULL);
    let secrets: Vec<_> = session.secrets.iter().map(Secret::expose).collect();
    // The newline that an editor put at the end of the file is no part of the secret.
    let old = b"hunter2-fedcba9876543210fedcba9876543210".as_slice();
    assert_eq!(secrets, [b"hunter2-0123456789abcdef0123456789abcdef".as_slice(), old]);
    assert_eq!(session.absolute, Duration::from_secs(30 * 86_400));
    assert_eq!(session.inactivity, Some(Duration::from_secs(12 * 3600)));
    assert_eq!(session.cookie.name, "__Secure-s");
    assert_eq!(session.cookie.same_site, SameSite::Strict);
    assert_eq!(session.cookie.domain.unwrap(), "example.com");
    assert!(session.cookie.transient);
    let Redis { urls, servers, username, password, ca, prefix, replicas } =
        Arc::unwrap_or_clone(session.redis.unwrap());
    assert_eq!(urls, ["rediss://10.0.0.1:26379/2", "rediss://10.0.0.2:26379/2"]);
    let RedisServers::Sentinel { primary, password: sentinels } = servers else { panic!() };
    assert_eq!((primary.as_str(), sentinels.unwrap().expose()), ("main", &b"hunter2-client"[..]));
    assert_eq!(username.unwrap(), "gateway");
    assert_eq!(password.unwrap().expose(), session.secrets[0].expose());
    assert!(ca.unwrap().starts_with(b"-----BEGIN CERTIFICATE"));
    assert_eq!((prefix.as_str(), replicas), ("login/", 2));
    assert_eq!((auth.prefix.as_str(), auth.after_logout.as_str()), ("/_/auth", "/bye"));
    assert_eq!((log.format, log.level.as_str()), (LogFormat::Json, "warn,vestibule=debug"));
    assert!(!log.access);
}

#[test]
fn every_key_of_a_route_is_read() {
    let routes = full_site().right(FULL).routes;
    let [admin, root] = routes.as_slice() else { panic!("{routes:?}") };
    assert_eq!(admin.host.as_deref(), Some("app.example.com"));
    assert_eq!(admin.path, "/admin");
    let upstreams: Vec<_> = admin.upstream.iter().map(|one| one.url.to_string()).collect();
    assert_eq!(upstreams, ["https://[::1]:9443", "http://127.0.0.1:9000", "unix:/run/app.sock"]);
    let tls = admin.upstream[0].tls.as_ref().unwrap();
    assert_eq!(tls.ca.as_ref().unwrap().len(), 1);
    assert_eq!(tls.identity.as_ref().unwrap().cert.len(), 1);
    assert_eq!(tls.server_name.as_ref().unwrap().to_str(), "app.internal");
    assert!(admin.upstream[1].tls.is_none());
    let protocols: Vec<_> = admin.upstream.iter().map(|one| one.protocol).collect();
    let auto = UpstreamProtocol::Auto;
    assert_eq!(protocols, [UpstreamProtocol::Http2, auto, auto]);
    let weights: Vec<_> = admin.upstream.iter().map(|one| one.weight).collect();
    assert_eq!((weights.as_slice(), admin.sticky), ([3, 1, 1].as_slice(), true));
    let health = HealthCheck {
        path: "/up?deep".parse().unwrap(),
        host: Some("app.internal".to_owned()),
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        status: Some(vec![200, 204]),
        down_after: 4,
        up_after: 1,
    };
    assert_eq!(admin.health.as_ref(), Some(&health));
    assert_eq!(admin.access, Access::Api);
    let rule = |claim: &str, any_of: &[&str]| Requirement {
        claim: claim.to_owned(),
        any_of: any_of.iter().map(ToString::to_string).collect(),
    };
    let require = [rule("roles", &["admin", "root"]), rule("email_verified", &["true"])];
    assert_eq!(admin.require, require);
    let headers: Vec<_> = admin.headers.iter().map(|(name, path)| (name.as_str(), path)).collect();
    let path = |owner, member: &str| ClaimPath { owner, members: vec![member.to_owned()] };
    let (plan, team) = (path(Owner::Session, "plan"), path(Owner::User, "org_id"));
    assert_eq!(headers, [("x-user-plan", &plan), ("x-team", &team)]);
    let only = |keys: &[&str]| Keys::Only(keys.iter().map(ToString::to_string).collect());
    assert_eq!(admin.session_update, only(&["features", "theme"]));
    assert_eq!(admin.session_header, only(&["theme"]));
    assert!(admin.access_token && admin.client_certificate && !admin.close_on_session_end);
    assert_eq!((admin.body_bytes, root.body_bytes), (Some(1024 * 1024 * 1024), None));
    assert_eq!((&root.host, root.access), (&None, Access::Public));
    assert_eq!((&root.session_update, &root.session_header), (&Keys::None, &Keys::None));
}

#[test]
fn every_word_of_a_choice_is_read() {
    let site = Site::new();
    for (word, access) in [
        ("login", Access::Login),
        ("api", Access::Api),
        ("optional", Access::Optional),
        ("public", Access::Public),
    ] {
        let config = site.right(&with("route", &format!("access = '{word}'")));
        assert_eq!(config.routes[0].access, access);
    }
    for (word, same_site) in
        [("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)]
    {
        let config = site.right(&with("session", &format!("cookie.same_site = '{word}'")));
        assert_eq!(config.session.cookie.same_site, same_site);
    }
    for (word, protocol) in [
        ("auto", UpstreamProtocol::Auto),
        ("http1", UpstreamProtocol::Http1),
        ("http2", UpstreamProtocol::Http2),
    ] {
        let upstream = format!("{{ url = 'http://a', protocol = '{word}' }}");
        let config = site.right(&least().replace("'http://127.0.0.1:9000'", &upstream));
        assert_eq!(config.routes[0].upstream[0].protocol, protocol);
    }
    assert_eq!(site.right(&with("session", "inactivity = false")).session.inactivity, None);
    for (value, keys) in [("true", Keys::All), ("false", Keys::None)] {
        let config = site.right(&with("route", &format!("session_update = {value}")));
        assert_eq!(config.routes[0].session_update, keys);
    }
    assert_eq!(site.right(&with("log", "format = 'text'")).log.format, LogFormat::Text);
    let server = site.right(&with("server", "client_certificates.ca = 'a.pem'")).server;
    assert_eq!(server.client_certificates.unwrap().mode, ClientCertificatesMode::Optional);
}

#[test]
fn what_is_left_out_has_its_default() {
    let site = Site::new();
    let Config { server, provider, session, auth, log, routes } = site.right(&least());
    assert_eq!(server.https, "0.0.0.0:8443".parse().unwrap());
    assert_eq!((server.http, server.admin, server.handover), (None, None, None));
    assert_eq!(server.public_urls[0].to_string(), "https://localhost:8443");
    assert_eq!(server.trusted_proxies, []);
    assert_eq!(server.proxy_protocol, ProxyProtocol::default());
    assert_eq!((server.acme, server.client_certificates), (None, None));
    assert_eq!(server.workers, std::thread::available_parallelism().unwrap().get());
    let Limits { header_bytes, headers, header_time, handshake_time, idle_time, .. } =
        server.limits;
    let seconds = Duration::from_secs;
    assert_eq!((header_bytes, headers), (64 * 1024, 100));
    assert_eq!((header_time, handshake_time, idle_time), (seconds(10), seconds(10), seconds(75)));
    let Limits { target_bytes, body_bytes, body_time, requests, .. } = server.limits;
    assert_eq!((target_bytes, body_bytes), (16 * 1024, None));
    assert_eq!((body_time, requests), (seconds(60), 10_000));
    let Limits { client_connections, client_logins, .. } = server.limits;
    assert_eq!((client_connections, client_logins), (None, None));
    let Limits { connections, streams, connect_time, response_time, drain_time, .. } =
        server.limits;
    assert_eq!((connections, streams), (10_000, 100));
    assert_eq!((connect_time, response_time, drain_time), (seconds(5), seconds(60), seconds(30)));
    assert_eq!(provider.scopes, ["openid", "profile", "email", "offline_access"]);
    assert_eq!((provider.audience, provider.login_params), (None, vec![]));
    assert_eq!(provider.groups_claim, "groups");
    assert_eq!((session.absolute, session.inactivity), (seconds(259_200), Some(seconds(86_400))));
    let Cookie { name, same_site, domain, transient } = session.cookie;
    assert_eq!((name.as_str(), same_site), ("__Host-session", SameSite::Lax));
    assert_eq!((domain, transient), (None, false));
    assert_eq!((auth.prefix.as_str(), auth.after_logout.as_str()), ("/auth", "/"));
    assert_eq!((log.format, log.level.as_str(), log.access), (LogFormat::Text, "info", true));
    let route = &routes[0];
    assert_eq!((&route.host, route.access), (&None, Access::Login));
    assert!(route.require.is_empty() && route.headers.is_empty() && !route.access_token);
    assert!(route.close_on_session_end && !route.sticky && route.health.is_none());
    assert!(!route.client_certificate);
    assert!(route.body_bytes.is_none());
    assert_eq!((&route.session_update, &route.session_header), (&Keys::All, &Keys::All));
}

#[test]
fn a_redis_is_one_server_sentinels_or_a_cluster() {
    let site = Site::new();
    let redis = |lines: &str| format!("{}\n[session.redis]\n{lines}\n", least());
    let read = |lines: &str| site.right(&redis(lines)).session.redis.unwrap();
    let one = read("url = 'redis://127.0.0.1:6379'");
    assert!(matches!(one.servers, RedisServers::Single));
    assert_eq!(one.replicas, 0);
    assert_eq!((one.prefix.as_str(), &one.username, &one.ca), ("vestibule:", &None, &None));
    let nodes = read("url = ['redis://a:1', 'redis://b:2']\nservers = 'cluster'");
    assert!(matches!(nodes.servers, RedisServers::Cluster) && nodes.replicas == 5);
    for wrong in [
        "",
        "url = 'http://127.0.0.1:6379'",
        "url = 'redis://127.0.0.1/zero'",
        "url = 'redis://:secret@127.0.0.1'",
        "url = ['redis://a:1', 'redis://b:2']",
        "url = ['redis://a:1', 'rediss://b:2']\nservers = 'cluster'",
        "url = 'redis://a:1'\nservers = 'sentinel'",
        "url = 'redis://a:1'\nprimary = 'main'",
        "url = 'redis://a:1'\nusername = 'u'",
        "url = 'redis://a:1'\nreplicas = 1",
        "url = 'redis://a:1'\nprefix = '{x}'",
        "url = 'redis://a:1'\nca = 'a.key'",
    ] {
        assert!(site.read(&redis(wrong)).is_err(), "{wrong}");
    }
}

/// The tables of FULL and their keys, free names left out.
fn keys_of(table: &toml::Table, name: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for (key, value) in table {
        found.entry(name.to_owned()).or_default().insert(key.clone());
        let inner = file::join(name, key);
        let free = ["provider.login_params", "route.require", "route.headers"];
        let tables = match value {
            toml::Value::Table(table) if !free.contains(&inner.as_str()) => vec![table],
            toml::Value::Array(list) => list.iter().filter_map(toml::Value::as_table).collect(),
            _ => vec![],
        };
        for table in tables {
            keys_of(table, &inner, found);
        }
    }
}

#[test]
fn no_key_is_known_that_these_tests_do_not_set_and_none_is_set_to_its_default() {
    let (read, known) = full_site().read_knowing(FULL);
    read.unwrap();
    let full: toml::Table = FULL.parse().unwrap();
    let mut set = BTreeMap::new();
    keys_of(&full, "", &mut set);
    for (table, key) in INSTEAD {
        assert!(set.entry(table.to_owned()).or_default().insert(key.to_owned()), "{table}.{key}");
    }
    let secret: BTreeSet<_> = ["env", "file"].map(str::to_owned).into();
    for key in
        ["provider.client_secret", "session.redis.password", "session.redis.sentinel_password"]
    {
        set.insert(key.to_owned(), secret.clone());
    }
    let asked: BTreeMap<String, BTreeSet<String>> = known
        .iter()
        .map(|(table, keys)| (table.clone(), keys.keys().map(ToString::to_string).collect()))
        .collect();
    assert_eq!(asked, set);

    for (table, keys) in &known {
        for (key, default) in keys {
            let Some(default) = default else { continue };
            let default: toml::Table = format!("x = {default}").parse().unwrap();
            let value = table
                .split('.')
                .chain([*key])
                .filter(|name| !name.is_empty())
                .try_fold(&toml::Value::Table(full.clone()), |value, name| match value {
                    toml::Value::Array(list) => list[0].get(name),
                    value => value.get(name),
                })
                .cloned();
            assert_ne!(value, default.get("x").cloned(), "{table}.{key}");
        }
    }
}
