//! What the demo is to be: the file, read as serving reads it, with what the demo has to provide.
//! It refuses a file that would take the demo off loopback. It serves nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use url::{Host, Url};

use super::DemoError;
use super::certificate::{self, Found};
use super::identity_provider::Options;
use crate::clock::Timestamp;
use crate::config::diagnostic::Diagnostic;
use crate::config::value::UpstreamUrl;
use crate::config::{self, ClientAuthentication, Config, Loaded};

/// The demo, ready to start.
#[derive(Debug)]
pub(super) struct Setting {
    /// The file, as it was named.
    pub(super) file: PathBuf,
    /// The gateway's configuration; port 0 and `--listen` are settled in it.
    pub(super) config: Config,
    /// What somebody should look at in the file.
    pub(super) warnings: Vec<Diagnostic>,
    /// Whether the certificate was made just now.
    pub(super) certificate: Found,
    /// The variables that had no value, and were given a random one.
    pub(super) drawn: Vec<String>,
    /// What the provider is told.
    pub(super) options: Options,
    /// Where the provider listens.
    pub(super) provider: SocketAddr,
    /// Where the app listens.
    pub(super) app: SocketAddr,
}

/// The variables that a file may name: those of the process, and random ones for those it lacks.
pub(super) struct Environment<F> {
    process: F,
    drawn: RefCell<BTreeMap<String, String>>,
}

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    pub(super) fn new(process: F) -> Self {
        Self { process, drawn: RefCell::default() }
    }

    fn get(&self, name: &str) -> Option<String> {
        let known = (self.process)(name).or_else(|| self.drawn.borrow().get(name).cloned());
        known.or_else(|| {
            let mut bytes = [0; 32];
            SystemRandom::new().fill(&mut bytes).ok()?;
            let value = base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes);
            self.drawn.borrow_mut().insert(name.to_owned(), value.clone());
            Some(value)
        })
    }

    fn drawn(&self) -> Vec<String> {
        self.drawn.borrow().keys().cloned().collect()
    }
}

impl Setting {
    /// Reads the file at `file`; makes the certificate that it names if there is none.
    pub(super) fn read<F: Fn(&str) -> Option<String>>(
        file: &Path,
        listen: Option<SocketAddr>,
        environment: &Environment<F>,
        now: Timestamp,
    ) -> Result<Self, DemoError> {
        let mut made = Made::default();
        let setting = made
            .certificates(file, now)
            .and_then(|found| Self::judge(file, listen, environment, found));
        if setting.is_err() {
            // The file was not meant for the demo: nothing is left beside it.
            made.take_back();
        }
        setting
    }

    fn judge<F: Fn(&str) -> Option<String>>(
        file: &Path,
        listen: Option<SocketAddr>,
        environment: &Environment<F>,
        certificate: Found,
    ) -> Result<Self, DemoError> {
        let Loaded { mut config, warnings } =
            config::load_with(file, &|name| environment.get(name))?;
        let written = config.server.https;
        config.server.https = listen.unwrap_or(written);
        stay_on_loopback(&config)?;
        settle_port(&mut config, written.port())?;
        let provider = provider_address(&config)?;
        let app = app_address(&config)?;
        let options = options(&config)?;
        let drawn = environment.drawn();
        let file = file.to_owned();
        Ok(Self { file, config, warnings, certificate, drawn, options, provider, app })
    }
}

/// The one part of the file that is needed before it can be read: the rest of its keys is looked
/// at, and their faults are told, when it is.
#[derive(Default, Deserialize)]
struct Outline {
    #[serde(default)]
    server: OutlineServer,
}

#[derive(Default, Deserialize)]
struct OutlineServer {
    #[serde(default)]
    certificate: Vec<OutlineCertificate>,
}

#[derive(Deserialize)]
struct OutlineCertificate {
    cert: PathBuf,
    key: PathBuf,
}

