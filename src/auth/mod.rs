//! Who is calling, and how one becomes somebody.
//!
//! - [`authenticate`]: a credential becomes a [`Principal`](crate::model::principal::Principal);
//!   [`verify_key`] is where a key is verified, [`verify_jwt`] where an access token is.
//! - [`check_scope`]: what a principal may do. One pure function.
//! - [`login`], [`refresh`], [`sessions`]: sessions. [`second_factor`]: codes besides a password;
//!   [`passkeys`]: in place of one.
//!   [`recovery`]: passwords changed and forgotten. [`browser`]: cookies in place of tokens.
//! - [`check_password`]: guesses at passwords, and re-authentication.
//! - [`members`], [`invitations`], [`workspaces`], [`farewell`]: who shares what with whom.
//! - [`keys`]: the life of API keys.
//! - [`password`], [`signing_keys`], [`secrets`]: what they are made of.

pub mod authenticate;
pub mod browser;
pub mod caches;
pub mod check_password;
pub mod check_scope;
mod checkpoint;
mod credential_cache;
mod error;
pub mod farewell;
pub mod invitations;
pub mod keys;
pub mod login;
pub mod members;
pub mod passkeys;
pub mod password;
pub mod recovery;
pub mod refresh;
pub mod rotation;
pub mod second_factor;
pub mod secrets;
pub mod sessions;
pub mod signing_keys;
pub mod usage;
pub mod verify_jwt;
pub mod verify_key;
pub mod workspaces;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    audit::AuditWriter,
    coherence::Fence,
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

use caches::Caches;
pub use credential_cache::CacheCounts;
pub use error::AuthError;
use password::PasswordHasher;
use secrets::Secrets;
use signing_keys::SigningKeys;

/// Everything that authentication needs. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    store: Store,
    env: Env,
    audit: AuditWriter,
    caches: Caches,
    fence: Fence,
    environment: Environment,
    issuer: Arc<str>,
    passwords: PasswordHasher,
    refresh_key: RefreshKey<SessionId>,
    grant_refresh_key: RefreshKey<GrantId>,
    token_key: TokenKey,
    second_factor_key: SecondFactorKey,
    signing_keys: Arc<SigningKeys>,
    lifetimes: Lifetimes,
    registration: Registration,
    /// How long a rotated key has to be unused until it is safe to revoke.
    quiet: time::Duration,
    /// This node's name among nodes.
    node: Uuid,
}

/// How long things last.
#[derive(Debug, Clone, Copy)]
struct Lifetimes {
    access_token: Duration,
    refresh_token: Duration,
    session: Duration,
    refresh_reuse: Duration,
}

impl Auth {
    /// Loads the signing keys, making the first one on a fresh database.
    ///
    /// # Errors
    /// With one line for the operator: the database is away, or `keys.encryption_key` is not the one
    /// that its signing keys were sealed with.
    pub async fn new(
        settings: &Settings,
        store: Store,
        env: Env,
        audit: AuditWriter,
        caches: Caches,
        fence: Fence,
        node: Uuid,
    ) -> Result<Self, String> {
        let secrets = Secrets::new(&settings.keys.encryption_key);
        Ok(Self {
            passwords: PasswordHasher::start(settings.passwords, &env)?,
            refresh_key: secrets.refresh_key()?,
            grant_refresh_key: secrets.grant_refresh_key()?,
            token_key: secrets.token_key()?,
            second_factor_key: secrets.second_factor_key()?,
            signing_keys: Arc::new(
                SigningKeys::load_or_create(store.clone(), secrets, env.clone()).await?,
            ),
            environment: settings.keys.environment.clone(),
            issuer: settings.server.public_url.as_str().into(),
            lifetimes: Lifetimes {
                access_token: settings.sessions.access_token,
                refresh_token: settings.sessions.refresh_token,
                session: settings.sessions.absolute,
                refresh_reuse: settings.sessions.refresh_reuse,
            },
            registration: settings.sessions.registration,
            quiet: settings.rotation.quiet.try_into().unwrap_or(time::Duration::MAX),
            node,
            store,
            env,
            audit,
            caches,
            fence,
        })
    }

    /// The keys that access tokens are verified with, as a JSON Web Key Set (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        self.signing_keys.current().jwks()
    }

    /// The PHC string of a password, for an account that is made outside of [`login`].
    ///
    /// # Errors
    /// [`AuthError::Busy`] where too many wait already.
    pub async fn hash_password(
        &self,
        password: &crate::model::password::Password,
    ) -> Result<secrecy::SecretString, AuthError> {
        self.passwords.hash(password).await
    }

    /// What this node believes of credentials, for its metrics.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Password hashes that wait or are computed.
    #[must_use]
    pub fn passwords_waiting(&self) -> usize {
        self.passwords.waiting()
    }

    /// What the tokens of mailed links are derived under, for those who write the mails.
    #[must_use]
    pub fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// What refresh tokens of OAuth grants are derived under.
    #[must_use]
    pub fn grant_refresh_key(&self) -> &RefreshKey<GrantId> {
        &self.grant_refresh_key
    }

    /// Where a change waits until no node believes anything older.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The label in this deployment's API keys.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// How long a session lasts at most.
    #[must_use]
    pub fn session_lifetime(&self) -> Duration {
        self.lifetimes.session
    }

    /// An access token's life.
    #[must_use]
    pub fn access_token_lifetime(&self) -> Duration {
        self.lifetimes.access_token
    }
}
