//! `[session.redis]`: from the file to [`Redis`].

use url::Url;

use super::parse::Wrong;
use super::secrets::secret;
use super::table::{Item, Table, file_path, filled};
use super::value::Secret;
use super::{Redis, RedisServers};

/// A certificate authority's file is never larger.
const LARGEST_CA: u64 = 1024 * 1024;

/// Nobody waits for more copies.
const MOST_REPLICAS: u8 = 5;

/// The table.
pub(super) fn redis(t: &mut Table<'_>) -> Option<Redis> {
    let urls = t.required("url", r#"write url = "redis://127.0.0.1:6379""#, urls);
    let kind = t.key("servers", "'single'", |i| {
        i.choice(&[
            ("single", Kind::Single),
            ("sentinel", Kind::Sentinel),
            ("cluster", Kind::Cluster),
        ])
    });
    let primary = t.optional("primary", filled);
    let sentinel_password = t.optional("sentinel_password", text_secret);
    let username = t.optional("username", filled);
    let password = t.optional("password", text_secret);
    let ca = t.optional("ca", certificate_authority);
    let prefix = t.key("prefix", "'vestibule:'", prefix);
    let replicas = t.optional("replicas", |i| i.number(0, MOST_REPLICAS.into()));
    let urls = urls?;
    let kind = kind?;
    if kind != Kind::Sentinel {
        let key = ["primary", "sentinel_password"].into_iter().find(|key| t.has(key));
        if let Some(key) = key {
            let wrong = Wrong::new("is for sentinels alone", r#"write servers = "sentinel""#);
            return t.wrong(key, wrong);
        }
    }
    let servers = match (kind, primary) {
        (Kind::Single, _) if urls.len() > 1 => {
            let remedy = r#"write one address, or servers = "cluster" or "sentinel""#;
            return t.wrong("url", Wrong::new("names several servers", remedy));
        }
        (Kind::Single, _) => RedisServers::Single,
        (Kind::Cluster, _) => RedisServers::Cluster,
        (Kind::Sentinel, Some(primary)) => {
            RedisServers::Sentinel { primary, password: sentinel_password }
        }
        (Kind::Sentinel, None) => {
            return t.missing("primary", r#"write primary = "mymaster", as the sentinels call it"#);
        }
    };
    if t.has("username") && !t.has("password") {
        return t.missing("password", r#"write password = { env = "NAME" }"#);
    }
    if kind == Kind::Single && t.has("replicas") && replicas != Some(0) {
        let remedy = r#"write servers = "sentinel" or "cluster", or leave it out"#;
        return t.wrong("replicas", Wrong::new("is for several servers", remedy));
    }
    let usual = if kind == Kind::Single { 0 } else { MOST_REPLICAS as usize };
    let replicas = if t.has("replicas") { replicas? } else { usual };
    Some(Redis { urls, servers, username, password, ca, prefix: prefix?, replicas })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Sentinel,
    Cluster,
}

/// One address, or a list.
fn urls(item: &Item<'_>) -> Option<Vec<String>> {
    let urls = if item.is_list() { item.some(url)? } else { vec![url(item)?] };
    let secure = |url: &String| url.starts_with("rediss:");
    if urls.iter().any(secure) && !urls.iter().all(secure) {
        return item.wrong(Wrong::new("mixes redis: and rediss:", "write rediss: everywhere"));
    }
    Some(urls)
}

fn url(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        let wrong = |message: &str| {
            Wrong::new(message, r#"write "redis://127.0.0.1:6379", or rediss: for TLS"#)
        };
        let url = Url::parse(text).map_err(|_| wrong("is no address of a Redis"))?;
        if !matches!(url.scheme(), "redis" | "rediss") || !url.has_host() {
            return Err(wrong("is no address of a Redis"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Wrong::new(
                "holds a password",
                r#"take it out, and write password = { env = "NAME" }"#,
            ));
        }
        let database = url.path().trim_matches('/');
        if url.query().is_some()
            || url.fragment().is_some()
            || database.parse::<u16>().is_err() && !database.is_empty()
        {
            return Err(wrong("has more than a host, a port and a database's number"));
        }
        Ok(text.to_owned())
    })
}

fn text_secret(item: &Item<'_>) -> Option<Secret> {
    let secret = secret(item)?;
    if std::str::from_utf8(secret.expose()).is_err() {
        return item.wrong(Wrong::new("is no text", "Redis takes passwords of UTF-8 alone"));
    }
    Some(secret)
}

fn certificate_authority(item: &Item<'_>) -> Option<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let path = file_path(item)?;
    let small = std::fs::metadata(&path).is_ok_and(|data| data.len() <= LARGEST_CA);
    let bytes = if small { std::fs::read(&path).ok() } else { None };
    let bytes = bytes.filter(|bytes| CertificateDer::from_pem_slice(bytes).is_ok());
    bytes.or_else(|| {
        item.wrong(Wrong::new(
            format!("{} holds no certificate that can be read", path.display()),
            "name a file with the authority's certificate in PEM",
        ))
    })
}

/// It stands before the braces of a hash tag: it must hold none itself.
fn prefix(item: &Item<'_>) -> Option<String> {
    item.parse(|text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_./".contains(&byte);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(Wrong::new(
                "is no prefix",
                "write up to 64 letters, digits, :, -, _, . or /: vestibule:",
            ));
        }
        Ok(text.to_owned())
    })
}
