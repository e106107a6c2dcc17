//! Taking connections, as many as are allowed at once: the next one waits for a permit, in the
//! kernel's queue but for the one in hand. Who was told by the kernel that it is connected is served,
//! also when the gateway stops.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// After a failed accept: out of file descriptors mostly, and some come free in time.
const PAUSE: Duration = Duration::from_millis(100);

/// Hands every connection to `serve`, with its permit and the address of its other end. Ends when the
/// gateway stops, and nobody waits any more.
pub(super) async fn accept(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, IpAddr, OwnedSemaphorePermit),
) {
    let take = async |stream: TcpStream, peer: IpAddr| {
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        // The head and the first bytes of a response must not wait for each other's
        // acknowledgement. On a connection that is gone already it does not matter.
        let _ = stream.set_nodelay(true);
        serve(stream, peer.to_canonical(), permit);
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender lives until every worker has ended.
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer.ip()).await,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Asked directly: the runtime may not have heard of the newest ones.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            take(stream, peer.ip()).await;
        }
    }
}
