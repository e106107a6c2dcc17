//! A configuration for tests, with the defaults of gateway.toml; they change what they are about.

use std::time::Duration;

use super::value::{Keys, Origin, Secret, UpstreamUrl};
use super::*;

/// `https://app.example` with one route to nowhere, a provider on loopback, and no certificate.
pub(crate) fn config() -> Config {
    Config {
        server: Server {
            https: ([127, 0, 0, 1], 0).into(),
            http: None,
            admin: None,
            handover: None,
            public_urls: vec![Origin { host: "app.example".to_owned(), port: 443 }],
            trusted_proxies: vec![],
            proxy_protocol: ProxyProtocol::default(),
            certificates: vec![],
            acme: None,
            client_certificates: None,
            workers: 1,
            limits: limits(),
        },
        provider: provider("http://127.0.0.1:9/"),
        session: Session {
            secrets: vec![Secret::new(*b"0123456789abcdef0123456789abcdef")],
            absolute: Duration::from_secs(3 * 86_400),
            inactivity: Some(Duration::from_secs(86_400)),
            cookie: Cookie {
                name: "__Host-session".to_owned(),
                same_site: SameSite::Lax,
                domain: None,
                transient: false,
            },
            redis: None,
        },
        auth: Auth { prefix: "/auth".to_owned(), after_logout: "/".to_owned() },
        log: Log { format: LogFormat::Text, level: "info".to_owned(), access: false },
        routes: vec![route()],
    }
}

/// Everything for signed-in users.
pub(crate) fn route() -> Route {
    Route {
        host: None,
        path: "/".to_owned(),
        upstream: vec![UpstreamUrl::Http { host: "127.0.0.1".to_owned(), port: 9 }.into()],
        sticky: false,
        health: None,
        access: Access::Login,
        require: vec![],
        headers: vec![],
        session_update: Keys::All,
        session_header: Keys::All,
        access_token: false,
        client_certificate: false,
        close_on_session_end: true,
        body_bytes: None,
    }
}

/// The client `client` at `issuer`.
pub(crate) fn provider(issuer: &str) -> Provider {
    Provider {
        issuer: issuer.to_owned(),
        issuer_url: issuer.parse().unwrap(),
        client_id: "client".to_owned(),
        authentication: ClientAuthentication::Secret(Secret::new("hunter2")),
        scopes: vec!["openid".to_owned(), "profile".to_owned()],
        audience: None,
        login_params: vec![],
        groups_claim: "groups".to_owned(),
    }
}

/// The defaults.
pub(crate) fn limits() -> Limits {
    Limits {
        header_bytes: 64 * 1024,
        headers: 100,
        target_bytes: 16 * 1024,
        header_time: Duration::from_secs(10),
        handshake_time: Duration::from_secs(10),
        idle_time: Duration::from_secs(75),
        body_bytes: None,
        body_time: Duration::from_secs(60),
        requests: 10_000,
        client_connections: None,
        client_logins: None,
        connections: 10_000,
        streams: 100,
        connect_time: Duration::from_secs(5),
        response_time: Duration::from_secs(60),
        drain_time: Duration::from_secs(30),
    }
}
