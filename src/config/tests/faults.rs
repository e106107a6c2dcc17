//! What is said of a key that is wrong, missing or unknown.

use super::*;

const WRONG: &str = r#"
[server]
https = "localhost:8443"
public_urls = ["https://localhost:8443", "http://app.example.com"]
prot = 1
[[server.certificate]]
cert = "a.pem"
key = "a.key"
[server.limits]
headers = 0
header_time = "10"

[provider]
domain = "t.example"
client_secret = { env = "NOWHERE" }
scopes = ["profile"]

[[route]]
path = "/app/"
upstraem = "http://127.0.0.1:9000"
acces = "public"
"#;

const SAID: &str = r#"gateway.toml: session: is missing
   = write [session], with secrets
gateway.toml:3:9: server.https: is no address to listen on
3 | https = "localhost:8443"
  |         ^^^^^^^^^^^^^^^^
  = write an IP address and a port: "0.0.0.0:8443", "[::]:8443"
gateway.toml:4:42: server.public_urls: is not an https origin
4 | public_urls = ["https://localhost:8443", "http://app.example.com"]
  |                                          ^^^^^^^^^^^^^^^^^^^^^^^^
  = write https://host or https://host:port, without a path
gateway.toml:5:1: server.prot: unknown key
5 | prot = *
  | ^^^^
  = known here: acme, admin, certificate, client_certificates, handover, http, https, limits, proxy_protocol, public_urls, trusted_proxies, workers
gateway.toml:10:11: server.limits.headers: is out of bounds
10 | headers = 0
   |           ^
   = write something from 1 to 1000
gateway.toml:11:15: server.limits.header_time: is not a duration
11 | header_time = "10"
   |               ^^^^
   = write a number and a unit: "90s", "1h30m", "3d"
gateway.toml:13:1: provider.client_id: is missing
13 | [provider]
   | ^^^^^^^^^^
   = write client_id = "…", as the provider shows it
gateway.toml:15:25: provider.client_secret.env: is a variable that the environment does not have
15 | client_secret = { env = "NOWHERE" }
   |                         ^^^^^^^^^
   = set it: export NOWHERE="…"
gateway.toml:16:10: provider.scopes: lacks openid, without which there is no ID token
16 | scopes = ["profile"]
   |          ^^^^^^^^^^^
   = add "openid"
gateway.toml:18:1: route.upstream: is missing
18 | [[route]]
   | ^^^^^^^^^
   = write upstream = "http://127.0.0.1:9000"
gateway.toml:19:8: route.path: ends with a slash: a path matches everything below it anyway
19 | path = "/app/"
   |        ^^^^^^^
   = write / and plain segments, without a slash at the end: /app/admin
gateway.toml:20:1: route.upstraem: unknown key
20 | upstraem = ***********************
   | ^^^^^^^^
   = did you mean upstream?
gateway.toml:21:1: route.acces: unknown key
21 | acces = ********
   | ^^^^^
   = did you mean access?
"#;

#[test]
fn every_fault_of_a_file_is_found_at_once_and_shown_with_its_line_and_its_remedy() {
    assert_eq!(Site::new().wrong(WRONG), SAID);
}

#[test]
fn a_misspelt_key_is_shown_with_the_one_that_is_meant() {
    let site = Site::new();
    for (table, line, remedy) in [
        ("route", "acess = 'login'", "did you mean access?"),
        ("route", "session-update = true", "did you mean session_update?"),
        ("route", "Headers = {}", "did you mean headers?"),
        ("session", "clientsecret = 'x'", "it belongs to"),
        ("session", "issuer = 'x'", "it belongs to provider"),
        ("server", "idle_time = '1s'", "it belongs to server.limits"),
        ("log", "colour = true", "known here: access, format, level"),
        ("server.limits", "conections = 1", "did you mean connections?"),
    ] {
        let said = site.wrong(&with(table, line));
        let key = line.split(' ').next().unwrap();
        assert!(said.contains(&format!(" {table}.{key}: unknown key\n")), "{said}");
        if remedy != "it belongs to" {
            assert!(said.contains(&format!(" = {remedy}\n")), "{said}");
        }
    }
    let said = site.wrong(&with("sesion", "absolute = '1d'"));
    assert!(
        said.contains(" sesion: unknown key\n") && said.contains("did you mean session?"),
        "{said}"
    );
}

