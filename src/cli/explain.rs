//! What a configuration means, for `vestibule check`: the listeners, the login, and a table with
//! one row a route. No secrets.

use std::io::{self, Write};
use std::time::Duration;

use crate::config::value::Keys;
use crate::config::{Access, ClientCertificatesMode, Config, Requirement, Route};

/// Prints it.
pub(super) fn explain(name: &str, config: &Config, out: &mut impl Write) -> io::Result<()> {
    let Config { server, provider, session, auth, .. } = config;
    writeln!(out, "{name} is right.\n")?;
    writeln!(out, "https   {}, as {}", server.https, list(&server.public_urls))?;
    if let Some(http) = server.http {
        writeln!(out, "http    {http}, redirects to https")?;
    }
    if let Some(admin) = server.admin {
        writeln!(out, "admin   {admin}")?;
    }
    let ordered = list(server.certificates.iter().flat_map(|certificate| &certificate.acme));
    if let Some(acme) = server.acme.as_ref().filter(|_| !ordered.is_empty()) {
        writeln!(out, "orders  certificates for {ordered} from {}", acme.directory)?;
    }
    if let Some(path) = &server.handover {
        writeln!(out, "next    a process that is started takes over, at {}", path.display())?;
    }
    let wanted = [("https", server.proxy_protocol.https), ("http", server.proxy_protocol.http)];
    let wanted = list(wanted.into_iter().filter_map(|(name, wanted)| wanted.then_some(name)));
    if !wanted.is_empty() {
        let trusted = list(&server.trusted_proxies);
        writeln!(out, "proxies {trusted} begin with a PROXY header on {wanted}")?;
    }
    if let Some(clients) = &server.client_certificates {
        let (who, count) = (clients_who(clients.mode), clients.authorities.len());
        writeln!(out, "clients {who}, signed by one of {count} in server.client_certificates.ca")?;
    }
    writeln!(out, "login   {} at {} as {}", auth.prefix, provider.issuer, provider.client_id)?;
    let idle = match session.inactivity {
        Some(inactivity) => format!(", or {} without a request", short(inactivity)),
        None => String::new(),
    };
    let (cookie, absolute) = (&session.cookie.name, short(session.absolute));
    writeln!(out, "session {absolute} from login{idle}; cookie {cookie}\n")?;

    let header =
        ["HOST", "PATH", "ACCESS", "UPSTREAM", "SEES", "MAY CHANGE", "AT SESSION END", "HEADERS"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(config.routes.iter().map(row));
    table(&rows, out)
}

fn clients_who(mode: ClientCertificatesMode) -> &'static str {
    match mode {
        ClientCertificatesMode::Optional => "may show a certificate",
        ClientCertificatesMode::Required => "have to show a certificate",
    }
}

fn row(route: &Route) -> [String; 8] {
    let session = |keys| if route.access == Access::Public { "-".to_owned() } else { words(keys) };
    let mut headers: Vec<_> =
        route.headers.iter().map(|(name, source)| format!("{name} = {source}")).collect();
    if route.access_token {
        headers.push("authorization = the access token".to_owned());
    }
    [
        route.host.clone().unwrap_or_else(|| "any".to_owned()),
        route.path.clone(),
        access(route.access, &route.require) + certificate(route) + &bodies(route),
        upstream(route),
        session(&route.session_header),
        session(&route.session_update),
        at_session_end(route).to_owned(),
        if headers.is_empty() { "-".to_owned() } else { headers.join(", ") },
    ]
}

fn upstream(route: &Route) -> String {
    let mut text = list(&route.upstream);
    if route.sticky {
        text += "; one a session";
    }
    if let Some(check) = &route.health {
        text += &format!("; checked at {} every {}", check.path, short(check.interval));
    }
    text
}

fn access(access: Access, require: &[Requirement]) -> String {
    let mut text = match access {
        Access::Login => "login",
        Access::Api => "api",
        Access::Optional => "optional",
        Access::Public => "public",
    }
    .to_owned();
    for (at, Requirement { claim, any_of }) in require.iter().enumerate() {
        text += if at == 0 { ", if " } else { " and " };
        text += &format!("{claim} is {}", any_of.join(" or "));
    }
    text
}

/// How large a request's body may be, where the route says it.
fn certificate(route: &Route) -> &'static str {
    if route.client_certificate { ", with a certificate" } else { "" }
}

fn bodies(route: &Route) -> String {
    let most = |bytes| format!(", bodies of {bytes} bytes at most");
    route.body_bytes.map(most).unwrap_or_default()
}

