//! A load balancer before the gateway that says whom it speaks for, in the PROXY protocol: who is
//! believed, what becomes of the address, and what is no header.

use std::io;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::reload::{APPLIED, edit, reload};
use crate::support::authority::authority;
use crate::support::{App, Gateway, Provider, Raw, raw};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

async fn behind(trusted: &str, listeners: &str) -> (Provider, App, Gateway) {
    let (provider, app) = (Provider::start().await, App::plain().await);
    let gateway = Gateway::with(&provider)
        .server(&format!("trusted_proxies = {trusted}\nproxy_protocol = {listeners}"))
        .limits("handshake_time = \"1s\"")
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    (provider, app, gateway)
}

/// Version 2 with this command and family.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(("127.0.0.1", gateway.url.port().unwrap())).await.unwrap()
}

/// Sends these pieces, then TLS and a request. An error if the gateway closes before it answers.
async fn ask(gateway: &Gateway, pieces: &[&[u8]], lines: &str) -> io::Result<u16> {
    let mut stream = connect(gateway).await;
    for piece in pieces {
        stream.write_all(piece).await?;
        stream.flush().await?;
        if pieces.len() > 1 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(authority().client(&[b"http/1.1"]));
    let mut raw = Raw(connector.connect(name, stream).await?);
    raw.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")).await;
    Ok(raw::status(&raw.response().await))
}

#[tokio::test]
async fn the_client_is_whom_the_load_balancer_names() {
    let (_provider, app, gateway) = behind(r#"["127.0.0.1"]"#, r#"["https"]"#).await;
    let four = [192, 0, 2, 7, 127, 0, 0, 1, 1, 0, 1, 0];
    let six = [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 11], &[7], &[0; 20]].concat();
    let extended = [&four[..], &[0x20, 0x0f, 0], &[0xff; 3840], &[4, 0, 1, 0]].concat();
    let line = b"PROXY TCP4 192.0.2.7 127.0.0.1 4444 443\r\n";
    let bytes: Vec<&[u8]> = line.chunks(1).collect();
    let whole = binary(0x21, 0x11, &four);
    let halves: Vec<&[u8]> = whole.chunks(5).collect();
    for (pieces, client) in [
        (vec![&line[..]], "192.0.2.7"),
        (bytes, "192.0.2.7"),
        (halves, "192.0.2.7"),
        (vec![&b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n"[..]], "2001:db8::7"),
        (vec![&binary(0x21, 0x11, &extended)], "192.0.2.7"),
        (vec![&binary(0x21, 0x21, &six)], "2001:db8::7"),
        // It speaks for itself.
        (vec![&b"PROXY UNKNOWN\r\n"[..]], "127.0.0.1"),
        (vec![&b"PROXY UNKNOWN 192.0.2.7 ::1 1 2\r\n"[..]], "127.0.0.1"),
        (vec![&binary(0x20, 0x11, &four)], "127.0.0.1"),
        (vec![&binary(0x20, 0, &[])], "127.0.0.1"),
        (vec![&binary(0x21, 0, &[])], "127.0.0.1"),
    ] {
        assert_eq!(ask(&gateway, &pieces, "").await.unwrap(), 200, "{pieces:?}");
        let seen = app.last();
        assert_eq!(seen.header("x-forwarded-for").as_deref(), Some(client), "{pieces:?}");
        assert!(seen.header("forwarded").unwrap().contains(client));
    }
    gateway.access_line(&["192.0.2.7 GET 200"]).await;
    gateway.access_line(&["2001:db8::7 GET 200"]).await;
}

/// The load balancer is trusted to name an address, not everybody to speak through it.
#[tokio::test]
async fn a_client_behind_it_says_nothing_of_itself_unless_it_is_trusted_too() {
    let trusted = r#"["127.0.0.1", "10.0.0.0/8"]"#;
    let (_provider, app, gateway) = behind(trusted, r#"["https"]"#).await;
    for (client, told) in [("192.0.2.7", "192.0.2.7"), ("10.1.1.1", "203.0.113.9, 10.1.1.1")] {
        let line = format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n");
        ask(&gateway, &[line.as_bytes()], "X-Forwarded-For: 203.0.113.9\r\n").await.unwrap();
        assert_eq!(app.last().header("x-forwarded-for").as_deref(), Some(told));
    }
}

#[tokio::test]
async fn what_is_not_exactly_a_header_closes_the_connection() {
    let (_provider, app, gateway) = behind(r#"["127.0.0.1"]"#, r#"["https"]"#).await;
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107));
    let endless = vec![b'P'; 200_000];
    let huge = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], &vec![0; 65_535]].concat();
    for bytes in [
        &b""[..],
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4444 443\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4444 99999\r\n",
        b"PROXY TCP4 192.0.2.7, 127.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7\0 127.0.0.1 1 2\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        long.as_bytes(),
        &endless,
        &huge,
        &binary(0x21, 0x11, &[192, 0, 2, 7]),
        &binary(0x21, 0x31, &[0; 216]),
        &binary(0x22, 0x11, &[0; 12]),
        // Two of them: the second is no TLS.
        b"PROXY UNKNOWN\r\nPROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n",
    ] {
        assert!(ask(&gateway, &[bytes], "").await.is_err(), "{:?}", &bytes[..bytes.len().min(60)]);
    }
    assert!(app.seen().is_empty());
    gateway.logged(&["WARN", "127.0.0.1", "PROXY"]).await;
    assert_eq!(ask(&gateway, &[b"PROXY UNKNOWN\r\n"], "").await.unwrap(), 200, "it is alive");
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() {
    let (_provider, _app, gateway) = behind(r#"["127.0.0.1"]"#, r#"["https"]"#).await;
    for begun in [&b""[..], b"PROXY TCP4 192.0.2.7 ", SIGNATURE] {
        let mut stream = connect(&gateway).await;
        stream.write_all(begun).await.unwrap();
        let start = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty() && start.elapsed() < Duration::from_secs(5), "{begun:?}");
    }
}

#[tokio::test]
async fn nobody_else_may_speak_for_clients() {
    let (_provider, app, gateway) = behind(r#"["192.0.2.0/24"]"#, r#"["https"]"#).await;
    let line = b"PROXY TCP4 192.0.2.7 127.0.0.1 4444 443\r\n";
    assert!(ask(&gateway, &[line], "").await.is_err());
    assert!(ask(&gateway, &[b""], "").await.is_err());
    assert!(app.seen().is_empty());
    gateway.logged(&["WARN", "trusted_proxies"]).await;
}

#[tokio::test]
async fn where_it_is_not_wanted_it_is_no_tls() {
    let (_provider, app, gateway) = behind(r#"["127.0.0.1"]"#, "[]").await;
    let line: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4444 443\r\n";
    assert!(ask(&gateway, &[line], "").await.is_err());
    assert_eq!(ask(&gateway, &[b""], "").await.unwrap(), 200);
    assert_eq!(app.last().header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    // Until the file says so.
    edit(&gateway, |text| text.replace("proxy_protocol = []", "proxy_protocol = [\"https\"]"));
    reload(&gateway, APPLIED).await;
    assert_eq!(ask(&gateway, &[line], "").await.unwrap(), 200);
    assert_eq!(app.last().header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
}

#[tokio::test]
async fn a_look_whether_somebody_listens_is_nothing_to_talk_of() {
    let (_provider, _app, gateway) = behind(r#"["127.0.0.1"]"#, r#"["https"]"#).await;
    for _ in 0..50 {
        drop(connect(&gateway).await);
    }
    assert_eq!(ask(&gateway, &[b"PROXY UNKNOWN\r\n"], "").await.unwrap(), 200);
    assert!(!gateway.log().contains("WARN"), "{}", gateway.log());
}

#[tokio::test]
async fn the_listener_that_redirects_takes_it_where_that_is_wanted() {
    let (_provider, _app, gateway) = behind(r#"["127.0.0.1"]"#, r#"["http"]"#).await;
    assert_eq!(ask(&gateway, &[b""], "").await.unwrap(), 200, "https does not want it");
    let port = gateway.plain_url().port().unwrap();
    for (header, redirects) in [("PROXY TCP4 192.0.2.7 127.0.0.1 1 80\r\n", true), ("", false)] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{header}{request}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer.starts_with(b"HTTP/1.1 308 "), redirects);
    }
}
