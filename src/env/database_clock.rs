//! The clock of PostgreSQL, as a node estimates it.
//!
//! All nodes take the time from PostgreSQL, so they agree on it even if their own clocks differ. A
//! node reads it when it connects and with each renewal of its lease, and adds the time that has
//! passed since by its monotonic clock. So a reading costs no request anything.
//!
//! PostgreSQL answers between the sending and the receipt of a query, which bounds the difference
//! of the two clocks. The estimate stays within the bounds of all readings, and moves no more than
//! that requires. If the bounds contradict each other by more than a second, the clock of
//! PostgreSQL has changed: an operator set it, or another server was promoted. [`crate::store`]
//! then begins a new epoch in PostgreSQL, which all nodes see, before the node uses the new time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicI64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use time::OffsetDateTime;

use super::{Clock, ClockEpoch, clock::MAX_DISAGREEMENT};

/// Two clocks drift apart by at most one second in this number of seconds. NTP corrects each of
/// them by at most half of that, without a jump.
const SECONDS_PER_DRIFT: i64 = 1000;

/// The offset before the first reading.
const NO_OFFSET: i64 = i64::MIN;

/// The clock of PostgreSQL, as this node estimates it. Cheap to clone; clones share the estimate.
///
/// Before the first reading it is the clock of the machine.
#[derive(Clone)]
pub struct DatabaseClock(Arc<Estimate>);

struct Estimate {
    machine: Arc<dyn Clock>,
    /// The time of PostgreSQL minus that of the monotonic clock, in microseconds.
    offset: AtomicI64,
    history: Mutex<History>,
    is_skewed: AtomicBool,
}

/// The readings so far.
#[derive(Debug, Default)]
struct History {
    last: Option<ClockReading>,
    /// The least and the greatest offset that the readings allow, in microseconds.
    bounds: (i64, i64),
    /// The sum of the recent contradictions between readings, in microseconds.
    deviation: i64,
    epoch: Option<ClockEpoch>,
}

/// A reading of PostgreSQL's clock.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// The time of PostgreSQL.
    pub time: OffsetDateTime,
    /// The epoch of the clock, if it was read too.
    pub epoch: Option<ClockEpoch>,
    /// The time of the monotonic clock at which the query was sent.
    pub sent_at: Duration,
    /// The time of the monotonic clock at which the answer was received.
    pub received_at: Duration,
}

/// The result of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockObservation {
    /// The clock of PostgreSQL runs as before. The reading is applied.
    Continuous,
    /// The clock of PostgreSQL has changed by about this time. The reading is not applied: begin an
    /// epoch first.
    Changed(time::Duration),
}

impl History {
    /// True if another node began the epoch of this reading at a time that is not between the last
    /// reading and this one: PostgreSQL's clock has changed to it and back again, or a failover has
    /// lost an epoch.
    fn contradicts_epoch(&self, previous: &ClockReading, reading: &ClockReading) -> bool {
        let (Some(known), Some(epoch)) = (self.epoch, reading.epoch) else { return false };
        let earliest = previous.time - MAX_DISAGREEMENT;
        let latest = reading.time + MAX_DISAGREEMENT;
        epoch.number != known.number && !(earliest..=latest).contains(&epoch.started_at)
    }
}

impl ClockReading {
    /// Returns the least and the greatest offset that this reading allows, in microseconds.
    fn bounds(&self) -> (i64, i64) {
        let time = micros(self.time - OffsetDateTime::UNIX_EPOCH);
        (time - whole_micros(self.received_at), time - whole_micros(self.sent_at))
    }
}

impl DatabaseClock {
    /// Creates the clock of a node on a machine with this clock.
    #[must_use]
    pub fn new(machine: Arc<dyn Clock>) -> Self {
        let (offset, history) = (AtomicI64::new(NO_OFFSET), Mutex::default());
        Self(Arc::new(Estimate { machine, offset, history, is_skewed: AtomicBool::new(false) }))
    }

