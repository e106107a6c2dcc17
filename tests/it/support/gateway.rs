//! The binary under test: its `gateway.toml`, its process, its logs and its numbers.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use tempfile::TempDir;
use tokio::net::TcpStream;
use url::Url;

use super::app::App;
use super::authority::{Pair, authority};
use super::browser::Browser;
use super::provider::{CLIENT, Issuer, SECRET};
use super::wire::{Answer, Ask, Connection, Protocol};
use super::{free_port, until};

/// A `gateway.toml` in the making. What is not said has the defaults of the file.
pub(crate) struct Builder {
    port: u16,
    hosts: Vec<String>,
    sections: Vec<(&'static str, Vec<String>)>,
    routes: Vec<String>,
    issuer: String,
    ready: bool,
    one_certificate: bool,
    files: Vec<(&'static str, String)>,
    launcher: Vec<&'static str>,
    http: Option<u16>,
    ordered: bool,
}

/// A process that is not the gateway any more. It is killed with its value.
pub(crate) struct Before(Child);

impl Before {
    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the process before ends", async || self.0.try_wait().unwrap()).await
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running gateway. It is killed with its value.
pub(crate) struct Gateway {
    launcher: Vec<&'static str>,
    /// Its first public origin.
    pub(crate) url: Url,
    admin: Url,
    http: Url,
    child: Child,
    /// Holds `gateway.toml`, the certificates and what the process printed.
    pub(crate) directory: TempDir,
}

impl Gateway {
    /// Begins a `gateway.toml` with this provider.
    pub(crate) fn with(provider: &impl Issuer) -> Builder {
        Builder {
            port: provider.gateway_port(),
            hosts: vec!["localhost".to_owned()],
            sections: Vec::new(),
            routes: Vec::new(),
            issuer: provider.issuer().to_owned(),
            ready: true,
            one_certificate: false,
            files: Vec::new(),
            launcher: Vec::new(),
            http: None,
            ordered: false,
        }
    }

    /// A new browser over HTTP/2, as browsers are.
    pub(crate) fn browser(&self) -> Browser {
        Browser::new(self, Protocol::Http2)
    }

    /// A new browser over this protocol.
    pub(crate) fn browser_over(&self, protocol: Protocol) -> Browser {
        Browser::new(self, protocol)
    }

    /// Asks the listener for administrators.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        ask(&self.admin, path).await
    }

    /// Asks the listener without TLS.
    pub(crate) async fn plain(&self, path: &str) -> Answer {
        ask(&self.http, path).await
    }

    /// Where the listener without TLS is.
    pub(crate) fn plain_url(&self) -> &Url {
        &self.http
    }

    /// The number in `/metrics` on the line that begins with this name and these labels; 0 if there
    /// is none.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse().unwrap())
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// What it wrote to standard output: addresses and access lines.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("stdout")).unwrap()
    }

    /// The first line of the log that holds all of these words; waits for it.
    pub(crate) async fn logged(&self, words: &[&str]) -> String {
        until(&format!("the log has {words:?}"), async || line_with(&self.log(), words)).await
    }

    /// The first access line that holds all of these words; waits for it.
    pub(crate) async fn access_line(&self, words: &[&str]) -> String {
        until(&format!("an access line has {words:?}"), async || line_with(&self.output(), words))
            .await
    }

    /// Sends the process a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("/bin/kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success(), "kill -s {name} {pid}");
    }

    /// Waits for the process's end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the gateway ends", async || self.child.try_wait().unwrap()).await
    }

    /// Ends the process and starts it anew, with the same file.
    pub(crate) async fn restart(&mut self) {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
        self.child = spawn(self.directory.path(), &self.launcher);
        self.reachable(true).await;
    }

    /// Starts the next process beside this one, with the same file.
    pub(crate) fn start_next(&mut self) -> Before {
        let next = spawn(self.directory.path(), &self.launcher);
        Before(std::mem::replace(&mut self.child, next))
    }

    /// The process before is the gateway again.
    pub(crate) fn keep(&mut self, before: &mut Before) {
        std::mem::swap(&mut self.child, &mut before.0);
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after a [`Gateway::kill`], with the same file.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.directory.path(), &self.launcher);
        self.reachable(true).await;
    }

    /// Kilobytes of memory that the process holds.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn reachable(&mut self, ready: bool) {
        let ports = [self.url.port().unwrap(), self.admin.port().unwrap()];
        until("the gateway listens", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway ended with {status}:\n{}", self.log());
            }
            for port in ports {
                TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            }
            let up = !ready || self.admin("/readyz").await.status == 200;
            up.then_some(())
        })
        .await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // The test harness shows this for a failed test only.
            eprintln!("--- the gateway's log:\n{}", self.log());
        }
    }
}

