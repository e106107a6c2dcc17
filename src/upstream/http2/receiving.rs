//! A response's body as it comes in: the upstream may send more as soon as a piece is passed on and
//! no earlier. Its end frees the stream; dropped before, it tells the upstream to stop.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::Frame;

use super::connection::Seat;
use super::upload::Upload;
use crate::body::{Body, BodyError};

/// A response's body. It does not tell its length: it may end with trailers all the same.
pub(super) struct Receiving {
    stream: RecvStream,
    /// What is under way until the end.
    exchange: Option<(Option<Upload>, Seat)>,
    ended: bool,
}

impl Receiving {
    /// Begins to receive; nothing if there is nothing.
    pub(super) fn begin(stream: RecvStream, upload: Option<Upload>, seat: Seat) -> Body {
        if stream.is_end_stream() {
            return Body::Empty;
        }
        Body::stream(Self { stream, exchange: Some((upload, seat)), ended: false })
    }

    fn end(&mut self) {
        self.ended = true;
        self.exchange = None;
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut data = ready!(self.stream.poll_data(context));
        // Most upstreams end with a frame that holds nothing but the end. Handed on as data, the
        // browser would get one more, and may take a hundred of them for an attack.
        while data.as_ref().is_some_and(|data| data.as_ref().is_ok_and(Bytes::is_empty)) {
            data = ready!(self.stream.poll_data(context));
        }
        let frame = match data {
            Some(Ok(bytes)) => {
                let released = self.stream.flow_control().release_capacity(bytes.len());
                released.map(|()| Some(Frame::data(bytes)))
            }
            Some(Err(error)) => Err(error),
            None => {
                let trailers = ready!(self.stream.poll_trailers(context));
                trailers.map(|trailers| trailers.map(Frame::trailers))
            }
        };
        if !matches!(&frame, Ok(Some(frame)) if frame.is_data()) {
            self.end();
        }
        Poll::Ready(frame.map_err(Into::into).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
