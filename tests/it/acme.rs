//! Certificates that the gateway orders itself, from a real authority: Pebble, Let's Encrypt's own for
//! tests, which `tests/run` installs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::authority::{authority, ring};
use crate::support::program::{Program, repository};
use crate::support::wire::{Connection, Protocol};
use crate::support::{App, Ask, Gateway, Provider, Raw, free_port, raw, until};

/// The authority. It asks at one port of loopback whether a name is somebody's.
struct Pebble {
    port: u16,
    management: u16,
    _program: Program,
    _directory: TempDir,
}

impl Pebble {
    async fn asking(http: u16) -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        let pair = authority().issue(&["localhost"]);
        fs::write(at("cert.pem"), pair.cert).unwrap();
        fs::write(at("key.pem"), pair.key).unwrap();
        let [port, management] = [free_port(), free_port()];
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": http,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        fs::write(at("config.json"), config.to_string()).unwrap();
        let mut command = Command::new(repository("target/pebble/pebble"));
        command.arg("-config").arg(at("config.json")).env("PEBBLE_VA_NOSLEEP", "1");
        let mut program = Program::start(&mut command, "tests/run installs it");
        program.listens(port).await;
        Self { port, management, _program: program, _directory: directory }
    }

    /// `[server.acme]`
    fn table(&self) -> String {
        format!(
            "acme = {{ directory = \"https://localhost:{}/dir\", ca = \"authority.pem\", \
             contact = [\"mailto:ops@example.com\"] }}",
            self.port
        )
    }

    /// A client that trusts nobody but this authority.
    async fn client(&self) -> Arc<ClientConfig> {
        let url = format!("https://localhost:{}/roots/0", self.management).parse().unwrap();
        let connection = Connection::open(&url, Protocol::Http1).await.unwrap();
        let root = connection.ask(&url, Ask::fetch("/roots/0")).await.unwrap().body;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&root).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(ring())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

async fn connect(gateway: &Gateway, config: &Arc<ClientConfig>) -> Option<Raw> {
    let stream = TcpStream::connect(("127.0.0.1", gateway.url.port().unwrap())).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config.clone()).connect(name, stream).await.ok().map(Raw)
}

async fn status(connection: &mut Raw) -> u16 {
    connection.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    raw::status(&connection.response().await)
}

async fn ordering(pebble: &Pebble, http: u16) -> (Provider, App, Gateway) {
    let (provider, app) = (Provider::start().await, App::plain().await);
    let gateway = Gateway::with(&provider)
        .ordering(http)
        .server(&pebble.table())
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    (provider, app, gateway)
}

#[tokio::test]
async fn a_certificate_is_ordered_kept_and_renewed_and_no_connection_is_dropped() {
    let http = free_port();
    let pebble = Pebble::asking(http).await;
    let (_provider, _app, mut gateway) = ordering(&pebble, http).await;
    let client = pebble.client().await;
    let good = async |gateway: &Gateway| {
        until("the certificate is served", async || connect(gateway, &client).await).await
    };
    let mut first = good(&gateway).await;
    assert_eq!(status(&mut first).await, 200);
    for name in ["localhost.key", "acme-account.json"] {
        let mode = fs::metadata(gateway.directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let issued = |gateway: &Gateway| gateway.log().matches("a certificate was issued").count();
    assert_eq!(issued(&gateway), 1);

    // Who else asks there is sent to https as ever.
    let other = gateway.plain("/.well-known/acme-challenge/guess").await;
    assert_eq!(other.status, 308);

    gateway.restart().await;
    let mut kept = good(&gateway).await;
    assert_eq!(issued(&gateway), 1, "what is there is not ordered again");

    // One that is about to expire, and that somebody else has signed.
    let old = authority().issue_to("localhost", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    });
    for (name, text) in [("localhost.key", &old.key), ("localhost.pem", &old.cert)] {
        fs::write(gateway.directory.path().join(name), text).unwrap();
    }
    until("it is renewed", async || (issued(&gateway) == 2).then_some(())).await;
    good(&gateway).await;
    assert_eq!(status(&mut kept).await, 200, "the connection of before goes on");
}

#[tokio::test]
async fn an_order_that_fails_is_told_and_the_gateway_serves_all_the_same() {
    // The authority asks where nobody is.
    let pebble = Pebble::asking(1).await;
    let (_provider, app, gateway) = ordering(&pebble, free_port()).await;
    let line = gateway.logged(&["ERROR", "a certificate was not issued"]).await;
    assert!(line.contains("localhost") && line.contains("again_in=300s"), "{line}");
    assert!(connect(&gateway, &pebble.client().await).await.is_none(), "it is no real one");
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    assert!(!gateway.directory.path().join("localhost.pem").exists());
    assert!(app.seen().is_empty());
}
