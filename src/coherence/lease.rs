use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A node's right to believe what it has cached. Cheap to clone.
///
/// It runs from the moment at which its renewal was *sent*, on a clock that also counts the time that
/// the machine is suspended, so it ends here before it ends for those who wait for it.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    /// In microseconds of the monotonic clock.
    until: Arc<AtomicU64>,
}

impl Lease {
    /// Whether it holds at this moment of the monotonic clock.
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        micros(now) < self.until.load(Ordering::Acquire)
    }

    /// How much longer it holds.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        Duration::from_micros(self.until.load(Ordering::Acquire)).saturating_sub(now)
    }

    /// It holds until this moment.
    pub(crate) fn extend(&self, until: Duration) {
        self.until.store(micros(until), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }
}

fn micros(moment: Duration) -> u64 {
    u64::try_from(moment.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_until_its_end_and_no_longer() {
        let lease = Lease::default();
        assert!(!lease.holds(Duration::ZERO), "not before it is given");
        lease.extend(Duration::from_secs(5));
        assert!(lease.holds(Duration::from_micros(4_999_999)));
        assert!(!lease.holds(Duration::from_secs(5)));
        lease.end();
        assert!(!lease.holds(Duration::ZERO));
    }
}