/// What becomes of open connections.
fn at_session_end(route: &Route) -> &'static str {
    match (route.access, route.close_on_session_end) {
        (Access::Public, _) => "-",
        (_, true) => "closes",
        (_, false) => "stays open",
    }
}

fn words(keys: &Keys) -> String {
    match keys {
        Keys::All => "all".to_owned(),
        Keys::None => "none".to_owned(),
        Keys::Only(keys) => list(keys),
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// `1d`, `1h30m`, as it would be written in the file.
fn short(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)]
    {
        if rest >= size {
            text += &format!("{}{unit}", rest / size);
            rest %= size;
        }
    }
    text
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]], out: &mut impl Write) -> io::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line += &format!("{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_with_all_that_its_routes_mean() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.toml");
        let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).unwrap();
        std::fs::write(directory.path().join("c.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.path().join("c.key"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&path, FULL).unwrap();
        let secret = |_: &str| Some("hunter2-0123456789abcdef0123456789abcdef".to_owned());
        let config = crate::config::load_with(&path, &secret).unwrap().config;
        let mut out = Vec::new();
        explain("gateway.toml", &config, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), SHOWN);
    }

    const FULL: &str = r#"
server.https = "127.0.0.1:1443"
server.http = "127.0.0.1:1080"
server.admin = "[::1]:1090"
server.public_urls = ["https://app.example", "https://app.example:8443"]
server.certificate = [{ cert = "c.pem", key = "c.key", acme = ["app.example"] }]
server.acme = { contact = ["mailto:ops@example.com"] }
server.handover = "/run/v.sock"
server.trusted_proxies = ["10.0.0.0/8"]
server.proxy_protocol = ["https"]
server.client_certificates = { ca = "c.pem", mode = "required" }
provider = { domain = "t.example", client_id = "me", client_secret = { env = "X" } }
session = { secrets = [{ env = "X" }], absolute = "30d", inactivity = "12h" }

[[route]]
host = "app.example"
path = "/admin"
upstream = [{ url = "http://127.0.0.1:9000", weight = 2, protocol = "http2" }, "unix:/run/app.sock"]
health = { path = "/up" }
access = "api"
require = { roles = ["admin", "root"], email_verified = true }
headers = { "X-Plan" = "session.plan" }
session_update = ["theme", "draft"]
session_header = ["theme"]
access_token = true
client_certificate = true
close_on_session_end = false

[[route]]
path = "/"
upstream = "http://127.0.0.1:9001"
access = "public"
"#;

    const SHOWN: &str = "\
gateway.toml is right.

https   127.0.0.1:1443, as https://app.example, https://app.example:8443
http    127.0.0.1:1080, redirects to https
admin   [::1]:1090
orders  certificates for app.example from https://acme-v02.api.letsencrypt.org/directory
next    a process that is started takes over, at /run/v.sock
proxies 10.0.0.0/8 begin with a PROXY header on https
clients have to show a certificate, signed by one of 1 in server.client_certificates.ca
login   /auth at https://t.example/ as me
session 30d from login, or 12h without a request; cookie __Host-session

HOST         PATH    ACCESS                                                                         UPSTREAM                                                                                SEES   MAY CHANGE    AT SESSION END  HEADERS
app.example  /admin  api, if roles is admin or root and email_verified is true, with a certificate  http://127.0.0.1:9000 (weight 2, HTTP/2), unix:/run/app.sock; checked at /up every 10s  theme  draft, theme  stays open      x-plan = session.plan, authorization = the access token
any          /       public                                                                         http://127.0.0.1:9001                                                                   -      -             -               -
";

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for (seconds, text) in [(86_400, "1d"), (5400, "1h30m"), (75, "1m15s")] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
        assert_eq!(short(Duration::from_millis(1250)), "1s250ms");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_the_end() {
        let rows = [["A", "B", "C"], ["zoë", "b", ""]].map(|row| row.map(str::to_owned));
        let mut out = Vec::new();
        table(&rows, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A    B  C\nzoë  b\n");
    }

    #[test]
    fn what_is_required_is_read_as_a_sentence() {
        let require = |claim: &str, any_of: &[&str]| Requirement {
            claim: claim.to_owned(),
            any_of: any_of.iter().map(|&value| value.to_owned()).collect(),
        };
        assert_eq!(
            access(Access::Api, &[require("roles", &["a", "b"]), require("org_id", &["x"])]),
            "api, if roles is a or b and org_id is x"
        );
        assert_eq!(access(Access::Public, &[]), "public");
    }
}
