//! `[server]` and the tables in it: from the file to [`Server`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::thread;

use ipnet::IpNet;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use url::Url;

use super::address::{host, origin};
use super::certificate::{certificates, is_good_for, load};
use super::parse::Wrong;
use super::routes::Surroundings;
use super::table::{Item, Table, file_path, path};
use super::value::Origin;
use super::{
    Acme, Certificate, ClientCertificates, ClientCertificatesMode, Limits, ProxyProtocol, Server,
};

/// The table.
pub(super) fn server(t: &mut Table<'_>, around: &mut Surroundings) -> Option<Server> {
    let https = t.key("https", "'0.0.0.0:8443'", address);
    let http = t.optional("http", address);
    let admin = t.optional("admin", address);
    let handover = t.optional("handover", socket_path);
    let public_urls = t.key("public_urls", "['https://localhost:8443']", public_urls);
    let trusted_proxies = t.key("trusted_proxies", "[]", |i| i.list(network));
    let proxy_protocol = t.key("proxy_protocol", "[]", proxy_protocol);
    let certificates =
        t.required("certificate", "write [[server.certificate]], with cert and key", |i| {
            i.tables(certificate)
        });
    let asks_clients = t.has("client_certificates");
    let client_certificates = t.optional("client_certificates", |i| i.table(client_certificates));
    let has_acme = t.has("acme");
    let acme = t.optional("acme", |i| i.table(acme));
    let workers = t.optional("workers", |i| i.number(1, 1024));
    let limits = t.key("limits", "{}", |i| i.table(limits));

    distinct_listeners(t, https, http, admin);
    if let (Some(proxy_protocol), Some(trusted)) = (proxy_protocol, &trusted_proxies) {
        somebody_may_send_it(t, proxy_protocol, trusted);
    }
    if let (Some(urls), Some(certificates)) = (&public_urls, &certificates) {
        certified_hosts(t, urls, certificates);
    }
    orders(t, certificates.as_deref().unwrap_or_default());
    around.public_urls.clone_from(&public_urls);
    around.asks_clients = asks_clients;
    Some(Server {
        https: https?,
        http,
        admin,
        handover,
        public_urls: public_urls?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
        certificates: certificates?.into_iter().map(|(certificate, _)| certificate).collect(),
        acme: if has_acme { Some(acme?) } else { None },
        client_certificates: if asks_clients { Some(client_certificates?) } else { None },
        workers: workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)),
        limits: limits?,
    })
}

/// The bounds are such that neither hyper nor a timer is asked for the impossible.
fn limits(t: &mut Table<'_>) -> Option<Limits> {
    let header_bytes = t.key("header_bytes", "'64KiB'", |i| i.size("8KiB", "1MiB"));
    let headers = t.key("headers", "100", |i| i.number(1, 1000));
    let target_bytes = t.key("target_bytes", "'16KiB'", |i| i.size("1KiB", "60KiB"));
    let header_time = t.key("header_time", "'10s'", |i| i.time("1ms", "1h"));
    let handshake_time = t.key("handshake_time", "'10s'", |i| i.time("1ms", "1h"));
    let idle_time = t.key("idle_time", "'75s'", |i| i.time("1ms", "1d"));
    let body_bytes = t.optional("body_bytes", body_bytes);
    let body_time = t.key("body_time", "'60s'", |i| i.time("1ms", "1d"));
    let requests = t.key("requests", "10000", |i| i.number(1, 1_000_000));
    let client_connections = t.optional("client_connections", |i| i.number(1, 1_000_000));
    let client_logins = t.optional("client_logins", |i| i.number(1, 1_000_000));
    let connections = t.key("connections", "10000", |i| i.number(1, 1_000_000));
    let streams = t.key("streams", "100", |i| i.number(1, 10_000));
    let connect_time = t.key("connect_time", "'5s'", |i| i.time("1ms", "1h"));
    let response_time = t.key("response_time", "'60s'", |i| i.time("1ms", "1d"));
    let drain_time = t.key("drain_time", "'30s'", |i| i.time("1ms", "1h"));
    Some(Limits {
        header_bytes: header_bytes?,
        headers: headers?,
        target_bytes: target_bytes?,
        header_time: header_time?,
        handshake_time: handshake_time?,
        idle_time: idle_time?,
        body_bytes,
        body_time: body_time?,
        requests: requests?,
        client_connections,
        client_logins,
        connections: connections?,
        streams: streams?,
        connect_time: connect_time?,
        response_time: response_time?,
        drain_time: drain_time?,
    })
}

