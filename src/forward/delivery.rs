//! A response's body on its way to the browser: every byte as it came. What its trailers ask of the
//! session is committed before its end is passed on, its session's end is its own, and what the
//! browser does not wait for is read for the sake of its trailers, if it is short.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::lasting::Orphans;
use super::live::{SessionOver, Tie};
use super::{Later, headers, take_update};
use crate::body::{Body, BodyError};
use crate::config::value::Keys;

/// The most that is read of a body whose browser has gone.
const REST_BYTES: usize = 1024 * 1024;
/// The longest that it is read.
const REST_TIME: Duration = Duration::from_secs(10);

/// A body on its way.
pub(super) struct Delivery {
    pub(super) body: Body,
    /// Where it may not outlive a session.
    pub(super) tie: Option<Tie>,
    /// Where it may end with trailers.
    pub(super) trailers: Option<Trailers>,
    /// The commit under way, and the trailers that follow it.
    pub(super) committing: Option<(Commit, HeaderMap)>,
    pub(super) orphans: Rc<Orphans>,
}

type Commit = Pin<Box<dyn Future<Output = ()>>>;
type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// What is done with trailers.
pub(super) struct Trailers {
    /// The keys that an update may change.
    pub(super) allowed: Keys,
    pub(super) later: Later,
    /// Whether they are waited for when the browser has gone.
    pub(super) outlast: bool,
}

impl Delivery {
    /// The end of the body, whose last frame these trailers are.
    fn finish(&mut self, mut fields: HeaderMap, context: &mut Context<'_>) -> Polled {
        // Nothing but its end can follow: seen, it frees the upstream's connection.
        let _ = Pin::new(&mut self.body).poll_frame(context);
        if let Some(Trailers { allowed, later, .. }) = self.trailers.take()
            && let Some(update) = take_update(&fields, &allowed)
        {
            headers::strip_updates(&mut fields);
            self.committing = Some((later(update), fields));
            return self.commit(context);
        }
        headers::strip_updates(&mut fields);
        Poll::Ready(last(fields))
    }

    /// A request that is sent after the end of this response sees the update.
    fn commit(&mut self, context: &mut Context<'_>) -> Polled {
        if let Some((commit, _)) = &mut self.committing {
            ready!(commit.as_mut().poll(context));
        }
        Poll::Ready(self.committing.take().and_then(|(_, fields)| last(fields)))
    }

    /// Reads to the end, within limits.
    async fn read_rest(mut self) {
        let reading = async {
            let mut left = REST_BYTES;
            let mut next = async || {
                std::future::poll_fn(|context| Pin::new(&mut self).poll_frame(context)).await
            };
            while let Some(Ok(frame)) = next().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(length) else { return };
                left = rest;
            }
        };
        let _ = tokio::time::timeout(REST_TIME, reading).await;
    }
}

