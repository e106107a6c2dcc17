//! Fewer, larger writes for HTTP/2: hyper flushes after every response, which on TLS is a record
//! and a system call each. What is written is collected, and the flush waits for one more turn of
//! the runtime, in which the other streams of the connection add what they have.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One TLS record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;

/// A stream whose writes are collected.
pub(super) struct Coalesce<T> {
    inner: T,
    collected: BytesMut,
    waited: bool,
}

impl<T: AsyncWrite + Unpin> Coalesce<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, collected: BytesMut::new(), waited: false }
    }

    fn write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        write_out(&mut self.inner, &mut self.collected, context)
    }

    /// Makes room for `more` bytes; ready once there is.
    fn make_room(&mut self, more: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.collected.is_empty() && self.collected.len() + more > RECORD {
            ready!(self.write_out(context))?;
        }
        if self.collected.is_empty() && more < RECORD {
            // At once: growing to it would copy everything several times.
            self.collected.reserve(RECORD);
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes all of `bytes`, and lets go of their buffer: an idle connection holds none.
pub(super) fn write_out(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(context, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.advance(written);
    }
    *bytes = BytesMut::new();
    Poll::Ready(Ok(()))
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesce<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesce<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.make_room(bytes.len(), context))?;
        if bytes.len() >= RECORD {
            return Pin::new(&mut self.inner).poll_write(context, bytes);
        }
        self.collected.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.make_room(total, context))?;
        if total >= RECORD {
            return Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        }
        for slice in slices {
            self.collected.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.collected.is_empty() {
            if !self.waited {
                self.waited = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.write_out(context))?;
        }
        self.waited = false;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_written_before_a_flush_arrives_as_one() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut near = Coalesce::new(near);
        for piece in [&b"one "[..], b"two ", b"three"] {
            near.write_all(piece).await.unwrap();
        }
        let mut got = [0; 64];
        let early = tokio::time::timeout(std::time::Duration::ZERO, far.read(&mut got)).await;
        assert!(early.is_err(), "written before the flush");
        near.flush().await.unwrap();
        let length = far.read(&mut got).await.unwrap();
        assert_eq!(&got[..length], b"one two three");
        assert_eq!(near.collected.capacity(), 0);
    }

    #[tokio::test]
    async fn large_writes_pass_and_nothing_is_lost_or_reordered() {
        let (near, mut far) = tokio::io::duplex(1024);
        let sizes = [1, 16_383, 16_384, 40_000, 7, 9_000, 9_000];
        let sender = tokio::spawn(async move {
            let mut near = Coalesce::new(near);
            for (at, size) in (0_u8..).zip(sizes) {
                near.write_all(&vec![at; size]).await.unwrap();
            }
            near.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        sender.await.unwrap();
        let expected: Vec<u8> = (0_u8..).zip(sizes).flat_map(|(at, size)| vec![at; size]).collect();
        assert!(got == expected);
    }
}
