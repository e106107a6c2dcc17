//! The soak: users of many kinds ask the gateway for minutes, on routes to apps of every protocol,
//! while these are killed and started again and its file is changed under it; every answer is held
//! against what only that request may get, and its memory is looked at. It starts everything, disturbs
//! it, and says what came of it.
//!
//! | file | what |
//! |---|---|
//! | `browser` | a user: what it asks for, and what it must get |
//! | `wire` | its way to the gateway: HTTP/1.1, HTTP/2, WebSocket |
//! | `content` | bytes that only one request gets |
//! | `tally` | what came of all |
//! | `app` | the app |

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::client::Target;
use crate::process::{Process, free_address};
use crate::proxies::certify;
use crate::session::Cookies;

pub(crate) mod app;
mod browser;
mod content;
mod tally;
mod wire;

use browser::{Browser, Stage, Way};
use content::Dice;
use tally::Tally;
use wire::Wire;

/// The secret that sessions are sealed with: it protects nothing.
const SECRET: &str = "a secret that is good for one run";
const MINUTE: Duration = Duration::from_secs(60);
/// Users with a connection of HTTP/1.1 each; connections of HTTP/2 and users of each; users of
/// WebSockets. Together fewer than there are cookies.
const HTTP1: usize = 16;
const HTTP2: (usize, usize) = (3, 8);
const SOCKETS: usize = 6;
/// How far memory may grow after the second minute: what the allocator keeps is never quite even.
const GROWTH: f64 = 1.15;
const SLACK: u64 = 4 * 1024 * 1024;

/// What can be asked for.
#[derive(Args)]
pub(crate) struct Options {
    /// How long.
    #[arg(default_value_t = 10)]
    minutes: u64,
    /// The gateway's binary.
    #[arg(long, default_value = "target/dist/vestibule")]
    gateway: PathBuf,
    /// Where configurations and the programs' errors go; emptied first.
    #[arg(long, default_value = "benches/run")]
    directory: PathBuf,
    /// Cores for the gateway, and for everything else.
    #[arg(long, default_value = "0-1")]
    cores: String,
}

/// Soaks.
///
/// # Errors
/// When anything was wrong: an answer, or the gateway's memory.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!((1..=24 * 60).contains(&options.minutes), "a minute to a day");
    let setting = Setting::new(options)?;
    let issuer = format!("http://{}/", setting.issuer);
    let cookies = Cookies::make(SECRET, &issuer, None)?;
    crate::session::runtime()?.block_on(soak(options, setting, cookies))
}

async fn soak(options: &Options, setting: Setting, cookies: Cookies) -> Result<()> {
    let issuer = setting.start("origin", &std::env::current_exe()?, "origin", setting.issuer)?;
    let gateway = setting.start_gateway(&options.gateway)?;
    let stage = Rc::new(Stage {
        tally: Tally::default(),
        outages: Default::default(),
        over: Cell::new(false),
    });
    let users = users(&setting, &cookies, &stage)?;
    let apps = [0, 1]
        .map(|which| tokio::task::spawn_local(outages(setting.clone(), stage.clone(), which)));
    sleep(Duration::from_secs(1)).await;
    let users: Vec<JoinHandle<()>> = users.into_iter().map(begin).collect();
    let reloads = tokio::task::spawn_local(reloads(setting.clone(), stage.clone(), gateway.id()));

    let begin = Instant::now();
    let mut memory = vec![gateway.memory()?];
    for minute in 1..=options.minutes {
        let left = (MINUTE * u32::try_from(minute)?).saturating_sub(begin.elapsed());
        sleep(left).await;
        memory.push(gateway.memory()?);
        eprintln!("minute {minute}: {} failures", stage.tally.failures());
    }
    stage.over.set(true);
    for user in users {
        user.await?;
    }
    let (mut kept, mut outages) = (Vec::new(), 0);
    for app in apps {
        let (app, times) = app.await??;
        kept.push(app);
        outages += times;
    }
    let reloads = reloads.await??;
    drop((gateway, kept, issuer));
    report(&stage.tally, &memory, (outages, reloads))
}

