//! Who follows a log as it grows.
//!
//! A node looks where the chains end that somebody follows, in one query for all of them, and wakes those
//! who wait. What they are given they read themselves, as fast as they take it: there is no buffer that
//! could overflow.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use crate::{
    model::id::WorkspaceId,
    store::{Store, StoreError},
};

/// How often a node looks for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Those who follow one workspace's log on a node at most.
const MOST: usize = 50;

type Ends = Arc<Mutex<HashMap<WorkspaceId, watch::Sender<i64>>>>;

/// Where the followed chains end, as this node last saw. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Followers {
    ends: Ends,
}

/// One who follows.
#[derive(Debug)]
pub struct Follower {
    workspace: WorkspaceId,
    end: watch::Receiver<i64>,
    ends: Ends,
}

impl Followers {
    /// Another one, of a chain that ends here; none where there are too many.
    #[must_use]
    pub fn join(&self, workspace: WorkspaceId, end: i64) -> Option<Follower> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = ends.entry(workspace).or_insert_with(|| watch::Sender::new(end));
        if sender.receiver_count() >= MOST {
            return None;
        }
        Some(Follower { workspace, end: sender.subscribe(), ends: Arc::clone(&self.ends) })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.values().map(watch::Sender::receiver_count).sum()
    }

    /// Looks for what is new until it is dropped.
    pub async fn run(self, store: Store) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Err(error) = self.look(&store).await {
                warn!(%error, "cannot look for new audit events");
            }
        }
    }

    async fn look(&self, store: &Store) -> Result<(), StoreError> {
        let followed: Vec<_> = {
            let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            ends.keys().copied().collect()
        };
        if followed.is_empty() {
            return Ok(());
        }
        let found = Store::within(PATIENCE, store.chain_ends(&followed)).await?;
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (workspace, end) in found {
            if let Some(sender) = ends.get(&workspace) {
                sender.send_if_modified(|known| std::mem::replace(known, end) != end);
            }
        }
        Ok(())
    }
}

impl Follower {
    /// Where the chain ends, as far as this node knows.
    #[must_use]
    pub fn end(&self) -> i64 {
        *self.end.borrow()
    }

    /// Ready once the chain ends behind this place; where it ends.
    pub async fn behind(&mut self, sequence: i64) -> i64 {
        let end = self.end.wait_for(|end| *end > sequence).await.map(|end| *end);
        match end {
            Ok(end) => end,
            // Nobody looks any more: the service ends.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        // This one is still counted.
        if ends.get(&self.workspace).is_some_and(|sender| sender.receiver_count() <= 1) {
            ends.remove(&self.workspace);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn followers_are_woken_counted_and_bounded() {
        let followers = Followers::default();
        let workspace = WorkspaceId::from(Uuid::from_u128(1));
        let mut many: Vec<_> = (0..MOST).map(|_| followers.join(workspace, 5).unwrap()).collect();
        assert!(followers.join(workspace, 5).is_none());
        assert!(followers.join(Uuid::from_u128(2).into(), 5).is_some());
        assert_eq!(followers.count(), MOST);
        assert_eq!(many[0].behind(4).await, 5);
        followers.ends.lock().unwrap()[&workspace].send_replace(9);
        assert_eq!(many[0].behind(5).await, 9);
        many.pop();
        assert!(followers.join(workspace, 5).is_some());
        drop(many);
        assert_eq!(followers.count(), 0);
        assert!(followers.ends.lock().unwrap().is_empty());
    }
}
