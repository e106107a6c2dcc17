//! A connection, or a stream of one, that has become something else (RFC 9110, section 15.2.2).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::lock::lock;

/// The upstream's end of it: every byte behind the response's head.
pub struct Switched {
    stream: Box<dyn Duplex>,
    /// What was read with the head.
    early: Bytes,
    /// What lasts as long as the connection does.
    held: Option<Box<dyn Send>>,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// How it travels with its response.
#[derive(Clone)]
struct Parcel(Arc<Mutex<Option<Switched>>>);

impl Switched {
    /// `early` was read already.
    pub(super) fn new(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        early: Bytes,
    ) -> Self {
        Self { stream: Box::new(stream), early, held: None }
    }

    /// Puts it into the response.
    pub(super) fn put<B>(self, response: &mut Response<B>) {
        response.extensions_mut().insert(Parcel(Arc::new(Mutex::new(Some(self)))));
    }

    /// Keeps `guard` as long as the connection that travels with this response.
    pub(super) fn hold<B>(response: &mut Response<B>, guard: impl Send + 'static) {
        if let Some(Parcel(parcel)) = response.extensions().get()
            && let Some(switched) = lock(parcel).as_mut()
        {
            switched.held = Some(Box::new(guard));
        }
    }

    /// Takes it out of a response with status 101; it is there once.
    pub fn take<B>(response: &mut Response<B>) -> Option<Self> {
        let Parcel(parcel) = response.extensions_mut().remove()?;
        lock(&parcel).take()
    }
}

impl AsyncRead for Switched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.early.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let length = this.early.len().min(buffer.remaining());
        buffer.put_slice(&this.early.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
