//! What a worker's connections have to say is said together: written once nothing else is left to
//! do in this turn of the worker's loop. Whoever reads at the other ends is then woken once for many
//! messages and not for each: on a busy machine such wake-ups are a fifth of what a request costs.
//!
//! A connection is wrapped in [`Posted`]. Its writes are kept and done when the worker's other
//! tasks have run; long ones are not kept, for a copy costs more than it saves.
//!
//! Nothing here leaves its worker's thread. There are locks for one reason: hyper wants connections
//! that may be upgraded to be `Send`. Nobody ever waits for one.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use crate::lock::lock;

/// Writes from this length on are done at once, in bytes.
const LONG: usize = 8 * 1024;
/// The most that is kept for a connection, in bytes.
const KEPT: usize = 32 * 1024;
/// Buffers kept for the next turn.
const SPARE: usize = 64;

/// The connections of one worker that have something to say.
#[derive(Default)]
pub struct Outbox(Mutex<Desk>);

#[derive(Default)]
struct Desk {
    posts: Vec<Arc<dyn Post>>,
    spare: Vec<Vec<u8>>,
    postman: Postman,
}

/// The task that sees to the posts.
#[derive(Default)]
enum Postman {
    #[default]
    None,
    Waits(Waker),
    Called,
}

impl Outbox {
    /// Adds a post; gives it a buffer.
    fn add(self: &Arc<Self>, post: Arc<dyn Post>) -> Vec<u8> {
        let mut desk = lock(&self.0);
        desk.posts.push(post);
        match std::mem::replace(&mut desk.postman, Postman::Called) {
            Postman::Called => {}
            Postman::Waits(waker) => waker.wake(),
            Postman::None => {
                let outbox = Arc::downgrade(self);
                tokio::task::spawn_local(poll_fn(move |context| {
                    let Some(outbox) = outbox.upgrade() else { return Poll::Ready(()) };
                    outbox.empty();
                    lock(&outbox.0).postman = Postman::Waits(context.waker().clone());
                    Poll::Pending
                }));
            }
        }
        desk.spare.pop().unwrap_or_default()
    }

    fn empty(&self) {
        let mut posts = std::mem::take(&mut lock(&self.0).posts);
        posts.drain(..).for_each(Post::go);
        // Nothing was added meanwhile: writing runs no other task.
        lock(&self.0).posts = posts;
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let spare = &mut lock(&self.0).spare;
        if spare.len() < SPARE {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

impl Drop for Outbox {
    /// The task ends.
    fn drop(&mut self) {
        if let Postman::Waits(waker) = &lock(&self.0).postman {
            waker.wake_by_ref();
        }
    }
}

/// Something to be written.
trait Post: Send + Sync {
    fn go(self: Arc<Self>);
}

/// A connection whose writes are done together with those of others. Its clones are the same
/// connection: at most one of them reads at a time, and one writes.
pub struct Posted<S>(Arc<Letterbox<S>>);

struct Letterbox<S> {
    state: Mutex<State<S>>,
    outbox: Arc<Outbox>,
}

struct State<S> {
    stream: S,
    /// What is to be written.
    out: Vec<u8>,
    /// How much of it has been.
    written: usize,
    stage: Stage,
    /// Waits for everything to be written.
    waiting: Option<Waker>,
}

enum Stage {
    /// Nothing is to be written.
    Empty,
    /// The outbox sees to it.
    Posted,
    /// The other end does not take it as fast; a task of its own waits for that.
    Slow {
        _task: Waiting,
    },
    Failed(io::ErrorKind),
}

/// A task that waits. SECURITY: it ends with the connection: one whose client does not read would
/// otherwise stay open when it is given up, and no limit would count it.
struct Waiting(AbortHandle);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<S> Clone for Posted<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Send + Unpin + 'static> Posted<S> {
    /// Wraps a connection.
    pub fn new(stream: S, outbox: Arc<Outbox>) -> Self {
        let (out, stage) = (Vec::new(), Stage::Empty);
        let state = Mutex::new(State { stream, out, written: 0, stage, waiting: None });
        Self(Arc::new(Letterbox { state, outbox }))
    }

    /// The connection, if this is the only one and nothing is to be written.
    pub fn into_inner(self) -> Option<S> {
        let state = Arc::into_inner(self.0)?.state.into_inner().ok()?;
        matches!(state.stage, Stage::Empty).then_some(state.stream)
    }

    /// What `look` sees in the connection.
    pub fn look<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&lock(&self.0.state).stream)
    }

    /// Has `write` add to what is to be written, whatever its length.
    pub fn post(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock(&self.0.state);
        self.0.post(&mut state, write);
    }

