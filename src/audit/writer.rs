//! The audit writer: a bounded queue of events of requests, and the task that inserts them in
//! batches. The events of changes are inserted by `store/audit.rs`, in the transaction of the
//! change.
//!
//! An event that has a [`AuditPermit`] is written even if PostgreSQL is unavailable for a long
//! time. When the queue is full, no permit is available and the request must be refused: nothing
//! happens without its event.
//!
//! Only data that PostgreSQL refuses is lost (SQLSTATE classes 22, 23 and 54), one event at a time.
//! On every other error the events wait, and are tried again: a connection is lost, a right or a
//! table is missing, a disk is full. Meanwhile the node is not ready ([`AuditWriter::is_stalled`]).
//!
//! The queue is here, the task in `batches.rs`, its counters in `counts.rs`.

mod batches;
mod counts;

use std::{
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::error;

use self::batches::Writer;
pub use self::counts::AuditCounts;
use super::UnknownCredentialCounts;
use crate::{
    cache_invalidation::AuditWatermark,
    config::{self, Durability},
    env::Env,
    model::{audit::NewEvent, rotation::NodeWatermark},
    store::{DedicatedConnection, Store},
    tasks::{CriticalFailure, TaskGroup},
};

/// Maximum time that a request waits for space in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum time that a response waits for the commit of its event.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a batch that is not written makes the node not ready.
const MAX_STALL: Duration = Duration::from_secs(2);

/// An event in the queue.
struct Queued {
    event: NewEvent,
    /// Notified on commit, if a response waits for it.
    written: Option<oneshot::Sender<()>>,
}

/// The entrance to the audit queue. Cheap to clone.
#[derive(Clone)]
pub struct AuditWriter {
    queue: mpsc::Sender<Queued>,
    durability: Durability,
    counts: Arc<AuditCounts>,
    unknown: UnknownCredentialCounts,
    env: Env,
}

/// Reserved space in the queue for one event.
pub struct AuditPermit {
    slot: mpsc::OwnedPermit<Queued>,
    durability: Durability,
    counts: Arc<AuditCounts>,
}

impl AuditPermit {
    /// Queues the event without waiting.
    pub fn send(self, event: NewEvent) {
        self.queue(event, None);
    }

    /// Queues the event and, with strict durability, waits for its commit. Returns false if the
    /// commit took longer than 10 seconds: the event will still be written, but the response must
    /// not claim so.
    pub async fn record(self, event: NewEvent) -> bool {
        if self.durability == Durability::Batched {
            self.queue(event, None);
            return true;
        }
        let (written, committed) = oneshot::channel();
        self.queue(event, Some(written));
        matches!(timeout(COMMIT_TIMEOUT, committed).await, Ok(Ok(())))
    }

    fn queue(self, event: NewEvent, written: Option<oneshot::Sender<()>>) {
        self.counts.accepted.fetch_add(1, AcqRel);
        self.slot.send(Queued { event, written });
    }
}

impl AuditWriter {
    /// Reserves space in the queue. Call it before the action that the event records.
    ///
    /// If the queue is full, it waits up to 3 seconds: this back-pressure slows requests down to
    /// the speed at which PostgreSQL writes. Returns `None` if the queue stays full; the caller
    /// must then refuse the request.
    pub async fn reserve(&self) -> Option<AuditPermit> {
        let slot = match self.queue.clone().try_reserve_owned() {
            Ok(slot) => Some(slot),
            Err(_) => timeout(QUEUE_TIMEOUT, self.queue.clone().reserve_owned()).await.ok()?.ok(),
        };
        let (durability, counts) = (self.durability, Arc::clone(&self.counts));
        slot.map(|slot| AuditPermit { slot, durability, counts })
    }

    /// Returns the counter of requests with unknown credentials.
    #[must_use]
    pub fn unknown_credentials(&self) -> &UnknownCredentialCounts {
        &self.unknown
    }

    /// Returns the counters of the audit writer.
    #[must_use]
    pub fn counts(&self) -> &AuditCounts {
        &self.counts
    }

    /// Returns how long the current batch has been waiting to be written; zero without one.
    #[must_use]
    pub fn stalled_for(&self) -> Duration {
        self.counts.stalled_for(self.env.clock.monotonic())
    }

    /// Returns true if events cannot be written: a batch has been waiting for more than two
    /// seconds. The node is then not ready, because the queue may fill up.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled_for() > MAX_STALL
    }
}

