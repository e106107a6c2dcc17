//! How many connections may be open at once: a number that can change while they are.

use std::cell::Cell;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// One permit for each connection that may be open.
pub(super) struct Permits {
    all: Arc<Semaphore>,
    most: Cell<usize>,
}

impl Permits {
    pub(super) fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), most: Cell::new(most) }
    }

    /// Where permits are had. It is never closed.
    pub(super) fn semaphore(&self) -> Arc<Semaphore> {
        self.all.clone()
    }

    /// So many from now on. Connections that are too many stay open; until enough of them have
    /// ended there is no new one.
    pub(super) fn set(&self, most: usize) {
        let before = self.most.replace(most);
        if most >= before {
            self.all.add_permits(most - before);
            return;
        }
        let (all, surplus) = (self.all.clone(), before - most);
        let Ok(surplus) = u32::try_from(surplus) else { return };
        tokio::task::spawn_local(async move {
            // Fair: who waits for a permit after this waits until these are gone.
            if let Ok(permits) = all.acquire_many(surplus).await {
                permits.forget();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    #[tokio::test]
    async fn fewer_permits_are_reached_by_those_that_come_back() {
        LocalSet::new()
            .run_until(async {
                let permits = Permits::new(3);
                let semaphore = permits.semaphore();
                let held = semaphore.clone().acquire_many_owned(3).await.unwrap();
                permits.set(1);
                yield_now().await;
                permits.set(2);
                yield_now().await;
                assert!(semaphore.try_acquire().is_err());
                drop(held);
                yield_now().await;
                let two = semaphore.try_acquire_many(2).unwrap();
                assert!(semaphore.try_acquire().is_err());
                drop(two);
                permits.set(4);
                assert_eq!(semaphore.available_permits(), 4);
            })
            .await;
    }
}