/// The most that a request's body may have.
pub(super) fn body_bytes(item: &Item<'_>) -> Option<usize> {
    item.size("1B", "1024GiB")
}

/// A certificate that the gateway orders may not be there yet: then there is nothing to look at.
fn certificate(t: &mut Table<'_>) -> Option<(Certificate, Option<CertifiedKey>)> {
    let cert = t.required("cert", r#"write cert = "certs/localhost.pem""#, file_path);
    let key = t.required("key", r#"write key = "certs/localhost.key""#, file_path);
    let acme = t.key("acme", "[]", |i| i.list(|i| i.parse(host)));
    let certificate = Certificate { cert: cert?, key: key?, acme: acme? };
    if certificate.is_yet_to_come() {
        return Some((certificate, None));
    }
    match load(&certificate) {
        Ok(certified) => Some((certificate, Some(certified))),
        Err(error) => {
            let key = if error.is_about(&certificate.key) { "key" } else { "cert" };
            t.wrong(
                key,
                Wrong::new(error.to_string(), "name a chain in PEM, leaf first, and its key"),
            )
        }
    }
}

fn acme(t: &mut Table<'_>) -> Option<Acme> {
    let directory =
        t.key("directory", "'https://acme-v02.api.letsencrypt.org/directory'", directory);
    let contact = t.key("contact", "[]", |i| i.list(mailbox));
    let account = t.key("account", "'acme-account.json'", path);
    let has_ca = t.has("ca");
    let authorities = t.optional("ca", authorities);
    Some(Acme {
        directory: directory?,
        contact: contact?,
        account: account?,
        authorities: if has_ca { authorities? } else { Vec::new() },
    })
}

fn directory(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "https" && url.has_host());
        url.map(|_| text.to_owned()).ok_or_else(|| {
            Wrong::new(
                "is no https address of an ACME directory",
                r#"write "https://acme-v02.api.letsencrypt.org/directory""#,
            )
        })
    })
}

fn mailbox(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        let address = text.strip_prefix("mailto:").unwrap_or_default();
        let good = address.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !address.contains([' ', ',', '?'])
        });
        if good {
            return Ok(text.to_owned());
        }
        Err(Wrong::new("is no address to write to", r#"write "mailto:ops@example.com""#))
    })
}

/// What is ordered needs an authority, and a listener over which it looks at our proofs.
fn orders(t: &Table<'_>, certificates: &[(Certificate, Option<CertifiedKey>)]) {
    if certificates.iter().all(|(certificate, _)| certificate.acme.is_empty()) {
        return;
    }
    if !t.has("acme") {
        let remedy = "write [server.acme], which says that you agree to the authority's terms";
        let message = "orders a certificate from no authority: there is no [server.acme]";
        t.wrong::<()>("certificate", Wrong::new(message, remedy));
    }
    if !t.has("http") {
        let remedy = r#"write http = "0.0.0.0:80", which the authority asks"#;
        let message = "orders a certificate, and there is no server.http for its proof";
        t.wrong::<()>("certificate", Wrong::new(message, remedy));
    }
}

fn proxy_protocol(item: &Item<'_>) -> Option<ProxyProtocol> {
    let listeners = item.list(|item| item.choice(&[("https", "https"), ("http", "http")]))?;
    let named = |name| listeners.contains(&name);
    Some(ProxyProtocol { https: named("https"), http: named("http") })
}

/// A listener that wants a header which nobody may send answers nobody.
fn somebody_may_send_it(t: &Table<'_>, wanted: ProxyProtocol, trusted: &[IpNet]) {
    if (wanted.https || wanted.http) && trusted.is_empty() {
        let message = "wants a header that nobody may send: trusted_proxies is empty";
        let remedy = r#"write the load balancers' addresses: trusted_proxies = ["10.0.0.0/8"]"#;
        t.wrong::<()>("proxy_protocol", Wrong::new(message, remedy));
    }
    if wanted.http && !t.has("http") {
        let remedy = r#"leave "http" out, or write http = "0.0.0.0:8080""#;
        t.wrong::<()>("proxy_protocol", Wrong::new("names a listener that is not there", remedy));
    }
}

