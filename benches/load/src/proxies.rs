//! The proxies that are compared: configured alike, from the files in `conf/`, and started. Before
//! anything is measured each is asked what it tells the app, so that no number is that of an error.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::client::{Answer, Connection, Target};
use crate::origin;
use crate::process::{LOAD_CORE, PROXY_CORE, Process, free_address};
use crate::redis::Redis;
use crate::rows::{Row, Visitor};
use crate::session::{self, Cookies, Store};

/// The secret that sessions are sealed with: it protects nothing.
const SECRET: &str = "a secret that is good for one run";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// nginx.
    Nginx,
    /// The same once more: how far two equal things differ.
    NginxAgain,
    /// HAProxy.
    Haproxy,
    /// The gateway, with its sessions in this store.
    Vestibule(Store),
    /// An earlier build of it.
    Before(Store),
}

impl Proxy {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxAgain => "nginx-again",
            Self::Haproxy => "haproxy",
            Self::Vestibule(Store::Cookie) => "vestibule",
            Self::Vestibule(Store::Redis) => "vestibule-redis",
            Self::Before(Store::Cookie) => "vestibule-before",
            Self::Before(Store::Redis) => "vestibule-before-redis",
        }
    }

    /// Whose sessions it knows; the others pass the cookie on.
    fn store(self) -> Store {
        match self {
            Self::Nginx | Self::NginxAgain | Self::Haproxy => Store::Cookie,
            Self::Vestibule(store) | Self::Before(store) => store,
        }
    }
}

/// A proxy that runs.
pub(crate) struct Running {
    proxy: Proxy,
    /// Its process.
    pub(crate) process: Process,
    /// Where it is asked.
    pub(crate) target: Target,
}

/// All that runs for a comparison.
pub(crate) struct Bench {
    running: Vec<Running>,
    cookies: Cookies,
    redis: Option<(Redis, Cookies)>,
    _origin: Process,
}

impl Bench {
    /// Starts the origin and what the rows need; `gateway` is the gateway's binary, `before` that of
    /// an earlier build. `directory` is emptied, and holds configurations and what the programs
    /// complain of.
    pub(crate) fn start(
        gateway: &Path,
        before: Option<&Path>,
        directory: &Path,
        rows: &[Row],
    ) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        certify(&directory)?;
        fs::write(directory.join("secret"), SECRET)?;

        let address = free_address()?;
        let issuer = format!("http://{address}/");
        let origin = Process::start(
            "origin",
            LOAD_CORE,
            &std::env::current_exe()?,
            &["origin", &address.to_string()],
            &directory,
        )?
        .listening(address, &directory)?;
        let mut proxies: Vec<Proxy> = Vec::new();
        for contender in rows.iter().flat_map(|row| &row.contenders) {
            if !proxies.contains(&contender.proxy) {
                proxies.push(contender.proxy);
            }
        }
        let redis = if proxies.iter().any(|proxy| proxy.store() == Store::Redis) {
            let redis = Redis::start(&directory)?;
            let cookies = Cookies::make(SECRET, &issuer, Some(redis.address))?;
            Some((redis, cookies))
        } else {
            None
        };
        let cookies = Cookies::make(SECRET, &issuer, None)?;
        let places = Places {
            directory,
            origin: address,
            issuer,
            redis: redis.as_ref().map(|(redis, _)| redis.address),
        };
        let running = proxies.into_iter().map(|proxy| {
            let program = match proxy {
                Proxy::Nginx | Proxy::NginxAgain => Path::new("nginx"),
                Proxy::Haproxy => Path::new("haproxy"),
                Proxy::Vestibule(_) => gateway,
                Proxy::Before(_) => before.context("there is no earlier build")?,
            };
            places.start(proxy, program)
        });
        let running = running.collect::<Result<_>>()?;
        let bench = Self { running, cookies, redis, _origin: origin };
        bench.check()?;
        Ok(bench)
    }

    /// A proxy.
    pub(crate) fn proxy(&self, proxy: Proxy) -> Result<&Running> {
        let found = self.running.iter().find(|running| running.proxy == proxy);
        found.with_context(|| format!("{} was not started", proxy.name()))
    }

    /// The `Cookie` fields that a visitor sends to a proxy, connection by connection.
    pub(crate) fn cookies(&self, proxy: Proxy, visitor: Visitor) -> &[String] {
        match (proxy.store(), &self.redis) {
            (Store::Redis, Some((_, cookies))) => cookies.of(visitor),
            _ => self.cookies.of(visitor),
        }
    }

    /// The Redis behind a proxy.
    pub(crate) fn redis(&self, proxy: Proxy) -> Option<&Process> {
        let redis = self.redis.as_ref().filter(|_| proxy.store() == Store::Redis);
        redis.map(|(redis, _)| &redis.process)
    }

    /// Asks every proxy for what will be measured.
    fn check(&self) -> Result<()> {
        for running in &self.running {
            let told = self.told(running, Visitor::User, origin::ECHO_PATH)?;
            let name = running.proxy.name();
            ensure!(told.status == 200, "{name} answers {}: {}", told.status, told.head);
            let told = told.body.to_lowercase();
            ensure!(told.contains("theme=dark"), "{name} keeps the app's cookie:\n{told}");
            match running.proxy {
                Proxy::Nginx => {
                    let told = self.told(running, Visitor::User, "/checked/echo")?;
                    let told = told.body.to_lowercase();
                    ensure!(told.contains("x-auth-user: auth0|"), "nginx does not check:\n{told}");
                }
                Proxy::Vestibule(_) | Proxy::Before(_) => self.check_gateway(running)?,
                Proxy::NginxAgain | Proxy::Haproxy => {}
            }
        }
        Ok(())
    }

    fn check_gateway(&self, gateway: &Running) -> Result<()> {
        let user = format!("x-forwarded-user: {}", session::subject(0));
        let signed_in = self.told(gateway, Visitor::User, origin::ECHO_PATH)?;
        let body = signed_in.body.to_lowercase();
        ensure!(body.contains(&user), "the gateway does not know the session:\n{body}");
        ensure!(!body.contains("-session="), "the gateway passes the session on:\n{body}");
        let head = signed_in.head.to_lowercase();
        ensure!(!head.contains("set-cookie"), "the gateway writes the session:\n{head}");
        let public = self.told(gateway, Visitor::User, "/public/echo")?;
        ensure!(public.status == 200, "a public path is answered {}", public.status);
        ensure!(!public.body.to_lowercase().contains(&user), "a public path tells of the user");
        // The cookie that comes with the update is not brought back: the store knows better.
        self.told(gateway, Visitor::Changing, origin::UPDATE_PATH)?;
        let body = self.told(gateway, Visitor::Changing, origin::ECHO_PATH)?.body;
        ensure!(body.contains("\"visits\":"), "the gateway takes no update:\n{body}");
        Ok(())
    }

    fn told(&self, running: &Running, visitor: Visitor, path: &str) -> Result<Answer> {
        let cookie = self.cookies(running.proxy, visitor).first();
        let request = running.target.request(path, cookie.map(String::as_str));
        Connection::open(&running.target)
            .and_then(|mut connection| connection.exchange(&request))
            .with_context(|| format!("{} does not answer", running.proxy.name()))
    }
}

