//! The node's background task: renews the lease, receives invalidations, applies and acknowledges
//! them.
//!
//! The node acknowledges a generation only after it has applied all invalidations up to it, and
//! uses its cache only under a lease. [`Fence`](super::Fence) is the other half.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{AuditWatermark, InvalidationSink, Lease, ObservedLeases};
use crate::{
    env::Env,
    metrics::Metrics,
    store::{
        History, Store, StoreError,
        cache_invalidation::{
            Generation, InvalidationBatch, Listener, NodeConnection, Notification, Registration,
        },
        clock::READING_INTERVAL,
    },
    tasks::{CriticalFailure, TaskGroup},
};

/// Number of renewals during a lease.
const RENEWALS: u32 = 3;
/// Minimum time between two renewals, for requests that need one at once.
const MIN_RENEW_INTERVAL: Duration = Duration::from_millis(100);
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
    /// The leases of other nodes.
    pub leases: ObservedLeases,
    /// Wakes up the fence when a node has acknowledged invalidations.
    pub acknowledged: Arc<Notify>,
    /// The metrics of the service.
    pub metrics: Metrics,
}

/// A node: its lease and its position in the sequence of invalidations.
pub struct Node {
    deps: NodeDependencies,
    /// The generation up to which this node has applied all invalidations, and the history that it
    /// belongs to. `None` until the node is registered.
    applied: Option<(Generation, History)>,
    /// Number of attempts to register.
    registrations: i32,
    /// Number of renewals since the last registration.
    renewals: i64,
    /// The last renewal over the current listener connection, if any.
    renewed_at: Option<Instant>,
    /// Consecutive renewal intervals without any notification.
    silent_intervals: u32,
    /// True once the node has a lease, or cannot get one because the database is in quarantine.
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
    /// Waits until the node has a lease, at most for `within`. Returns at once if the database is
    /// in quarantine.
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
        let lease_duration = deps.lease_duration;
        let stop_timeout = lease_duration.min(MAX_STOP_TIMEOUT);
        tasks.spawn_critical("node", |stopping| {
            let node = Self {
                deps,
                applied: None,
                registrations: 0,
                renewals: 0,
                renewed_at: None,
                silent_intervals: 0,
                joined,
                stopping,
            };
            node.run()
        });
        let interval = lease_duration / RENEWALS;
        tasks.spawn_critical("server check", {
            let store = store.clone();
            |stopping| async move {
                stopping.run_until_cancelled(check_server(store, interval)).await;
            }
        });
        NodeTask { tasks, joined: wait_until_joined, id, store, lease, stop_timeout }
    }

    /// Runs the node until it is stopped; after an error, pauses and starts over.
    async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        loop {
            match self.run_on_one_server().await {
                Ok(End::Stopped) => return,
                Ok(End::ServerReplaced) => continue,
                Ok(End::InQuarantine) => {
                    if self.stopping.run_until_cancelled(sleep(MAX_PAUSE)).await.is_none() {
                        return;
                    }
                    continue;
                }
                // The lease is still valid for a while, so the cache may still be in use.
                Err(error) => warn!(%error, "cannot receive cache invalidations; retrying"),
            }
            if self.renewed_at.is_some() {
                pause = MIN_PAUSE;
            } else {
                // Not a single broken connection: PostgreSQL or the network is down.
                self.with_timeout(self.deps.store.reconnect()).await.ok();
                pause = (pause * 2).min(MAX_PAUSE);
            }
            if self.stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Receives invalidations and renews the lease, until the node is stopped or new connections
    /// reach another server.
    async fn run_on_one_server(&mut self) -> Result<End, StoreError> {
        (self.silent_intervals, self.renewed_at) = (0, None);
        // Listen before the first read: earlier invalidations are read, later ones are notified.
        let mut listener = self.with_timeout(self.deps.store.listen()).await?;
        let mut connection = self.with_timeout(self.deps.store.connect_node()).await?;
        while !self.stopping.is_cancelled() {
            if !connection.is_current() {
                return Ok(End::ServerReplaced);
            }
            let has_advanced = self.apply_invalidations(&mut connection).await?;
            if self.renewed_at.is_none_or(|at| at.elapsed() >= self.renew_interval()) {
                let now = Instant::now();
                if !self.renew_lease(&mut connection).await? {
                    return Ok(End::InQuarantine);
                }
                self.renewed_at = Some(now);
                self.observe_leases(&mut connection).await?;
            } else if has_advanced && let Some((generation, _)) = self.applied {
                self.with_timeout(connection.acknowledge(self.registration(), generation)).await?;
            }
            self.wait_for_work(&mut listener, &connection).await?;
        }
        Ok(End::Stopped)
    }

    /// Reads the invalidations since the last generation and applies them. True if there were any.
    async fn apply_invalidations(
        &mut self,
        connection: &mut NodeConnection,
    ) -> Result<bool, StoreError> {
        let history = connection.server().history();
        let Some((generation, own_history)) = self.applied else { return Ok(false) };
        let is_same_history = own_history == history;
        match self.with_timeout(connection.invalidations_since(generation)).await? {
            InvalidationBatch::Complete { head, invalidations, lags } if is_same_history => {
                if !invalidations.is_empty() {
                    self.deps.invalidation_sink.invalidate(&invalidations);
                }
                for lag in lags {
                    self.deps.metrics.revocation_lag.observe(lag.as_secs_f64());
                }
                self.applied = Some((head, history));
                Ok(head != generation)
            }
            InvalidationBatch::Pruned if is_same_history => {
                info!("missed old invalidations");
                self.forget();
                Ok(false)
            }
            InvalidationBatch::Complete { .. } | InvalidationBatch::Pruned => {
                // The last commits may be lost, such as that of a key which is cached.
                warn!(?history, "PostgreSQL was restored or another server was promoted");
                self.forget();
                Ok(false)
            }
            InvalidationBatch::OtherHistory => {
                // If the report fails, the node tries again: it still knows the generation.
                self.deps.lease.end();
                self.deps.invalidation_sink.invalidate_all();
                let (node, renewals, interval) =
                    (self.registration(), self.renewals, self.renew_interval());
                let report =
                    connection.report_lost_generation(node, renewals, interval, is_same_history);
                let in_quarantine = self.with_timeout(report).await?;
                self.forget();
                error!(
                    generation = generation.number,
                    in_quarantine,
                    "PostgreSQL has lost invalidations that this node has applied: it was \
                     restored, or lost commits in a failover; revocations may be lost"
                );
                Ok(false)
            }
        }
    }

    /// Ends the lease and clears the caches. The node then has to register again.
    fn forget(&mut self) {
        self.deps.lease.end();
        self.deps.invalidation_sink.invalidate_all();
        (self.applied, self.renewed_at) = (None, None);
    }

    /// Renews the lease, or registers the node again if it has to. False if the database is in
    /// quarantine.
    async fn renew_lease(&mut self, connection: &mut NodeConnection) -> Result<bool, StoreError> {
        self.synchronize_clock(connection).await?;
        let duration = self.deps.lease_duration;
        let sent = self.deps.env.clock.monotonic();
        let watermark = self.deps.audit_watermark.watermark();
        let is_renewed = match self.applied {
            None => false,
            Some((generation, _)) => {
                let (node, limit) = (self.registration(), self.renew_interval());
                let renew = connection.renew_lease(node, generation, duration, watermark);
                Store::with_timeout(limit, renew).await?
            }
        };
        let sent = if is_renewed {
            self.renewals += 1;
            sent
        } else if let Some(sent) = self.register(connection).await? {
            sent
        } else {
            self.joined.send_replace(true);
            return Ok(false);
        };
        self.deps.lease.extend(sent + duration, connection.server());
        if self.joined.send_replace(true) && !is_renewed {
            info!("registered again, with an empty cache");
        }
        Ok(true)
    }

    /// Registers the node and clears its caches. Returns the time at which the request was sent, or
    /// `None` if the database is in quarantine.
    async fn register(
        &mut self,
        connection: &mut NodeConnection,
    ) -> Result<Option<Duration>, StoreError> {
        self.forget();
        self.registrations += 1;
        let sent = self.deps.env.clock.monotonic();
        let watermark = self.deps.audit_watermark.watermark();
        let (node, lease) = (self.registration(), self.deps.lease_duration);
        let register = connection.register(node, lease, watermark);
        let generation = Store::with_timeout(self.renew_interval(), register).await?;
        let Some(generation) = generation else { return Ok(None) };
        self.renewals = 0;
        self.applied = Some((generation, connection.server().history()));
        // After the registration: an entry that was read before may have changed before it, and no
        // invalidation would be received for it.
        self.deps.invalidation_sink.invalidate_all();
        Ok(Some(sent))
    }

    /// Reads the clock of PostgreSQL, so that this node's time is as current as its lease. A node
    /// that starts compares the clock with the last reading of another node.
    async fn synchronize_clock(&self, connection: &mut NodeConnection) -> Result<(), StoreError> {
        let max_gap =
            (self.registrations == 0).then(|| self.deps.lease_duration + READING_INTERVAL);
        self.with_timeout(connection.synchronize_clock(max_gap)).await
    }

    /// Expires the leases of nodes that do not renew them, so that no fence has to wait for them.
    async fn observe_leases(&mut self, connection: &mut NodeConnection) -> Result<(), StoreError> {
        let nodes = self.with_timeout(connection.lease_holders()).await?;
        self.deps.leases.retain(&nodes);
        for node in self.deps.leases.observe(connection.server(), &nodes) {
            self.with_timeout(connection.expire_lease(&node)).await?;
        }
        Ok(())
    }

    /// Waits for invalidations or the stop, at most until the next renewal is due.
    ///
    /// Every renewal notifies all nodes, this one included. Several intervals without a
    /// notification therefore mean that the listener's connection is dead.
    async fn wait_for_work(
        &mut self,
        listener: &mut Listener,
        connection: &NodeConnection,
    ) -> Result<(), StoreError> {
        let until = Instant::now() + self.renew_interval();
        self.silent_intervals += 1;
        loop {
            let wake = tokio::select! {
                wake = timeout_at(until, listener.next()) => wake,
                () = connection.wait_until_replaced() => return Ok(()),
                () = self.deps.lease.wait_until_needed() => {
                    if let Some(at) = self.renewed_at.take() {
                        sleep_until(at + MIN_RENEW_INTERVAL).await;
                    }
                    return Ok(());
                }
                () = self.stopping.cancelled() => return Ok(()),
            };
            let Ok(wake) = wake else { break };
            self.silent_intervals = 0;
            match wake? {
                Notification::Acknowledgements => self.deps.acknowledged.notify_waiters(),
                Notification::Invalidations => return Ok(()),
            }
        }
        if self.silent_intervals > 2 { Err(StoreError::timed_out()) } else { Ok(()) }
    }

    fn registration(&self) -> Registration {
        Registration { id: self.deps.id, number: self.registrations }
    }

    fn renew_interval(&self) -> Duration {
        self.deps.lease_duration / RENEWALS
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

/// The reason why a node stopped its work on one server.
enum End {
    Stopped,
    /// New connections reach another server.
    ServerReplaced,
    /// The database grants no lease.
    InQuarantine,
}

/// Connects anew at each interval, to notice when new connections reach another server: a proxy or
/// a name leads old connections to the old server for as long as they live.
async fn check_server(store: Store, interval: Duration) {
    loop {
        timeout(interval, store.wait_until_stale()).await.ok();
        // An outage is reported elsewhere.
        if store.check_server(interval).await.is_err() {
            sleep(MAX_PAUSE).await;
        }
    }
}
