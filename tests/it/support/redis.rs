//! Real Redis servers beside the gateway: one, a primary with replicas and sentinels, a cluster. They
//! listen on loopback alone, keep their files in directories of their own, and end with their values.
//! What a gateway makes of them, only the stories know.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use vestibule::config::value::Secret;
use vestibule::config::{Redis, RedisServers};

use super::authority::authority;
use super::{free_port, until};

/// What the sentinels call their primary.
const PRIMARY: &str = "sessions";

/// How a server is started, beyond what all have.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// `requirepass`
    pub(crate) password: Option<&'static str>,
    /// Over TLS alone, with a certificate of the tests' authority.
    pub(crate) tls: bool,
    /// More lines of its file.
    pub(crate) lines: Vec<String>,
}

/// One server. It is killed with its value.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) port: u16,
    options: Options,
    sentinel: bool,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// A server that writes every command to its log at once: what it has answered it still has
    /// after `kill -9`. Only the machine's own end could take it away, so that nobody waits for a
    /// disk that is busy.
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// The same, with options.
    pub(crate) async fn with(options: Options) -> Self {
        let mut lines = vec!["appendonly yes", "appendfsync no", "save \"\""];
        lines.extend(["rdbcompression no", "repl-diskless-sync-delay 0"]);
        lines.push("repl-ping-replica-period 1");
        let lines = lines.into_iter().map(str::to_owned).chain(options.lines.clone());
        Self::run(Options { lines: lines.collect(), ..options }, false).await
    }

    async fn run(options: Options, sentinel: bool) -> Self {
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let mut text = format!("bind 127.0.0.1\ndir {}\n", directory.path().display());
        if options.tls {
            let pair = authority().issue(&["localhost"]);
            for (name, pem) in
                [("cert.pem", &pair.cert), ("key.pem", &pair.key), ("ca.pem", &authority().pem)]
            {
                fs::write(directory.path().join(name), pem).unwrap();
            }
            text += &format!("port 0\ntls-port {port}\ntls-auth-clients no\n");
            text += "tls-cert-file cert.pem\ntls-key-file key.pem\ntls-ca-cert-file ca.pem\n";
        } else {
            text += &format!("port {port}\n");
        }
        if let Some(password) = options.password {
            text += &format!("requirepass \"{password}\"\nmasterauth \"{password}\"\n");
        }
        text += &(options.lines.join("\n") + "\n");
        fs::write(directory.path().join("redis.conf"), text).unwrap();
        let child = spawn(&directory, sentinel);
        let mut server = Self { port, options, sentinel, child, directory };
        server.answers().await;
        server
    }

    /// For `url`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.options.tls { "rediss://localhost" } else { "redis://127.0.0.1" };
        format!("{scheme}:{}", self.port)
    }

    /// What the gateway's file would become.
    pub(crate) fn config(&self) -> Redis {
        Redis {
            password: self.options.password.map(Secret::new),
            ca: self.options.tls.then(|| authority().pem.clone().into_bytes()),
            ..redis(vec![self.url()], RedisServers::Single)
        }
    }

    /// `[session.redis]`, but for its head.
    pub(crate) fn toml(&self) -> String {
        format!("url = {:?}\n", self.url())
    }

    /// A connection of the test's own.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.connect().await.unwrap()
    }

    /// Asks it something.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        command(words).query_async(&mut self.connection().await).await.unwrap()
    }

    /// Every name that it holds.
    pub(crate) async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", pattern]).await;
        keys.sort();
        keys
    }

    /// Everything that it holds, as it would write it to its disk.
    pub(crate) async fn contents(&self) -> Vec<u8> {
        let () = self.ask(&["SAVE"]).await;
        let mut bytes = fs::read(self.directory.path().join("dump.rdb")).unwrap();
        for entry in fs::read_dir(self.directory.path().join("appendonlydir")).unwrap() {
            bytes.extend(fs::read(entry.unwrap().path()).unwrap());
        }
        bytes
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap()
    }

    /// Sends it a signal by name: `STOP` and `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("/bin/kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success(), "kill -s {name} {pid}");
    }

    /// `kill -9`
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after a [`Server::kill`], with its files, on its port.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.directory, self.sentinel);
        self.answers().await;
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = if self.options.tls {
            let root_cert = Some(authority().pem.clone().into_bytes());
            let certificates = redis::TlsCertificates { client_tls: None, root_cert };
            redis::Client::build_with_tls(self.url(), certificates)?
        } else {
            redis::Client::open(self.url())?
        };
        let mut connection = client.get_multiplexed_async_connection().await?;
        if let Some(password) = self.options.password {
            let () = command(&["AUTH", password]).query_async(&mut connection).await?;
        }
        Ok(connection)
    }

    async fn answers(&mut self) {
        until("Redis answers", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("Redis ended with {status}:\n{}", self.log());
            }
            let mut connection = self.connect().await.ok()?;
            command(&["PING"]).query_async::<String>(&mut connection).await.ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- Redis on {} printed:\n{}", self.port, self.log());
        }
    }
}

