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
    model::{
        id::{SessionId, WorkspaceId},
        principal::{Caller, Credential},
    },
    store::{Store, StoreError},
};

/// How often a node looks for what is new.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Those who follow one workspace's log on a node at most.
const MOST: usize = 50;
/// Of these the windows of one session at most, which are not to keep others out.
const MOST_OF_ONE: usize = 10;

type Ends = Arc<Mutex<HashMap<WorkspaceId, Followed>>>;

/// A chain that somebody follows.
#[derive(Debug)]
struct Followed {
    end: watch::Sender<i64>,
    /// How many there are.
    count: usize,
    /// How many windows of each session.
    sessions: HashMap<SessionId, usize>,
}

/// Where the followed chains end, as this node last saw. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Followers {
    ends: Ends,
}

/// One who follows.
#[derive(Debug)]
pub struct Follower {
    workspace: WorkspaceId,
    session: Option<SessionId>,
    end: watch::Receiver<i64>,
    ends: Ends,
}

impl Followers {
    /// Another one, of a chain that ends here; none where there are too many, in all or of the caller's session.
    #[must_use]
    pub fn join(&self, caller: &Caller, end: i64) -> Option<Follower> {
        let workspace = caller.workspace();
        let session = match &caller.principal.credential {
            Credential::Session { id, .. } => Some(*id),
            Credential::ApiKey { .. } | Credential::Grant { .. } => None,
        };
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = ends.entry(workspace).or_insert_with(|| Followed {
            end: watch::Sender::new(end),
            count: 0,
            sessions: HashMap::new(),
        });
        let own = session.and_then(|session| followed.sessions.get(&session)).copied();
        if followed.count >= MOST || own.is_some_and(|own| own >= MOST_OF_ONE) {
            return None;
        }
        followed.count += 1;
        if let Some(session) = session {
            *followed.sessions.entry(session).or_default() += 1;
        }
        let (end, ends) = (followed.end.subscribe(), Arc::clone(&self.ends));
        Some(Follower { workspace, session, end, ends })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.values().map(|followed| followed.count).sum()
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
            if let Some(followed) = ends.get(&workspace) {
                followed.end.send_if_modified(|known| std::mem::replace(known, end) != end);
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
        let Some(followed) = ends.get_mut(&self.workspace) else { return };
        followed.count -= 1;
        if followed.count == 0 {
            ends.remove(&self.workspace);
        } else if let Some(session) = self.session
            && let Some(own) = followed.sessions.get_mut(&session)
        {
            *own -= 1;
            if *own == 0 {
                followed.sessions.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{
        audit::RequestInfo,
        principal::Principal,
        scope::{Role, Scope},
    };

    fn caller(workspace: u128, session: Option<u128>) -> Caller {
        let request = RequestInfo {
            id: Uuid::nil().into(),
            method: "GET".into(),
            path: "/".to_owned(),
            ip: [127, 0, 0, 1].into(),
            user_agent: None,
            began: Duration::ZERO,
        };
        let name = Arc::from("n");
        let credential = match session {
            Some(id) => Credential::Session {
                id: Uuid::from_u128(id).into(),
                user_id: Uuid::nil().into(),
                name,
                role: Role::Viewer,
            },
            None => Credential::ApiKey {
                id: Uuid::nil().into(),
                name,
                allowed_ips: Vec::new(),
                creator: None,
            },
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
    async fn followers_are_woken_counted_and_bounded() {
        let followers = Followers::default();
        let key = caller(1, None);
        let mut many: Vec<_> = (0..MOST).map(|_| followers.join(&key, 5).unwrap()).collect();
        assert!(followers.join(&key, 5).is_none());
        assert!(followers.join(&caller(2, None), 5).is_some());
        assert_eq!(followers.count(), MOST);
        assert_eq!(many[0].behind(4).await, 5);
        followers.ends.lock().unwrap()[&key.workspace()].end.send_replace(9);
        assert_eq!((many[0].behind(5).await, many[0].end()), (9, 9));
        many.pop();
        assert!(followers.join(&key, 5).is_some());
        drop(many);
        assert_eq!(followers.count(), 0);
        assert!(followers.ends.lock().unwrap().is_empty());
    }

    #[test]
    fn windows_of_one_session_keep_nobody_out() {
        let followers = Followers::default();
        let [one, other] = [7, 8].map(|session| caller(1, Some(session)));
        let mut own: Vec<_> = (0..MOST_OF_ONE).map(|_| followers.join(&one, 5).unwrap()).collect();
        assert!(followers.join(&one, 5).is_none());
        let others = followers.join(&other, 5).unwrap();
        own.pop();
        own.push(followers.join(&one, 5).unwrap());
        drop(own);
        assert_eq!(followers.count(), 1);
        drop(others);
        assert!(followers.ends.lock().unwrap().is_empty());
    }
}
