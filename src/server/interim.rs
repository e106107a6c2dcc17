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

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
        while !heads.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &heads))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            heads.advance(written);
        }
        // An idle connection holds no buffer.
        *heads = BytesMut::new();
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
