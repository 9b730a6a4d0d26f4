//! Failed authentications of clients that were not recorded in an audit log, by client.
//!
//! Client ids are public, so anyone can cause a rejection. Above a rate, rejections are counted
//! here, and the next recorded one contains the count. The counts of a node end with it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::model::id::ClientId;

/// Maximum number of clients with a count.
const CAPACITY: usize = 10_000;

/// Counts of rejections.
#[derive(Default)]
pub struct UnrecordedRejections(Mutex<HashMap<ClientId, u64>>);

impl UnrecordedRejections {
    /// Counts a rejection. Ignores further clients if too many have a count.
    pub(super) fn count(&self, client: ClientId) {
        let mut counts = self.lock();
        if counts.len() < CAPACITY || counts.contains_key(&client) {
            *counts.entry(client).or_default() += 1;
        }
    }

    /// Returns the count of a client and starts it again.
    pub(super) fn take(&self, client: ClientId) -> u64 {
        self.lock().remove(&client).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
