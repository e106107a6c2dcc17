//! When what is posted is written, in which order, and what becomes of it where it cannot be.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::*;

/// A connection that counts how often it is written to.
struct Counting(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A posted connection, the other end, which holds `room` bytes unread, and the count of writes.
fn pair(room: usize, outbox: &Arc<Outbox>) -> (Posted<Counting>, DuplexStream, Arc<AtomicUsize>) {
    let (here, there) = duplex(room);
    let writes = Arc::<AtomicUsize>::default();
    (Posted::new(Counting(here, writes.clone()), outbox.clone()), there, writes)
}

#[tokio::test]
async fn what_is_said_in_one_turn_is_written_once_and_after_the_turns_other_tasks() {
    LocalSet::new()
        .run_until(async {
            let outbox = Arc::default();
            let pairs: Vec<_> = (0..3).map(|_| pair(1024, &outbox)).collect();
            let mut others = Vec::new();
            for (mut posted, there, writes) in pairs {
                posted.write_all(b"one, ").await.unwrap();
                posted.write_all(b"two, ").await.unwrap();
                posted.post(|out| out.extend_from_slice(b"three"));
                posted.flush().await.unwrap();
                assert_eq!(writes.load(Ordering::Relaxed), 0);
                others.push((there, writes));
            }
            // The task that writes was begun before: it is its turn.
            yield_now().await;
            for (mut there, writes) in others {
                assert_eq!(writes.load(Ordering::Relaxed), 1);
                let mut heard = String::new();
                there.read_to_string(&mut heard).await.unwrap();
                assert_eq!(heard, "one, two, three", "though its connection was dropped");
            }
        })
        .await;
}

#[tokio::test]
async fn every_byte_arrives_in_order_however_slow_the_other_end_and_little_is_kept_for_it() {
    LocalSet::new()
        .run_until(async {
            for piece in [1, 100, LONG - 1, LONG, 3 * KEPT] {
                let outbox = Arc::default();
                let (mut posted, mut there, _) = pair(64, &outbox);
                let said: Vec<u8> = (0..=250).cycle().take(200_000).collect();
                let whole = said.clone();
                let letterbox = posted.0.clone();
                let most = Arc::new(AtomicUsize::new(0));
                let seen = most.clone();
                let saying = spawn_local(async move {
                    for piece in said.chunks(piece) {
                        posted.write_all(piece).await.unwrap();
                        seen.fetch_max(lock(&letterbox.state).out.len(), Ordering::Relaxed);
                        if piece.len() % 3 == 0 {
                            posted.flush().await.unwrap();
                        }
                    }
                    posted.shutdown().await.unwrap();
                });
                let mut heard = Vec::new();
                there.read_to_end(&mut heard).await.unwrap();
                assert!(heard == whole, "pieces of {piece}");
                saying.await.unwrap();
                assert!(most.load(Ordering::Relaxed) <= KEPT + LONG);
            }
        })
        .await;
}

#[tokio::test]
async fn a_flush_waits_for_an_other_end_that_is_slow() {
    LocalSet::new()
        .run_until(async {
            let outbox = Arc::default();
            let (mut posted, mut there, _) = pair(4, &outbox);
            posted.write_all(b"too much").await.unwrap();
            yield_now().await;
            let flushing = spawn_local(async move { posted.flush().await });
            yield_now().await;
            assert!(!flushing.is_finished());
            let mut heard = [0; 8];
            there.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"too much");
            flushing.await.unwrap().unwrap();
        })
        .await;
}

#[tokio::test]
async fn what_cannot_be_written_is_told_to_the_next_who_writes() {
    LocalSet::new()
        .run_until(async {
            let outbox = Arc::default();
            let (mut posted, there, _) = pair(4, &outbox);
            drop(there);
            posted.write_all(b"to nobody").await.unwrap();
            assert!(!posted.is_unsent());
            yield_now().await;
            assert!(posted.is_unsent());
            for _ in 0..2 {
                let told = posted.write_all(b"more").await.unwrap_err();
                assert_eq!(told.kind(), io::ErrorKind::BrokenPipe);
                assert!(posted.flush().await.is_err() && posted.shutdown().await.is_err());
            }
            // Some of it went.
            let (mut posted, mut there, _) = pair(4, &outbox);
            posted.write_all(b"to nobody").await.unwrap();
            yield_now().await;
            let mut heard = [0; 2];
            there.read_exact(&mut heard).await.unwrap();
            drop(there);
            assert!(posted.flush().await.is_err() && !posted.is_unsent());
        })
        .await;
}

#[tokio::test]
async fn a_connection_that_is_given_up_is_closed_though_its_other_end_is_slow() {
    LocalSet::new()
        .run_until(async {
            let (mut posted, mut there, _) = pair(10, &Arc::default());
            posted.write_all(&[7; 1000]).await.unwrap();
            for _ in 0..3 {
                yield_now().await;
            }
            drop(posted);
            let mut came = Vec::new();
            let reading = tokio::time::timeout(
                std::time::Duration::from_secs(5),
                there.read_to_end(&mut came),
            );
            reading.await.unwrap().unwrap();
            assert_eq!(came, [7; 10]);
        })
        .await;
}

#[tokio::test]
async fn what_is_taken_back_in_time_is_never_written() {
    LocalSet::new()
        .run_until(async {
            let outbox = Arc::default();
            let (mut posted, mut there, writes) = pair(1024, &outbox);
            posted.write_all(b"a slip").await.unwrap();
            posted.take_back();
            yield_now().await;
            assert_eq!(writes.load(Ordering::Relaxed), 0);
            posted.write_all(b"meant").await.unwrap();
            yield_now().await;
            posted.take_back();
            drop(posted);
            let mut heard = String::new();
            there.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "meant");
        })
        .await;
}
