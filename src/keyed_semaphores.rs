//! Semaphores by key: they limit concurrent work for each account, workspace or address.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A semaphore for each key that is in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyedSemaphores<K> {
    permits_per_key: usize,
    semaphores: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

/// A permit of the semaphore of one key, until it is dropped.
#[derive(Debug)]
pub struct KeyedPermit<K: Hash + Eq> {
    held: Option<OwnedSemaphorePermit>,
    key: K,
    all: KeyedSemaphores<K>,
}

impl<K: Hash + Eq + Clone> KeyedSemaphores<K> {
    /// Creates semaphores with this number of permits each.
    #[must_use]
    pub fn new(permits_per_key: usize) -> Self {
        Self { permits_per_key, semaphores: Arc::default() }
    }

    /// Waits for a permit of a key, in the order of the calls.
    pub async fn acquire(&self, key: K) -> KeyedPermit<K> {
        let semaphore = {
            let mut semaphores = self.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.permits_per_key));
            Arc::clone(semaphores.entry(key.clone()).or_insert_with(new))
        };
        // Created before waiting: a caller that stops waiting removes an unused semaphore too.
        let mut permit = KeyedPermit { held: None, key, all: self.clone() };
        // An error means that the semaphore is closed, which never happens.
        permit.held = semaphore.acquire_owned().await.ok();
        permit
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.semaphores.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl<K: Hash + Eq> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut semaphores = self.all.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        // Each other permit and each waiting caller has a reference too.
        if semaphores.get(&self.key).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            semaphores.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn permits_of_one_key_are_limited() {
        let semaphores = KeyedSemaphores::new(2);
        let held = [semaphores.acquire("a").await, semaphores.acquire("a").await];
        let mut waiting = Box::pin(semaphores.acquire("a"));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(semaphores.acquire("b").await);
        drop(held);
        drop(waiting.await);
        // A caller that stops waiting leaves nothing behind.
        let held = [semaphores.acquire("a").await, semaphores.acquire("a").await];
        assert!(semaphores.acquire("a").now_or_never().is_none());
        drop(held);
        assert_eq!(semaphores.len(), 0);
    }
}
