//! The node's background task: renews the lease, receives invalidations, applies and acknowledges
//! them.
//!
//! The node acknowledges a generation only after it has applied all invalidations up to it, and
//! uses its cache only under a lease. [`Fence`](super::Fence) is the other half.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{AuditWatermark, InvalidationSink, Lease};
use crate::{
    env::Env,
    metrics::Metrics,
    store::{
        Store, StoreError,
        cache_invalidation::{Listener, Notification},
    },
    tasks::{CriticalFailure, TaskGroup},
};

/// Minimum pause between attempts while PostgreSQL is unavailable.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause between attempts; the pause doubles up to this.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Maximum time to stop and deregister. Other nodes wait no longer than the lease, so neither does
/// this one.
const MAX_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The dependencies and settings of a node.
pub struct NodeDependencies {
    /// The node's id.
    pub id: Uuid,
    /// The database.
    pub store: Store,
    /// Clock and randomness.
    pub env: Env,
    /// The caches that invalidations apply to.
    pub invalidation_sink: Arc<dyn InvalidationSink>,
    /// The watermark of this node's audit events.
    pub audit_watermark: Arc<dyn AuditWatermark>,
    /// The lease to renew.
    pub lease: Lease,
    /// Duration of the lease; it is renewed every third of it.
    pub lease_duration: Duration,
    /// Wakes up the fence when a node has acknowledged invalidations.
    pub acknowledged: Arc<Notify>,
    /// The metrics of the service.
    pub metrics: Metrics,
}

/// A node: its lease and its position in the sequence of invalidations.
pub struct Node {
    deps: NodeDependencies,
    /// The generation up to which this node has applied all invalidations; -1 until it registers.
    applied: i64,
    /// The last renewal over the current listener connection, if any.
    renewed_at: Option<Instant>,
    /// Consecutive renewal intervals without any notification.
    silent_intervals: u32,
    /// True once the node has a lease.
    joined: watch::Sender<bool>,
    /// Cancelled when the node is to stop.
    stopping: CancellationToken,
}

/// Handle of a running node.
pub struct NodeTask {
    tasks: TaskGroup,
    joined: watch::Receiver<bool>,
    id: Uuid,
    store: Store,
    lease: Lease,
    /// Timeout of stopping and deregistering.
    stop_timeout: Duration,
}

impl NodeTask {
    /// Waits until the node has a lease, at most for `within`.
    pub async fn wait_until_joined(&mut self, within: Duration) {
        timeout(within, self.joined.wait_for(|joined| *joined)).await.ok();
    }

    /// Stops the node, ends its lease and optionally deregisters it.
    ///
    /// A node that does not deregister is treated as crashed: other nodes wait until its lease has
    /// expired, and assume that some of its audit events may be lost.
    pub async fn finish(self, should_deregister: bool) {
        let deadline = Instant::now() + self.stop_timeout;
        // Before the deregistration: a renewal that is still in progress must not follow it.
        self.tasks.stop(self.stop_timeout).await;
        self.lease.end();
        if should_deregister {
            // Otherwise other nodes would wait until the lease expires.
            timeout_at(deadline, self.store.deregister_node(self.id)).await.ok();
        }
    }
}

impl Node {
    /// Starts the node's background task. The service cannot run without it, so `failure` reports
    /// its panic.
    #[must_use]
    pub fn start(deps: NodeDependencies, failure: &CriticalFailure) -> NodeTask {
        let tasks = TaskGroup::new(failure);
        let (joined, wait_until_joined) = watch::channel(false);
        let (id, store, lease) = (deps.id, deps.store.clone(), deps.lease.clone());
        let stop_timeout = deps.lease_duration.min(MAX_STOP_TIMEOUT);
        tasks.spawn_critical("node", |stopping| {
            Self { deps, applied: -1, renewed_at: None, silent_intervals: 0, joined, stopping }
                .run()
        });
        NodeTask { tasks, joined: wait_until_joined, id, store, lease, stop_timeout }
    }

