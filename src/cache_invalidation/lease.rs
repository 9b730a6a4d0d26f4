//! The lease: a node's right to serve from its cache, until it expires.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A node's right to serve from its cache. Cheap to clone.
///
/// It starts when the renewal is *sent*, on a clock that also counts the time during which the
/// machine is suspended. So it expires on this node before it expires for the nodes that wait for
/// it.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    /// The end of the lease, in microseconds of the monotonic clock; 0 without a lease.
    expires_at_us: Arc<AtomicU64>,
}

impl Lease {
    /// True if the lease is valid at `now`, a time of the monotonic clock.
    #[must_use]
    pub fn is_valid_at(&self, now: Duration) -> bool {
        micros(now) < self.expires_at_us.load(Ordering::Acquire)
    }

    /// Returns the remaining time of the lease; zero if it has expired.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Duration {
        Duration::from_micros(self.expires_at_us.load(Ordering::Acquire)).saturating_sub(now)
    }

    /// Makes the lease valid until `until`, a time of the monotonic clock.
    pub(crate) fn extend(&self, until: Duration) {
        self.expires_at_us.store(micros(until), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.expires_at_us.store(0, Ordering::Release);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_valid_until_its_end() {
        let lease = Lease::default();
        assert!(!lease.is_valid_at(Duration::ZERO), "no lease was granted yet");
        lease.extend(Duration::from_secs(5));
        assert!(lease.is_valid_at(Duration::from_micros(4_999_999)));
        assert!(!lease.is_valid_at(Duration::from_secs(5)));
        lease.end();
        assert!(!lease.is_valid_at(Duration::ZERO));
    }
}
