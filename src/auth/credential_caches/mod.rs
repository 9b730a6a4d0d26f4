//! The credential caches of a node: API keys, sessions and OAuth grants, verified access tokens.
//!
//! Cached records are used only while the node holds its lease, and are dropped when a cache
//! invalidation names them; see [`crate::cache_invalidation`]. Loading and expiry are in
//! `cache.rs`.

mod cache;

use std::{collections::HashSet, sync::Arc};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

pub use cache::CacheCounters;
use cache::{CredentialCache, CredentialSource, FetchedRecords};

use super::token_issuer::{Claims, TokenBinding};
use crate::{
    cache_invalidation::{InvalidationSink, Lease},
    env::Env,
    model::{
        api_key::{KeyDigest, KeyRecord, KeyStatus},
        id::{ClientId, UserId, WorkspaceId},
        invalidation::Invalidation,
        oauth::grant::GrantRecord,
        principal::{Credential, Principal},
        session::SessionRecord,
    },
    store::{DedicatedConnection, Server, Store, StoreError},
    tasks::TaskGroup,
};

/// The cached state of an API key.
#[derive(Debug, Clone)]
pub(super) enum CachedKey {
    /// The key is active.
    Active(Arc<Principal>),
    /// The key is disabled or revoked. Its workspace's audit log records any further use.
    Inactive(Arc<KeyRecord>),
}

/// Loads API keys from PostgreSQL by digest.
pub(super) struct ApiKeySource(DedicatedConnection);

impl CredentialSource for ApiKeySource {
    type Key = KeyDigest;
    type Record = CachedKey;

    async fn server(&mut self) -> Result<Server, StoreError> {
        self.0.server().await
    }

    async fn fetch(&mut self, keys: &[KeyDigest]) -> Result<FetchedRecords<Self>, StoreError> {
        let found = self.0.find_api_keys(keys).await?;
        Ok(found.into_iter().map(|(digest, record)| (digest, record.into())).collect())
    }
}

impl From<KeyRecord> for CachedKey {
    fn from(record: KeyRecord) -> Self {
        if record.status != KeyStatus::Active {
            return Self::Inactive(Arc::new(record));
        }
        Self::Active(Arc::new(Principal {
            workspace_id: record.workspace_id,
            scope: record.scope,
            rate_limit_per_minute: record.workspace_rate_limit_per_minute,
            lacks_second_factor: false,
            credential: Credential::ApiKey {
                id: record.id,
                name: record.name,
                allowed_ips: record.allowed_ips,
                creator: record.creator,
                rate_limit_per_minute: record.rate_limit_per_minute,
            },
        }))
    }
}

impl CachedKey {
    fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Active(principal) => principal.workspace_id,
            Self::Inactive(record) => record.workspace_id,
        }
    }
}

/// The state of the session or grant that an access token is bound to.
#[derive(Debug, Clone)]
pub(super) enum BindingRecord {
    /// A user's session.
    Session(Arc<SessionRecord>),
    /// An OAuth grant.
    Grant(Arc<GrantRecord>),
}

impl BindingRecord {
    fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Session(session) => session.workspace_id,
            Self::Grant(grant) => grant.workspace_id,
        }
    }

    fn user(&self) -> Option<UserId> {
        match self {
            Self::Session(session) => Some(session.user_id),
            Self::Grant(grant) => grant.user.as_ref().map(|user| user.user_id),
        }
    }

    fn client(&self) -> Option<ClientId> {
        match self {
            Self::Session(_) => None,
            Self::Grant(grant) => Some(grant.client_id),
        }
    }
}

/// Loads sessions and OAuth grants from PostgreSQL by id.
pub(super) struct BindingSource(DedicatedConnection);

impl CredentialSource for BindingSource {
    type Key = TokenBinding;
    type Record = BindingRecord;

    async fn server(&mut self) -> Result<Server, StoreError> {
        self.0.server().await
    }

    async fn fetch(&mut self, keys: &[TokenBinding]) -> Result<FetchedRecords<Self>, StoreError> {
        let (mut sessions, mut grants) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                TokenBinding::Session(id) => sessions.push(*id),
                TokenBinding::Grant(id) => grants.push(*id),
            }
        }
        let mut records = FetchedRecords::<Self>::new();
        if !sessions.is_empty() {
            let found = self.0.find_sessions(&sessions).await?.into_iter();
            records.extend(found.map(|(id, session)| {
                (TokenBinding::Session(id), BindingRecord::Session(Arc::new(session)))
            }));
        }
        if !grants.is_empty() {
            let found = self.0.find_grants(&grants).await?.into_iter();
            records.extend(found.map(|(id, grant)| {
                (TokenBinding::Grant(id), BindingRecord::Grant(Arc::new(grant)))
            }));
        }
        Ok(records)
    }
}

