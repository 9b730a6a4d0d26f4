use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// What time it is.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, in UTC; whole microseconds, as PostgreSQL keeps them.
    fn now(&self) -> OffsetDateTime;

    /// Time since some fixed moment; never goes back. For durations and rate limits.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two clocks are not interchangeable")]
    pub fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
        let started = Instant::now();
        Self { started }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
        let now = OffsetDateTime::now_utc();
        now.replace_nanosecond(now.nanosecond() / 1000 * 1000).unwrap_or(now)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}