#[test]
fn a_key_of_a_table_that_stands_at_the_top_is_sent_to_it() {
    let said = Site::new().wrong(&("issuer = 'https://a/'\n".to_owned() + &least()));
    assert!(said.contains("gateway.toml:1:1: issuer: unknown key\n"), "{said}");
    assert!(said.contains(" = it belongs to provider\n"), "{said}");
}

#[test]
fn what_is_missing_is_named() {
    let site = Site::new();
    for (without, key) in [
        (SERVER, "server.certificate"),
        (PROVIDER, "provider"),
        (SESSION, "session"),
        (ROUTE, "route"),
        ("cert = 'a.pem'\n", "server.certificate.cert"),
        ("key = 'a.key'\n", "server.certificate.key"),
        ("domain = 't.example'\n", "provider.issuer"),
        ("client_id = 'c'\n", "provider.client_id"),
        ("client_secret = { env = 'CLIENT' }\n", "provider.client_secret"),
        ("secrets = [{ env = 'SEAL' }]\n", "session.secrets"),
        ("path = '/'\n", "route.path"),
        ("upstream = 'http://127.0.0.1:9000'\n", "route.upstream"),
    ] {
        let source = least().replacen(without, "", 1);
        assert_eq!(only_fault(&site, &source), format!("{key}: is missing"));
    }
}

#[test]
fn a_value_of_another_type_is_named_as_what_it_is() {
    let site = Site::new();
    for (table, line, said) in [
        ("server", "https = 8443", "server.https: is a whole number"),
        ("server", "workers = '2'", "server.workers: is a text"),
        ("server", "workers = 1.5", "server.workers: is a number with a fraction"),
        ("server", "public_urls = 'https://a'", "server.public_urls: is a text"),
        ("server", "limits = 1", "server.limits: is a whole number"),
        ("server.limits", "idle_time = 75", "server.limits.idle_time: is a whole number"),
        ("provider", "scopes = 'openid'", "provider.scopes: is a text"),
        ("provider", "login_params = ['x']", "provider.login_params: is a list"),
        ("session", "inactivity = true", "session.inactivity: is true or false"),
        ("session", "cookie = 'name'", "session.cookie: is a text"),
        ("session", "absolute = 2026-01-01", "session.absolute: is a date"),
        ("route", "access = true", "route.access: is true or false"),
        ("route", "access_token = 'true'", "route.access_token: is a text"),
        ("route", "session_update = 'theme'", "route.session_update: is a text"),
        ("route", "headers = ['X-A']", "route.headers: is a list"),
        ("route", "require = { level = 3 }", "route.require: is a whole number"),
        ("auth", "prefix = {}", "auth.prefix: is a table"),
    ] {
        assert_eq!(only_fault(&site, &with(table, line)), said);
    }
    let single = least().replace("[[route]]", "[route]");
    assert_eq!(only_fault(&site, &single), "route: is a table");
}

#[test]
fn numbers_durations_and_sizes_have_bounds() {
    let site = Site::new();
    let most = [
        ("server", "workers", "1", "1024", "0", "1025"),
        ("server.limits", "header_bytes", "'8KiB'", "'1MiB'", "'8191B'", "'1048577B'"),
        ("server.limits", "headers", "1", "1000", "0", "1001"),
        ("server.limits", "header_time", "'1ms'", "'1h'", "'0s'", "'1h1ms'"),
        ("server.limits", "handshake_time", "'1ms'", "'1h'", "'0ms'", "'61m'"),
        ("server.limits", "idle_time", "'1ms'", "'1d'", "'0s'", "'25h'"),
        ("server.limits", "connections", "1", "1_000_000", "-1", "1_000_001"),
        ("server.limits", "streams", "0x1", "10_000", "0", "18446744073709551616"),
        ("server.limits", "connect_time", "'1ms'", "'1h'", "'0s'", "'3601s'"),
        ("server.limits", "response_time", "'1ms'", "'1d'", "'0s'", "'1d1ms'"),
        ("server.limits", "drain_time", "'1ms'", "'1h'", "'0s'", "'2h'"),
        ("session", "absolute", "'1s'", "'400d'", "'999ms'", "'401d'"),
        ("session", "inactivity", "'1s'", "'400d'", "'999ms'", "'401d'"),
    ];
    for (table, key, least, most, below, above) in most {
        for value in [least, most] {
            site.right(&with(table, &format!("{key} = {value}")));
        }
        for value in [below, above] {
            let said = only_fault(&site, &with(table, &format!("{key} = {value}")));
            assert_eq!(said, format!("{table}.{key}: is out of bounds"), "{value}");
        }
    }
}

