use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use time::OffsetDateTime;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, in UTC; whole microseconds, as PostgreSQL keeps them.
    fn now(&self) -> OffsetDateTime;

    /// Time since some fixed moment; never goes back, and counts on while the machine is suspended.
    /// For durations, rate limits and leases.
    fn monotonic(&self) -> Duration;
}

/// `CLOCK_MONOTONIC` of Linux stands still while the machine is suspended, this one does not. Elsewhere
/// the monotonic clock goes on.
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