fn client_certificates(t: &mut Table<'_>) -> Option<ClientCertificates> {
    let authorities = t.required("ca", r#"write ca = "clients-ca.pem""#, authorities);
    let mode = t.key("mode", "'optional'", |i| {
        i.choice(&[
            ("optional", ClientCertificatesMode::Optional),
            ("required", ClientCertificatesMode::Required),
        ])
    });
    Some(ClientCertificates { authorities: authorities?, mode: mode? })
}

/// Certificates that can sign those of clients.
fn authorities(item: &Item<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let path = file_path(item)?;
    let wrong = |message: String| {
        item.wrong(Wrong::new(message, "name a file with the authority's certificate in PEM"))
    };
    match certificates(&path) {
        Err(error) => wrong(error.to_string()),
        Ok(found) => {
            let mut roots = RootCertStore::empty();
            if found.iter().all(|certificate| roots.add(certificate.clone()).is_ok()) {
                Some(found)
            } else {
                wrong(format!("{} holds what is no certificate", path.display()))
            }
        }
    }
}

fn address(item: &Item<'_>) -> Option<SocketAddr> {
    item.parse(|text| {
        text.parse().map_err(|_| {
            Wrong::new(
                "is no address to listen on",
                r#"write an IP address and a port: "0.0.0.0:8443", "[::]:8443""#,
            )
        })
    })
}

/// Where a unix socket can be: Linux takes 107 bytes.
fn socket_path(item: &Item<'_>) -> Option<PathBuf> {
    let path = path(item)?;
    if path.as_os_str().len() > 107 {
        let message = format!("{} is too long for a socket: 107 bytes at most", path.display());
        return item.wrong(Wrong::new(message, r#"write a short path: "/run/vestibule/handover""#));
    }
    Some(path)
}

/// Two listeners on one address: the second could not start.
fn distinct_listeners(
    t: &Table<'_>,
    https: Option<SocketAddr>,
    http: Option<SocketAddr>,
    admin: Option<SocketAddr>,
) {
    let remedy = || Wrong::new("is the address of another listener", "give each a port of its own");
    let same = |one: Option<SocketAddr>, other: Option<SocketAddr>| {
        one == other && one.is_some_and(|address| address.port() != 0)
    };
    if same(http, https) {
        t.wrong::<()>("http", remedy());
    }
    if same(admin, https) || same(admin, http) {
        t.wrong::<()>("admin", remedy());
    }
}

fn public_urls(item: &Item<'_>) -> Option<Vec<Origin>> {
    let mut seen: Vec<Origin> = Vec::new();
    item.some(|item| {
        let origin = item.parse(origin)?;
        if seen.contains(&origin) {
            return item.wrong(Wrong::new("stands here twice", "leave one out"));
        }
        seen.push(origin.clone());
        Some(origin)
    })
}

fn network(item: &Item<'_>) -> Option<IpNet> {
    item.parse(|text| {
        let address = text.parse().map(|address: IpAddr| address.into());
        text.parse()
            .or(address)
            .map_err(|_| Wrong::new("is no network", r#"write "10.0.0.0/8", or one address"#))
    })
}

/// A host without a certificate works, and every browser warns.
fn certified_hosts(
    t: &Table<'_>,
    urls: &[Origin],
    certificates: &[(Certificate, Option<CertifiedKey>)],
) {
    for Origin { host, .. } in urls {
        let covers = |(ordered, certified): &(Certificate, Option<CertifiedKey>)| {
            ordered.acme.contains(host)
                || certified.as_ref().is_some_and(|certified| is_good_for(certified, host))
        };
        if !certificates.iter().any(covers) {
            let message = format!("has a host that no certificate is good for: {host}");
            t.warn("public_urls", Wrong::new(message, "add a [[server.certificate]] for it"));
        }
    }
}
