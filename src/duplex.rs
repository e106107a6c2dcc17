//! A stream of HTTP/2 as a connection of its own, to a browser or to an app (RFC 8441, section 5):
//! bytes both ways, each as fast as who reads them takes them (RFC 9113, section 5.2), and an end in
//! either direction. Dropped before its end, it is reset. It does not know what is said over it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is written at once, in bytes.
const PIECE: usize = 16 * 1024;

/// A stream that is open in both directions.
pub struct Duplex<H> {
    receiving: RecvStream,
    /// What has come and was not read yet.
    read: Bytes,
    sending: SendStream<Bytes>,
    /// Whether its end was sent.
    ended: bool,
    /// Dropped with it.
    _held: H,
}

impl<H> Duplex<H> {
    /// Of both ends of a stream; `held` is dropped with it.
    pub fn new(receiving: RecvStream, sending: SendStream<Bytes>, held: H) -> Self {
        Self { receiving, read: Bytes::new(), sending, ended: false, _held: held }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl<H: Unpin> AsyncRead for Duplex<H> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.receiving.poll_data(context)) {
                Some(bytes) => this.read = bytes.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.read.len().min(buffer.remaining());
        buffer.put_slice(this.read.get(..length).unwrap_or_default());
        this.read.advance(length);
        // It fails where the stream has ended: no more is to come.
        let _ = this.receiving.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl<H: Unpin> AsyncWrite for Duplex<H> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.sending.reserve_capacity(bytes.len().min(PIECE));
        while this.sending.capacity() == 0 {
            match ready!(this.sending.poll_capacity(context)) {
                Some(room) => room.map(drop).map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = bytes.len().min(PIECE).min(this.sending.capacity());
        let piece = Bytes::copy_from_slice(bytes.get(..length).unwrap_or(bytes));
        Poll::Ready(this.sending.send_data(piece, false).map(|()| length).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// RFC 8441, section 5: `END_STREAM` is the end of what is sent.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(this.sending.send_data(Bytes::new(), true).map_err(broken))
    }
}
