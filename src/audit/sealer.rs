//! The sealer: a task that appends events to the hash chain of their workspace and counts key
//! usage.
//!
//! Many transactions write events concurrently, and they become visible in any order. Each
//! transaction leaves an entry in the audit outbox, which the sealer reads outside of any request.
//! One transaction appends to the chain, updates the usage counts and settles the entry, so a
//! sealer that dies half-way has done nothing. Every node has a sealer; a lock lets one of them
//! work at a time.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    env::Env,
    model::{audit::ChainSegment, id::WorkspaceId},
    store::{
        Store, StoreError,
        audit_outbox::{OutboxEntry, SealingTransaction},
    },
};

/// Interval between two scans of the outbox.
const SCAN_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum pause after a failure; it doubles up to this.
const MAX_PAUSE: Duration = Duration::from_secs(4);
/// Maximum number of outbox entries per transaction.
const MAX_ENTRIES: i32 = 512;
/// Approximate maximum number of events per transaction: a segment is always read as a whole.
const MAX_EVENTS: i32 = 4000;
/// Timeout of one batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two full scans. Other scans start after the recently settled entries.
const FULL_SCAN_INTERVAL: Duration = Duration::from_secs(30);

/// Counters of the sealer.
#[derive(Debug, Default)]
pub struct SealCounts {
    /// Number of events that this node has sealed.
    pub sealed: AtomicU64,
    /// Age of the oldest event in this node's last batch when it was sealed, in milliseconds.
    pub lag_ms: AtomicU64,
}

/// The sealer of a node.
#[derive(Clone)]
pub struct Sealer {
    store: Store,
    env: Env,
    counts: Arc<SealCounts>,
    cursor: OutboxCursor,
    /// The current batch size: halved after a failure, doubled after a success.
    batch_size: BatchSize,
    /// Entries that cannot be sealed: the others must not wait for them. Each full scan tries them
    /// again.
    skipped: Vec<i64>,
}

/// The maximum size of a batch.
#[derive(Debug, Clone, Copy)]
struct BatchSize {
    entries: i32,
    events: i32,
}

impl BatchSize {
    const FULL: Self = Self { entries: MAX_ENTRIES, events: MAX_EVENTS };
    const ONE: Self = Self { entries: 1, events: 1 };

    fn half(self) -> Self {
        Self { entries: (self.entries / 2).max(1), events: (self.events / 2).max(1) }
    }

    fn double(self) -> Self {
        let Self { entries, events } = self;
        Self { entries: (entries * 2).min(MAX_ENTRIES), events: (events * 2).min(MAX_EVENTS) }
    }
}

/// The outbox entry after which a scan starts.
///
/// Starting at 0 each time would be slow: PostgreSQL steps over settled entries until it vacuums
/// them, which an old transaction (a backup) may delay for hours.
#[derive(Debug, Clone, Default)]
struct OutboxCursor {
    after: i64,
    /// The last settled entry.
    newest: i64,
    /// The last settled entry at the time of the last full scan.
    newest_at_full_scan: i64,
    last_full_scan: Option<Duration>,
}

impl OutboxCursor {
    /// Returns the entry after which the next scan starts; 0 for a full scan.
    ///
    /// Entries become visible in any order, but rarely more than half a minute late. The next full
    /// scan finds an entry that is even later.
    fn next(&mut self, now: Duration) -> i64 {
        if self.last_full_scan.is_none_or(|then| now >= then + FULL_SCAN_INTERVAL) {
            self.last_full_scan = Some(now);
            self.after = std::mem::replace(&mut self.newest_at_full_scan, self.newest);
            return 0;
        }
        self.after
    }
}

impl Sealer {
    /// Creates a sealer.
    #[must_use]
    pub fn new(store: Store, env: Env, counts: Arc<SealCounts>) -> Self {
        let cursor = OutboxCursor::default();
        Self { store, env, counts, cursor, batch_size: BatchSize::FULL, skipped: Vec::new() }
    }

