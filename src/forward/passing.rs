//! A request's body as it passes: every byte as it came, within its limits, but for trailers, from
//! which the gateway's own names are taken.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::Whole;
use super::headers::Reserved;
use super::lasting::Broken;
use crate::body::{Body, BodyError, Incoming};
use crate::room::Rooms;

mod pace;

use pace::Pace;

/// What a request's body may be.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    /// The most of it.
    pub(super) bytes: Option<u64>,
    /// The longest time between two pieces.
    pub(super) time: Duration,
    /// Where room is scarce, it must come faster.
    pub(super) rooms: &'a Rc<Rooms>,
}

/// A request's body; `whole` is told of its end. SECURITY: a client's trailers must not say what
/// its header fields may not (CVE-2026-88004).
///
/// # Errors
/// It says itself that it is too large.
pub(super) fn to_app(
    body: Incoming,
    reserved: &Rc<Reserved>,
    whole: &Whole,
    bounds: Bounds<'_>,
) -> Result<Body, Broken> {
    if body.is_end_stream() {
        return Ok(Body::Empty);
    }
    let left = bounds.bytes.unwrap_or(u64::MAX);
    if body.size_hint().lower() > left {
        return Err(Broken::Large);
    }
    let pace = Pace::new(bounds.time, bounds.rooms.clone());
    let (reserved, whole) = (reserved.clone(), whole.clone());
    Ok(Body::stream(Passing { body, reserved, whole, left, pace }))
}

struct Passing {
    body: Incoming,
    reserved: Rc<Reserved>,
    whole: Whole,
    /// How much more may come.
    left: u64,
    pace: Pace,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Passing {
    fn breaks_off(&self, why: Broken) -> Polled {
        self.whole.break_off(why);
        Poll::Ready(Some(Err(why.into())))
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        let Poll::Ready(mut frame) = Pin::new(&mut this.body).poll_frame(context) else {
            ready!(this.pace.poll_late(context, !this.whole.is_answered()));
            return this.breaks_off(Broken::Late);
        };
        match &mut frame {
            None => this.whole.set(),
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(left) = this.left.checked_sub(length) else {
                    return this.breaks_off(Broken::Large);
                };
                this.left = left;
                this.pace.came(length);
                if let Some(trailers) = frame.trailers_mut() {
                    this.reserved.strip(trailers);
                    this.whole.set();
                } else if this.body.is_end_stream() {
                    this.whole.set();
                }
            }
            Some(Err(_)) => this.whole.break_off(Broken::Off),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