    /// Compares a reading with the earlier ones, and corrects the estimate.
    #[must_use]
    pub fn observe(&self, reading: ClockReading) -> ClockObservation {
        let mut history = self.history();
        let Some(previous) = history.last else {
            self.apply(&mut history, reading, reading.bounds(), 0);
            return ClockObservation::Continuous;
        };
        // Another task has sent a later reading meanwhile.
        if reading.sent_at < previous.sent_at {
            return ClockObservation::Continuous;
        }
        let passed = whole_micros(reading.sent_at.saturating_sub(previous.sent_at));
        let drift = passed / SECONDS_PER_DRIFT;
        let (low, high) = (history.bounds.0 - drift, history.bounds.1 + drift);
        let (least, greatest) = reading.bounds();
        let contradiction = (least - high).max(0) + (greatest - low).min(0);
        let deviation = towards_zero(history.deviation, drift) + contradiction;
        let has_changed = deviation.abs() > whole_micros(MAX_DISAGREEMENT);
        if has_changed || history.contradicts_epoch(&previous, &reading) {
            return ClockObservation::Changed(time::Duration::microseconds(deviation));
        }
        let bounds = match contradiction {
            0 => (least.max(low), greatest.min(high)),
            _ => (least, greatest),
        };
        self.apply(&mut history, reading, bounds, deviation);
        ClockObservation::Continuous
    }

    /// Continues with the time of a reading, in the epoch that began with it.
    pub fn restart(&self, reading: ClockReading) {
        let mut history = self.history();
        if history.last.is_none_or(|last| reading.sent_at >= last.sent_at) {
            self.apply(&mut history, reading, reading.bounds(), 0);
        }
    }

    /// Moves the estimate into the bounds; without an estimate, to their middle. Stores the epoch
    /// after the time: a caller that sees a new epoch must not see an older time.
    fn apply(
        &self,
        history: &mut History,
        reading: ClockReading,
        bounds: (i64, i64),
        deviation: i64,
    ) {
        let offset = match self.0.offset.load(Acquire) {
            NO_OFFSET => i64::midpoint(bounds.0, bounds.1),
            offset => offset.clamp(bounds.0, bounds.1),
        };
        self.0.offset.store(offset, Release);
        let epoch = reading.epoch.or(history.epoch);
        *history = History { last: Some(reading), bounds, deviation, epoch };
    }

    /// Returns the time of the monotonic clock at which the last reading was sent.
    #[must_use]
    pub fn last_read_at(&self) -> Option<Duration> {
        self.history().last.map(|reading| reading.sent_at)
    }

    /// Returns the difference between the clock of this machine and that of PostgreSQL; positive if
    /// this machine is ahead.
    #[must_use]
    pub fn skew(&self) -> time::Duration {
        self.0.machine.now() - self.now()
    }

    /// Stores that the two clocks differ, or do not. Returns true if that is new.
    #[must_use]
    pub fn update_skewed(&self, is_skewed: bool) -> bool {
        self.0.is_skewed.swap(is_skewed, Relaxed) != is_skewed
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> OffsetDateTime {
        let offset = self.0.offset.load(Acquire);
        if offset == NO_OFFSET {
            return self.0.machine.now();
        }
        let since_1970 = offset.saturating_add(whole_micros(self.monotonic()));
        OffsetDateTime::UNIX_EPOCH + time::Duration::microseconds(since_1970)
    }

    fn monotonic(&self) -> Duration {
        self.0.machine.monotonic()
    }

    /// Until the epoch was read from PostgreSQL, its number is -1, which no stored time has.
    fn epoch(&self) -> Option<ClockEpoch> {
        let known = self.history().epoch;
        Some(known.unwrap_or_else(|| ClockEpoch { number: -1, started_at: self.now() }))
    }
}

impl fmt::Debug for DatabaseClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseClock").field(&self.now()).finish()
    }
}

fn whole_micros(duration: Duration) -> i64 {
    duration.as_micros().try_into().unwrap_or(i64::MAX)
}

fn micros(duration: time::Duration) -> i64 {
    duration.whole_microseconds().try_into().unwrap_or(i64::MAX)
}

/// Returns `value` moved towards zero by `by`, at most to zero.
fn towards_zero(value: i64, by: i64) -> i64 {
    value.signum() * value.abs().saturating_sub(by).max(0)
}

#[cfg(test)]
mod tests;