    /// Seals events until `stopping` is cancelled.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut scans = interval(SCAN_INTERVAL);
        scans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = SCAN_INTERVAL;
        while stopping.run_until_cancelled(scans.tick()).await.is_some() {
            let Err(error) = self.seal_all(&stopping).await else {
                pause = SCAN_INTERVAL;
                continue;
            };
            warn!(%error, "cannot seal audit events; retrying");
            if error.is_partition_missing()
                && let Err(error) = self.store.create_audit_partitions(self.env.clock.now()).await
            {
                warn!(%error, "cannot create partitions of the audit log");
            }
            stopping.run_until_cancelled(sleep(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Seals all pending events, unless another node is sealing. Ends early, between two batches,
    /// if `stopping` is cancelled or the node cannot use the schema.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails; the next call then uses half the batch size. If PostgreSQL
    /// refuses the data of an entry, the next calls seal one entry at a time, until they have found
    /// it; then it is skipped.
    pub async fn seal_all(&mut self, stopping: &CancellationToken) -> Result<(), StoreError> {
        while !stopping.is_cancelled() && self.store.database_refusal().is_none() {
            let last_full_scan = self.cursor.last_full_scan;
            let after = self.cursor.next(self.env.clock.monotonic());
            if self.cursor.last_full_scan != last_full_scan {
                self.skipped.clear();
            }
            match self.seal_batch(after).await {
                Ok(Some(SealProgress::FullBatch)) => {}
                // Entries that arrived meanwhile wait for the next scan and form a larger batch.
                Ok(_) => return Ok(()),
                Err(error) if !(error.is_unreadable() || error.is_data_refused()) => {
                    // The batch may have been too large.
                    self.batch_size = self.batch_size.half();
                    return Err(error);
                }
                Err(error) if self.batch_size.entries == 1 => {
                    let entry = self.store.find_outbox_entry_after(after, &self.skipped).await?;
                    error!(%error, entry, "cannot seal an entry of the audit outbox; skipping it");
                    self.skipped.extend(entry);
                }
                Err(error) => {
                    warn!(%error, "cannot seal a batch of audit events; sealing one at a time");
                    self.batch_size = BatchSize::ONE;
                }
            }
        }
        Ok(())
    }

    /// Seals a batch of the oldest entries after this one. `None` if another node is sealing.
    async fn seal_batch(&mut self, after: i64) -> Result<Option<SealProgress>, StoreError> {
        let Self { store, env, counts, cursor, batch_size, skipped } = self;
        let batch = async {
            let clock_epoch = env.clock.epoch().map(|epoch| epoch.number);
            let sealing = store.begin_sealing(clock_epoch).await?;
            let Some(sealing) = sealing else { return Ok(None) };
            let batch = Batch { after, skipped, size: *batch_size };
            seal_entries(env, counts, &mut cursor.newest, sealing, batch).await.map(Some)
        };
        let batch = Store::with_timeout(BATCH_TIMEOUT, batch);
        // A library may panic on a value that it cannot decode.
        let progress = AssertUnwindSafe(batch).catch_unwind().await;
        let progress = progress.unwrap_or_else(|_| Err(StoreError::unreadable()))?;
        if progress.is_some_and(|progress| progress != SealProgress::Empty) {
            *batch_size = batch_size.double();
        }
        Ok(progress)
    }
}

/// The result of sealing one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SealProgress {
    /// There were no entries.
    Empty,
    /// All entries are sealed.
    Complete,
    /// The batch reached its maximum size; there may be more entries.
    FullBatch,
}

/// The entries of a batch: the oldest ones after an entry.
struct Batch<'a> {
    after: i64,
    skipped: &'a [i64],
    size: BatchSize,
}

/// Seals a batch.
async fn seal_entries(
    env: &Env,
    counts: &SealCounts,
    newest: &mut i64,
    mut sealing: SealingTransaction,
    Batch { after, skipped, size }: Batch<'_>,
) -> Result<SealProgress, StoreError> {
    let entries = sealing.list_entries_after(after, skipped, size.entries, size.events).await?;
    let Some(last) = entries.iter().map(|entry| entry.id).max() else {
        return Ok(SealProgress::Empty);
    };
    let mut segments: BTreeMap<WorkspaceId, ChainSegment> = BTreeMap::new();
    for (workspace, ..) in entries.iter().flat_map(|entry| &entry.events) {
        segments.entry(*workspace).or_insert_with(|| ChainSegment::genesis(*workspace));
    }
    for end in sealing.open_segments(segments.keys().copied()).await? {
        segments.insert(end.workspace_id, end);
    }
    let mut sealed: u64 = 0;
    for entry in &entries {
        for (workspace, id, digest) in &entry.events {
            if let Some(segment) = segments.get_mut(workspace) {
                segment.push(*id, *digest);
                sealed += 1;
            }
        }
    }
    let segments: Vec<_> = segments.into_values().collect();
    // The epoch first: if it changes meanwhile, this batch is tried again.
    let clock_epoch = env.clock.epoch().map(|epoch| epoch.number);
    let now = env.clock.now();
    sealing.seal(now, clock_epoch, &entries, &segments).await?;
    *newest = last.max(*newest);
    counts.sealed.fetch_add(sealed, Relaxed);
    counts.lag_ms.store(lag(&entries, now), Relaxed);
    let is_full = i32::try_from(entries.len()).is_ok_and(|entries| entries >= size.entries)
        || i32::try_from(sealed).is_ok_and(|events| events >= size.events);
    Ok(if is_full { SealProgress::FullBatch } else { SealProgress::Complete })
}

fn lag(entries: &[OutboxEntry], now: OffsetDateTime) -> u64 {
    let oldest = entries.iter().map(|entry| entry.oldest_event_at).min().unwrap_or(now);
    (now - oldest).whole_milliseconds().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_starts_after_entries_settled_one_full_scan_ago() {
        let mut cursor = OutboxCursor::default();
        let at = Duration::from_secs;
        assert_eq!(cursor.next(at(0)), 0);
        cursor.newest = 10;
        assert_eq!(cursor.next(at(29)), 0);
        assert_eq!(cursor.next(at(30)), 0, "full scan");
        cursor.newest = 20;
        assert_eq!(cursor.next(at(31)), 0, "entry 10 was settled only recently");
        assert_eq!(cursor.next(at(60)), 0, "full scan");
        assert_eq!(cursor.next(at(61)), 10);
        assert_eq!(cursor.next(at(90)), 0, "full scan");
        assert_eq!(cursor.next(at(91)), 20);
    }
}
