//! Debian's HAProxy before the gateway, which says whom it speaks for.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::support::authority::authority;
use crate::support::program::Program;
use crate::support::wire::Connection;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Protocol, Provider, free_port};

/// A connection from this address of loopback.
async fn connect(from: Ipv4Addr, port: u16, protocol: Protocol) -> Connection {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let stream = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap();
    let connector = TlsConnector::from(authority().client(&[protocol.alpn()]));
    let name = ServerName::try_from("localhost").unwrap();
    Connection::over(connector.connect(name, stream).await.unwrap(), protocol).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_whom_haproxy_names_in_either_version_of_its_protocol() {
    let (provider, app) = (Provider::start().await, App::plain().await);
    let gateway = Gateway::with(&provider)
        .server("trusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = [\"https\"]")
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    let (own, ports) = (gateway.url.port().unwrap(), [free_port(), free_port()]);
    // Its checks connect as well, and speak for nobody.
    let listen = |name: &str, port: u16| {
        format!(
            "listen {name}\n  bind 127.0.0.1:{port}\n  \
             server gateway 127.0.0.1:{own} {name} check inter 50ms check-send-proxy\n"
        )
    };
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n{}{}",
        listen("send-proxy", ports[0]),
        listen("send-proxy-v2", ports[1]),
    );
    let files = tempfile::TempDir::new().unwrap();
    let file = files.path().join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(&file);
    let mut haproxy = Program::start(&mut command, "install Debian's haproxy, or run tests/run");
    for (number, port) in (7..).zip(ports) {
        haproxy.listens(port).await;
        for protocol in PROTOCOLS {
            let from = Ipv4Addr::new(127, 0, 3, number);
            let connection = connect(from, port, protocol).await;
            for _ in 0..3 {
                assert!(connection.is_ready().await, "{protocol:?}");
                let ask = Ask::fetch("/").header("x-forwarded-for", "192.0.2.1");
                let answer = connection.ask(&gateway.url, ask).await.unwrap();
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello"));
                let seen = app.last();
                assert_eq!(seen.header("x-forwarded-for"), Some(from.to_string()), "{protocol:?}");
                assert!(seen.header("forwarded").unwrap().contains(&from.to_string()));
            }
            gateway.access_line(&[&format!("{from} GET 200")]).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!haproxy.output().contains("is DOWN"), "{}", haproxy.output());
}