/// What was put beside the file, in that order.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes the pairs that the file names and that are not there.
    fn certificates(&mut self, file: &Path, now: Timestamp) -> Result<Found, DemoError> {
        let outline = fs::read_to_string(file).ok().and_then(|text| toml::from_str(&text).ok());
        let Outline { server } = outline.unwrap_or_default();
        let directory = file.parent().unwrap_or(Path::new(""));
        let mut found = Found::There;
        for OutlineCertificate { cert, key } in server.certificate {
            let (cert, key) = (directory.join(cert), directory.join(key));
            let mut fresh: Vec<PathBuf> = [&cert, &key]
                .into_iter()
                .flat_map(|path| path.ancestors().skip(1))
                .filter(|path| !path.as_os_str().is_empty() && !path.exists())
                .map(Path::to_owned)
                .collect();
            // A directory comes before what is in it.
            fresh.sort();
            if certificate::ensure(&cert, &key, now)? == Found::Made {
                found = Found::Made;
                self.0.extend(fresh.into_iter().chain([cert, key]));
            }
        }
        Ok(found)
    }

    /// Removes it all; a directory only if nothing else has come into it.
    fn take_back(self) {
        for path in self.0.iter().rev() {
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// A free port in place of 0. The public URLs that had the port that was written have the one that
/// it became.
fn settle_port(config: &mut Config, written: u16) -> io::Result<()> {
    let https = &mut config.server.https;
    if https.port() == 0 {
        // Taken and given back: the login's addresses have to be known before the gateway listens.
        *https = TcpListener::bind(*https)?.local_addr()?;
    }
    for origin in &mut config.server.public_urls {
        if origin.port == written {
            origin.port = https.port();
        }
    }
    Ok(())
}

/// SECURITY: the demo's provider lets anybody in as anybody. Whatever the file opens or asks is on
/// this machine.
fn stay_on_loopback(config: &Config) -> Result<(), DemoError> {
    let server = &config.server;
    let listeners = [
        ("server.https", Some(server.https)),
        ("server.http", server.http),
        ("server.admin", server.admin),
    ];
    for (key, address) in listeners {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            return Err(DemoError::NotLoopback { key, value: address.to_string() });
        }
    }
    let issuer = &config.provider.issuer_url;
    if issuer.scheme() != "http" || host_of(issuer).is_none() {
        let value = config.provider.issuer.clone();
        return Err(DemoError::NotLoopback { key: "provider.issuer", value });
    }
    for upstream in config.routes.iter().flat_map(|route| &route.upstream) {
        let local = match &upstream.url {
            UpstreamUrl::Unix(_) => true,
            UpstreamUrl::Http { host, .. } | UpstreamUrl::Https { host, .. } => {
                loopback(host).is_some()
            }
        };
        if !local {
            let value = upstream.url.to_string();
            return Err(DemoError::NotLoopback { key: "route.upstream", value });
        }
    }
    Ok(())
}

/// The address of a host on loopback.
fn loopback(host: &str) -> Option<IpAddr> {
    if host == "localhost" {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().ok().filter(IpAddr::is_loopback)
}

fn host_of(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Domain(name) => loopback(name),
        Host::Ipv4(address) => loopback(&address.to_string()),
        Host::Ipv6(address) => loopback(&address.to_string()),
    }
}

fn provider_address(config: &Config) -> Result<SocketAddr, DemoError> {
    let unfit = |problem| DemoError::Unfit { key: "provider.issuer", problem };
    let (issuer, url) = (&config.provider.issuer, &config.provider.issuer_url);
    // Auth0's issuers end with a slash, and all that follows is put behind it.
    if url.path() != "/" || !issuer.ends_with('/') {
        return Err(unfit("the demo's provider has no path: write http://127.0.0.1:9080/"));
    }
    let address = host_of(url).zip(url.port_or_known_default());
    address.map(SocketAddr::from).ok_or_else(|| unfit("write http://127.0.0.1:9080/"))
}

/// The app is what the first route leads to; whatever stands behind others is not the demo's.
fn app_address(config: &Config) -> Result<SocketAddr, DemoError> {
    let first = config.routes.first().and_then(|route| route.upstream.first());
    let address = match first.map(|first| &first.url) {
        Some(UpstreamUrl::Http { host, port }) => loopback(host).map(|host| (host, *port)),
        _ => None,
    };
    address.map(SocketAddr::from).ok_or(DemoError::Unfit {
        key: "route.upstream",
        problem: "the demo's app stands behind the first route, and speaks plain HTTP: \
                  write http://127.0.0.1:9000",
    })
}

/// What the provider has to know to be the one that the file describes.
fn options(config: &Config) -> Result<Options, DemoError> {
    let ClientAuthentication::Secret(secret) = &config.provider.authentication else {
        return Err(DemoError::Unfit {
            key: "provider.private_key",
            problem: "the demo's provider knows its client by client_secret",
        });
    };
    let secret = str::from_utf8(secret.expose()).map_err(|_| DemoError::Unfit {
        key: "provider.client_secret",
        problem: "the demo's provider takes text only",
    })?;
    let provider = &config.provider;
    let auth = &config.auth;
    let mut options = Options::new(&provider.issuer, &provider.client_id, secret);
    for origin in &config.server.public_urls {
        options.redirect_uris.push(format!("{origin}{}/callback", auth.prefix));
        let pages = config.routes.iter().map(|route| route.path.as_str());
        for page in pages.chain(["/", auth.after_logout.as_str()]) {
            let uri = format!("{origin}{page}");
            if !options.logout_uris.contains(&uri) {
                options.logout_uris.push(uri);
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
pub(super) mod tests;