    /// Takes back what was posted, if nothing of it was written yet.
    pub fn take_back(&self) {
        let mut state = lock(&self.0.state);
        if matches!(state.stage, Stage::Posted) {
            state.out.clear();
        }
    }

    /// Whether nothing was written yet of what was posted.
    pub fn is_posted(&self) -> bool {
        matches!(lock(&self.0.state).stage, Stage::Posted)
    }

    /// Whether writing has failed before a byte went of what was posted last.
    pub fn is_unsent(&self) -> bool {
        let state = lock(&self.0.state);
        matches!(state.stage, Stage::Failed(_)) && state.written == 0
    }

    /// Writes `length` bytes: later by `add`, or at once by `write` if they are many.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        length: usize,
        add: impl FnOnce(&mut Vec<u8>),
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0.state);
        let full = length >= LONG || state.out.len() + length > KEPT;
        if full || matches!(state.stage, Stage::Slow { .. } | Stage::Failed(_)) {
            ready!(self.0.poll_written(&mut state, context))?;
        }
        if length >= LONG {
            return write(Pin::new(&mut state.stream), context);
        }
        self.0.post(&mut state, add);
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Send + Unpin + 'static> Letterbox<S> {
    fn post(self: &Arc<Self>, state: &mut State<S>, write: impl FnOnce(&mut Vec<u8>)) {
        if matches!(state.stage, Stage::Empty) {
            state.stage = Stage::Posted;
            state.out = self.outbox.add(self.clone());
        }
        write(&mut state.out);
    }

    /// Ready when everything is written.
    fn poll_written(
        self: &Arc<Self>,
        state: &mut State<S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match state.stage {
            Stage::Empty => return Poll::Ready(Ok(())),
            Stage::Failed(kind) => return Poll::Ready(Err(kind.into())),
            Stage::Posted => self.write(state),
            Stage::Slow { .. } => {}
        }
        match state.stage {
            Stage::Empty => Poll::Ready(Ok(())),
            Stage::Failed(kind) => Poll::Ready(Err(kind.into())),
            Stage::Posted | Stage::Slow { .. } => {
                state.waiting = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Writes what the other end takes now, and leaves the rest to a task.
    fn write(self: &Arc<Self>, state: &mut State<S>) {
        let mut context = Context::from_waker(Waker::noop());
        if self.poll_write(state, &mut context).is_pending() {
            let this = Arc::downgrade(self);
            let task = tokio::task::spawn_local(poll_fn(move |context| {
                let Some(this) = this.upgrade() else { return Poll::Ready(()) };
                let mut state = lock(&this.state);
                this.poll_write(&mut state, context)
            }));
            state.stage = Stage::Slow { _task: Waiting(task.abort_handle()) };
        }
    }

    fn poll_write(&self, state: &mut State<S>, context: &mut Context<'_>) -> Poll<()> {
        state.stage = match ready!(state.poll_out(context)) {
            Ok(()) => {
                state.written = 0;
                self.outbox.give_back(std::mem::take(&mut state.out));
                Stage::Empty
            }
            Err(error) => Stage::Failed(error.kind()),
        };
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> State<S> {
    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(stream.as_mut().poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.written += length,
            }
        }
        stream.poll_flush(context)
    }
}

impl<S: AsyncWrite + Send + Unpin + 'static> Post for Letterbox<S> {
    fn go(self: Arc<Self>) {
        let mut state = lock(&self.state);
        // Otherwise it was written already.
        if matches!(state.stage, Stage::Posted) {
            self.write(&mut state);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Posted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0.state).stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Send + Unpin + 'static> AsyncWrite for Posted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let add = |out: &mut Vec<u8>| out.extend_from_slice(bytes);
        self.poll_send(context, bytes.len(), add, |stream, context| {
            stream.poll_write(context, bytes)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        let add = |out: &mut Vec<u8>| slices.iter().for_each(|slice| out.extend_from_slice(slice));
        self.poll_send(context, length, add, |stream, context| {
            stream.poll_write_vectored(context, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0.state).stream.is_write_vectored()
    }

    /// What is posted will be written; that is waited for only if the other end is slow.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0.state);
        match state.stage {
            Stage::Posted => Poll::Ready(Ok(())),
            Stage::Empty => Pin::new(&mut state.stream).poll_flush(context),
            Stage::Slow { .. } | Stage::Failed(_) => self.0.poll_written(&mut state, context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0.state);
        ready!(self.0.poll_written(&mut state, context))?;
        Pin::new(&mut state.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