/// What the configurations are filled with.
struct Places {
    directory: PathBuf,
    origin: SocketAddr,
    issuer: String,
    redis: Option<SocketAddr>,
}

impl Places {
    fn start(&self, proxy: Proxy, program: &Path) -> Result<Running> {
        let address = free_address()?;
        let target = Target::new(address)?;
        let name = proxy.name();
        let (file, text) = match proxy {
            Proxy::Nginx | Proxy::NginxAgain => ("conf", include_str!("../conf/nginx.conf")),
            Proxy::Haproxy => ("cfg", include_str!("../conf/haproxy.cfg")),
            Proxy::Vestibule(_) | Proxy::Before(_) => {
                ("toml", include_str!("../conf/gateway.toml"))
            }
        };
        let redis = match (proxy.store(), self.redis) {
            (Store::Redis, Some(address)) => {
                format!("\n[session.redis]\nurl = \"redis://{address}\"\n")
            }
            _ => String::new(),
        };
        let text = text
            .replace("@NAME@", name)
            .replace("@DIRECTORY@", &self.directory.display().to_string())
            .replace("@LISTEN@", &address.to_string())
            .replace("@ADMIN@", &free_address()?.to_string())
            .replace("@AUTHORITY@", &target.authority())
            .replace("@ISSUER@", &self.issuer)
            .replace("@REDIS@", &redis)
            .replace("@ORIGIN@", &self.origin.to_string());
        let file = self.directory.join(format!("{name}.{file}"));
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let arguments = match proxy {
            Proxy::Nginx | Proxy::NginxAgain => vec!["-c", &file],
            Proxy::Haproxy => vec!["-db", "-f", &file],
            Proxy::Vestibule(_) | Proxy::Before(_) => vec!["serve", "-c", &file],
        };
        let process = Process::start(name, PROXY_CORE, program, &arguments, &self.directory)?
            .listening(address, &self.directory)?;
        Ok(Running { proxy, process, target })
    }
}

/// One certificate for all (ECDSA P-256), in the forms they want.
pub(crate) fn certify(directory: &Path) -> Result<()> {
    let names = ["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("no certificate")?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(directory.join("both.pem"), format!("{certificate}{key}"))?;
    fs::write(directory.join("certificate.pem"), certificate)?;
    fs::write(directory.join("key.pem"), key)?;
    Ok(())
}
