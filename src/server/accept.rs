//! Taking connections, as many as are allowed at once: the next one waits for a permit, in the
//! kernel's queue but for the one in hand.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// After a failed accept: out of file descriptors mostly, and some come free in time.
const PAUSE: Duration = Duration::from_millis(100);

/// Hands every connection to `serve`, with its permit and the address of its other end.
pub(super) async fn accept(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    serve: impl Fn(TcpStream, IpAddr, OwnedSemaphorePermit),
) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // The semaphore is never closed.
                let Ok(permit) = permits.clone().acquire_owned().await else { continue };
                // The head and the first bytes of a response must not wait for each other's
                // acknowledgement. On a connection that is gone already it does not matter.
                let _ = stream.set_nodelay(true);
                serve(stream, peer.ip().to_canonical(), permit);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
