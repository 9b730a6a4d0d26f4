//! Subscriptions of event streams, which follow a log as it grows.
//!
//! A node polls the ends of all followed chains in one query and wakes their subscribers. Each
//! subscriber reads its events itself, at its own speed, so there is no buffer that could overflow.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::{
    model::{
        id::{Id as _, WorkspaceId},
        principal::{Caller, Credential},
    },
    store::{Store, StoreError},
};

/// Interval at which a node polls the ends of the followed chains.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Timeout of one poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of subscriptions to one workspace's log on a node.
const MAX_PER_WORKSPACE: usize = 50;
/// Maximum number of these for one credential, so that one key, or the browser windows of one
/// session, do not exclude others.
const MAX_PER_CREDENTIAL: usize = 10;

type Chains = Arc<Mutex<HashMap<WorkspaceId, FollowedChain>>>;

/// A chain that has subscribers.
#[derive(Debug)]
struct FollowedChain {
    end: watch::Sender<i64>,
    /// Number of subscriptions.
    count: usize,
    /// Number of subscriptions by key, session or grant.
    credentials: HashMap<Uuid, usize>,
}

/// All subscriptions on this node, and the last known ends of their chains. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StreamSubscriptions {
    chains: Chains,
}

/// A subscription to the log of a workspace. It ends when it is dropped.
#[derive(Debug)]
pub struct StreamSubscription {
    workspace: WorkspaceId,
    credential: Uuid,
    end: watch::Receiver<i64>,
    chains: Chains,
}

impl StreamSubscriptions {
    /// Subscribes to the log of the caller's workspace; `end` is the current end of its chain.
    /// Returns `None` if the workspace or the caller's credential has too many subscriptions.
    #[must_use]
    pub fn subscribe(&self, caller: &Caller, end: i64) -> Option<StreamSubscription> {
        let workspace = caller.workspace();
        let credential = match &caller.principal.credential {
            Credential::ApiKey { id, .. } => id.uuid(),
            Credential::Session { id, .. } => id.uuid(),
            Credential::Grant { id, .. } => id.uuid(),
        };
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = chains.entry(workspace).or_insert_with(|| FollowedChain {
            end: watch::Sender::new(end),
            count: 0,
            credentials: HashMap::new(),
        });
        let own = followed.credentials.get(&credential).copied().unwrap_or_default();
        if followed.count >= MAX_PER_WORKSPACE || own >= MAX_PER_CREDENTIAL {
            return None;
        }
        followed.count += 1;
        followed.credentials.insert(credential, own + 1);
        let (end, chains) = (followed.end.subscribe(), Arc::clone(&self.chains));
        Some(StreamSubscription { workspace, credential, end, chains })
    }

    /// Returns the number of subscriptions on this node.
    #[must_use]
    pub fn count(&self) -> usize {
        let chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        chains.values().map(|followed| followed.count).sum()
    }

    /// Polls the ends of the followed chains until `stopping` is cancelled.
    pub async fn run(self, store: Store, stopping: CancellationToken) {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stopping.run_until_cancelled(polls.tick()).await.is_some() {
            if let Err(error) = self.poll(&store).await {
                warn!(%error, "cannot poll for new audit events; retrying");
            }
        }
    }

    async fn poll(&self, store: &Store) -> Result<(), StoreError> {
        let followed: Vec<_> = {
            let chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
            chains.keys().copied().collect()
        };
        if followed.is_empty() {
            return Ok(());
        }
        let chain_ends =
            Store::with_timeout(POLL_TIMEOUT, store.last_chain_sequences(&followed)).await?;
        let chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        for (workspace, end) in chain_ends {
            if let Some(followed) = chains.get(&workspace) {
                followed.end.send_if_modified(|known| std::mem::replace(known, end) != end);
            }
        }
        Ok(())
    }
}

impl StreamSubscription {
    /// Returns the last known sequence number of the chain.
    #[must_use]
    pub fn chain_end(&self) -> i64 {
        *self.end.borrow()
    }