/// A primary, its replicas, and three sentinels that watch them closely.
pub(crate) struct Sentinels {
    /// The first is the primary, until it fails.
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinels: Vec<Server>,
}

impl Sentinels {
    /// With so many replicas.
    pub(crate) async fn start(replicas: usize) -> Self {
        let primary = Server::start().await;
        let at = primary.port;
        let mut servers = vec![primary];
        for _ in 0..replicas {
            let lines = vec![format!("replicaof 127.0.0.1 {at}")];
            servers.push(Server::with(Options { lines, ..Options::default() }).await);
        }
        let online = async || {
            let info: String = servers[0].ask(&["INFO", "replication"]).await;
            (info.matches("state=online").count() == replicas).then_some(())
        };
        until("the replicas are there", online).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let lines = vec![
                format!("sentinel monitor {PRIMARY} 127.0.0.1 {at} 2"),
                format!("sentinel down-after-milliseconds {PRIMARY} 500"),
                format!("sentinel failover-timeout {PRIMARY} 2000"),
            ];
            sentinels.push(Server::run(Options { lines, ..Options::default() }, true).await);
        }
        for sentinel in &sentinels {
            until("the sentinels know each other and the replicas", async || {
                let info: String = sentinel.ask(&["INFO", "sentinel"]).await;
                info.contains(&format!("slaves={replicas},sentinels=3")).then_some(())
            })
            .await;
        }
        Self { servers, sentinels }
    }

    /// What the gateway's file would become.
    pub(crate) fn config(&self) -> Redis {
        let servers = RedisServers::Sentinel { primary: PRIMARY.to_owned(), password: None };
        redis(self.sentinels.iter().map(Server::url).collect(), servers)
    }

    /// `[session.redis]`, but for its head.
    pub(crate) fn toml(&self) -> String {
        let urls: Vec<String> = self.sentinels.iter().map(Server::url).collect();
        format!("url = {urls:?}\nservers = \"sentinel\"\nprimary = {PRIMARY:?}\n")
    }

    /// Waits until the primary has so many replicas that keep up.
    pub(crate) async fn replicated(&self, replicas: usize) {
        until("the replicas are there again", async || {
            let primary = self.primary().await;
            let primary = self.servers.iter().find(|server| server.port == primary)?;
            let mut connection = primary.connect().await.ok()?;
            let ask = command(&["INFO", "replication"]);
            let info: String = ask.query_async(&mut connection).await.ok()?;
            (info.matches("state=online").count() >= replicas).then_some(())
        })
        .await;
    }

    /// Has the sentinels put a replica in the primary's place.
    pub(crate) async fn replace(&self) {
        let () = self.sentinels[0].ask(&["SENTINEL", "FAILOVER", PRIMARY]).await;
    }

    /// The port of the server that the sentinels hold for the primary.
    pub(crate) async fn primary(&self) -> u16 {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY];
        let (_, port): (String, String) = self.sentinels[0].ask(&words).await;
        port.parse().unwrap()
    }
}

/// A cluster of three primaries.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    /// Starts the nodes and deals out the slots.
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let lines = vec![
                "cluster-enabled yes".to_owned(),
                format!("cluster-port {}", free_port()),
                "cluster-node-timeout 1000".to_owned(),
            ];
            nodes.push(Server::with(Options { lines, ..Options::default() }).await);
        }
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let created = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-yes"])
            .output()
            .unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        for node in &nodes {
            until("the cluster is whole", async || {
                let info: String = node.ask(&["CLUSTER", "INFO"]).await;
                info.contains("cluster_state:ok").then_some(())
            })
            .await;
        }
        Self { nodes }
    }

    /// What the gateway's file would become.
    pub(crate) fn config(&self) -> Redis {
        // Two of three: the third is found.
        redis(self.nodes.iter().take(2).map(Server::url).collect(), RedisServers::Cluster)
    }
}

fn redis(urls: Vec<String>, servers: RedisServers) -> Redis {
    let prefix = "vestibule:".to_owned();
    let replicas = if matches!(servers, RedisServers::Single) { 0 } else { 5 };
    Redis { urls, servers, username: None, password: None, ca: None, prefix, replicas }
}

/// These words as a command.
pub(crate) fn command(words: &[&str]) -> redis::Cmd {
    let (first, rest) = words.split_first().unwrap();
    let mut command = redis::cmd(first);
    command.arg(rest);
    command
}

fn spawn(directory: &TempDir, sentinel: bool) -> Child {
    let path = directory.path();
    let output = path.join("output");
    let file = File::options().create(true).append(true).open(output).unwrap();
    let mut command = Command::new("redis-server");
    command.arg("redis.conf").current_dir(path).stdin(Stdio::null());
    if sentinel {
        command.arg("--sentinel");
    }
    command.stdout(file.try_clone().unwrap()).stderr(file);
    command.spawn().expect("there is no redis-server: install it")
}
