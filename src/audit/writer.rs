//! The queue and the task that empties it.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{error, warn};

use super::UnknownCredentials;
use crate::{
    env::Env,
    model::audit::NewEvent,
    store::{Store, StoreError},
};

/// Events in one statement at most.
const BATCH: usize = 1000;
/// The longest pause between two tries while PostgreSQL is away.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How often counts of unknown credentials are written.
const COUNTS_EVERY: Duration = Duration::from_secs(5);

/// Takes events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditWriter {
    queue: mpsc::Sender<NewEvent>,
    unknown: UnknownCredentials,
}

/// A place in the queue.
#[derive(Debug)]
pub struct Permit(mpsc::OwnedPermit<NewEvent>);

impl Permit {
    /// Queues the event. Never waits, never fails.
    pub fn send(self, event: NewEvent) {
        self.0.send(event);
    }
}

impl AuditWriter {
    /// A place in the queue, to be had before the work is done that the event will tell of. None: the
    /// queue is full, and the request is to be refused, for what cannot be logged is not to happen.
    #[must_use]
    pub fn reserve(&self) -> Option<Permit> {
        self.queue.clone().try_reserve_owned().ok().map(Permit)
    }

    /// Where requests with unknown credentials are counted.
    #[must_use]
    pub fn unknown_credentials(&self) -> &UnknownCredentials {
        &self.unknown
    }
}

/// The task that writes.
#[derive(Debug)]
pub struct WriterTask {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl WriterTask {
    /// Starts it; `capacity` events may wait.
    #[must_use]
    pub fn start(store: Store, env: Env, capacity: usize) -> (AuditWriter, Self) {
        let (queue, events) = mpsc::channel(capacity);
        let unknown = UnknownCredentials::default();
        let (stop, stopped) = oneshot::channel();
        let writer = Writer { store, env, events, unknown: unknown.clone() };
        let done = tokio::spawn(writer.run(stopped));
        (AuditWriter { queue, unknown }, Self { stop, done })
    }

    /// Writes what waits and ends, within this time. Nothing may be queued any more.
    pub async fn finish(self, within: Duration) {
        self.stop.send(()).ok();
        if timeout(within, self.done).await.is_err() {
            error!("audit events were lost: PostgreSQL did not take them in time");
        }
    }
}

struct Writer {
    store: Store,
    env: Env,
    events: mpsc::Receiver<NewEvent>,
    unknown: UnknownCredentials,
}

impl Writer {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut counts = interval(COUNTS_EVERY);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = false;
        loop {
            tokio::select! {
                biased;
                // While one batch is written the next gathers, so load alone sets its size.
                received = self.events.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.write(&mut batch).await;
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
    async fn write(&self, batch: &mut Vec<NewEvent>) {
        if let Err(error) = self.insist(batch).await {
            // Most likely the partition of a month that has just begun.
            warn!(%error, "cannot write audit events as they are");
            self.store.create_audit_partitions(self.env.clock.now()).await.ok();
            // One event that PostgreSQL will not have must not take the others with it.
            for event in batch.iter() {
                if let Err(error) = self.insist(std::slice::from_ref(event)).await {
                    error!(%error, event = %event.id, "an audit event was lost");
                }
            }
        }
        batch.clear();
    }

    /// Tries until PostgreSQL is there. An error is its refusal of the events themselves.
    async fn insist(&self, events: &[NewEvent]) -> Result<(), StoreError> {
        let mut pause = Duration::from_millis(10);
        loop {
            match self.store.append_audit_events(events).await {
                Err(StoreError::Unavailable(error)) => {
                    warn!(%error, waiting = events.len(), "cannot write audit events yet");
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
