//! The fence: waits until every node has applied the committed invalidations.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use super::ObservedLeases;
use crate::{
    env::{Clock, Env},
    metrics::{GaugeGuard, Metrics},
    store::{Committed, Server, Store, StoreError},
};

/// Interval of polling, in case a wake-up is lost.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout of one poll, because a connection may hang forever.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until every node has applied all invalidations. Cheap to clone.
#[derive(Clone)]
pub struct Fence {
    store: Store,
    acknowledged: Arc<Notify>,
    leases: ObservedLeases,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl Fence {
    /// Creates a fence that checks again each time `acknowledged` reports that a node has
    /// acknowledged invalidations.
    #[must_use]
    pub fn new(
        store: Store,
        acknowledged: Arc<Notify>,
        leases: ObservedLeases,
        env: &Env,
        metrics: Metrics,
    ) -> Self {
        let clock = Arc::clone(&env.clock);
        Self { store, acknowledged, leases, metrics, clock }
    }

    /// Waits until every node has applied a change, and everything that was committed before it.
    ///
    /// If a node does not acknowledge, this waits until its lease has expired.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails, or if new connections no longer reach the server that has
    /// committed: the change is committed, but nodes may not have applied it yet.
    pub async fn wait(&self, committed: Committed) -> Result<(), StoreError> {
        let began = self.clock.monotonic();
        // Decremented on drop, also if the client disconnects while waiting.
        let _pending = GaugeGuard::new(&self.metrics.revocations_pending);
        self.wait_on(committed.server()).await?;
        let took = self.clock.monotonic().saturating_sub(began);
        self.metrics.fence_wait_duration.observe(took.as_secs_f64());
        Ok(())
    }

    async fn wait_on(&self, server: Server) -> Result<(), StoreError> {
        let generation = Store::with_timeout(POLL_TIMEOUT, async {
            self.store.connect_fence(server).await?.newest_generation().await
        })
        .await?;
        loop {
            // Subscribe before the query, so that no wake-up between the two is lost.
            let mut woken = pin!(self.acknowledged.notified());
            woken.as_mut().enable();
            let poll = self.is_acknowledged(server, generation);
            if Store::with_timeout(POLL_TIMEOUT, poll).await? {
                return Ok(());
            }
            timeout(POLL_INTERVAL, woken).await.ok();
        }
    }

    /// True if every node that may use its cache has applied a generation. Expires the leases of
    /// nodes that do not renew them.
    async fn is_acknowledged(&self, server: Server, generation: i64) -> Result<bool, StoreError> {
        let mut connection = self.store.connect_fence(server).await?;
        let nodes = connection.unacknowledged_nodes(generation).await?;
        for expired in self.leases.observe(server, &nodes) {
            connection.expire_lease(&expired).await?;
        }
        // A lease that was expired now is checked again: it may have been renewed meanwhile.
        if !nodes.is_empty() {
            return Ok(false);
        }
        connection.check_server().await?;
        Ok(true)
    }
}
