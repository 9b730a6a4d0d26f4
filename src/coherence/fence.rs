use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use crate::store::{Store, StoreError};

/// How often it is looked again, should a wake-up be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where a change waits until no node believes anything older. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fence {
    store: Store,
    acknowledged: Arc<Notify>,
}

impl Fence {
    /// A fence whose waiters look again whenever some node has acknowledged something.
    #[must_use]
    pub fn new(store: Store, acknowledged: Arc<Notify>) -> Self {
        Self { store, acknowledged }
    }

    /// Waits until everything committed before this call is known on every node. A node that does not
    /// answer is waited for until its lease has run out.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached: then the change may be in force everywhere, or not yet.
    pub async fn wait(&self) -> Result<(), StoreError> {
        let generation = self.store.newest_generation().await?;
        loop {
            // Before the look, so that no wake-up falls between.
            let mut woken = pin!(self.acknowledged.notified());
            woken.as_mut().enable();
            if self.store.is_acknowledged(generation).await? {
                return Ok(());
            }
            timeout(LOOK_AGAIN, woken).await.ok();
        }
    }
}
