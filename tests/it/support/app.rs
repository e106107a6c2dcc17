//! A scripted app: a small HTTP/1.1 server that remembers every request to the letter and answers
//! by a closure, or leaves the connection to the test altogether.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::authority::authority;
pub(crate) use super::peer::{Peer, Seen};
use super::until;
use super::wire::Stream;

/// A scripted app. It ends with its value.
pub(crate) struct App {
    /// For `route.upstream`.
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    said: Arc<Mutex<Reply>>,
    _task: Task,
}

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Serve = Box<dyn Fn(Peer) -> Later<()> + Send + Sync>;

impl App {
    /// Answers each request by `answer`.
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let (url, listener) = tcp("http", "127.0.0.1").await;
        Self::serve(url, Listener::Tcp(listener), answering(at_once(answer)))
    }

    /// Answers each request by `answer`, when that is ready.
    pub(crate) async fn start_later<F>(answer: impl Fn(Seen) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let (url, listener) = tcp("http", "127.0.0.1").await;
        Self::serve(url, Listener::Tcp(listener), answering(answer))
    }

    /// The same on a port of loopback that another app has just left.
    pub(crate) async fn start_on(
        port: u16,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener =
            until("the port is free", async || TcpListener::bind(("127.0.0.1", port)).await.ok())
                .await;
        let url = format!("http://127.0.0.1:{port}");
        Self::serve(url, Listener::Tcp(listener), answering(at_once(answer)))
    }

    /// Says "hello", until it is told what to [`App::say`].
    pub(crate) async fn plain() -> Self {
        let said = Arc::new(Mutex::new(Reply::new(200).body("hello")));
        let shared = said.clone();
        let app = Self::start(move |_| shared.lock().unwrap().clone()).await;
        Self { said, ..app }
    }

    /// What a plain app answers from now on.
    pub(crate) fn say(&self, reply: Reply) {
        *self.said.lock().unwrap() = reply;
    }

    /// Leaves each connection to `serve`.
    pub(crate) async fn by_hand<F>(serve: impl Fn(Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (url, listener) = tcp("http", "127.0.0.1").await;
        Self::serve(url, Listener::Tcp(listener), Box::new(move |peer| Box::pin(serve(peer))))
    }

    /// Answers over TLS, as `host`.
    pub(crate) async fn over_tls(
        host: &str,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::over_tls_with(authority().server(host), host, answer).await
    }

    /// Answers over this TLS; its URL has `host`.
    pub(crate) async fn over_tls_with(
        tls: Arc<ServerConfig>,
        host: &str,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (url, listener) = tcp("https", host).await;
        let acceptor = TlsAcceptor::from(tls);
        Self::serve(url, Listener::Tls(listener, acceptor), answering(at_once(answer)))
    }

    /// Answers on a unix socket.
    pub(crate) fn on_socket(
        path: &Path,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = Listener::Unix(UnixListener::bind(path).unwrap());
        Self::serve(format!("unix:{}", path.display()), listener, answering(at_once(answer)))
    }

    fn serve(url: String, listener: Listener, serve: Serve) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (log, count) = (seen.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                if let Some(stream) = listener.accept().await {
                    count.fetch_add(1, Ordering::Relaxed);
                    tasks.spawn(serve(Peer::new(stream, log.clone())));
                }
            }
        });
        Self { url, seen, connections, said: Arc::default(), _task: Task(task) }
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The newest request.
    #[track_caller]
    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("the app got no request")
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Ends with its value.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> Option<Box<dyn Stream>> {
        let (tcp, acceptor) = match self {
            Self::Unix(listener) => return Some(Box::new(listener.accept().await.ok()?.0)),
            Self::Tcp(listener) => (listener, None),
            Self::Tls(listener, acceptor) => (listener, Some(acceptor)),
        };
        let (stream, _) = tcp.accept().await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(match acceptor {
            None => Box::new(stream),
            Some(acceptor) => Box::new(acceptor.accept(stream).await.ok()?),
        })
    }
}

async fn tcp(scheme: &str, host: &str) -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port()), listener)
}

fn at_once(
    answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> impl Fn(Seen) -> std::future::Ready<Reply> + Send + Sync + 'static {
    move |seen| std::future::ready(answer(&seen))
}

fn answering<F>(answer: impl Fn(Seen) -> F + Send + Sync + 'static) -> Serve
where
    F: Future<Output = Reply> + Send + 'static,
{
    let answer = Arc::new(answer);
    Box::new(move |mut peer| {
        let answer = answer.clone();
        Box::pin(async move {
            while let Some(seen) = peer.request().await {
                let head = seen.method == "HEAD";
                let reply = answer(seen).await;
                if peer.write(reply.encode(head)).await.is_err() || reply.closes {
                    return;
                }
            }
        })
    })
}

/// What an app answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    before: Vec<u8>,
    status: u16,
    lines: Vec<u8>,
    body: Vec<u8>,
    trailers: Vec<u8>,
    closes: bool,
}

impl Reply {
    /// Of this status, with nothing in it.
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// These bytes, and then the connection ends.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { before: bytes.into(), closes: true, ..Self::default() }
    }

    /// With one more field line.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        line(&mut self.lines, name, value.as_ref());
        self
    }

    /// With an `X-Session-Update`.
    pub(crate) fn update(self, update: impl AsRef<[u8]>) -> Self {
        self.header("X-Session-Update", update)
    }

    /// With this body.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more trailer.
    pub(crate) fn trailer(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        line(&mut self.trailers, name, value.as_ref());
        self
    }

    /// After an interim response of these bytes.
    pub(crate) fn after(mut self, interim: &str) -> Self {
        self.before.extend(interim.as_bytes());
        self
    }

    fn encode(&self, head_only: bool) -> Vec<u8> {
        let mut bytes = self.before.clone();
        if self.status == 0 {
            return bytes;
        }
        bytes.extend(format!("HTTP/1.1 {} Whatever\r\n", self.status).as_bytes());
        bytes.extend(&self.lines);
        let chunked = !self.trailers.is_empty();
        if chunked {
            line(&mut bytes, "Transfer-Encoding", b"chunked");
        } else if !matches!(self.status, 100..=199 | 204 | 304) {
            line(&mut bytes, "Content-Length", self.body.len().to_string().as_bytes());
        }
        bytes.extend(b"\r\n");
        if head_only {
            return bytes;
        }
        if chunked {
            if !self.body.is_empty() {
                bytes.extend(format!("{:x}\r\n", self.body.len()).as_bytes());
                bytes.extend(&self.body);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n");
            bytes.extend(&self.trailers);
            bytes.extend(b"\r\n");
        } else {
            bytes.extend(&self.body);
        }
        bytes
    }
}

fn line(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend(name.as_bytes());
    bytes.extend(b": ");
    bytes.extend(value);
    bytes.extend(b"\r\n");
}
