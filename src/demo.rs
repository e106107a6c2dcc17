//! `vestibule demo`: everything that the gateway needs around it, on loopback: a provider, an app
//! that knows only headers, a certificate. The gateway itself runs as it always does, on the file
//! it is given, and does not know that its company is made up.
//!
//! | file | what |
//! |---|---|
//! | `setting` | what the file says, and whether it is fit for a demo |
//! | `identity_provider` | who signs users in |
//! | `legacy_app` | what they sign in for |
//! | `certificate` | what the browser warns about |
//! | `banner` | what to do now |
//! | `web` | the small HTTP server of the first two |

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

mod banner;
pub mod certificate;
pub mod identity_provider;
mod legacy_app;
mod setting;
mod web;

use crate::clock::Timestamp;
use crate::config::diagnostic::Diagnostics;
use crate::observe;
use crate::server::{self, StartError};
use certificate::CertificateError;
use identity_provider::{IdentityProvider, KeyError, SigningKey, User};
use setting::{Environment, Setting};

/// Why there is no demo.
#[derive(Debug, Error)]
pub enum DemoError {
    /// There is no certificate, and none can be made.
    #[error("server.certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] Diagnostics),
    /// The file names an address that others can reach, or that is not this machine's.
    #[error(
        "{key}: {value} is not on loopback, and the demo, which asks for no password, stays there: \
         write 127.0.0.1, ::1 or localhost, or serve this file without the demo"
    )]
    NotLoopback {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
    },
    /// The file is right, but the demo cannot play its part.
    #[error("{key}: {problem}")]
    Unfit {
        /// The key.
        key: &'static str,
        /// What the demo cannot do, and what to write.
        problem: &'static str,
    },
    /// An address is taken.
    #[error("{key}: cannot listen on {address}: {source}")]
    Listen {
        /// The key that names it.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The provider has no key to sign with.
    #[error("the demo's provider: {0}")]
    Key(#[from] KeyError),
    /// No thread or no runtime.
    #[error("the system refused what the demo needs: {0}")]
    System(#[from] io::Error),
    /// The gateway did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Runs the demo on the file at `config`, until SIGTERM or SIGINT. `listen`, on loopback, takes the
/// place of `server.https`; port 0 becomes one that is free. Variables that the file names and the
/// process does not have get a random value.
///
/// # Errors
/// Only before anything is served. What was made by then stays, but for a certificate beside a file
/// that is not fit for the demo.
pub fn run(config: &Path, listen: Option<SocketAddr>) -> Result<(), DemoError> {
    let environment = Environment::new(|name| std::env::var(name).ok());
    let setting = Setting::read(config, listen, &environment, Timestamp::now())?;
    for warning in &setting.warnings {
        let _ = write!(io::stderr(), "{warning}");
    }
    observe::log::start(&setting.config.log);
    let company = Company::start(&setting)?;
    let served = server::serve(setting.config.clone(), None, |addresses| {
        // Who closed the pipe wants no word.
        let _ = banner::print(&setting, addresses, &mut io::stdout().lock());
    });
    company.leave();
    Ok(served?)
}

/// The provider and the app, on a thread of their own.
struct Company {
    leave: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Company {
    /// Both answer when this returns: connections wait in the sockets until the thread is there.
    fn start(setting: &Setting) -> Result<Self, DemoError> {
        let provider_socket = listen("provider.issuer", setting.provider)?;
        let app_socket = listen("route.upstream", setting.app)?;
        let key = SigningKey::generate()?;
        let provider = IdentityProvider::new(setting.options.clone(), User::samples(), key);
        let provider = Arc::new(provider);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let provider_socket = TcpListener::from_std(provider_socket)?;
        let app_socket = TcpListener::from_std(app_socket)?;
        drop(entered);
        let (leave, left) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = provider.serve(provider_socket) => {}
                    _ = legacy_app::serve(app_socket) => {}
                    _ = left => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("demo".to_owned()).spawn(serve)?;
        Ok(Self { leave, thread })
    }

    fn leave(self) {
        drop(self.leave);
        // A panic was reported already.
        let _ = self.thread.join();
    }
}

fn listen(key: &'static str, address: SocketAddr) -> Result<StdListener, DemoError> {
    let open = || {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|source| DemoError::Listen { key, address, source })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpStream;

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn the_provider_and_the_app_answer_where_the_file_says_until_they_leave() {
        let setting = setting::tests::example();
        let company = Company::start(&setting).unwrap();
        let discovery = get(setting.provider, "/.well-known/openid-configuration");
        assert!(discovery.contains(&format!("\"issuer\":\"{}\"", setting.config.provider.issuer)));
        assert!(get(setting.app, "/public").contains("id=\"public\""));
        let error = Company::start(&setting).err().unwrap().to_string();
        assert!(error.starts_with("provider.issuer: cannot listen on 127.0.0.1:"), "{error}");
        company.leave();
        assert!(TcpStream::connect(setting.app).is_err());
    }
}