fn begin((kind, browser): (Kind, Browser)) -> JoinHandle<()> {
    match kind {
        Kind::Asks => tokio::task::spawn_local(browser.run()),
        Kind::Talks => tokio::task::spawn_local(browser::talk(browser)),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Asks,
    Talks,
}

fn users(setting: &Setting, cookies: &Cookies, stage: &Rc<Stage>) -> Result<Vec<(Kind, Browser)>> {
    let target = Target::new(setting.gateway)?;
    let own = || Wire::http1(&target);
    let shared = (0..HTTP2.0).flat_map(|_| Wire::http2(&target, HTTP2.1));
    let asking = std::iter::repeat_with(own).take(HTTP1).chain(shared);
    let asking = asking.map(|wire| (Kind::Asks, wire));
    let talking = std::iter::repeat_with(own).take(SOCKETS).map(|wire| (Kind::Talks, wire));
    let users = asking.chain(talking).zip(cookies.each()).zip(1..);
    Ok(users
        .map(|(((kind, wire), (subject, cookie)), seed)| {
            let browser = Browser {
                stage: stage.clone(),
                subject,
                cookie,
                wire,
                dice: Dice::new(seed),
                way: Way::Plain,
                counted: (0, 0),
            };
            (kind, browser)
        })
        .collect())
}

/// Kills one of the apps now and then, and starts it again a moment later; the one that runs then, and
/// how many times.
async fn outages(setting: Setting, stage: Rc<Stage>, which: usize) -> Result<(Process, u32)> {
    let program = std::env::current_exe()?;
    let name = if which == 0 { "app" } else { "other" };
    let address = if which == 0 { setting.app } else { setting.other };
    let start = || setting.start_app(name, &program, address);
    let outage = stage.outages.get(which).context("there are two apps")?;
    let mut app = start()?;
    let mut dice = Dice::new(which as u64);
    let mut outages = 0;
    while !waited(Duration::from_secs(10 + dice.below(15)), &stage).await {
        outage.set(outage.get() + 1);
        drop(app);
        sleep(Duration::from_millis(dice.below(1500))).await;
        app = start()?;
        outage.set(outage.get() + 1);
        outages += 1;
    }
    Ok((app, outages))
}

/// Changes the gateway's file every few seconds and has it read; how many times.
async fn reloads(setting: Setting, stage: Rc<Stage>, gateway: u32) -> Result<u32> {
    let mut dice = Dice::new(u64::MAX);
    let mut reloads = 0;
    while !waited(Duration::from_millis(2000 + dice.below(3000)), &stage).await {
        reloads += 1;
        setting.write_file(reloads)?;
        let hang_up = ["-c", "kill -HUP \"$0\"", &gateway.to_string()];
        let status = std::process::Command::new("sh").args(hang_up).status()?;
        ensure!(status.success(), "the gateway is gone");
    }
    Ok(reloads)
}

/// Waits; whether all is over meanwhile.
async fn waited(time: Duration, stage: &Stage) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < time && !stage.over.get() {
        sleep(Duration::from_millis(50)).await;
    }
    stage.over.get()
}

/// Where everything is.
#[derive(Clone)]
struct Setting {
    directory: PathBuf,
    cores: String,
    gateway: SocketAddr,
    admin: SocketAddr,
    app: SocketAddr,
    /// One that does the same.
    other: SocketAddr,
    issuer: SocketAddr,
}

impl Setting {
    fn new(options: &Options) -> Result<Self> {
        let directory = &options.directory;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        certify(&directory)?;
        fs::write(directory.join("secret"), SECRET)?;
        let [gateway, admin, app] = [free_address()?, free_address()?, free_address()?];
        let [other, issuer] = [free_address()?, free_address()?];
        let cores = options.cores.clone();
        let setting = Self { directory, cores, gateway, admin, app, other, issuer };
        setting.write_file(0)?;
        Ok(setting)
    }