    /// Waits until the chain has events after this sequence number; returns the end of the chain.
    /// Never returns while the service stops.
    pub async fn wait_for_events_after(&mut self, sequence: i64) -> i64 {
        let end = self.end.wait_for(|end| *end > sequence).await.map(|end| *end);
        match end {
            Ok(end) => end,
            // The polling task has stopped, because the service stops.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for StreamSubscription {
    fn drop(&mut self) {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(followed) = chains.get_mut(&self.workspace) else { return };
        followed.count -= 1;
        if followed.count == 0 {
            chains.remove(&self.workspace);
        } else if let Some(own) = followed.credentials.get_mut(&self.credential) {
            *own -= 1;
            if *own == 0 {
                followed.credentials.remove(&self.credential);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        audit::RequestInfo,
        principal::Principal,
        scope::{Role, Scope},
    };

    #[derive(Clone, Copy)]
    enum Kind {
        Key,
        Session,
        Grant,
    }

    fn caller(workspace: u128, kind: Kind, id: u128) -> Caller {
        let request = RequestInfo {
            id: Uuid::nil().into(),
            method: "GET".into(),
            path: "/".to_owned(),
            ip: [127, 0, 0, 1].into(),
            user_agent: None,
            started_at: Duration::ZERO,
        };
        let name = Arc::from("n");
        let id = Uuid::from_u128(id);
        let credential = match kind {
            Kind::Session => Credential::Session {
                id: id.into(),
                user_id: Uuid::nil().into(),
                name,
                role: Role::Viewer,
                credential_generation: 0,
            },
            Kind::Key => Credential::ApiKey {
                id: id.into(),
                name,
                allowed_ips: Vec::new(),
                creator: None,
                rate_limit_per_minute: None,
            },
            Kind::Grant => {
                let (client_id, token_id) = (Uuid::nil().into(), Uuid::nil());
                Credential::Grant { id: id.into(), token_id, client_id, name, user: None }
            }
        };
        let principal = Principal {
            workspace_id: Uuid::from_u128(workspace).into(),
            scope: Scope::ReadOnly,
            rate_limit_per_minute: None,
            lacks_second_factor: false,
            credential,
        };
        Caller { principal: Arc::new(principal), request: Arc::new(request) }
    }

    #[tokio::test]
    async fn subscriptions_are_woken_counted_and_limited() {
        let followers = StreamSubscriptions::default();
        let key = caller(1, Kind::Key, 0);
        let subscribe = |n: usize| {
            let key = caller(1, Kind::Key, u128::try_from(n / MAX_PER_CREDENTIAL).unwrap());
            followers.subscribe(&key, 5)
        };
        let mut many: Vec<_> = (0..MAX_PER_WORKSPACE).map(|n| subscribe(n).unwrap()).collect();
        assert!(subscribe(MAX_PER_WORKSPACE).is_none());
        assert!(followers.subscribe(&caller(2, Kind::Key, 0), 5).is_some());
        assert_eq!(followers.count(), MAX_PER_WORKSPACE);
        assert_eq!(many[0].wait_for_events_after(4).await, 5);
        followers.chains.lock().unwrap()[&key.workspace()].end.send_replace(9);
        assert_eq!((many[0].wait_for_events_after(5).await, many[0].chain_end()), (9, 9));
        many.pop();
        assert!(subscribe(MAX_PER_WORKSPACE).is_some());
        drop(many);
        assert_eq!(followers.count(), 0);
        assert!(followers.chains.lock().unwrap().is_empty());
    }

    #[test]
    fn credential_limit_does_not_affect_other_credentials() {
        for kind in [Kind::Key, Kind::Session, Kind::Grant] {
            let followers = StreamSubscriptions::default();
            let [one, other] = [7, 8].map(|id| caller(1, kind, id));
            let mut own: Vec<_> =
                (0..MAX_PER_CREDENTIAL).map(|_| followers.subscribe(&one, 5).unwrap()).collect();
            assert!(followers.subscribe(&one, 5).is_none());
            let others = followers.subscribe(&other, 5).unwrap();
            own.pop();
            own.push(followers.subscribe(&one, 5).unwrap());
            drop(own);
            assert_eq!(followers.count(), 1);
            drop(others);
            assert!(followers.chains.lock().unwrap().is_empty());
        }
    }
}
