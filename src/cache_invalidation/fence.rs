//! The fence: waits until every node has applied the committed invalidations.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use crate::{
    env::{Clock, Env},
    metrics::{GaugeGuard, Metrics},
    store::{Committed, Store, StoreError},
};

/// Interval of polling, in case a wake-up is lost.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until every node has applied all invalidations. Cheap to clone.
#[derive(Clone)]
pub struct Fence {
    store: Store,
    acknowledged: Arc<Notify>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl Fence {
    /// Creates a fence that checks again each time `acknowledged` reports that a node has
    /// acknowledged invalidations.
    #[must_use]
    pub fn new(store: Store, acknowledged: Arc<Notify>, env: &Env, metrics: Metrics) -> Self {
        Self { store, acknowledged, metrics, clock: Arc::clone(&env.clock) }
    }

    /// Waits until every node has applied a change, and everything that was committed before it.
    ///
    /// If a node does not acknowledge, this waits until its lease has expired.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails: the change is committed, but nodes may not have applied it
    /// yet.
    pub async fn wait(&self, _: Committed) -> Result<(), StoreError> {
        let began = self.clock.monotonic();
        // Decremented on drop, also if the client disconnects while waiting.
        let _pending = GaugeGuard::new(&self.metrics.revocations_pending);
        self.wait_until_acknowledged().await?;
        let took = self.clock.monotonic().saturating_sub(began);
        self.metrics.fence_wait_duration.observe(took.as_secs_f64());
        Ok(())
    }

    async fn wait_until_acknowledged(&self) -> Result<(), StoreError> {
        let generation = self.store.newest_generation().await?;
        loop {
            // Subscribe before the query, so that no wake-up between the two is lost.
            let mut woken = pin!(self.acknowledged.notified());
            woken.as_mut().enable();
            if self.store.is_acknowledged(generation).await? {
                return Ok(());
            }
            timeout(POLL_INTERVAL, woken).await.ok();
        }
    }
}
