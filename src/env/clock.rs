use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use time::OffsetDateTime;

/// The time by which the clocks of two nodes may differ.
pub const MAX_DISAGREEMENT: Duration = Duration::from_secs(1);

/// A source of the current time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the time in UTC, in whole microseconds, as PostgreSQL stores it.
    fn now(&self) -> OffsetDateTime;

    /// Returns the time since a fixed point. It never goes back, and it advances while the machine
    /// is suspended. For durations, rate limits and leases.
    fn monotonic(&self) -> Duration;

    /// Returns the present epoch of PostgreSQL's clock. `None` if this clock does not follow it, as
    /// the clock of a test.
    fn epoch(&self) -> Option<ClockEpoch> {
        None
    }

    /// Returns the time that has certainly passed since `time`, a stored time of any node. For
    /// windows that a change of the clock must not close too early.
    fn elapsed_since(&self, time: OffsetDateTime) -> Duration {
        let now = self.now();
        let in_epoch = self.epoch().map(|epoch| non_negative(now - epoch.started_at));
        let passed = if time > now + MAX_DISAGREEMENT {
            // The clock was set back after that time.
            in_epoch.unwrap_or_default()
        } else {
            non_negative(now - time)
        };
        passed.min(in_epoch.unwrap_or(passed))
    }
}

/// An epoch of PostgreSQL's clock: a period in which it ran without a jump. Times of two epochs
/// cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockEpoch {
    /// The number of the epoch. It grows with each change of the clock.
    pub number: i64,
    /// The time at which it began, by the clock of this epoch.
    pub started_at: OffsetDateTime,
}

fn non_negative(duration: time::Duration) -> Duration {
    duration.try_into().unwrap_or_default()
}

/// On Linux, `CLOCK_MONOTONIC` stops while the machine is suspended; `CLOCK_BOOTTIME` does not. On
/// other systems the monotonic clock does not stop.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
        let now = OffsetDateTime::now_utc();
        now.replace_nanosecond(now.nanosecond() / 1000 * 1000).unwrap_or(now)
    }

    fn monotonic(&self) -> Duration {
        let now = clock_gettime(CLOCK);
        let seconds = Duration::from_secs(now.tv_sec.unsigned_abs());
        seconds + Duration::from_nanos(now.tv_nsec.unsigned_abs())
    }
}

/// A clock that stands still until a test advances it.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct ManualClock(std::sync::Mutex<Duration>);

#[cfg(test)]
impl ManualClock {
    /// Advances the clock.
    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}
