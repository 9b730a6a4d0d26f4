use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Duration,
};

use crate::store::StoreError;

/// The label of failures that PostgreSQL reported no SQLSTATE for, such as a lost connection.
const NO_SQLSTATE: &str = "none";

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
    /// Start of the attempts to write the current batch, in microseconds of the monotonic clock; 0
    /// without a batch.
    writing_since: AtomicU64,
    /// Number of failed attempts to write a batch, by SQLSTATE.
    failures: Mutex<BTreeMap<String, u64>>,
}

impl AuditCounts {
    /// Raises the watermark to a time before which all events are written; returns the watermark.
    pub(super) fn mark_written(&self, moment: Duration) -> Duration {
        let micros = as_micros(moment);
        Duration::from_micros(self.written_until.fetch_max(micros, AcqRel).max(micros))
    }

    pub(super) fn is_idle(&self) -> bool {
        let done = self.lost.load(Acquire) + self.written.load(Acquire);
        self.accepted.load(Acquire) == done
    }

    /// Records that the attempts to write a batch begin.
    pub(super) fn begin_batch(&self, now: Duration) {
        self.writing_since.store(as_micros(now).max(1), Relaxed);
    }

    /// Records that the batch is written.
    pub(super) fn end_batch(&self) {
        self.writing_since.store(0, Relaxed);
    }

    /// Returns how long the current batch has been waiting to be written; zero without one.
    pub(super) fn stalled_for(&self, now: Duration) -> Duration {
        match self.writing_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => now.saturating_sub(Duration::from_micros(since)),
        }
    }

    /// Counts a failed attempt to write a batch.
    pub(super) fn count_failure(&self, error: &StoreError) {
        let sqlstate = error.sqlstate();
        let sqlstate = sqlstate.as_deref().unwrap_or(NO_SQLSTATE);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(sqlstate.to_owned()).or_default() += 1;
    }

    /// Returns the number of failed attempts to write a batch, by SQLSTATE.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