/// Trailers, if there are any.
fn last(fields: HeaderMap) -> Option<Result<Frame<Bytes>, BodyError>> {
    (!fields.is_empty()).then(|| Ok(Frame::trailers(fields)))
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        if this.committing.is_some() {
            return this.commit(context);
        }
        if this.tie.as_ref().is_some_and(Tie::is_over) {
            return Poll::Ready(Some(Err(SessionOver.into())));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let Some(tie) = &mut this.tie else { return Poll::Pending };
            return tie.poll_over(context).map(|()| Some(Err(SessionOver.into())));
        };
        match frame.map(|frame| frame.map(Frame::into_trailers)) {
            Some(Ok(Err(frame))) => {
                if let Some(tie) = &mut this.tie {
                    tie.pass(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Ok(Ok(fields))) => this.finish(fields, context),
            Some(Err(error)) => {
                this.trailers = None;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.trailers = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.committing.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Delivery {
    /// The browser has gone, or has everything.
    fn drop(&mut self) {
        if let Some((commit, _)) = self.committing.take() {
            self.orphans.adopt(commit);
        } else if let Some(mut trailers) = self.trailers.take()
            && trailers.outlast
            && !self.body.is_end_stream()
            && !self.tie.as_ref().is_some_and(Tie::is_over)
        {
            trailers.outlast = false;
            let rest = Self {
                body: std::mem::take(&mut self.body),
                tie: None,
                trailers: Some(trailers),
                committing: None,
                orphans: self.orphans.clone(),
            };
            self.orphans.adopt(rest.read_rest());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use http::HeaderValue;
    use tokio::task::LocalSet;

    use super::super::live::Live;
    use super::super::live::tests::signed_in;
    use super::*;
    use crate::clock::Timestamp;
    use crate::session::{Change, Visit};

    /// What an app sends, piece by piece, a second apart.
    struct Slow {
        pieces: VecDeque<Frame<Bytes>>,
        ends: bool,
        waiting: Pin<Box<tokio::time::Sleep>>,
    }

    fn second() -> Pin<Box<tokio::time::Sleep>> {
        Box::pin(tokio::time::sleep(Duration::from_secs(1)))
    }

    impl http_body::Body for Slow {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
            ready!(self.waiting.as_mut().poll(context));
            self.waiting = second();
            match self.pieces.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(piece))),
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn body(pieces: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
        Body::stream(Slow { ends: true, ..slow(pieces) })
    }

    /// Stays open after its pieces.
    fn slow(pieces: impl IntoIterator<Item = Frame<Bytes>>) -> Slow {
        Slow { pieces: pieces.into_iter().collect(), ends: false, waiting: second() }
    }

    fn data(length: usize) -> Frame<Bytes> {
        Frame::data(vec![b'x'; length].into())
    }

    fn trailers(fields: &[(&'static str, &'static str)]) -> Frame<Bytes> {
        let fields = fields.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        Frame::trailers(fields.collect())
    }

    const UPDATE: (&str, &str) = ("x-session-update", "{\"a\":1}");

    /// A delivery to a signed-in user's browser, and what was committed; a commit takes a while.
    fn delivery(body: Body, outlast: bool) -> (Delivery, Rc<RefCell<Vec<bool>>>) {
        let committed = Rc::<RefCell<Vec<bool>>>::default();
        let log = committed.clone();
        let later: Later = Box::new(move |update| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                log.borrow_mut().push(update.is_ok());
            })
        });
        let trailers = Some(Trailers { allowed: Keys::All, later, outlast });
        let orphans = Rc::default();
        (Delivery { body, tie: None, trailers, committing: None, orphans }, committed)
    }

    async fn next(delivery: &mut Delivery) -> Option<Result<Frame<Bytes>, BodyError>> {
        std::future::poll_fn(|context| Pin::new(&mut *delivery).poll_frame(context)).await
    }

    async fn locally(test: impl Future<Output = ()>) {
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_in_a_trailer_is_committed_before_the_end_is_passed_on() {
        locally(async {
            let fields = [("digest", "d"), UPDATE, ("x_session_update", "{}")];
            let (mut delivery, committed) = delivery(body([data(3), trailers(&fields)]), true);
            assert!(next(&mut delivery).await.unwrap().unwrap().is_data());
            assert!(committed.borrow().is_empty());
            let last = next(&mut delivery).await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(last.keys().collect::<Vec<_>>(), ["digest"]);
            assert_eq!(*committed.borrow(), [true]);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_without_anything_for_the_browser_are_no_trailers() {
        locally(async {
            for update in ["{\"a\":1}", "{"] {
                let end = trailers(&[("x-session-update", update)]);
                let (mut delivery, committed) = delivery(body([end]), true);
                assert!(next(&mut delivery).await.is_none());
                assert_eq!(*committed.borrow(), [update != "{"]);
            }
            let end = trailers(&[("x_session_update", "{}")]);
            let (mut delivery, committed) = delivery(body([end]), true);
            assert!(next(&mut delivery).await.is_none());
            assert!(committed.borrow().is_empty(), "another name is another field");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_leaves_loses_no_update_of_a_short_response() {
        locally(async {
            let pieces = || body([data(1000), data(1000), trailers(&[UPDATE])]);
            let (unread, committed) = delivery(pieces(), true);
            let orphans = unread.orphans.clone();
            drop(unread);
            orphans.gone().await;
            assert_eq!(*committed.borrow(), [true]);

            let (mut left, committed) = delivery(pieces(), true);
            let orphans = left.orphans.clone();
            next(&mut left).await.unwrap().unwrap();
            drop(left);
            orphans.gone().await;
            assert_eq!(*committed.borrow(), [true]);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_leaves_during_the_commit_does_not_undo_it() {
        locally(async {
            let (mut delivery, committed) = delivery(body([trailers(&[UPDATE])]), true);
            let orphans = delivery.orphans.clone();
            let left = tokio::time::timeout(Duration::from_millis(1050), next(&mut delivery)).await;
            assert!(left.is_err() && committed.borrow().is_empty());
            drop(delivery);
            orphans.gone().await;
            assert_eq!(*committed.borrow(), [true]);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_slow_or_endless_is_not_read_for_nobody() {
        locally(async {
            let long = body([data(REST_BYTES), data(1), trailers(&[UPDATE])]);
            let late = body((0..11).map(|_| data(1)).chain([trailers(&[UPDATE])]));
            let endless = || Body::stream(slow([]));
            for (pieces, outlast) in
                [(long, true), (late, true), (endless(), true), (endless(), false)]
            {
                let (delivery, committed) = delivery(pieces, outlast);
                let (orphans, start) = (delivery.orphans.clone(), tokio::time::Instant::now());
                drop(delivery);
                orphans.gone().await;
                assert!(committed.borrow().is_empty());
                let most = if outlast { REST_TIME } else { Duration::ZERO };
                assert!(start.elapsed() <= most + Duration::from_millis(10));
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_waits_breaks_off_within_a_second_of_its_sessions_end() {
        locally(async {
            let (sessions, mut visit) = signed_in().await;
            let live = Live::new(sessions.clone());
            let tied = |visit: &Visit| {
                let tie = Some(Tie::new(&live, visit.opened().unwrap()));
                let orphans = Rc::default();
                let body = Body::stream(slow([data(1), data(1)]));
                Delivery { body, tie, trailers: None, committing: None, orphans }
            };
            let mut delivery = tied(&visit);
            next(&mut delivery).await.unwrap().unwrap();
            next(&mut delivery).await.unwrap().unwrap();
            let waited = tokio::time::timeout(Duration::from_secs(5), next(&mut delivery)).await;
            assert!(waited.is_err(), "the session is alive");
            sessions.commit(&mut visit, Change::End, Timestamp::now()).await.unwrap();
            let cut = tokio::time::timeout(Duration::from_secs(1), next(&mut delivery)).await;
            assert!(cut.unwrap().unwrap().unwrap_err().is::<SessionOver>());
        })
        .await;
    }

    /// What an app sends that is ahead of its browser at every moment.
    struct Flood;

    impl http_body::Body for Flood {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            Poll::Ready(Some(Ok(data(1024))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_never_waits_breaks_off_within_a_second_of_its_sessions_end() {
        locally(async {
            let (sessions, mut visit) = signed_in().await;
            let live = Live::new(sessions.clone());
            let tie = Some(Tie::new(&live, visit.opened().unwrap()));
            let (body, orphans) = (Body::stream(Flood), Rc::default());
            let mut delivery = Delivery { body, tie, trailers: None, committing: None, orphans };
            let mut read = async |pieces: usize| {
                for _ in 0..pieces {
                    next(&mut delivery).await.unwrap()?;
                }
                Ok::<_, BodyError>(())
            };
            read(32).await.unwrap();
            assert!(!live.is_looking(), "nothing is set up for what is short");
            read(33).await.unwrap();
            sessions.commit(&mut visit, Change::End, Timestamp::now()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(read(1).await.unwrap_err().is::<SessionOver>());
        })
        .await;
    }
}
