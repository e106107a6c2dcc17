//! TLS: which certificate a name gets, which protocols there are, and what a name may ask for.

use std::fs;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::authority::{Pair, authority, ring};
use crate::support::{Gateway, Protocol, Raw, Stage, raw, until};

async fn two_hosts() -> Stage {
    Stage::with(|builder, app| {
        builder.only_host("a.example.test").host("b.example.test").route_with(
            "/",
            app,
            r#"access = "public""#,
        )
    })
    .await
}

async fn connect(
    gateway: &Gateway,
    name: &str,
    change: impl FnOnce(&mut ClientConfig),
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = Arc::unwrap_or_clone(authority().client(&[b"h2", b"http/1.1"]));
    change(&mut config);
    let stream = TcpStream::connect(("127.0.0.1", gateway.url.port().unwrap())).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// A client that speaks this version alone.
fn client(version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority().pem.as_bytes()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(ring())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn certificate(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn each_name_gets_its_certificate() {
    let stage = two_hosts().await;
    // The client checks that the certificate is good for the name.
    let a = connect(&stage.gateway, "a.example.test", |_| {}).await.unwrap();
    let b = connect(&stage.gateway, "b.example.test", |_| {}).await.unwrap();
    assert_ne!(certificate(&a), certificate(&b));
    let none = connect(&stage.gateway, "c.example.test", |_| {}).await;
    assert!(none.is_err(), "none of them is good for another name");
    assert_eq!(a.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "HTTP/2 first");
}

#[tokio::test]
async fn tls_1_2_and_1_3_and_nothing_else_than_http() {
    let stage = two_hosts().await;
    for (version, number) in
        [(&TLS12, rustls::ProtocolVersion::TLSv1_2), (&TLS13, rustls::ProtocolVersion::TLSv1_3)]
    {
        let config = client(version);
        let stream = connect(&stage.gateway, "a.example.test", |other| *other = config).await;
        assert_eq!(stream.unwrap().get_ref().1.protocol_version(), Some(number));
    }
    let ftp = connect(&stage.gateway, "a.example.test", |config| {
        config.alpn_protocols = vec![b"ftp".to_vec()];
    })
    .await;
    // RFC 7301, section 3.2: no protocol in common is a fatal alert (ALPACA).
    assert!(ftp.is_err());
}

/// Two workers, and a generation after the file was read again: each opens what another sealed.
#[tokio::test]
async fn a_tls_session_is_resumed_on_every_worker_and_after_a_reload() {
    let stage = two_hosts().await;
    for version in [&TLS12, &TLS13] {
        let config = client(version);
        let ask = async || {
            let copy = config.clone();
            let stream = connect(&stage.gateway, "a.example.test", |own| *own = copy).await;
            let mut raw = Raw(stream.unwrap());
            raw.send("GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\n").await;
            // What a ticket is for comes with the first bytes (RFC 8446, section 4.6.1).
            assert_eq!(raw::status(&raw.response().await), 200);
            raw.0.get_ref().1.handshake_kind().unwrap()
        };
        assert_eq!(ask().await, HandshakeKind::Full, "{version:?}");
        for _ in 0..20 {
            assert_eq!(ask().await, HandshakeKind::Resumed, "{version:?}");
        }
        let applied = "vestibule_config_reloads_total{outcome=\"applied\"}";
        let before = stage.gateway.metric(applied).await;
        stage.gateway.signal("HUP");
        until("it is read again", async || {
            (stage.gateway.metric(applied).await > before).then_some(())
        })
        .await;
        assert_eq!(ask().await, HandshakeKind::Resumed, "{version:?}");
    }
}

/// The system's clock is what the file says, for whoever loads Debian's libfaketime.
const CLOCK: [&str; 5] = [
    "env",
    "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1",
    "FAKETIME_TIMESTAMP_FILE=clock",
    "FAKETIME_NO_CACHE=1",
    "FAKETIME_DONT_FAKE_MONOTONIC=1",
];

/// A key that has leaked opens what was recorded in half a day, and no more.
#[tokio::test]
async fn the_keys_of_tls_sessions_change_every_six_hours_and_the_one_before_still_opens() {
    let stage = Stage::with(|builder, app| {
        builder.launched_by(&CLOCK).file("clock", "+0").route_with("/", app, r#"access = "public""#)
    })
    .await;
    let gateway = &stage.gateway;
    let hours_later = |hours: u32| {
        let file = gateway.directory.path().join("clock");
        fs::write(file.with_extension("new"), format!("+{hours}h")).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
    };
    for version in [&TLS12, &TLS13] {
        let [always, first, second] = [(); 3].map(|()| client(version));
        let ask = async |config: &ClientConfig| {
            let copy = config.clone();
            let stream = connect(gateway, "localhost", |own| *own = copy).await;
            let mut raw = Raw(stream.unwrap());
            raw.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            assert_eq!(raw::status(&raw.response().await), 200);
            raw.0.get_ref().1.handshake_kind().unwrap()
        };
        // As if the gateway had been started just now, for each version.
        let base = if version.version == rustls::ProtocolVersion::TLSv1_2 { 0 } else { 100 };
        let (full, resumed) = (HandshakeKind::Full, HandshakeKind::Resumed);
        hours_later(base);
        for config in [&always, &first, &second] {
            assert_eq!(ask(config).await, full, "{version:?}");
        }
        for (hours, of_first) in [(5, None), (7, Some(resumed)), (14, None)] {
            hours_later(base + hours);
            assert_eq!(ask(&always).await, resumed, "{version:?}, after {hours} hours");
            if let Some(expected) = of_first {
                assert_eq!(ask(&first).await, expected, "{version:?}, after {hours} hours");
            }
        }
        assert_eq!(
            ask(&second).await,
            full,
            "{version:?}: its key is gone (is there libfaketime? run tests/run)"
        );
    }
}

/// Domain fronting: who passed a filter for one name must not ask for another.
#[tokio::test]
async fn a_connection_for_one_name_does_not_serve_another_with_its_own_certificate() {
    let stage = two_hosts().await;
    for (name, host, status) in [
        ("a.example.test", "a.example.test", 200),
        ("a.example.test", "b.example.test", 421),
        ("b.example.test", "a.example.test", 421),
        ("b.example.test", "B.EXAMPLE.TEST.", 200),
    ] {
        let mut client = Raw::open_as(&stage.gateway, name, Protocol::Http1).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!(raw::status(&response), status, "{name} asks for {host}");
    }
}

#[tokio::test]
async fn one_certificate_for_two_names_serves_both_on_one_connection() {
    let stage = Stage::with(|builder, app| {
        builder.one_certificate().only_host("a.example.test").host("b.example.test").route_with(
            "/",
            app,
            r#"access = "public""#,
        )
    })
    .await;
    // RFC 9113, section 9.1.1: browsers do that.
    let mut client = Raw::open_as(&stage.gateway, "a.example.test", Protocol::Http1).await;
    for host in ["a.example.test", "b.example.test"] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(raw::status(&client.response().await), 200, "{host}");
    }
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_read_and_a_broken_one_is_not() {
    let stage = two_hosts().await;
    let gateway = &stage.gateway;
    let open = async || connect(gateway, "a.example.test", |_| {}).await.unwrap();
    let before = certificate(&open().await);
    let files = ["a.example.test.pem", "a.example.test.key"]
        .map(|name| gateway.directory.path().join(name));
    let Pair { cert, key } = authority().issue(&["a.example.test"]);
    fs::write(&files[0], &cert).unwrap();
    fs::write(&files[1], &key).unwrap();
    gateway.signal("HUP");
    until("the new certificate is served", async || {
        (certificate(&open().await) != before).then_some(())
    })
    .await;
    let renewed = certificate(&open().await);

    fs::write(&files[0], "no certificate").unwrap();
    gateway.signal("HUP");
    gateway.logged(&["ERROR", "certificate"]).await;
    assert_eq!(certificate(&open().await), renewed);
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_read_though_the_file_is_wrong() {
    let stage = two_hosts().await;
    let gateway = &stage.gateway;
    let mut connection = Raw::open_as(gateway, "a.example.test", Protocol::Http1).await;
    let open = async || connect(gateway, "a.example.test", |_| {}).await.unwrap();
    let before = certificate(&open().await);
    let Pair { cert, key } = authority().issue(&["a.example.test"]);
    let at = |name: &str| gateway.directory.path().join(name);
    fs::write(at("gateway.toml"), "[server").unwrap();
    fs::write(at("a.example.test.pem"), &cert).unwrap();
    fs::write(at("a.example.test.key"), &key).unwrap();
    until("the new certificate is served", async || {
        (certificate(&open().await) != before).then_some(())
    })
    .await;
    connection.send("GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\n").await;
    assert_eq!(raw::status(&connection.response().await), 200, "of before, and still open");
}

#[tokio::test]
async fn a_certificate_is_found_to_be_new_without_a_signal() {
    let stage = two_hosts().await;
    let gateway = &stage.gateway;
    let open = async || connect(gateway, "b.example.test", |_| {}).await.unwrap();
    let before = certificate(&open().await);
    let Pair { cert, key } = authority().issue(&["b.example.test"]);
    // As renewers do it: a new file in the place of the old.
    for (name, text) in [("b.example.test.pem", &cert), ("b.example.test.key", &key)] {
        let path = gateway.directory.path().join(name);
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }
    until("the new certificate is served", async || {
        (certificate(&open().await) != before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_no_tls_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stage = two_hosts().await;
    let port = stage.gateway.url.port().unwrap();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a.example.test\r\n\r\n"[..],
        &[0x16, 3, 1, 255, 255, 0],
        &[0; 64],
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(stage.gateway.browser().fetch("/").await.status, 200);
}
