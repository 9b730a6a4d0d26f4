//! The queue and the task that empties it.

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
use tracing::{error, warn};

use super::UnknownCredentials;
use crate::{
    coherence::Diary,
    config::{self, Durability},
    env::Env,
    model::audit::NewEvent,
    store::{Line, Store, StoreError},
};

/// Events in one statement at most.
const BATCH: usize = 1000;
/// The pause between two batches, in which the next gathers: a commit costs PostgreSQL as much as writing
/// dozens of events, so that many of them had better share it. At 2,000 requests a second, one
/// millisecond cost twice as much of PostgreSQL's time.
const GATHER: Duration = Duration::from_millis(10);
/// The longest pause between two tries while PostgreSQL is away.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a request may wait for a place in the queue.
const HOLD_UP: Duration = Duration::from_secs(3);
/// How long a response may wait for the commit of its event.
const COMMIT: Duration = Duration::from_secs(10);
/// How often counts of unknown credentials are written.
const COUNTS_EVERY: Duration = Duration::from_secs(5);

/// The longest that PostgreSQL may take for one batch; it is tried again then.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of events.
#[derive(Debug, Default)]
pub struct AuditCounts {
    /// Queued.
    pub accepted: AtomicU64,
    /// Written.
    pub written: AtomicU64,
    /// Refused by PostgreSQL, or not written before the service had to end.
    pub lost: AtomicU64,
    /// The latest moment known to have nothing unwritten before it: microseconds of the monotonic clock. Never
    /// goes back.
    written_until: AtomicU64,
}

impl AuditCounts {
    /// Raises the mark to a moment before which everything is written; returns the mark.
    fn mark_written(&self, moment: Duration) -> Duration {
        let micros = u64::try_from(moment.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.written_until.fetch_max(micros, AcqRel).max(micros))
    }

    fn is_idle(&self) -> bool {
        let done = self.lost.load(Acquire) + self.written.load(Acquire);
        self.accepted.load(Acquire) == done
    }
}

/// An event on its way.
struct Queued {
    event: NewEvent,
    /// Where a response waits for the commit.
    written: Option<oneshot::Sender<()>>,
}

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub struct AuditWriter {
    queue: mpsc::Sender<Queued>,
    durability: Durability,
    counts: Arc<AuditCounts>,
    unknown: UnknownCredentials,
    env: Env,
}

/// A place in the queue.
pub struct Permit {
    place: mpsc::OwnedPermit<Queued>,
    durability: Durability,
    counts: Arc<AuditCounts>,
}

impl Permit {
    /// Queues the event; never waits for anything.
    pub fn send(self, event: NewEvent) {
        self.queue(event, None);
    }

    /// Queues the event and, where durability is strict, waits until it is committed. False: that took
    /// too long. It will be written all the same, but nobody should say that it was.
    pub async fn record(self, event: NewEvent) -> bool {
        if self.durability == Durability::Batched {
            self.queue(event, None);
            return true;
        }
        let (written, committed) = oneshot::channel();
        self.queue(event, Some(written));
        matches!(timeout(COMMIT, committed).await, Ok(Ok(())))
    }

    fn queue(self, event: NewEvent, written: Option<oneshot::Sender<()>>) {
        self.counts.accepted.fetch_add(1, AcqRel);
        self.place.send(Queued { event, written });
    }
}

impl AuditWriter {
    /// A place in the queue, to be had before the work is done that the event will tell of. Where the
    /// queue is full it waits for a while: requests are held up to the pace at which PostgreSQL writes.
    /// None: the request is to be refused, for what cannot be logged is not to happen.
    pub async fn reserve(&self) -> Option<Permit> {
        let place = match self.queue.clone().try_reserve_owned() {
            Ok(place) => Some(place),
            Err(_) => timeout(HOLD_UP, self.queue.clone().reserve_owned()).await.ok()?.ok(),
        };
        let (durability, counts) = (self.durability, Arc::clone(&self.counts));
        place.map(|place| Permit { place, durability, counts })
    }

    /// Where requests with unknown credentials are counted.
    #[must_use]
    pub fn unknown_credentials(&self) -> &UnknownCredentials {
        &self.unknown
    }

    /// What became of events so far.
    #[must_use]
    pub fn counts(&self) -> &AuditCounts {
        &self.counts
    }
}