    /// Runs the node until it is stopped; after an error, pauses and starts over.
    async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        while let Err(error) = self.run_until_error().await {
            // The lease is still valid for a while, so the cache may still be in use.
            warn!(%error, "cannot receive cache invalidations; retrying");
            if self.renewed_at.is_none() {
                // Not a single broken connection: PostgreSQL or the network is down.
                self.deps.store.replace_connections();
                pause = (pause * 2).min(MAX_PAUSE);
            } else {
                pause = MIN_PAUSE;
            }
            if self.stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Receives invalidations and renews the lease until the node is stopped.
    async fn run_until_error(&mut self) -> Result<(), StoreError> {
        (self.silent_intervals, self.renewed_at) = (0, None);
        // Listen before the first read: earlier invalidations are read, later ones are notified.
        let mut listener = self.with_timeout(self.deps.store.listen()).await?;
        while !self.stopping.is_cancelled() {
            let has_advanced = self.apply_invalidations().await?;
            if self.renewed_at.is_none_or(|at| at.elapsed() >= self.renew_interval()) {
                let now = Instant::now();
                self.renew_lease().await?;
                self.renewed_at = Some(now);
            } else if has_advanced {
                self.with_timeout(
                    self.deps.store.acknowledge_generation(self.deps.id, self.applied),
                )
                .await?;
            }
            self.wait_for_work(&mut listener).await?;
        }
        Ok(())
    }

    /// Reads the invalidations since the last generation and applies them. True if there were any.
    async fn apply_invalidations(&mut self) -> Result<bool, StoreError> {
        if self.applied < 0 {
            return Ok(false);
        }
        let batch = self.with_timeout(self.deps.store.invalidations_since(self.applied)).await?;
        match batch.invalidations {
            Some(invalidations) if invalidations.is_empty() => {}
            Some(invalidations) => {
                self.deps.invalidation_sink.invalidate(&invalidations);
                for lag in &batch.lags {
                    self.deps.metrics.revocation_lag.observe(lag.as_secs_f64());
                }
            }
            None => self.deps.invalidation_sink.invalidate_all(),
        }
        let has_advanced = batch.head != self.applied;
        self.applied = batch.head;
        Ok(has_advanced)
    }

    /// Renews the lease, or registers the node again if PostgreSQL does not know it any more.
    async fn renew_lease(&mut self) -> Result<(), StoreError> {
        let duration = self.deps.lease_duration;
        let sent = self.deps.env.clock.monotonic();
        let written_until = self.deps.audit_watermark.written_until();
        let is_registered = self.applied >= 0
            && self
                .with_timeout(self.deps.store.renew_lease(
                    self.deps.id,
                    self.applied,
                    duration,
                    written_until,
                ))
                .await?;
        let sent = if is_registered { sent } else { self.register().await? };
        self.deps.lease.extend(sent + duration);
        if self.joined.send_replace(true) && !is_registered {
            info!("registered again, with an empty cache");
        }
        Ok(())
    }

    /// Registers the node and clears its caches. Returns the time at which the request was sent.
    async fn register(&mut self) -> Result<Duration, StoreError> {
        self.deps.lease.end();
        let sent = self.deps.env.clock.monotonic();
        let written_until = self.deps.audit_watermark.written_until();
        let register =
            self.deps.store.register_node(self.deps.id, self.deps.lease_duration, written_until);
        self.applied = self.with_timeout(register).await?;
        // After the registration: an entry that was read before may have changed before it, and no
        // invalidation would be received for it.
        self.deps.invalidation_sink.invalidate_all();
        Ok(sent)
    }

    /// Waits for invalidations or the stop, at most until the next renewal is due.
    ///
    /// Every renewal notifies all nodes, this one included. Several intervals without a
    /// notification therefore mean that the listener's connection is dead.
    async fn wait_for_work(&mut self, listener: &mut Listener) -> Result<(), StoreError> {
        let until = Instant::now() + self.renew_interval();
        self.silent_intervals += 1;
        loop {
            let wake = self.stopping.run_until_cancelled(timeout_at(until, listener.next())).await;
            let Some(wake) = wake else { return Ok(()) };
            let Ok(wake) = wake else { break };
            self.silent_intervals = 0;
            match wake? {
                Notification::Acknowledgements => self.deps.acknowledged.notify_waiters(),
                Notification::Invalidations => return Ok(()),
            }
        }
        if self.silent_intervals > 2 { Err(StoreError::timed_out()) } else { Ok(()) }
    }

    fn renew_interval(&self) -> Duration {
        self.deps.lease_duration / 3
    }

    /// Limits a query to a third of the lease, so that a retry is possible before the lease
    /// expires.
    async fn with_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        Store::with_timeout(self.renew_interval(), work).await
    }
}
