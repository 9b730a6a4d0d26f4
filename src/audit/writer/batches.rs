//! The task that inserts queued events in batches.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{AuditCounts, MAX_STALL, Queued};
use crate::{
    config::Durability,
    env::Env,
    model::id::{self, Id as _},
    store::{DedicatedConnection, Store, StoreError},
};

/// Maximum number of events in one statement.
const BATCH: usize = 1000;
/// Approximate maximum size of a statement, in bytes.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Pause between two batches, in which the next one accumulates. A commit costs PostgreSQL as much
/// as inserting dozens of events, so events should share commits. At 2,000 requests a second, a
/// pause of one millisecond took twice as much of PostgreSQL's time.
const BATCH_PAUSE: Duration = Duration::from_millis(10);
/// Minimum pause between two attempts; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Number of attempts that may take too long, or too much memory, before a batch is split.
const MAX_LARGE_ATTEMPTS: u32 = 2;
/// Timeout of one attempt to insert a batch, and of the steps that prepare the next one.
const INSERT_TIMEOUT: Duration = Duration::from_secs(15);

/// The state of the task.
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) durability: Durability,
    pub(super) connection: DedicatedConnection,
    pub(super) env: Env,
    pub(super) events: mpsc::Receiver<Queued>,
    pub(super) counts: Arc<AuditCounts>,
}

impl Writer {
    /// Writes events until the queue is closed and empty. Closes it when `stopping` is cancelled.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
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
                () = stopping.cancelled(), if !closing => {
                    closing = true;
                    self.events.close();
                }
            }
        }
    }

    /// Writes a batch, however long PostgreSQL cannot do it.
    ///
    /// A part that PostgreSQL refuses is split in two, until the event that it refuses is alone. No
    /// part has events of two attempts: one that seems to have failed may have stored all of its
    /// events.
    async fn write(&mut self, batch: &mut Vec<Queued>) {
        let mut parts: Vec<_> = part_lengths(batch).into_iter().map(|n| (n, false)).collect();
        parts.reverse();
        self.counts.begin_batch(self.env.clock.monotonic());
        while let Some((length, is_retry)) = parts.pop() {
            match self.insert_with_retry(&batch[..length], is_retry).await {
                Ok(()) => self.committed(batch.drain(..length)),
                Err(error) if length > 1 => {
                    warn!(%error, length, "cannot write a batch of audit events; splitting it");
                    parts.extend([(length - length / 2, true), (length / 2, true)]);
                    continue;
                }
                Err(error) => {
                    for Queued { event, .. } in batch.drain(..length) {
                        self.counts.lost.fetch_add(1, Relaxed);
                        let event = event.id;
                        error!(%error, %event, "an audit event was lost: PostgreSQL refused it");
                    }
                }
            }
            self.counts.begin_batch(self.env.clock.monotonic());
        }
        self.counts.end_batch();
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

    /// Inserts events, and tries again until it succeeds. `is_retry`: an earlier attempt may have
    /// inserted them. Returns an error only if PostgreSQL refuses the events themselves, or if
    /// there are too many for one statement.
    async fn insert_with_retry(
        &mut self,
        batch: &[Queued],
        mut is_retry: bool,
    ) -> Result<(), StoreError> {
        let mut pause = MIN_PAUSE;
        let mut has_created_partitions = false;
        let mut large_attempts = 0;
        loop {
            let events = batch.iter().map(|queued| &queued.event);
            let insert = self.connection.append_audit_events(events, is_retry);
            let Err(mut error) = Store::with_timeout(INSERT_TIMEOUT, insert).await else {
                return Ok(());
            };
            self.counts.count_failure(&error);
            large_attempts += u32::from(error.is_too_large());
            let is_too_large = batch.len() > 1 && large_attempts >= MAX_LARGE_ATTEMPTS;
            if error.is_partition_missing() && !has_created_partitions {
                match self.create_partitions(batch).await {
                    Ok(()) => {
                        has_created_partitions = true;
                        continue;
                    }
                    // Their time is impossible: PostgreSQL's was another by months.
                    Err(StoreError::Internal(_)) => return Err(error),
                    Err(cause) => error = cause,
                }
            } else if (is_too_large || is_refused(&error, batch))
                && self.has_compatible_schema().await
            {
                return Err(error);
            }
            self.log_failure(&error, batch.len());
            is_retry = true;
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Creates the partitions for a batch. Maintenance creates them in advance, if it can.
    async fn create_partitions(&self, batch: &[Queued]) -> Result<(), StoreError> {
        let oldest = batch.iter().map(|queued| queued.event.id).min();
        let oldest = oldest.map(|event| id::creation_time(event.uuid()));
        for time in oldest.into_iter().chain([self.env.clock.now()]) {
            let create = self.store.create_audit_partitions(time);
            Store::with_timeout(INSERT_TIMEOUT, create).await?;
        }
        Ok(())
    }

    /// Returns true if the schema is one that this version writes correct events to. Otherwise its
    /// constraints say nothing about an event. False if PostgreSQL does not answer: then time-outs
    /// say nothing about the size of a batch.
    async fn has_compatible_schema(&self) -> bool {
        let check = Store::with_timeout(INSERT_TIMEOUT, self.store.check_schema()).await;
        check.is_ok_and(|mismatch| mismatch.is_none())
    }

    fn log_failure(&self, error: &StoreError, waiting: usize) {
        if self.counts.stalled_for(self.env.clock.monotonic()) > MAX_STALL {
            error!(%error, waiting, "audit events cannot be written: the node is not ready");
        } else {
            warn!(%error, waiting, "cannot write audit events; retrying");
        }
    }
}

/// Returns true if PostgreSQL refuses a batch because of its events. A duplicate key is no reason
/// to refuse a single event: the event is stored already, or a sequence is behind after a restore.
fn is_refused(error: &StoreError, batch: &[Queued]) -> bool {
    let is_data_refused = error.is_data_refused() || error.is_partition_missing();
    is_data_refused && !(error.is_duplicate() && batch.len() == 1)
}

/// Returns the lengths of the parts that a batch is written in.
fn part_lengths(batch: &[Queued]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut bytes = MAX_BATCH_BYTES;
    for queued in batch {
        let size = queued.event.size();
        bytes += size;
        match lengths.last_mut() {
            Some(length) if bytes <= MAX_BATCH_BYTES => *length += 1,
            _ => {
                lengths.push(1);
                bytes = size;
            }
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::model::audit::{Action, Actor, NewEvent};

    #[test]
    fn parts_of_a_batch_are_limited_in_bytes() {
        let queued = |bytes| {
            let (id, workspace) = (Uuid::nil().into(), Uuid::nil().into());
            let event = NewEvent::new(id, workspace, Action::Request, Actor::system())
                .with_metadata(json!({ "x": "x".repeat(bytes) }));
            Queued { event, written: None }
        };
        let batch: Vec<_> = (0..300).map(|_| queued(30_000)).collect();
        let parts = part_lengths(&batch);
        assert_eq!((parts.len(), parts.iter().sum::<usize>()), (3, batch.len()));
        let mut rest = &batch[..];
        for length in parts {
            let (part, others) = rest.split_at(length);
            assert!(
                part.iter().map(|queued| queued.event.size()).sum::<usize>() <= MAX_BATCH_BYTES
            );
            rest = others;
        }
        let small: Vec<_> = (0..BATCH).map(|_| queued(10)).collect();
        assert_eq!(part_lengths(&small), [BATCH]);
        assert!(part_lengths(&[]).is_empty());
    }
}