const MEANINGLESS: [(&str, &str, &str); 35] = [
    ("server", "trusted_proxies = ['10.0.0.0/33']", "server.trusted_proxies: is no network"),
    ("server", "public_urls = []", "server.public_urls: is empty"),
    (
        "server",
        "public_urls = ['https://localhost', 'https://localhost:443']",
        "server.public_urls: stands here twice",
    ),
    ("server", "http = '0.0.0.0:8443'", "server.http: is the address of another listener"),
    ("server", "admin = '0.0.0.0:8443'", "server.admin: is the address of another listener"),
    (
        "provider",
        "scopes = ['profile']",
        "provider.scopes: lacks openid, without which there is no ID token",
    ),
    ("provider", "scopes = ['openid email']", "provider.scopes: is no scope"),
    (
        "provider",
        "issuer = 'https://t.example/'",
        "provider.domain: stands beside issuer, which it is short for",
    ),
    (
        "provider",
        "private_key = { file = 'a.key' }",
        "provider.private_key: stands beside client_secret",
    ),
    ("provider", "login_params.max_age = 'soon'", "provider.login_params: is no age in seconds"),
    ("provider", "login_params.max_age = '-1'", "provider.login_params: is no age in seconds"),
    ("session", "cookie.name = 'a b'", "session.cookie.name: is no name of a cookie"),
    ("session", "cookie.same_site = 'Lax'", "session.cookie.same_site: is none of its words"),
    (
        "session",
        "cookie = { name = 's', domain = 'example.com' }",
        "session.cookie.domain: is not the domain of the public host localhost",
    ),
    ("auth", "prefix = '/'", "auth.prefix: is no prefix"),
    ("auth", "prefix = '/a:b'", "auth.prefix: is no prefix"),
    ("auth", "after_logout = 'https://evil.example'", "auth.after_logout: does not start with /"),
    (
        "auth",
        "after_logout = '//evil.example'",
        "auth.after_logout: holds an empty segment, or one of dots",
    ),
    ("log", "format = 'xml'", "log.format: is none of its words"),
    ("log", "level = ''", "log.level: is no filter for logs"),
    ("log", "level = 'a=b=c'", "log.level: is no filter for logs"),
    ("route", "host = 'other.example'", "route.host: is no public host"),
    ("route", "sticky = 1", "route.sticky: is a whole number"),
    ("route", "health = '/up'", "route.health: is a text"),
    ("route", "health = { interval = '1s' }", "route.health.path: is missing"),
    ("route", "health = { path = 'up' }", "route.health.path: is no path"),
    ("route", "health = { path = '/', status = 101 }", "route.health.status: is out of bounds"),
    (
        "route",
        "health = { path = '/', interval = '0s' }",
        "route.health.interval: is out of bounds",
    ),
    (
        "route",
        "headers = { Cookie = 'user.sub' }",
        "route.headers: is a header that a route cannot set",
    ),
    (
        "route",
        "headers = { X-A = 'user.a', x-a = 'user.b' }",
        "route.headers: names a header twice",
    ),
    (
        "route",
        "headers = { X-A = 'tokenSet.idToken' }",
        "route.headers: is no path into the session",
    ),
    (
        "route",
        "session_update = ['internal']",
        "route.session_update: is a key that no app can change",
    ),
    ("route", "session_header = []", "route.session_header: is empty"),
    ("route", "require = { '' = 'x' }", "route.require: names no claim"),
    ("route", "require = { roles = [] }", "route.require: is empty"),
];

#[test]
fn what_a_key_cannot_mean_is_refused() {
    let site = Site::new();
    for (table, line, said) in MEANINGLESS {
        assert_eq!(only_fault(&site, &with(table, line)), said);
    }
}