    /// The gateway's file; a little different each time, but never with many routes that are new: the
    /// numbers of every route that there ever was are kept.
    fn write_file(&self, time: u32) -> Result<()> {
        let text = include_str!("../conf/gateway.toml")
            .replace("@LISTEN@", &self.gateway.to_string())
            .replace("@ADMIN@", &self.admin.to_string())
            .replace("@AUTHORITY@", &format!("localhost:{}", self.gateway.port()))
            .replace("@ISSUER@", &format!("http://{}/", self.issuer))
            .replace("@REDIS@", "")
            .replace("workers = 1", "workers = 2")
            .replace("@ORIGIN@", &self.app.to_string());
        let (turn, app, other) = (time % 4, self.app, self.other);
        let tls = |protocol: &str| {
            format!(
                "{{ url = 'https://{app}', protocol = '{protocol}', ca = 'certificate.pem', \
                 server_name = 'localhost' }}"
            )
        };
        let routes = [
            (format!("/time/{turn}"), format!("'http://{app}'")),
            ("/h2c".to_owned(), format!("{{ url = 'http://{app}', protocol = 'http2' }}")),
            ("/tls".to_owned(), tls("http1")),
            ("/h2".to_owned(), tls("auto")),
            ("/two".to_owned(), format!("['http://{app}', 'http://{other}']")),
        ];
        let route = |(path, upstream): (String, String)| {
            format!("\n[[route]]\npath = '{path}'\nupstream = {upstream}\n")
        };
        let more: String = routes.map(route).concat();
        // Never half a file.
        let new = self.directory.join("vestibule.toml.new");
        fs::write(&new, text + &more)?;
        Ok(fs::rename(new, self.directory.join("vestibule.toml"))?)
    }

    fn start(
        &self,
        name: &'static str,
        program: &Path,
        command: &str,
        address: SocketAddr,
    ) -> Result<Process> {
        let arguments = [command, &address.to_string()];
        Process::start(name, &self.cores, program, &arguments, &self.directory)?
            .listening(address, &self.directory)
    }

    fn start_app(
        &self,
        name: &'static str,
        program: &Path,
        address: SocketAddr,
    ) -> Result<Process> {
        let directory = self.directory.display().to_string();
        let arguments = ["soak-app", &address.to_string(), &directory];
        Process::start(name, &self.cores, program, &arguments, &self.directory)?
            .listening(address, &self.directory)
    }

    fn start_gateway(&self, program: &Path) -> Result<Process> {
        let file = self.directory.join("vestibule.toml").display().to_string();
        let arguments = ["serve", "-c", &file];
        Process::start("vestibule", &self.cores, program, &arguments, &self.directory)?
            .listening(self.gateway, &self.directory)
    }
}

fn report(tally: &Tally, memory: &[u64], (outages, reloads): (u32, u32)) -> Result<()> {
    let mebibytes = |bytes: &u64| format!("{}", bytes / (1024 * 1024));
    let memory_line = memory.iter().map(mebibytes).collect::<Vec<_>>().join(" ");
    write!(
        std::io::stdout(),
        "| | |\n|---|--:|\n{tally}| failures | {} |\n| an app was killed and started | {outages} |\n\
         | the gateway's file was changed and read | {reloads} |\n\n\
         Resident memory of the gateway in MiB, at the start and after every minute: {memory_line}\n",
        tally.failures(),
    )?;
    ensure!(tally.failures() == 0, "{} failures", tally.failures());
    ensure!(tally.of("right: downloads") > 0, "nothing was asked");
    // By then everything there is has been brought up.
    if let ([_, _, settled, ..], Some(last)) = (memory, memory.last()) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let bound = (settled + SLACK) as f64 * GROWTH;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let last = *last as f64;
        ensure!(last <= bound, "the gateway's memory grows");
    }
    Ok(())
}