impl Builder {
    /// On a port of its own, beside another gateway of the same provider.
    pub(crate) fn beside(mut self) -> Self {
        self.port = free_port();
        self
    }

    /// A route to one app, for whoever is signed in.
    pub(crate) fn route(self, path: &str, app: &App) -> Self {
        self.route_with(path, app, "")
    }

    /// A route to one app, with more lines of TOML.
    pub(crate) fn route_with(self, path: &str, app: &App, lines: &str) -> Self {
        self.route_to(path, &[&app.url], lines)
    }

    /// A route to these addresses, with more lines of TOML.
    pub(crate) fn route_to(self, path: &str, upstream: &[&str], lines: &str) -> Self {
        self.route_written(path, &format!("{upstream:?}"), lines)
    }

    /// A route to what is written so in TOML, with more lines of it.
    pub(crate) fn route_written(mut self, path: &str, upstream: &str, lines: &str) -> Self {
        self.routes.push(format!("[[route]]\npath = {path:?}\nupstream = {upstream}\n{lines}\n"));
        self
    }

    /// One more public host beside localhost, with a certificate of its own.
    pub(crate) fn host(mut self, host: &str) -> Self {
        self.hosts.push(host.to_owned());
        self
    }

    /// The gateway's only host, in place of localhost.
    pub(crate) fn only_host(mut self, host: &str) -> Self {
        self.hosts = vec![host.to_owned()];
        self
    }

    /// Listens here, in place of where the provider sends browsers.
    pub(crate) fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// A line of TOML in `[server]`.
    pub(crate) fn server(self, line: &str) -> Self {
        self.line("server", line)
    }

    /// A line of TOML in `[server.limits]`.
    pub(crate) fn limits(self, line: &str) -> Self {
        self.line("server.limits", line)
    }

    /// A line of TOML in `[provider]`.
    pub(crate) fn provider(self, line: &str) -> Self {
        self.line("provider", line)
    }

    /// A line of TOML in `[session]`.
    pub(crate) fn session(self, line: &str) -> Self {
        self.line("session", line)
    }

    /// A line of TOML in `[auth]`.
    pub(crate) fn auth(self, line: &str) -> Self {
        self.line("auth", line)
    }

    /// A line of TOML in `[log]`.
    pub(crate) fn log(self, line: &str) -> Self {
        self.line("log", line)
    }

    /// One more file beside it.
    pub(crate) fn file(mut self, name: &'static str, text: &str) -> Self {
        self.files.push((name, text.to_owned()));
        self
    }

