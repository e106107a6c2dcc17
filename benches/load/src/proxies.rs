//! The proxies that are compared: configured alike, from the files in `conf/`, and started. Before
//! anything is measured each is asked what it tells the app, so that no number is that of an error.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::client::{Answer, Connection, Target};
use crate::origin;
use crate::process::{LOAD_CORE, PROXY_CORE, Process, free_address};
use crate::rows::Visitor;
use crate::session;

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
    /// The gateway.
    Vestibule,
    /// An earlier build of it.
    Before,
}

impl Proxy {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxAgain => "nginx-again",
            Self::Haproxy => "haproxy",
            Self::Vestibule => "vestibule",
            Self::Before => "vestibule-before",
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
    /// The `Cookie` fields of two signed-in users.
    cookies: [String; 2],
    _origin: Process,
}

impl Bench {
    /// Starts the origin and every proxy; `gateway` is the gateway's binary, `before` that of an
    /// earlier build. `directory` is emptied, and holds configurations and what the programs
    /// complain of.
    pub(crate) fn start(gateway: &Path, before: Option<&Path>, directory: &Path) -> Result<Self> {
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
        let cookies = [session::cookie(SECRET, &issuer)?, session::cookie(SECRET, &issuer)?];
        let places = Places { directory, origin: address, issuer };
        let programs = [
            (Proxy::Nginx, Some(Path::new("nginx"))),
            (Proxy::NginxAgain, Some(Path::new("nginx"))),
            (Proxy::Haproxy, Some(Path::new("haproxy"))),
            (Proxy::Vestibule, Some(gateway)),
            (Proxy::Before, before),
        ];
        let present = programs.into_iter().filter_map(|(proxy, program)| Some((proxy, program?)));
        let running = present.map(|(proxy, program)| places.start(proxy, program));
        let bench = Self { running: running.collect::<Result<_>>()?, cookies, _origin: origin };
        bench.check()?;
        Ok(bench)
    }

    /// A proxy.
    pub(crate) fn proxy(&self, proxy: Proxy) -> Result<&Running> {
        let found = self.running.iter().find(|running| running.proxy == proxy);
        found.with_context(|| format!("{} was not started", proxy.name()))
    }

    /// The `Cookie` field that a visitor sends.
    pub(crate) fn cookie(&self, visitor: Visitor) -> Option<&str> {
        let [user, changing] = &self.cookies;
        match visitor {
            Visitor::Stranger => None,
            Visitor::User => Some(user),
            Visitor::Changing => Some(changing),
        }
    }

    /// Asks every proxy for what will be measured.
    fn check(&self) -> Result<()> {
        for running in &self.running {
            let told = self.told(running, origin::ECHO_PATH)?;
            let name = running.proxy.name();
            ensure!(told.status == 200, "{name} answers {}: {}", told.status, told.head);
            let told = told.body.to_lowercase();
            ensure!(told.contains("theme=dark"), "{name} keeps the app's cookie:\n{told}");
        }
        let nginx = self.told(self.proxy(Proxy::Nginx)?, "/checked/echo")?.body.to_lowercase();
        ensure!(nginx.contains("x-auth-user: auth0|"), "nginx does not check:\n{nginx}");

        let gateways = [Proxy::Vestibule, Proxy::Before];
        let mut gateways = self.running.iter().filter(|running| gateways.contains(&running.proxy));
        gateways.try_for_each(|gateway| self.check_gateway(gateway))
    }

    fn check_gateway(&self, gateway: &Running) -> Result<()> {
        let user = format!("x-forwarded-user: {}", session::SUBJECT);
        let signed_in = self.told(gateway, origin::ECHO_PATH)?;
        let body = signed_in.body.to_lowercase();
        ensure!(body.contains(&user), "the gateway does not know the session:\n{body}");
        ensure!(!body.contains("-session="), "the gateway passes the session on:\n{body}");
        let head = signed_in.head.to_lowercase();
        ensure!(!head.contains("set-cookie"), "the gateway writes the session:\n{head}");
        let public = self.told(gateway, "/public/echo")?;
        ensure!(public.status == 200, "a public path is answered {}", public.status);
        ensure!(!public.body.to_lowercase().contains(&user), "a public path tells of the user");
        Ok(())
    }

    fn told(&self, running: &Running, path: &str) -> Result<Answer> {
        let request = running.target.request(path, self.cookie(Visitor::User));
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
}

impl Places {
    fn start(&self, proxy: Proxy, program: &Path) -> Result<Running> {
        let address = free_address()?;
        let target = Target::new(address)?;
        let name = proxy.name();
        let (file, text) = match proxy {
            Proxy::Nginx | Proxy::NginxAgain => ("conf", include_str!("../conf/nginx.conf")),
            Proxy::Haproxy => ("cfg", include_str!("../conf/haproxy.cfg")),
            Proxy::Vestibule | Proxy::Before => ("toml", include_str!("../conf/gateway.toml")),
        };
        let text = text
            .replace("@NAME@", name)
            .replace("@DIRECTORY@", &self.directory.display().to_string())
            .replace("@LISTEN@", &address.to_string())
            .replace("@ADMIN@", &free_address()?.to_string())
            .replace("@AUTHORITY@", &target.authority())
            .replace("@ISSUER@", &self.issuer)
            .replace("@ORIGIN@", &self.origin.to_string());
        let file = self.directory.join(format!("{name}.{file}"));
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let arguments = match proxy {
            Proxy::Nginx | Proxy::NginxAgain => vec!["-c", &file],
            Proxy::Haproxy => vec!["-db", "-f", &file],
            Proxy::Vestibule | Proxy::Before => vec!["serve", "-c", &file],
        };
        let process = Process::start(name, PROXY_CORE, program, &arguments, &self.directory)?
            .listening(address, &self.directory)?;
        Ok(Running { proxy, process, target })
    }
}

/// One certificate for all (ECDSA P-256), in the forms they want.
fn certify(directory: &Path) -> Result<()> {
    let names = ["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("no certificate")?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(directory.join("both.pem"), format!("{certificate}{key}"))?;
    fs::write(directory.join("certificate.pem"), certificate)?;
    fs::write(directory.join("key.pem"), key)?;
    Ok(())
}
