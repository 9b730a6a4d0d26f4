//! The audit writer: a bounded queue of events, and the task that inserts them in batches.
//!
//! An event that has a [`AuditPermit`] is written even if PostgreSQL is unavailable for a long
//! time. When the queue is full, no permit is available and the request must be refused: nothing
//! happens without its event.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::UnknownCredentialCounts;
use crate::{
    cache_invalidation::AuditWatermark,
    config::{self, Durability},
    env::Env,
    model::audit::NewEvent,
    store::{DedicatedConnection, Store, StoreError},
    tasks::{CriticalFailure, TaskGroup},
};

/// Maximum number of events in one statement.
const BATCH: usize = 1000;
/// Pause between two batches, in which the next one accumulates. A commit costs PostgreSQL as much
/// as inserting dozens of events, so events should share commits. At 2,000 requests a second, a
/// pause of one millisecond took twice as much of PostgreSQL's time.
const BATCH_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause between two attempts while PostgreSQL is unavailable.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Maximum time that a request waits for space in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum time that a response waits for the commit of its event.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which counts of unknown credentials are written.
const COUNTS_INTERVAL: Duration = Duration::from_secs(5);

/// Timeout of one attempt to insert a batch.
const INSERT_TIMEOUT: Duration = Duration::from_secs(15);

/// Counters of the audit writer.
#[derive(Debug, Default)]
pub struct AuditCounts {
    /// Number of queued events.
    pub accepted: AtomicU64,
    /// Number of written events.
    pub written: AtomicU64,
    /// Number of events that PostgreSQL refused, or that were not written before the service
    /// stopped.
    pub lost: AtomicU64,
    /// The watermark: all events before it are written. In microseconds of the monotonic clock;
    /// never decreases.
    written_until: AtomicU64,
}

impl AuditCounts {
    /// Raises the watermark to a time before which all events are written; returns the watermark.
    fn mark_written(&self, moment: Duration) -> Duration {
        let micros = u64::try_from(moment.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.written_until.fetch_max(micros, AcqRel).max(micros))
    }

    fn is_idle(&self) -> bool {
        let done = self.lost.load(Acquire) + self.written.load(Acquire);
        self.accepted.load(Acquire) == done
    }
}

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
}

impl AuditWatermark for AuditWriter {
    fn written_until(&self) -> OffsetDateTime {
        // Read both clocks before the counters, so that an event queued meanwhile is after this
        // time.
        let (now, monotonic) = (self.env.clock.now(), self.env.clock.monotonic());
        let idle_since = if self.counts.is_idle() { monotonic } else { Duration::ZERO };
        let watermark = self.counts.mark_written(idle_since);
        // Subtract an interval of the monotonic clock: if the wall clock is set back, the watermark
        // must not remain in the future.
        now - monotonic.saturating_sub(watermark)
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
            store,
            durability: settings.durability,
            env: env.clone(),
            events,
            counts: Arc::clone(&counts),
            unknown: unknown.clone(),
        };
        let tasks = TaskGroup::new(failure);
        tasks.spawn_critical("audit writer", |stopping| writer.run(stopping));
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

struct Writer {
    store: Store,
    durability: Durability,
    connection: DedicatedConnection,
    env: Env,
    events: mpsc::Receiver<Queued>,
    counts: Arc<AuditCounts>,
    unknown: UnknownCredentialCounts,
}

impl Writer {
    async fn run(mut self, stopping: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut counts = interval(COUNTS_INTERVAL);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = false;
        loop {
            let started_at = self.env.clock.monotonic();
            tokio::select! {
                biased;
                // The next batch accumulates while one is written, so its size follows the load.
                received = self.events.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.write(&mut batch).await;
                    if received < BATCH {
                        // The queue was empty after `started_at`, and its earlier content is
                        // written.
                        self.counts.mark_written(started_at);
                    }
                    if self.durability == Durability::Batched && received < BATCH {
                        sleep(BATCH_PAUSE).await;
                    }
                }
                _ = counts.tick() => self.write_counts().await,
                () = stopping.cancelled(), if !closing => {
                    closing = true;
                    self.events.close();
                }
            }
        }
        self.write_counts().await;
    }

    /// Writes a batch, however long PostgreSQL is unavailable.
    async fn write(&mut self, batch: &mut Vec<Queued>) {
        if let Err(error) = self.insert_with_retry(batch, false).await {
            // The likely reason is that a new month has no partition yet. Log the error with its
            // source, but without PostgreSQL's detail, which contains the row.
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot write a batch of audit events; writing them one by one"
            );
            self.store.create_audit_partitions(self.env.clock.now()).await.ok();
            for queued in batch.drain(..) {
                self.write_one(queued).await;
            }
        }
        self.committed(batch.drain(..));
    }

    /// Writes one event, so that an event that PostgreSQL refuses does not affect the others.
    async fn write_one(&mut self, queued: Queued) {
        match self.insert_with_retry(std::slice::from_ref(&queued), true).await {
            Ok(()) => self.committed([queued]),
            Err(error) => {
                self.counts.lost.fetch_add(1, Relaxed);
                error!(
                    %error,
                    event = %queued.event.id,
                    "an audit event was lost: PostgreSQL refused it"
                );
            }
        }
    }

    fn committed(&self, batch: impl IntoIterator<Item = Queued>) {
        let mut written = 0;
        for queued in batch {
            written += 1;
            if let Some(waiting) = queued.written {
                waiting.send(()).ok();
            }
        }
        self.counts.written.fetch_add(written, Release);
    }

    /// Inserts events, retrying while PostgreSQL is unavailable. `is_retry`: an earlier attempt may
    /// have inserted them. Returns an error only if PostgreSQL refuses the events themselves.
    async fn insert_with_retry(
        &mut self,
        batch: &[Queued],
        mut is_retry: bool,
    ) -> Result<(), StoreError> {
        let mut pause = Duration::from_millis(10);
        loop {
            let events = batch.iter().map(|queued| &queued.event);
            let insert = self.connection.append_audit_events(events, is_retry);
            match Store::with_timeout(INSERT_TIMEOUT, insert).await {
                Err(StoreError::Unavailable(error)) => {
                    warn!(%error, waiting = batch.len(), "cannot write audit events; retrying");
                    is_retry = true;
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                done => return done,
            }
        }
    }

    async fn write_counts(&self) {
        let counts = self.unknown.take();
        if counts.is_empty() {
            return;
        }
        if let Err(error) = self.store.add_unknown_credential_counts(&counts).await {
            warn!(%error, "cannot write the counts of unknown credentials; they are lost");
        }
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