/// All credential caches of this node. Cheap to clone.
#[derive(Clone)]
pub struct CredentialCaches {
    pub(super) keys: CredentialCache<ApiKeySource>,
    pub(super) bindings: CredentialCache<BindingSource>,
    pub(super) tokens: VerifiedTokenCache,
    pub(super) lease: Lease,
}

impl CredentialCaches {
    /// Starts empty caches. `capacity` is the number of API keys; half as many sessions and grants
    /// are cached, and a quarter as many verified tokens. Lookups run in `tasks`.
    #[must_use]
    pub fn start(
        store: &Store,
        env: &Env,
        lease: &Lease,
        capacity: usize,
        tasks: &TaskGroup,
    ) -> Self {
        Self {
            keys: CredentialCache::start(
                ApiKeySource(DedicatedConnection::new(store.clone())),
                env.clone(),
                lease.clone(),
                capacity,
                tasks,
            ),
            bindings: CredentialCache::start(
                BindingSource(DedicatedConnection::new(store.clone())),
                env.clone(),
                lease.clone(),
                (capacity / 2).max(1),
                tasks,
            ),
            tokens: VerifiedTokenCache(Arc::new(Cache::new((capacity / 4).max(1)))),
            lease: lease.clone(),
        }
    }

    /// Counters of the API key cache, and its number of entries.
    #[must_use]
    pub fn key_cache_stats(&self) -> (&CacheCounters, usize) {
        (self.keys.counters(), self.keys.len())
    }

    /// Counters of the cache of sessions and grants, and its number of entries.
    #[must_use]
    pub fn binding_cache_stats(&self) -> (&CacheCounters, usize) {
        (self.bindings.counters(), self.bindings.len())
    }
}

impl InvalidationSink for CredentialCaches {
    fn invalidate(&self, invalidations: &[Invalidation]) {
        // All that need a search of the cache share one: many members may be removed at once.
        let (mut users, mut clients) = (HashSet::new(), HashSet::new());
        let mut workspaces = HashSet::new();
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::Key(digest) => self.keys.invalidate(&digest),
                Invalidation::Session(id) => {
                    self.bindings.invalidate(&TokenBinding::Session(id));
                }
                Invalidation::Grant(id) => self.bindings.invalidate(&TokenBinding::Grant(id)),
                Invalidation::User { user, workspace } => {
                    users.insert((user, workspace));
                }
                Invalidation::Workspace(workspace) => {
                    workspaces.insert(workspace);
                }
                Invalidation::Client(id) => {
                    clients.insert(id);
                }
            }
        }
        if !workspaces.is_empty() {
            self.keys.invalidate_where(|key| workspaces.contains(&key.workspace()));
        }
        if !(workspaces.is_empty() && users.is_empty() && clients.is_empty()) {
            self.bindings.invalidate_where(|record| {
                let workspace = record.workspace();
                let is_of_user = |user| {
                    users.contains(&(user, None)) || users.contains(&(user, Some(workspace)))
                };
                workspaces.contains(&workspace)
                    || record.user().is_some_and(is_of_user)
                    || record.client().is_some_and(|client| clients.contains(&client))
            });
        }
    }

    fn invalidate_all(&self) {
        self.keys.invalidate_all();
        self.bindings.invalidate_all();
    }
}

/// Claims of access tokens with a verified signature, by the token's SHA-256 digest.
///
/// Verifying a signature costs more than the rest of a request's authentication. The claims stay
/// true until the token expires; the session or grant is checked in its own cache. The cache is
/// cleared when a signing key is retired.
#[derive(Clone)]
pub struct VerifiedTokenCache(Arc<Cache<[u8; 32], Arc<Claims>>>);

impl VerifiedTokenCache {
    pub(super) fn digest(token: &str) -> [u8; 32] {
        Sha256::digest(token).into()
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<Claims>> {
        self.0.get(digest)
    }

    pub(super) fn clear(&self) {
        self.0.clear();
    }

    pub(super) fn insert(&self, digest: [u8; 32], claims: Arc<Claims>) {
        self.0.insert(digest, claims);
    }
}
