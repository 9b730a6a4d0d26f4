use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use time::OffsetDateTime;

/// A source of the current time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time in UTC, in whole microseconds, as PostgreSQL stores it.
    fn now(&self) -> OffsetDateTime;

    /// Returns the time since a fixed point. It never goes back, and it advances while the machine
    /// is suspended. For durations, rate limits and leases.
    fn monotonic(&self) -> Duration;
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