    /// Starts it by this command, which gets the gateway's own behind it.
    pub(crate) fn launched_by(self, command: &[&'static str]) -> Self {
        Self { launcher: command.to_vec(), ..self }
    }

    /// Orders its certificates itself; its listener without TLS has this port.
    pub(crate) fn ordering(self, http: u16) -> Self {
        Self { http: Some(http), ordered: true, ..self }
    }

    /// All hosts have the same certificate.
    pub(crate) fn one_certificate(mut self) -> Self {
        self.one_certificate = true;
        self
    }

    /// Does not wait until the provider was reached.
    pub(crate) fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// Starts it and waits until it can be used.
    pub(crate) async fn start(self) -> Gateway {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        let hosts: Vec<&str> = self.hosts.iter().map(String::as_str).collect();
        for host in hosts.iter().filter(|_| !self.ordered) {
            let names = if self.one_certificate { &hosts } else { std::slice::from_ref(host) };
            let Pair { cert, key } = authority().issue(names);
            fs::write(path.join(format!("{host}.pem")), cert).unwrap();
            fs::write(path.join(format!("{host}.key")), key).unwrap();
        }
        for (name, text) in &self.files {
            fs::write(path.join(name), text).unwrap();
        }
        fs::write(path.join("authority.pem"), &authority().pem).unwrap();
        fs::write(path.join("client-secret"), SECRET).unwrap();
        fs::write(path.join("secret"), "a secret of the tests, long enough for all").unwrap();
        let [http, admin] = [self.http.unwrap_or_else(free_port), free_port()];
        fs::write(path.join("gateway.toml"), self.text(http, admin)).unwrap();
        let host = &self.hosts[0];
        let url = |scheme, port| Url::parse(&format!("{scheme}://{host}:{port}/")).unwrap();
        let child = spawn(path, &self.launcher);
        let mut gateway = Gateway {
            launcher: self.launcher,
            url: url("https", self.port),
            admin: url("http", admin),
            http: url("http", http),
            child,
            directory,
        };
        gateway.reachable(self.ready).await;
        gateway
    }

    /// The whole file.
    fn text(&self, http: u16, admin: u16) -> String {
        let port = self.port;
        let urls: Vec<String> =
            self.hosts.iter().map(|host| format!("https://{host}:{port}")).collect();
        let mut text = format!(
            "[server]\nhttps = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\
             admin = \"127.0.0.1:{admin}\"\npublic_urls = {urls:?}\n{}",
            self.lines("server"),
        );
        if !self.lines("server").contains("workers") {
            text = text.replacen("[server]\n", "[server]\nworkers = 2\n", 1);
        }
        for host in &self.hosts {
            text +=
                &format!("[[server.certificate]]\ncert = \"{host}.pem\"\nkey = \"{host}.key\"\n");
            if self.ordered {
                text += &format!("acme = [{host:?}]\n");
            }
        }
        text += &format!("[server.limits]\n{}", self.lines("server.limits"));
        let issuer = &self.issuer;
        text += &format!(
            "[provider]\nissuer = {issuer:?}\nclient_id = {CLIENT:?}\n{}",
            self.lines("provider"),
        );
        if !self.lines("provider").contains("private_key") {
            text += "client_secret = { file = \"client-secret\" }\n";
        }
        let session = self.lines("session");
        text += &format!("[session]\n{session}");
        if !session.contains("secrets") {
            text += "secrets = [{ file = \"secret\" }]\n";
        }
        text += &format!("[auth]\n{}[log]\n{}", self.lines("auth"), self.lines("log"));
        text + &self.routes.concat()
    }

    fn line(mut self, section: &'static str, line: &str) -> Self {
        self.sections.push((section, vec![line.to_owned()]));
        self
    }

    fn lines(&self, section: &str) -> String {
        let of = self.sections.iter().filter(|(name, _)| *name == section);
        of.flat_map(|(_, lines)| lines).map(|line| format!("{line}\n")).collect()
    }
}

fn spawn(directory: &Path, launcher: &[&str]) -> Child {
    let file =
        |name: &str| File::options().create(true).append(true).open(directory.join(name)).unwrap();
    let words =
        [launcher, &[env!("CARGO_BIN_EXE_vestibule"), "serve", "-c", "gateway.toml"]].concat();
    Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory)
        // For apps and providers behind TLS.
        .env("SSL_CERT_FILE", "authority.pem")
        .env_remove("SSL_CERT_DIR")
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .unwrap()
}

/// `kill -9` of a gateway that somebody else holds.
pub(crate) fn kill(pid: u32) {
    let status = Command::new("/bin/kill").args(["-s", "KILL", &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s KILL {pid}");
}

fn line_with(text: &str, words: &[&str]) -> Option<String> {
    let mut lines = text.lines();
    lines.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
}

async fn ask(base: &Url, path: &str) -> Answer {
    let url = base.join(path).unwrap();
    let connection = Connection::open(&url, Protocol::Http1).await.unwrap();
    connection.ask(&url, Ask::new(http::Method::GET, path)).await.unwrap()
}