#[test]
fn an_upstream_that_cannot_be_is_refused() {
    let site = Site::new();
    for (upstream, said) in [
        ("[]", "route.upstream: is empty"),
        ("['http://a', 'http://a:80']", "route.upstream: is listed twice"),
        ("{ weight = 2 }", "route.upstream.url: is missing"),
        ("[{ url = 'http://a', weight = 0 }]", "route.upstream.weight: is out of bounds"),
        ("[{ url = 'http://a', weight = 101 }]", "route.upstream.weight: is out of bounds"),
        ("[{ url = 'http://a', wieght = 2 }]", "route.upstream.wieght: unknown key"),
        ("[{ url = 'ftp://a' }]", "route.upstream.url: is no upstream"),
        ("{ url = 'http://a', ca = 'a.pem' }", "route.upstream.ca: is for https alone"),
        (
            "{ url = 'unix:/a', server_name = 'a' }",
            "route.upstream.server_name: is for https alone",
        ),
        ("{ url = 'https://a', cert = 'a.pem' }", "route.upstream.key: is missing"),
        ("{ url = 'https://a', key = 'a.key' }", "route.upstream.cert: is missing"),
        (
            "{ url = 'https://a', server_name = 'a b' }",
            "route.upstream.server_name: is no name of a server",
        ),
    ] {
        let source = least().replace("'http://127.0.0.1:9000'", upstream);
        assert_eq!(only_fault(&site, &source), said);
    }
    for (key, file) in [("ca", "a.key"), ("ca", "none.pem"), ("cert", "none.pem"), ("key", "a.pem")]
    {
        let mut files = [("ca", "a.pem"), ("cert", "a.pem"), ("key", "a.key")];
        files.iter_mut().filter(|(known, _)| *known == key).for_each(|pair| pair.1 = file);
        let all: Vec<_> = files.iter().map(|(key, file)| format!("{key} = '{file}'")).collect();
        let upstream = format!("{{ url = 'https://a', {} }}", all.join(", "));
        let source = least().replace("'http://127.0.0.1:9000'", &upstream);
        let said = only_fault(&site, &source);
        assert!(said.starts_with(&format!("route.upstream.{key}: ")), "{said}");
        assert!(said.contains(file), "{said}");
    }
    let many: Vec<_> = (1..=65).map(|port| format!("'http://a:{port}'")).collect();
    let source = least().replace("'http://127.0.0.1:9000'", &format!("[{}]", many.join(", ")));
    assert_eq!(only_fault(&site, &source), "route.upstream: lists too many upstreams");
}

/// Whoever writes `require` believes that others are kept out.
#[test]
fn a_rule_that_would_keep_nobody_out_is_refused() {
    let site = Site::new();
    for line in [
        "require = { roles = 'admin' }",
        "headers = { X-A = 'user.a' }",
        "access_token = true",
        "sticky = true",
    ] {
        let said = only_fault(&site, &with("route", &format!("access = 'public'\n{line}")));
        assert!(said.contains("has no effect with access = \"public\""), "{said}");
    }
    let said = only_fault(&site, &with("route", "access = 'optional'\nrequire = { roles = 'a' }"));
    assert!(said.contains("has no effect with access = \"optional\""), "{said}");
    site.right(&with("route", "access = 'optional'\naccess_token = true"));
}

#[test]
fn a_parameter_of_the_logins_own_cannot_be_fixed() {
    let site = Site::new();
    for name in [
        "response_type",
        "client_id",
        "redirect_uri",
        "state",
        "nonce",
        "code_challenge",
        "code_challenge_method",
        "scope",
        "response_mode",
        "request",
        "request_uri",
        "client_secret",
        "audience",
    ] {
        let said = only_fault(&site, &with("provider", &format!("login_params.{name} = 'x'")));
        assert_eq!(said, "provider.login_params: names a parameter that the login itself sends");
    }
}

#[test]
fn routes_are_told_apart_and_kept_off_the_gateways_own_paths() {
    let site = Site::new();
    let second = |lines: &str| format!("{}[[route]]\nupstream = 'http://a'\n{lines}\n", least());
    let said = only_fault(&site, &second("path = '/'"));
    assert_eq!(said, "route.path: is the path of an earlier route too");
    site.right(&second("path = '/'\nhost = 'localhost'"));
    for path in ["/auth", "/auth/x"] {
        let said = only_fault(&site, &second(&format!("path = '{path}'")));
        assert!(said.starts_with("route.path: lies under auth.prefix, /auth,"), "{said}");
    }
    site.right(&second("path = '/authors'"));
    let said = only_fault(&site, &second("path = '/'\nhost = 'other.example'"));
    assert_eq!(said, "route.host: is no public host", "and not another route for any host");
}

