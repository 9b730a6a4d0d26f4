//! A short memory of client ids that do not exist: repeated requests with one cost no lookup.
//!
//! It has the discipline of the credential caches: it is bounded, and the result of a lookup that
//! started before a client was created is not remembered. Other nodes are not notified of a new
//! client, and need not be: its id is random, and no request has it before it is created.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quick_cache::sync::Cache;

use crate::model::id::ClientId;

/// Maximum number of remembered ids.
const CAPACITY: usize = 10_000;
/// The time for which an id is remembered.
const TTL: Duration = Duration::from_secs(10);

/// Client ids that do not exist.
pub struct UnknownClients {
    /// The times until which ids are remembered, on the monotonic clock.
    ids: Cache<ClientId, Duration>,
    /// Increases when a client is created. The lock is held while an id is inserted or removed.
    epoch: Mutex<u64>,
}

impl UnknownClients {
    pub(in crate::oauth) fn new() -> Self {
        Self { ids: Cache::new(CAPACITY), epoch: Mutex::default() }
    }

    /// True if the client did not exist a moment ago.
    pub(super) fn contains(&self, id: ClientId, now: Duration) -> bool {
        self.ids.get(&id).is_some_and(|until| now < until)
    }

    /// Returns the current epoch, for [`Self::insert`] after a lookup.
    pub(super) fn epoch(&self) -> u64 {
        *self.lock_epoch()
    }

    /// Remembers that a lookup, which started in this epoch, found no client.
    pub(super) fn insert(&self, id: ClientId, epoch_at_start: u64, now: Duration) {
        let epoch = self.lock_epoch();
        if *epoch == epoch_at_start {
            self.ids.insert(id, now + TTL);
        }
    }

    /// Forgets an id, because its client was created.
    pub(super) fn invalidate(&self, id: ClientId) {
        let mut epoch = self.lock_epoch();
        *epoch += 1;
        self.ids.remove(&id);
    }

    fn lock_epoch(&self) -> MutexGuard<'_, u64> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn unknown_client_is_remembered_until_it_is_created() {
        let unknown = UnknownClients::new();
        let [a, b] = [1, 2].map(|n| ClientId::from(Uuid::from_u128(n)));
        let now = Duration::from_secs(100);
        let epoch = unknown.epoch();
        unknown.insert(a, epoch, now);
        assert!(unknown.contains(a, now + Duration::from_millis(9_999)));
        assert!(!unknown.contains(a, now + TTL) && !unknown.contains(b, now));
        unknown.invalidate(a);
        assert!(!unknown.contains(a, now));
        // The lookup started before the client was created.
        unknown.insert(a, epoch, now);
        assert!(!unknown.contains(a, now));
    }

    #[test]
    fn number_of_remembered_clients_is_bounded() {
        let unknown = UnknownClients::new();
        for n in 0..3 * CAPACITY {
            let id = ClientId::from(Uuid::from_u128(n.try_into().unwrap()));
            unknown.insert(id, 0, Duration::ZERO);
        }
        assert!(unknown.ids.len() <= CAPACITY);
    }
}
