//! Certificates of clients: who has to have one, who is believed to have one, and what apps are told.

use std::fs;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::reload::{APPLIED, edit, reload};
use crate::support::authority::{Authority, Pair, authority};
use crate::support::{App, Gateway, Protocol, Provider, Raw, raw};

const SUBJECT: &str = "x-client-cert-subject";
const FINGERPRINT: &str = "x-client-cert-fingerprint";

/// A gateway that asks clients for certificates of this authority.
async fn asking(authority: &Authority, mode: &str) -> (Provider, App, Gateway) {
    let (provider, app) = (Provider::start().await, App::plain().await);
    let line = format!("client_certificates = {{ ca = \"clients.pem\", mode = {mode:?} }}");
    let gateway = Gateway::with(&provider)
        .file("clients.pem", &authority.pem)
        .server(&line)
        .route_with("/", &app, r#"access = "public""#)
        .route_with("/api", &app, r#"access = "optional""#)
        .route_with("/api/own", &app, "access = \"public\"\nclient_certificate = true")
        .start()
        .await;
    (provider, app, gateway)
}

/// Connects and asks; an error if the gateway will not have it. In TLS 1.3 a client learns of that
/// after its own part of the handshake.
async fn ask(gateway: &Gateway, config: Arc<ClientConfig>, lines: &str) -> io::Result<u16> {
    ask_for("/api", gateway, config, lines).await
}

async fn ask_for(
    path: &str,
    gateway: &Gateway,
    config: Arc<ClientConfig>,
    lines: &str,
) -> io::Result<u16> {
    let stream = TcpStream::connect(("127.0.0.1", gateway.url.port().unwrap())).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut raw = Raw(TlsConnector::from(config).connect(name, stream).await?);
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    raw.send(head + lines + "\r\n").await;
    let answer = raw.read_to_close().await;
    if answer.is_empty() {
        Err(io::ErrorKind::ConnectionAborted.into())
    } else {
        Ok(raw::status(&answer))
    }
}

fn client(own: Option<&Pair>) -> Arc<ClientConfig> {
    authority().client_as(own, &[b"http/1.1"])
}

#[tokio::test]
async fn an_app_is_told_whose_certificate_it_is_and_clients_cannot_say_so() {
    let company = Authority::new("the company");
    let (_provider, app, gateway) = asking(&company, "optional").await;
    let zoe = company.issue_to("Zoë, of Example", |_| {});
    let forged = "X-Client-Cert-Subject: CN=root\r\nX_Client_Cert_Subject: CN=root\r\n\
                  X.Client-Cert-Fingerprint: 00\r\nX-Client-Cert-Anything: 1\r\n";
    assert_eq!(ask(&gateway, client(Some(&zoe)), forged).await.unwrap(), 200);
    let der = CertificateDer::from_pem_slice(zoe.cert.as_bytes()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let seen = app.last();
    let all = |begin: &str| -> Vec<(String, String)> {
        let fields = seen.headers.iter().map(|(name, value)| {
            (name.to_lowercase(), String::from_utf8_lossy(value).into_owned())
        });
        fields.filter(|(name, _)| name.replace(['_', '.'], "-").starts_with(begin)).collect()
    };
    let told = [
        (SUBJECT.to_owned(), r"CN=Zo\C3\AB\, of Example,O=Example".to_owned()),
        (FINGERPRINT.to_owned(), hex),
    ];
    let mut found = all("x-client-cert");
    found.sort_by_key(|(name, _)| std::cmp::Reverse(name.clone()));
    assert_eq!(found, told);

    assert_eq!(ask(&gateway, client(None), forged).await.unwrap(), 200, "it is optional");
    let seen = app.last();
    let names: Vec<_> = seen.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
    assert!(!names.iter().any(|name| name.contains("client")), "{names:?}");
}

#[tokio::test]
async fn a_certificate_that_is_no_good_is_refused_also_where_none_would_do() {
    let company = Authority::new("the company");
    let (_provider, app, gateway) = asking(&company, "optional").await;
    let foreign = Authority::new("the company").issue_to("Zoë", |_| {});
    let expired = company.issue_to("Zoë", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let server = company.issue_to("Zoë", |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    for (what, pair) in [("foreign", foreign), ("expired", expired), ("a server's", server)] {
        assert!(ask(&gateway, client(Some(&pair)), "").await.is_err(), "{what}");
    }
    assert!(app.seen().is_empty(), "the app saw nothing of it");
}

#[tokio::test]
async fn a_route_may_want_one_where_it_is_optional_elsewhere() {
    let company = Authority::new("the company");
    let (_provider, app, gateway) = asking(&company, "optional").await;
    let zoe = company.issue_to("Zoë", |_| {});
    for path in ["/api/own", "/api/own/page"] {
        assert_eq!(ask_for(path, &gateway, client(None), "").await.unwrap(), 403, "{path}");
        assert!(app.seen().is_empty(), "the app saw nothing of it");
    }
    assert_eq!(ask_for("/api/own", &gateway, client(Some(&zoe)), "").await.unwrap(), 200);
    assert_eq!(ask_for("/api", &gateway, client(None), "").await.unwrap(), 200);
}

/// CVE-2019-9901 and its kin: a rule is a rule, whoever else may come in.
#[tokio::test]
async fn no_spelling_of_a_path_gets_past_a_certificate() {
    let company = Authority::new("the company");
    let (provider, app) = (Provider::start().await, App::plain().await);
    let gateway = Gateway::with(&provider)
        .file("clients.pem", &company.pem)
        .server("client_certificates = { ca = \"clients.pem\" }")
        .route_with("/", &app, r#"access = "public""#)
        .route_with("/own", &app, "access = \"public\"\nclient_certificate = true")
        .start()
        .await;
    for path in ["/own", "//own", "/%6fwn", "/x/../own", "/own;x", "/own%2fx", "/x/..;/own"] {
        let status = ask_for(path, &gateway, client(None), "").await.unwrap();
        assert_eq!(status, if path == "/own" { 403 } else { 400 }, "{path}");
    }
    assert!(app.seen().is_empty());
    assert_eq!(ask_for("/else", &gateway, client(None), "").await.unwrap(), 200);
}

#[tokio::test]
async fn where_it_is_required_nobody_gets_in_without_one() {
    let company = Authority::new("the company");
    let (_provider, app, gateway) = asking(&company, "required").await;
    assert!(ask(&gateway, client(None), "").await.is_err());
    assert!(app.seen().is_empty());
    let zoe = company.issue_to("Zoë", |_| {});
    assert_eq!(ask(&gateway, client(Some(&zoe)), "").await.unwrap(), 200);
}

/// A resumed session shows no certificate again: it must not outlive the rule that let it in.
#[tokio::test]
async fn who_was_let_in_by_other_rules_cannot_resume() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (_provider, app, gateway) = asking(&old, "optional").await;
    let zoe = old.issue_to("Zoë", |_| {});
    let (with, without) = (client(Some(&zoe)), client(None));
    for _ in 0..2 {
        for config in [&with, &without] {
            assert_eq!(ask(&gateway, config.clone(), "").await.unwrap(), 200);
        }
    }
    let told = app.seen();
    let named = told.iter().filter(|seen| seen.header(SUBJECT).is_some()).count();
    assert_eq!(named, 2, "a resumed session is still hers");

    fs::write(gateway.directory.path().join("clients.pem"), &new.pem).unwrap();
    edit(&gateway, |text| text.replace("\"optional\" }", "\"required\" }"));
    reload(&gateway, APPLIED).await;
    for config in [with, without] {
        assert!(ask(&gateway, config, "").await.is_err());
    }
    assert_eq!(app.seen().len(), told.len());
}

#[tokio::test]
async fn it_is_told_over_http_2_too() {
    let company = Authority::new("the company");
    let (_provider, app, gateway) = asking(&company, "required").await;
    let bob = company.issue_to("Bob", |_| {});
    let config = authority().client_as(Some(&bob), &[Protocol::Http2.alpn()]);
    let stream = TcpStream::connect(("127.0.0.1", gateway.url.port().unwrap())).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let connection = crate::support::wire::Connection::over(stream, Protocol::Http2).await.unwrap();
    let answer = connection.ask(&gateway.url, crate::support::Ask::fetch("/")).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(app.last().header(SUBJECT).unwrap(), "CN=Bob,O=Example");
}