#[test]
fn a_cookie_for_a_domain_cannot_be_bound_to_a_host() {
    let site = Site::new();
    let source = "server.public_urls = ['https://a.example.com']\n".to_owned()
        + &with("session", "cookie = { domain = 'example.com' }");
    let said = only_fault(&site, &source);
    assert_eq!(said, "session.cookie.domain: cannot go with a name that starts with __Host-");
    let source = source.replace("{ domain", "{ name = '__Secure-s', domain");
    assert_eq!(site.right(&source).session.cookie.domain.as_deref(), Some("example.com"));
    for domain in [".example.com", "com", "127.0.0.1", "ample.com"] {
        only_fault(&site, &source.replace("'example.com' }", &format!("'{domain}' }}")));
    }
}

#[test]
fn a_listener_that_nobody_may_speak_to_is_an_error() {
    let site = Site::new();
    let said = |lines: &str| only_fault(&site, &with("server", lines));
    let trusted = "trusted_proxies = ['10.0.0.0/8']";
    assert_eq!(
        said("proxy_protocol = ['https']"),
        "server.proxy_protocol: wants a header that nobody may send: trusted_proxies is empty"
    );
    assert_eq!(
        said(&format!("proxy_protocol = ['http']\n{trusted}")),
        "server.proxy_protocol: names a listener that is not there"
    );
    let other = said(&format!("proxy_protocol = ['admin']\n{trusted}"));
    assert!(other.starts_with("server.proxy_protocol: is none of its words"), "{other}");
    let right = site.right(&with("server", &format!("proxy_protocol = ['https']\n{trusted}")));
    assert_eq!(right.server.proxy_protocol, ProxyProtocol { https: true, http: false });
}

#[test]
fn a_path_that_no_socket_can_have_is_an_error() {
    let site = Site::new();
    let said = only_fault(&site, &with("server", &format!("handover = '/{}'", "x".repeat(107))));
    assert!(said.starts_with("server.handover: ") && said.contains("107 bytes"), "{said}");
}

#[test]
fn a_certificate_that_nobody_could_issue_is_an_error() {
    let site = Site::new();
    let ordered = "cert = 'none.pem'\nkey = 'none.key'\nacme = ['localhost']\n";
    let source = |server: &str| {
        let rest = [PROVIDER, SESSION, ROUTE].concat();
        format!("[server]\n{server}\n[[server.certificate]]\n{ordered}{rest}")
    };
    let said = |server: &str| only_fault(&site, &source(server));
    let acme = "acme = {}\n";
    let http = "http = '127.0.0.1:8080'\n";
    assert!(said(acme).contains("no server.http for its proof"));
    assert!(said(http).contains("there is no [server.acme]"));
    let config = site.right(&source(&(acme.to_owned() + http)));
    let acme = config.server.acme.unwrap();
    assert_eq!(acme.directory, "https://acme-v02.api.letsencrypt.org/directory");
    assert!(acme.contact.is_empty() && acme.authorities.is_empty());
    assert!(acme.account.ends_with("acme-account.json") && acme.account.is_absolute());
    assert_eq!(config.server.certificates[0].acme, ["localhost"]);
    for (line, key) in [
        ("acme = { directory = 'http://127.0.0.1/' }", "server.acme.directory"),
        ("acme = { contact = ['ops@example.com'] }", "server.acme.contact"),
        ("acme = { contact = ['mailto:ops'] }", "server.acme.contact"),
        ("acme = { ca = 'none.pem' }", "server.acme.ca"),
    ] {
        let wrong = only_fault(&site, &with("server", line));
        assert!(wrong.starts_with(key), "{wrong}");
    }
    // What is there has to be right, whoever puts it there.
    site.write("none.pem", "no certificate");
    assert!(said(&(http.to_owned() + "acme = {}")).contains("none.pem"));
}

#[test]
fn a_route_that_wants_a_certificate_of_which_nobody_is_asked_is_an_error() {
    let site = Site::new();
    let source = with("route", "client_certificate = true");
    let said = only_fault(&site, &source);
    assert_eq!(said, "route.client_certificate: wants a certificate that no client is asked for");
    let asked = "[server]\nclient_certificates = { ca = 'a.pem' }\n".to_owned() + &source;
    assert!(site.right(&asked).routes[0].client_certificate);
}
