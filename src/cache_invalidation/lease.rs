//! The lease: a node's right to serve from its cache, until it expires.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{env::Clock, store::Server};

/// A node's right to serve from its cache, and to believe lookups on one PostgreSQL server. Cheap
/// to clone.
///
/// It starts when the renewal is *sent*, on a clock that also counts the time during which the
/// machine is suspended. So it expires on this node before it expires for the nodes that wait for
/// it.
#[derive(Debug, Clone, Default)]
pub struct Lease(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The end of the lease, in microseconds of the monotonic clock; 0 without a lease.
    expires_at_us: AtomicU64,
    /// The server that has committed the last renewal.
    server: Mutex<Option<Server>>,
    granted: Notify,
    /// Notified when a request needs a lease and there is none.
    needed: Notify,
}

impl Lease {
    /// True if the lease is valid at `now`, a time of the monotonic clock.
    #[must_use]
    pub fn is_valid_at(&self, now: Duration) -> bool {
        micros(now) < self.0.expires_at_us.load(Ordering::Acquire)
    }

    /// Returns the remaining time of the lease; zero if it has expired.
    #[must_use]
    pub fn remaining(&self, now: Duration) -> Duration {
        Duration::from_micros(self.0.expires_at_us.load(Ordering::Acquire)).saturating_sub(now)
    }

    /// Returns the server of the lease, or `None` without a valid lease.
    #[must_use]
    pub fn server(&self, clock: &dyn Clock) -> Option<Server> {
        // Under the lock, so that the end of the lease belongs to this server.
        let server = self.0.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.filter(|_| self.is_valid_at(clock.monotonic()))
    }

    /// Waits until a request needs a lease and there is none, as after the machine was suspended.
    pub(super) async fn wait_until_needed(&self) {
        self.0.needed.notified().await;
    }

    /// Waits until the lease is valid on `server`.
    pub async fn wait_until_valid(&self, server: Server, clock: &dyn Clock) {
        loop {
            let mut granted = pin!(self.0.granted.notified());
            // Subscribe before the check, so that no grant between the two is lost.
            granted.as_mut().enable();
            if self.server(clock) == Some(server) {
                return;
            }
            self.0.needed.notify_one();
            granted.await;
        }
    }

    /// Makes the lease valid until `until`, a time of the monotonic clock, on a server.
    pub(crate) fn extend(&self, until: Duration, server: Server) {
        let mut current = self.0.server.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(server);
        self.0.expires_at_us.store(micros(until), Ordering::Release);
        drop(current);
        self.0.granted.notify_waiters();
    }

    pub(super) fn end(&self) {
        let mut current = self.0.server.lock().unwrap_or_else(PoisonError::into_inner);
        *current = None;
        self.0.expires_at_us.store(0, Ordering::Release);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Server;

    #[test]
    fn lease_is_valid_until_its_end() {
        let lease = Lease::default();
        assert!(!lease.is_valid_at(Duration::ZERO), "no lease was granted yet");
        lease.extend(Duration::from_secs(5), Server::default());
        assert!(lease.is_valid_at(Duration::from_micros(4_999_999)));
        assert!(!lease.is_valid_at(Duration::from_secs(5)));
        lease.end();
        assert!(!lease.is_valid_at(Duration::ZERO));
    }
}
