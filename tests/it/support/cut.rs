//! A wire that can be cut: stands between a client and a server on loopback, and on command keeps
//! the server's answer from coming back. It does not know what is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The wire. It ends with its value.
pub(crate) struct Cut {
    /// Where clients connect.
    pub(crate) port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    swallows: AtomicBool,
    mute: AtomicBool,
    swallowed: Notify,
    cut: Notify,
}

impl Cut {
    /// Before the server on this port.
    pub(crate) async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<State>::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server));
                tokio::spawn(pass_or_swallow(from_server, to_client, shared.clone()));
            }
        });
        Self { port, state, task }
    }

    /// The next answer does not come through; the connection it should come on stays open.
    pub(crate) fn swallow(&self) {
        self.state.swallows.store(true, Ordering::SeqCst);
    }

    /// Nothing that the server says comes through any more; the connections stay open.
    pub(crate) fn mute(&self) {
        self.state.mute.store(true, Ordering::SeqCst);
    }

    /// Waits until the server has answered, in vain.
    pub(crate) async fn swallowed(&self) {
        self.state.swallowed.notified().await;
    }

    /// Cuts the connection whose answer was swallowed.
    pub(crate) fn cut(&self) {
        self.state.cut.notify_one();
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn pass_or_swallow(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Arc<State>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if state.swallows.swap(false, Ordering::SeqCst) {
            state.swallowed.notify_one();
            return state.cut.notified().await;
        }
        if state.mute.load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
