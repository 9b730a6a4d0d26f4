//! The leases of other nodes, as this node observes them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;

use crate::store::{
    Server,
    cache_invalidation::{LEASE_TOLERANCE, LeaseHolder, Registration},
};

/// Observes the renewals of all nodes, on a clock of this node that cannot be set. Cheap to clone.
///
/// The clocks of PostgreSQL and of other nodes may be set, so they decide nothing. A lease runs
/// from the sending of its renewal, which was before the first sight of the renewal's number; so it
/// has expired once that number has stood still for the duration of the lease.
///
/// The clock may stand still while this machine is suspended: then it only waits for longer.
#[derive(Clone, Default)]
pub struct ObservedLeases(Arc<Mutex<Observations>>);

#[derive(Default)]
struct Observations {
    /// The server on which the observations were made.
    server: Option<Server>,
    /// For each node, the number of its renewals, and the first time that this number was seen.
    renewals: HashMap<Registration, (i64, Instant)>,
}

impl ObservedLeases {
    /// Records the renewals of some nodes, which were read on a server, and returns the nodes among
    /// them whose lease has expired.
    #[must_use]
    pub fn observe(&self, server: Server, nodes: &[LeaseHolder]) -> Vec<LeaseHolder> {
        self.observe_at(Instant::now(), server, nodes)
    }

    fn observe_at(&self, now: Instant, server: Server, nodes: &[LeaseHolder]) -> Vec<LeaseHolder> {
        let mut observations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if observations.server != Some(server) {
            (observations.server, observations.renewals) = (Some(server), HashMap::new());
        }
        let has_expired = |node: &&LeaseHolder| {
            let seen = observations.renewals.entry(node.node).or_insert((node.renewals, now));
            if seen.0 != node.renewals {
                *seen = (node.renewals, now);
            }
            now.saturating_duration_since(seen.1) > node.lease + LEASE_TOLERANCE
        };
        nodes.iter().filter(has_expired).copied().collect()
    }

    /// Forgets nodes that are not among `nodes`, the nodes with a lease.
    pub fn retain(&self, nodes: &[LeaseHolder]) {
        let mut observations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        observations.renewals.retain(|id, _| nodes.iter().any(|node| node.node == *id));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn lease_expires_when_its_renewals_stand_still() {
        let leases = ObservedLeases::default();
        let (server, lease, start) = (Server::default(), Duration::from_secs(5), Instant::now());
        let node = Registration { id: Uuid::nil(), number: 1 };
        let expired = |server, millis, renewals| {
            let now = start + Duration::from_millis(millis);
            leases.observe_at(now, server, &[LeaseHolder { node, renewals, lease }]).len()
        };
        assert_eq!(expired(server, 0, 1), 0);
        assert_eq!(expired(server, 6000, 1), 0);
        assert_eq!(expired(server, 6000, 2), 0, "it was renewed");
        assert_eq!(expired(server, 12_000, 2), 0);
        assert_eq!(expired(server, 12_001, 2), 1);
        assert_eq!(
            expired(Server::other(), 12_002, 2),
            0,
            "another server may have lost a renewal"
        );
        assert_eq!(expired(Server::other(), 18_003, 2), 1);
        leases.retain(&[]);
        assert_eq!(expired(Server::other(), 18_004, 2), 0);
    }
}