impl AuditWatermark for AuditWriter {
    fn watermark(&self) -> NodeWatermark {
        // The epoch first: if it changes meanwhile, others then ignore the time of the new one.
        let clock_epoch = self.env.clock.epoch().map(|epoch| epoch.number);
        // Read both clocks before the counters, so that an event queued meanwhile is after this
        // time.
        let (now, monotonic) = (self.env.clock.now(), self.env.clock.monotonic());
        let idle_since = if self.counts.is_idle() { monotonic } else { Duration::ZERO };
        let watermark = self.counts.mark_written(idle_since);
        // Subtract an interval of the monotonic clock: if the clock is set back, the watermark must
        // not remain in the future.
        NodeWatermark { written_until: now - monotonic.saturating_sub(watermark), clock_epoch }
    }
}

/// The task that writes queued events.
#[derive(Debug)]
pub struct AuditWriterTask {
    tasks: TaskGroup,
    counts: Arc<AuditCounts>,
}

impl AuditWriterTask {
    /// Starts the task; returns the entrance to its queue and a handle to stop it. The service
    /// cannot run without the task, so `failure` reports its panic.
    #[must_use]
    pub fn start(
        store: Store,
        env: Env,
        settings: config::Audit,
        failure: &CriticalFailure,
    ) -> (AuditWriter, Self) {
        let (queue, events) = mpsc::channel(settings.queue_capacity);
        let unknown = UnknownCredentialCounts::default();
        let counts = Arc::<AuditCounts>::default();
        let writer = Writer {
            connection: DedicatedConnection::new(store.clone()),
            store: store.clone(),
            durability: settings.durability,
            env: env.clone(),
            events,
            counts: Arc::clone(&counts),
        };
        let tasks = TaskGroup::new(failure);
        tasks.spawn_critical("audit writer", |stopping| writer.run(stopping));
        let counted = unknown.clone();
        tasks.spawn("counts of unknown credentials", move |stopping| {
            counted.clone().run_writer(store.clone(), stopping)
        });
        let durability = settings.durability;
        let task = Self { tasks, counts: Arc::clone(&counts) };
        (AuditWriter { queue, durability, counts, unknown, env }, task)
    }

    /// Writes the queued events and stops the task, within this time. No event may be queued any
    /// more. Returns false if events were lost, now or earlier.
    pub async fn finish(self, within: Duration) -> bool {
        self.tasks.stop(within).await;
        let accepted = self.counts.accepted.load(Acquire);
        let done = self.counts.written.load(Acquire) + self.counts.lost.load(Acquire);
        let lost = accepted.saturating_sub(done);
        if lost > 0 {
            self.counts.lost.fetch_add(lost, Relaxed);
            error!(lost, "audit events were lost: they were not written before the stop");
        }
        self.counts.lost.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_of_an_ended_task_are_lost() {
        let counts = Arc::<AuditCounts>::default();
        counts.accepted.store(3, Relaxed);
        counts.written.store(1, Relaxed);
        let task = || AuditWriterTask { tasks: TaskGroup::default(), counts: Arc::clone(&counts) };
        assert!(!task().finish(Duration::ZERO).await);
        assert_eq!(counts.lost.load(Relaxed), 2);
        assert!(!task().finish(Duration::ZERO).await, "events were lost earlier");
        assert_eq!(counts.lost.load(Relaxed), 2);
    }
}
