//! Exchanges that outlast their client. hyper drops the future of a request whose client has gone;
//! what the app then answers would be lost, and with it the change that it asks of the session. An
//! exchange that lasts goes on as a task of its own instead, as far as its own limits let it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::sync::Notify;

use crate::body::Incoming;
use crate::error::Failure;

/// The most exchanges of one worker that go on without a client.
// SECURITY: a client that asks and goes away again and again (HTTP/2 rapid reset, CVE-2023-44487)
// must not pile up more exchanges than its open streams could.
const MOST: usize = 1000;

/// Whether a request's body has been received whole.
#[derive(Clone, Default)]
pub struct Whole(Option<Rc<Cell<Coming>>>);

/// How far a body has come.
#[derive(Clone, Copy, Default)]
enum Coming {
    #[default]
    Yes,
    /// The same, but its app has answered.
    Answered,
    Whole,
    Broken(Broken),
}

/// Why a request's body ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// It is not framed as its head says, or the client has gone.
    #[error("the request's body is broken")]
    Off,
    /// Nothing of it came for `[server.limits] body_time`, or too little, and others want the room.
    #[error("the request's body does not come")]
    Late,
    /// It is more than `body_bytes`.
    #[error("the request's body is larger than body_bytes")]
    Large,
}

impl Broken {
    /// What its client gets, if it is still there.
    pub(super) fn failure(self) -> Failure {
        let failure = match self {
            Self::Off => Failure::new(
                StatusCode::BAD_REQUEST,
                "bad_body",
                "The body of the request ended before it was complete.",
            ),
            Self::Late => Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "The body of the request did not come in time.",
            ),
            Self::Large => Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The request is larger than what is taken here.",
            ),
        };
        failure.because(self)
    }
}

impl Whole {
    /// Of a body that nobody has read yet.
    pub fn of(body: &Incoming) -> Self {
        Self((!http_body::Body::is_end_stream(body)).then(Rc::default))
    }

    /// Its end has come.
    pub(super) fn set(&self) {
        if let Some(coming) = &self.0 {
            coming.set(Coming::Whole);
        }
    }

    /// Its app has answered, whether all of it has come or not.
    pub(super) fn answered(&self) {
        if let Some(coming) = &self.0
            && matches!(coming.get(), Coming::Yes)
        {
            coming.set(Coming::Answered);
        }
    }

    /// Whether its app has answered before its end.
    pub(super) fn is_answered(&self) -> bool {
        self.0.as_ref().is_some_and(|coming| matches!(coming.get(), Coming::Answered))
    }

    /// It will never come whole.
    pub(super) fn break_off(&self, why: Broken) {
        if let Some(coming) = &self.0 {
            coming.set(Coming::Broken(why));
        }
    }

    /// Why it will not.
    pub(super) fn broken(&self) -> Option<Broken> {
        match self.0.as_ref()?.get() {
            Coming::Broken(why) => Some(why),
            Coming::Yes | Coming::Answered | Coming::Whole => None,
        }
    }

    fn get(&self) -> bool {
        self.0.as_ref().is_none_or(|coming| matches!(coming.get(), Coming::Whole))
    }
}

/// The exchanges of one worker that have lost their client.
#[derive(Default)]
pub(super) struct Orphans {
    count: Cell<usize>,
    fewer: Notify,
}

impl Orphans {
    /// Runs `exchange` to its end, as a task of its own.
    pub(super) fn adopt(self: &Rc<Self>, exchange: impl Future + 'static) {
        if self.count.get() >= MOST {
            tracing::warn!(most = MOST, "too many clients left: an app's answer is not awaited");
            return;
        }
        self.count.set(self.count.get() + 1);
        let orphan = Orphan(self.clone());
        tokio::task::spawn_local(async move {
            exchange.await;
            drop(orphan);
        });
    }

    /// Ends when there is none.
    pub(super) async fn gone(&self) {
        while self.count.get() > 0 {
            self.fewer.notified().await;
        }
    }
}

struct Orphan(Rc<Orphans>);

impl Drop for Orphan {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.fewer.notify_one();
    }
}

/// An exchange that may go on without whoever awaits it. It is boxed: hyper moves and keeps what it
/// is given, and would move and keep all of it.
pub struct Lasting<F: Future + 'static> {
    exchange: Option<Pin<Box<F>>>,
    whole: Whole,
    /// Where it goes on, if it does.
    orphans: Option<Rc<Orphans>>,
}

impl<F: Future + 'static> Lasting<F> {
    /// With `orphans` it goes on without its client, if the request was received whole by then.
    pub(super) fn new(exchange: F, whole: Whole, orphans: Option<Rc<Orphans>>) -> Self {
        Self { exchange: Some(Box::pin(exchange)), whole, orphans }
    }
}

impl<F: Future + 'static> Future for Lasting<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(exchange) = &mut self.exchange else { return Poll::Pending };
        let poll = exchange.as_mut().poll(context);
        if poll.is_ready() {
            self.exchange = None;
        }
        poll
    }
}

impl<F: Future + 'static> Drop for Lasting<F> {
    fn drop(&mut self) {
        // An upload that broke off must not reach the app as if it were whole.
        if let Some(exchange) = self.exchange.take()
            && let Some(orphans) = &self.orphans
            && self.whole.get()
        {
            orphans.adopt(exchange);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// An exchange that takes a while, and whether it has ended.
    fn slow() -> (impl Future<Output = ()> + 'static, Rc<Cell<bool>>) {
        let ended = Rc::<Cell<bool>>::default();
        let told = ended.clone();
        let exchange = async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            told.set(true);
        };
        (exchange, ended)
    }

    async fn leave<F: Future + 'static>(mut exchange: Lasting<F>) {
        let poll = std::future::poll_fn(|context| {
            Poll::Ready(Pin::new(&mut exchange).poll(context).is_pending())
        });
        assert!(poll.await, "it should take a while");
        drop(exchange);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_goes_on_without_its_client() {
        LocalSet::new()
            .run_until(async {
                let ((exchange, ended), orphans) = (slow(), Rc::<Orphans>::default());
                leave(Lasting::new(exchange, Whole::default(), Some(orphans.clone()))).await;
                assert_eq!(orphans.count.get(), 1);
                orphans.gone().await;
                assert!(ended.get());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_was_not_received_whole_ends_with_its_client() {
        LocalSet::new()
            .run_until(async {
                let orphans = Rc::<Orphans>::default();
                let whole = Whole(Some(Rc::default()));
                let (exchange, ended) = slow();
                leave(Lasting::new(exchange, whole.clone(), Some(orphans.clone()))).await;
                orphans.gone().await;
                assert!(!ended.get());

                whole.set();
                let (exchange, ended) = slow();
                leave(Lasting::new(exchange, whole, Some(orphans.clone()))).await;
                orphans.gone().await;
                assert!(ended.get());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_leave_pile_up_no_more_than_so_many_exchanges() {
        LocalSet::new()
            .run_until(async {
                let orphans = Rc::<Orphans>::default();
                for _ in 0..MOST + 10 {
                    leave(Lasting::new(slow().0, Whole::default(), Some(orphans.clone()))).await;
                }
                yield_now().await;
                assert_eq!(orphans.count.get(), MOST);
                orphans.gone().await;
            })
            .await;
    }
}
