//! The credential caches of a node: API keys, sessions, OAuth grants and verified access tokens.
//!
//! Cached records are used only while the node holds its lease, and are dropped when a cache
//! invalidation names them; see [`crate::cache_invalidation`]. Loading and expiry are in
//! `credential_cache`.

use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use super::{
    credential_cache::{CacheCounters, CredentialCache, CredentialSource, FetchedRecords},
    token_issuer::Claims,
};
use crate::{
    cache_invalidation::{InvalidationSink, Lease},
    env::Env,
    model::{
        api_key::{KeyDigest, KeyRecord},
        id::{GrantId, SessionId, WorkspaceId},
        invalidation::Invalidation,
        oauth::grant::{GrantRecord, GrantUser},
        principal::{Credential, Principal},
        session::SessionRecord,
    },
    store::{DedicatedConnection, Store, StoreError},
};

/// The cached state of an API key.
#[derive(Debug, Clone)]
pub(super) enum CachedKey {
    /// The key is valid.
    Active(Arc<Principal>),
    /// The key is revoked. Its workspace's audit log records any further use.
    Revoked(Arc<KeyRecord>),
}

/// Loads API keys from PostgreSQL by digest.
pub(super) struct ApiKeySource(DedicatedConnection);

impl CredentialSource for ApiKeySource {
    type Key = KeyDigest;
    type Record = CachedKey;

    async fn fetch(&mut self, keys: &[KeyDigest]) -> Result<FetchedRecords<Self>, StoreError> {
        let found = self.0.find_api_keys(keys).await?;
        Ok(found.into_iter().map(|(digest, record)| (digest, record.into())).collect())
    }
}

impl From<KeyRecord> for CachedKey {
    fn from(record: KeyRecord) -> Self {
        if record.is_revoked {
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

impl CachedKey {
    fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Active(principal) => principal.workspace_id,
            Self::Revoked(record) => record.workspace_id,
        }
    }
}

/// Loads sessions from PostgreSQL by id.
pub(super) struct SessionSource(DedicatedConnection);

impl CredentialSource for SessionSource {
    type Key = SessionId;
    type Record = Arc<SessionRecord>;

    async fn fetch(&mut self, ids: &[SessionId]) -> Result<FetchedRecords<Self>, StoreError> {
        let found = self.0.find_sessions(ids).await?;
        Ok(found.into_iter().map(|(id, record)| (id, Arc::new(record))).collect())
    }
}

/// Loads OAuth grants from PostgreSQL by id.
pub(super) struct GrantSource(DedicatedConnection);

impl CredentialSource for GrantSource {
    type Key = GrantId;
    type Record = Arc<GrantRecord>;

    async fn fetch(&mut self, ids: &[GrantId]) -> Result<FetchedRecords<Self>, StoreError> {
        let found = self.0.find_grants(ids).await?;
        Ok(found.into_iter().map(|(id, record)| (id, Arc::new(record))).collect())
    }
}

/// All credential caches of this node. Cheap to clone.
#[derive(Clone)]
pub struct CredentialCaches {
    pub(super) keys: CredentialCache<ApiKeySource>,
    pub(super) sessions: CredentialCache<SessionSource>,
    pub(super) grants: CredentialCache<GrantSource>,
    pub(super) tokens: VerifiedTokenCache,
}

impl CredentialCaches {
    /// Starts empty caches. `capacity` is the number of API keys; the caches of sessions, grants
    /// and tokens hold a quarter of it each.
    #[must_use]
    pub fn start(store: &Store, env: &Env, lease: &Lease, capacity: usize) -> Self {
        let smaller = (capacity / 4).max(1);
        Self {
            keys: CredentialCache::start(
                ApiKeySource(DedicatedConnection::new(store.clone())),
                env.clone(),
                lease.clone(),
                capacity,
            ),
            sessions: CredentialCache::start(
                SessionSource(DedicatedConnection::new(store.clone())),
                env.clone(),
                lease.clone(),
                smaller,
            ),
            grants: CredentialCache::start(
                GrantSource(DedicatedConnection::new(store.clone())),
                env.clone(),
                lease.clone(),
                smaller,
            ),
            tokens: VerifiedTokenCache(Arc::new(Cache::new(smaller))),
        }
    }

    /// Counters of the API key cache, and its number of entries.
    #[must_use]
    pub fn key_cache_stats(&self) -> (&CacheCounters, usize) {
        (self.keys.counters(), self.keys.len())
    }

    /// Counters of the OAuth grant cache, and its number of entries.
    #[must_use]
    pub fn grant_cache_stats(&self) -> (&CacheCounters, usize) {
        (self.grants.counters(), self.grants.len())
    }

    /// Counters of the session cache, and its number of entries.
    #[must_use]
    pub fn session_cache_stats(&self) -> (&CacheCounters, usize) {
        (self.sessions.counters(), self.sessions.len())
    }
}

impl InvalidationSink for CredentialCaches {
    fn invalidate(&self, invalidations: &[Invalidation]) {
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::Key(digest) => self.keys.invalidate(&digest),
                Invalidation::Session(id) => self.sessions.invalidate(&id),
                Invalidation::User { user, workspace } => {
                    let is_affected =
                        |id: WorkspaceId| workspace.is_none_or(|workspace| id == workspace);
                    self.sessions.invalidate_where(|session| {
                        session.user_id == user && is_affected(session.workspace_id)
                    });
                    self.grants.invalidate_where(|grant| {
                        let is_user = |holder: &GrantUser| holder.user_id == user;
                        grant.user.as_ref().is_some_and(is_user) && is_affected(grant.workspace_id)
                    });
                }
                Invalidation::Workspace(workspace) => {
                    self.keys.invalidate_where(|key| key.workspace() == workspace);
                    self.sessions.invalidate_where(|session| session.workspace_id == workspace);
                    self.grants.invalidate_where(|grant| grant.workspace_id == workspace);
                }
                Invalidation::Grant(id) => self.grants.invalidate(&id),
                Invalidation::Client(id) => {
                    self.grants.invalidate_where(|grant| grant.client_id == id);
                }
            }
        }
    }

    fn invalidate_all(&self) {
        self.keys.invalidate_all();
        self.sessions.invalidate_all();
        self.grants.invalidate_all();
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
