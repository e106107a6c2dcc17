//! From the file to the configuration, table by table: one function a table, one line a key, with
//! its default and its bounds. What keys mean for each other is checked beside them.
//! `[server]`, `[provider]`, `[session]` and `[[route]]` have files of their own.

use tracing_subscriber::EnvFilter;

use super::address::path;
use super::parse::Wrong;
use super::routes::{Surroundings, routes};
use super::table::{Item, Table, flag};
use super::{Auth, Config, Log, LogFormat};
use super::{provider::provider, server::server, session::session};

/// The whole file.
pub(super) fn config(t: &mut Table<'_>) -> Option<Config> {
    let mut around = Surroundings::default();
    let server = t.key("server", "{}", |i| i.table(|t| server(t, &mut around)));
    let auth = t.key("auth", "{}", |i| i.table(auth));
    around.prefix = auth.as_ref().map(|auth| auth.prefix.clone());
    let log = t.key("log", "{}", |i| i.table(log));
    let provider =
        t.required("provider", "write [provider], with issuer, client_id and client_secret", |i| {
            i.table(provider)
        });
    let session = t
        .required("session", "write [session], with secrets", |i| i.table(|t| session(t, &around)));
    let routes =
        t.required("route", "write [[route]], with path and upstream", |i| routes(i, &around));
    Some(Config {
        server: server?,
        provider: provider?,
        session: session?,
        auth: auth?,
        log: log?,
        routes: routes?,
    })
}

fn auth(t: &mut Table<'_>) -> Option<Auth> {
    let prefix = t.key("prefix", "'/auth'", |i| {
        let prefix = i.parse(path)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
        if prefix == "/" || !prefix.bytes().all(plain) {
            return i.wrong(Wrong::new(
                "is no prefix",
                "write / and letters, digits, -, ., _ or ~: /auth",
            ));
        }
        Some(prefix)
    });
    let after_logout = t.key("after_logout", "'/'", |i| i.parse(path));
    Some(Auth { prefix: prefix?, after_logout: after_logout? })
}

fn log(t: &mut Table<'_>) -> Option<Log> {
    let format = t.key("format", "'text'", |i| {
        i.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    let level = t.key("level", "'info'", log_level);
    let access = t.key("access", "true", flag);
    Some(Log { format: format?, level: level?, access: access? })
}

fn log_level(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        let wrong = || {
            Wrong::new(
                "is no filter for logs",
                r#"write "error", "warn", "info", "debug", "trace", or "info,vestibule=debug""#,
            )
        };
        if text.trim().is_empty() {
            return Err(wrong());
        }
        EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|_| wrong())
    })
}
