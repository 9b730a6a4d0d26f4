//! Everything that this node believes of credentials.

use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use super::{
    credential_cache::{CacheCounts, CredentialCache, Found, Source},
    verify_jwt::Claims,
};
use crate::{
    coherence::{Beliefs, Lease},
    env::Env,
    model::{
        api_key::{KeyDigest, KeyRecord},
        id::{GrantId, SessionId, WorkspaceId},
        invalidation::Invalidation,
        oauth::grant::{GrantRecord, Holder},
        principal::{Credential, Principal},
        session::SessionRecord,
    },
    store::{Line, Store, StoreError},
};

/// What is known of a key.
#[derive(Debug, Clone)]
pub(super) enum KnownKey {
    /// It may be used.
    Active(Arc<Principal>),
    /// It was revoked.
    Revoked(Arc<KeyRecord>),
}

/// Keys by their digests, in PostgreSQL.
pub(super) struct Keys(Line);

impl Source for Keys {
    type Key = KeyDigest;
    type Known = KnownKey;

    async fn fetch(&mut self, keys: &[KeyDigest]) -> Result<Found<Self>, StoreError> {
        let found = self.0.find_api_keys(keys).await?;
        Ok(found.into_iter().map(|(digest, record)| (digest, record.into())).collect())
    }
}

impl From<KeyRecord> for KnownKey {
    fn from(record: KeyRecord) -> Self {
        if record.revoked {
            return Self::Revoked(Arc::new(record));
        }
        Self::Active(Arc::new(Principal {
            workspace_id: record.workspace_id,
            scope: record.scope,
            rate_limit_per_minute: record.rate_limit_per_minute,
            lacks_second_factor: false,
            credential: Credential::ApiKey {
                id: record.id,
                name: record.name,
                allowed_ips: record.allowed_ips,
                creator: record.creator,
            },
        }))
    }
}

impl KnownKey {
    fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Active(principal) => principal.workspace_id,
            Self::Revoked(record) => record.workspace_id,
        }
    }
}

/// Sessions by their ids, in PostgreSQL.
pub(super) struct Sessions(Line);

impl Source for Sessions {
    type Key = SessionId;
    type Known = Arc<SessionRecord>;

    async fn fetch(&mut self, ids: &[SessionId]) -> Result<Found<Self>, StoreError> {
        let found = self.0.find_sessions(ids).await?;
        Ok(found.into_iter().map(|(id, record)| (id, Arc::new(record))).collect())
    }
}

/// OAuth grants by their ids, in PostgreSQL.
pub(super) struct Grants(Line);

impl Source for Grants {
    type Key = GrantId;
    type Known = Arc<GrantRecord>;

    async fn fetch(&mut self, ids: &[GrantId]) -> Result<Found<Self>, StoreError> {
        let found = self.0.find_grants(ids).await?;
        Ok(found.into_iter().map(|(id, record)| (id, Arc::new(record))).collect())
    }
}

/// Everything that this node believes of credentials. Cheap to clone.
#[derive(Clone)]
pub struct Caches {
    pub(super) keys: CredentialCache<Keys>,
    pub(super) sessions: CredentialCache<Sessions>,
    pub(super) grants: CredentialCache<Grants>,
    pub(super) tokens: VerifiedTokens,
}

impl Caches {
    /// Empty ones. `capacity` is that of keys; sessions, grants and tokens are fewer.
    #[must_use]
    pub fn start(store: &Store, env: &Env, lease: &Lease, capacity: usize) -> Self {
        let people = (capacity / 4).max(1);
        Self {
            keys: CredentialCache::start(
                Keys(Line::new(store.clone())),
                env.clone(),
                lease.clone(),
                capacity,
            ),
            sessions: CredentialCache::start(
                Sessions(Line::new(store.clone())),
                env.clone(),
                lease.clone(),
                people,
            ),
            grants: CredentialCache::start(
                Grants(Line::new(store.clone())),
                env.clone(),
                lease.clone(),
                people,
            ),
            tokens: VerifiedTokens(Arc::new(Cache::new(people))),
        }
    }

    /// How often keys were asked for, and how many are known.
    #[must_use]
    pub fn keys_seen(&self) -> (&CacheCounts, usize) {
        (self.keys.counts(), self.keys.len())
    }

    /// How often OAuth grants were asked for, and how many are known.
    #[must_use]
    pub fn grants_seen(&self) -> (&CacheCounts, usize) {
        (self.grants.counts(), self.grants.len())
    }

    /// How often sessions were asked for, and how many are known.
    #[must_use]
    pub fn sessions_seen(&self) -> (&CacheCounts, usize) {
        (self.sessions.counts(), self.sessions.len())
    }
}

impl Beliefs for Caches {
    fn forget(&self, invalidations: &[Invalidation]) {
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::Key(digest) => self.keys.forget(&digest),
                Invalidation::Session(id) => self.sessions.forget(&id),
                Invalidation::Person { user, workspace } => {
                    let is_there =
                        |there: WorkspaceId| workspace.is_none_or(|workspace| there == workspace);
                    self.sessions.forget_if(|session| {
                        session.user_id == user && is_there(session.workspace_id)
                    });
                    self.grants.forget_if(|grant| {
                        let is = |holder: &Holder| holder.user_id == user;
                        grant.person.as_ref().is_some_and(is) && is_there(grant.workspace_id)
                    });
                }
                Invalidation::Workspace(workspace) => {
                    self.keys.forget_if(|key| key.workspace() == workspace);
                    self.sessions.forget_if(|session| session.workspace_id == workspace);
                    self.grants.forget_if(|grant| grant.workspace_id == workspace);
                }
                Invalidation::Grant(id) => self.grants.forget(&id),
                Invalidation::Client(id) => self.grants.forget_if(|grant| grant.client_id == id),
            }
        }
    }

    fn forget_all(&self) {
        self.keys.forget_all();
        self.sessions.forget_all();
        self.grants.forget_all();
    }
}

/// Access tokens whose signature was checked, which costs more than everything else together. What
/// they say stays true until they expire; whether their session lives is asked of [`Sessions`].
#[derive(Clone)]
pub(super) struct VerifiedTokens(Arc<Cache<[u8; 32], Arc<Claims>>>);

impl VerifiedTokens {
    pub(super) fn digest(token: &str) -> [u8; 32] {
        Sha256::digest(token).into()
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<Claims>> {
        self.0.get(digest)
    }

    pub(super) fn forget_all(&self) {
        self.0.clear();
    }

    pub(super) fn keep(&self, digest: [u8; 32], claims: Arc<Claims>) {
        self.0.insert(digest, claims);
    }
}
