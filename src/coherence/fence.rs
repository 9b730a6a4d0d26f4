use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use crate::{
    env::{Clock, Env},
    metrics::{Metrics, Waiting},
    store::{Store, StoreError},
};

/// How often it is looked again, should a wake-up be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where a change waits until no node believes anything older. Cheap to clone.
#[derive(Clone)]
pub struct Fence {
    store: Store,
    acknowledged: Arc<Notify>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl Fence {
    /// A fence whose waiters look again whenever some node has acknowledged something.
    #[must_use]
    pub fn new(store: Store, acknowledged: Arc<Notify>, env: &Env, metrics: Metrics) -> Self {
        Self { store, acknowledged, metrics, clock: Arc::clone(&env.clock) }
    }

    /// Waits until everything committed before this call is known on every node. A node that does not
    /// answer is waited for until its lease has run out.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached: then the change may be in force everywhere, or not yet.
    pub async fn wait(&self) -> Result<(), StoreError> {
        let began = self.clock.monotonic();
        // Counted back also when the client hangs up and this is dropped.
        let _waiting = Waiting::new(&self.metrics.fence_waiting);
        self.until_acknowledged().await?;
        let took = self.clock.monotonic().saturating_sub(began);
        self.metrics.fence_waits.observe(took.as_secs_f64());
        Ok(())
    }

    async fn until_acknowledged(&self) -> Result<(), StoreError> {
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
