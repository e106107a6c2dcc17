//! Interim responses over HTTP/1.1 (RFC 9110, section 15.2). hyper sends none but its own `100`; so
//! they are written by the stream below it, between two of its messages. Which there are, and what
//! is in them, is not known here.
//!
//! hyper flushes its stream whenever it has written all that it has to write, and writes nothing of
//! a response before its service has given it: where nothing was written since the last flush, and
//! a request waits for its response, is a place between two messages.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::coalesce::write_out;
use crate::lock::lock;

/// What is to be said on a connection before the response that its client waits for. It never
/// leaves its worker's thread; there is a lock because hyper wants streams to be `Send`.
pub(super) struct Aside {
    /// Whether all was flushed that was written.
    between: AtomicBool,
    any: AtomicBool,
    /// As it is sent.
    heads: Mutex<BytesMut>,
}

impl Default for Aside {
    fn default() -> Self {
        Self { between: AtomicBool::new(true), any: AtomicBool::default(), heads: Mutex::default() }
    }
}

impl Aside {
    /// Says it before the response. It is called while hyper asks for that, which then writes or
    /// flushes. To a client that has not taken the response before, it is not said: between that
    /// and the one to come there may be no place for it any more.
    pub(super) fn say(&self, status: StatusCode, fields: &HeaderMap) {
        if !self.between.load(Relaxed) {
            return;
        }
        let mut heads = lock(&self.heads);
        let reason = status.canonical_reason().unwrap_or_default();
        let mut add = |pieces: [&[u8]; 4]| pieces.iter().for_each(|it| heads.extend_from_slice(it));
        add([b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes()]);
        for (name, value) in fields {
            add([b"\r\n", name.as_str().as_bytes(), b": ", value.as_bytes()]);
        }
        add([b"\r\n", b"\r\n", b"", b""]);
        self.any.store(true, Relaxed);
    }
}

/// A stream on which more is said than its user says.
pub(super) struct Interim<T> {
    pub(super) inner: T,
    pub(super) aside: Arc<Aside>,
}

impl<T: AsyncWrite + Unpin> Interim<T> {
    /// Writes what is to be said, all of it before anything else.
    fn poll_said(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.aside.any.load(Relaxed) || !self.aside.between.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut heads = lock(&self.aside.heads);
        ready!(write_out(&mut self.inner, &mut heads, context))?;
        self.aside.any.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Interim<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Interim<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_said(context))?;
        self.aside.between.store(false, Relaxed);
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_said(context))?;
        self.aside.between.store(false, Relaxed);
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.aside.between.store(true, Relaxed);
        ready!(self.poll_said(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_said(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn fields() -> HeaderMap {
        let link = http::HeaderValue::from_static("</a>");
        [(http::header::LINK, link)].into_iter().collect()
    }

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    #[tokio::test]
    async fn it_is_written_between_two_messages_and_never_within_one() {
        let (near, mut far) = tokio::io::duplex(4096);
        let aside = Arc::<Aside>::default();
        let mut near = Interim { inner: near, aside: aside.clone() };
        let say = || aside.say(StatusCode::EARLY_HINTS, &fields());
        // Before a message that was not begun, and at a flush.
        say();
        near.write_all(b"one ").await.unwrap();
        near.flush().await.unwrap();
        say();
        say();
        near.flush().await.unwrap();
        // Within one it is not said at all.
        near.write_all(b"two ").await.unwrap();
        say();
        near.write_all(b"two ").await.unwrap();
        near.flush().await.unwrap();
        near.write_all(b"three").await.unwrap();
        near.shutdown().await.unwrap();
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, format!("{HINT}one {HINT}{HINT}two two three"));
    }

    #[tokio::test]
    async fn what_a_slow_client_has_half_of_is_sent_whole_before_anything_else() {
        let (near, mut far) = tokio::io::duplex(7);
        let aside = Arc::<Aside>::default();
        let mut near = Interim { inner: near, aside: aside.clone() };
        aside.say(StatusCode::EARLY_HINTS, &fields());
        let flushed = tokio::time::timeout(std::time::Duration::ZERO, near.flush()).await;
        assert!(flushed.is_err(), "seven bytes hold no hint");
        aside.say(StatusCode::EARLY_HINTS, &fields());
        let writing = tokio::spawn(async move {
            near.write_all(b"the answer").await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        writing.await.unwrap();
        assert_eq!(all, format!("{HINT}{HINT}the answer"));
    }
}
