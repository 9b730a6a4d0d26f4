//! Authentication, and the management of users, credentials and workspaces.
//!
//! Every change that ends or restricts access waits at [`Fence::wait`] before it is answered, so
//! that no node grants the old access from its cache afterwards.
//!
//! - Verifying credentials: [`authenticate`] turns a credential into a
//!   [`Principal`](crate::model::principal::Principal); [`verify_key`] verifies API keys,
//!   [`access_tokens`] access tokens, [`browser_sessions`] session cookies. [`caches`] holds the
//!   records that they look up.
//! - Authorization: [`check_scope`] decides what a principal may do, in one pure function.
//! - Signing in: [`sign_in`], [`second_factor`] (codes after a password), [`passkeys`] (instead of
//!   a password), [`reauthentication`] (throttling and reauthentication).
//! - Sessions: [`sessions`], and [`refresh`] for refresh tokens.
//! - Passwords and email addresses of users: [`passwords`].
//! - Workspaces: [`workspaces`], [`members`], [`invitations`], [`account_deletion`] (leaving and
//!   deleting).
//! - API keys: [`api_keys`], [`key_rotation`], [`key_usage`].
//! - Cryptography: [`password_hashing`] (hashing), [`signing_keys`] (JWTs and checkpoints),
//!   [`master_key`] (key derivation).

pub mod access_tokens;
pub mod account_deletion;
pub mod api_keys;
pub mod authenticate;
pub mod browser_sessions;
pub mod caches;
pub mod check_scope;
mod checkpoint;
mod credential_cache;
mod error;
pub mod invitations;
pub mod key_rotation;
pub mod key_usage;
pub mod master_key;
pub mod members;
pub mod passkeys;
pub mod password_hashing;
pub mod passwords;
pub mod reauthentication;
pub mod refresh;
pub mod second_factor;
pub mod sessions;
pub mod sign_in;
pub mod signing_keys;
pub mod verify_key;
pub mod workspaces;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    audit::AuditWriter,
    cache_invalidation::Fence,
    config::{Registration, Settings},
    env::Env,
    model::{
        api_key::Environment,
        id::{GrantId, SessionId},
        one_time_token::TokenKey,
        refresh_token::RefreshKey,
        second_factor::SecondFactorKey,
    },
    store::Store,
};

use caches::CredentialCaches;
pub use credential_cache::CacheCounters;
pub use error::AuthError;
use master_key::MasterKey;
use password_hashing::PasswordHasher;
use signing_keys::SigningKeys;

/// The authentication service: verifies credentials and manages users, sessions, keys and
/// workspaces. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    store: Store,
    env: Env,
    audit: AuditWriter,
    caches: CredentialCaches,
    fence: Fence,
    environment: Environment,
    issuer: Arc<str>,
    password_hasher: PasswordHasher,
    session_refresh_key: RefreshKey<SessionId>,
    grant_refresh_key: RefreshKey<GrantId>,
    token_key: TokenKey,
    second_factor_key: SecondFactorKey,
    signing_keys: Arc<SigningKeys>,
    lifetimes: Lifetimes,
    registration: Registration,
    /// Required idle time of a rotated key before it is safe to revoke.
    rotation_quiet_period: time::Duration,
    /// This node's id in the cluster.
    node_id: Uuid,
}

/// Configured lifetimes of sessions and tokens.
#[derive(Debug, Clone, Copy)]
struct Lifetimes {
    access_token: Duration,
    refresh_token: Duration,
    session: Duration,
    refresh_retry_window: Duration,
}

impl Auth {
    /// Loads the signing keys, and creates the first ones on a fresh database.
    ///
    /// # Errors
    /// A message for the operator, if the database is unreachable or `keys.encryption_key` is not
    /// the key that its signing keys were encrypted with.
    pub async fn new(
        settings: &Settings,
        store: Store,
        env: Env,
        audit: AuditWriter,
        caches: CredentialCaches,
        fence: Fence,
        node: Uuid,
    ) -> Result<Self, String> {
        let master_key = MasterKey::new(&settings.keys.encryption_key);
        Ok(Self {
            password_hasher: PasswordHasher::start(settings.passwords, &env)?,
            session_refresh_key: master_key.refresh_key()?,
            grant_refresh_key: master_key.grant_refresh_key()?,
            token_key: master_key.token_key()?,
            second_factor_key: master_key.second_factor_key()?,
            signing_keys: Arc::new(
                SigningKeys::load_or_create(store.clone(), master_key, env.clone()).await?,
            ),
            environment: settings.keys.environment.clone(),
            issuer: settings.server.public_url.as_str().into(),
            lifetimes: Lifetimes {
                access_token: settings.sessions.access_token_lifetime,
                refresh_token: settings.sessions.refresh_token_lifetime,
                session: settings.sessions.absolute_lifetime,
                refresh_retry_window: settings.sessions.refresh_reuse_window,
            },
            registration: settings.sessions.registration,
            rotation_quiet_period: settings
                .rotation
                .quiet_period
                .try_into()
                .unwrap_or(time::Duration::MAX),
            node_id: node,
            store,
            env,
            audit,
            caches,
            fence,
        })
    }

    /// The public keys that verify access tokens and checkpoints, as a JSON Web Key Set (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        self.signing_keys.current().jwks()
    }

    /// Hashes a password for a user that is created outside of [`sign_in`]. Returns a PHC string.
    ///
    /// # Errors
    /// [`AuthError::PasswordQueueFull`] if the queue of passwords to hash is full.
    pub async fn hash_password(
        &self,
        password: &crate::model::password::Password,
    ) -> Result<secrecy::SecretString, AuthError> {
        self.password_hasher.hash(password).await
    }

    /// This node's credential caches, for metrics.
    #[must_use]
    pub fn caches(&self) -> &CredentialCaches {
        &self.caches
    }

    /// Number of password hashes that are queued or being computed.
    #[must_use]
    pub fn pending_password_hashes(&self) -> usize {
        self.password_hasher.pending_count()
    }

    /// The MAC key of one-time tokens: mailed links, session cookies, CSRF tokens, OAuth codes.
    #[must_use]
    pub fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// The MAC key of refresh tokens of OAuth grants.
    #[must_use]
    pub fn grant_refresh_key(&self) -> &RefreshKey<GrantId> {
        &self.grant_refresh_key
    }

    /// The fence: a change waits here until every node has applied its cache invalidation.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The environment label in this deployment's API keys.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Maximum lifetime of a session.
    #[must_use]
    pub fn session_lifetime(&self) -> Duration {
        self.lifetimes.session
    }

    /// Lifetime of an access token.
    #[must_use]
    pub fn access_token_lifetime(&self) -> Duration {
        self.lifetimes.access_token
    }
}
