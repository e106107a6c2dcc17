//! Noticing that the other end of a TCP connection has vanished without a word: a machine that lost
//! its power, a network that was cut. What is said over the connection is others' business.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// The other end is silent for so long, and is asked whether it is still there.
pub const ASK_AFTER: Duration = Duration::from_secs(60);
/// And again, so often.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// The least time that the other end may take to acknowledge what it is sent.
const GONE: Duration = Duration::from_secs(120);

/// A connection over this socket, or one accepted from it, ends when its other end has gone: one over
/// which nothing need be said, like that of an open WebSocket, would else stay for ever. Whoever
/// acknowledges nothing has gone after two minutes, or after `patience` if that is longer: so long an
/// end that is there may not read.
///
/// # Errors
/// When the kernel does not take the options.
pub fn notice_who_is_gone<'s>(
    socket: impl Into<SockRef<'s>>,
    patience: Duration,
) -> io::Result<()> {
    let socket = socket.into();
    let asking = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY);
    socket.set_tcp_keepalive(&asking)?;
    socket.set_tcp_user_timeout(Some(GONE.max(patience)))
}