impl Diary for AuditWriter {
    fn written_until(&self) -> OffsetDateTime {
        // Both clocks are read before the counts: an event that is queued later is later than this moment.
        let (now, monotonic) = (self.env.clock.now(), self.env.clock.monotonic());
        let idle_since = if self.counts.is_idle() { monotonic } else { Duration::ZERO };
        let mark = self.counts.mark_written(idle_since);
        // A distance on the monotonic clock: a wall clock that is set back must not leave the mark in the future.
        now - monotonic.saturating_sub(mark)
    }
}

/// The task that writes.
#[derive(Debug)]
pub struct WriterTask {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
    counts: Arc<AuditCounts>,
}

impl WriterTask {
    /// Starts it.
    #[must_use]
    pub fn start(store: Store, env: Env, settings: config::Audit) -> (AuditWriter, Self) {
        let (queue, events) = mpsc::channel(settings.queue);
        let unknown = UnknownCredentials::default();
        let counts = Arc::<AuditCounts>::default();
        let (stop, stopped) = oneshot::channel();
        let writer = Writer {
            line: Line::new(store.clone()),
            store,
            durability: settings.durability,
            env: env.clone(),
            events,
            counts: Arc::clone(&counts),
            unknown: unknown.clone(),
        };
        let done = tokio::spawn(writer.run(stopped));
        let durability = settings.durability;
        let task = Self { stop, done, counts: Arc::clone(&counts) };
        (AuditWriter { queue, durability, counts, unknown, env }, task)
    }

    /// Writes what waits and ends, within this time. Nothing may be queued any more. False: events were lost, now or
    /// before.
    pub async fn finish(self, within: Duration) -> bool {
        self.stop.send(()).ok();
        if timeout(within, self.done).await.is_err() {
            let accepted = self.counts.accepted.load(Relaxed);
            let done = self.counts.written.load(Relaxed) + self.counts.lost.load(Relaxed);
            let lost = accepted.saturating_sub(done);
            self.counts.lost.fetch_add(lost, Relaxed);
            error!(lost, "audit events were lost: PostgreSQL did not take them in time");
        }
        self.counts.lost.load(Relaxed) == 0
    }
}

struct Writer {
    store: Store,
    durability: Durability,
    line: Line,
    env: Env,
    events: mpsc::Receiver<Queued>,
    counts: Arc<AuditCounts>,
    unknown: UnknownCredentials,
}

impl Writer {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut counts = interval(COUNTS_EVERY);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = false;
        loop {
            let began = self.env.clock.monotonic();
            tokio::select! {
                biased;
                // While one batch is written the next gathers, so load alone sets its size.
                received = self.events.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.write(&mut batch).await;
                    if received < BATCH {
                        // The queue was found empty after that moment, and what was in it is written.
                        self.counts.mark_written(began);
                    }
                    if self.durability == Durability::Batched && received < BATCH {
                        sleep(GATHER).await;
                    }
                }
                _ = counts.tick() => self.write_counts().await,
                _ = &mut stopped, if !closing => {
                    closing = true;
                    self.events.close();
                }
            }
        }
        self.write_counts().await;
    }

    /// Writes a batch, however long PostgreSQL is away.
    async fn write(&mut self, batch: &mut Vec<Queued>) {
        if let Err(error) = self.insist(batch, false).await {
            // Most likely the partition of a month that has just begun.
            // With its source, and without what PostgreSQL tells of the row.
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot write audit events as they are"
            );
            self.store.create_audit_partitions(self.env.clock.now()).await.ok();
            for queued in batch.drain(..) {
                self.write_one(queued).await;
            }
        }
        self.committed(batch.drain(..));
    }

    /// One event that PostgreSQL will not have must not take the others with it.
    async fn write_one(&mut self, queued: Queued) {
        match self.insist(std::slice::from_ref(&queued), true).await {
            Ok(()) => self.committed([queued]),
            Err(error) => {
                self.counts.lost.fetch_add(1, Relaxed);
                error!(%error, event = %queued.event.id, "an audit event was lost");
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

    /// Tries until PostgreSQL is there. `again`: it may have been written before. An error is PostgreSQL's
    /// refusal of the events themselves.
    async fn insist(&mut self, batch: &[Queued], mut again: bool) -> Result<(), StoreError> {
        let mut pause = Duration::from_millis(10);
        loop {
            let events = batch.iter().map(|queued| &queued.event);
            match Store::within(PATIENCE, self.line.append_audit_events(events, again)).await {
                Err(StoreError::Unavailable(error)) => {
                    warn!(%error, waiting = batch.len(), "cannot write audit events yet");
                    again = true;
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
        if let Err(error) = self.store.count_unknown_credentials(&counts).await {
            warn!(%error, "cannot write the counts of unknown credentials");
        }
    }
}
