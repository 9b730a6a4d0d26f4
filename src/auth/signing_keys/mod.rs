//! Signing keys for access tokens, ID tokens and audit log checkpoints, encrypted at rest.
//!
//! A new key is published at once, in the JWKS, and signs once the longest cache of that has ended,
//! `tokens.key_publication_seconds` later. The previous key continues to verify until it is
//! retired. Nodes reload the keys every two seconds.
//!
//! Each node signs access tokens with `tokens.signing_algorithm`. A serving node creates the key of
//! that algorithm if there is none, so a changed setting is a rotation.

mod key_pair;
mod key_set;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::Mutex, task::spawn_blocking, time::interval};
use tracing::{error, info, warn};

use super::{AuthError, credential_caches::VerifiedTokenCache, sealing::SealingKeys};
use crate::{
    config::Tokens,
    env::Env,
    model::{
        id::{Id, SigningKeyId},
        signing_key::{KeyPurpose, SigningAlgorithm, SigningKeyMetadata, StoredSigningKey},
    },
    store::{Store, StoreError},
};

pub use key_set::{ACCESS_TOKEN_TYPE, CHECKPOINT_TYPE, KeySet};

/// The `max-age` of the JWKS, in seconds.
pub const JWKS_MAX_AGE_SECONDS: u64 = 300;

/// Time between the creation of a key and its first signature, in which every node loads it.
pub const DISTRIBUTION_TIME: Duration = Duration::from_secs(6);
/// Interval at which a node reloads the keys.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Timeout of a reload.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Minimum interval between reloads caused by tokens with an unknown key id.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// The signing keys that a node has loaded.
pub struct SigningKeys {
    store: Store,
    sealing: SealingKeys,
    env: Env,
    settings: Tokens,
    verified_tokens: VerifiedTokenCache,
    current: RwLock<Arc<KeySet>>,
    /// The last reload that a token with an unknown key id caused.
    last_reload: Mutex<Reload>,
}

/// A reload that a token with an unknown key id caused.
struct Reload {
    /// The time of the reload, on the monotonic clock.
    at: Duration,
    /// True if PostgreSQL answered.
    succeeded: bool,
}

/// The start of a key's signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Once all nodes have the key. Servers that cache the JWKS reject its tokens for a while.
    Now,
    /// Once no cache of the JWKS lacks the key.
    AfterPublication,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

impl SigningKeys {
    /// Loads the keys. On a fresh database, creates the first ones; if several nodes try, one
    /// succeeds and all use its keys.
    ///
    /// # Errors
    /// A message for the operator, if the database is unreachable or its keys cannot be decrypted.
    pub async fn load_or_create(
        store: Store,
        sealing: SealingKeys,
        env: Env,
        settings: Tokens,
        verified_tokens: VerifiedTokenCache,
    ) -> Result<Self, String> {
        let load_error = |error| format!("cannot load the signing keys: {error}");
        let mut stored = store.list_active_signing_keys().await.map_err(load_error)?;
        for (purpose, algorithm) in [
            (KeyPurpose::AccessTokens, settings.signing_algorithm),
            (KeyPurpose::Checkpoints, SigningAlgorithm::EdDsa),
        ] {
            if stored.iter().all(|key| key.purpose != purpose) {
                let first = generate_key(purpose, algorithm, Duration::ZERO, &sealing, &env)
                    .await
                    .map_err(|error| format!("cannot create a signing key: {error}"))?;
                store.insert_missing_signing_key(&first).await.map_err(load_error)?;
                stored = store.list_active_signing_keys().await.map_err(load_error)?;
            }
        }
        let (algorithm, now) = (settings.signing_algorithm, env.clock.now());
        let current = Arc::new(KeySet::decrypt(&stored, None, &sealing, algorithm, now)?);
        let last_reload = Mutex::new(Reload { at: env.clock.monotonic(), succeeded: true });
        let current = RwLock::new(current);
        Ok(Self { store, sealing, env, settings, verified_tokens, current, last_reload })
    }

    /// The keys as of the last reload.
    #[must_use]
    pub fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the current keys. If `kid` is not among them, reloads them first, but at most once a
    /// second for all tokens together.
    ///
    /// # Errors
    /// [`StoreError`] if the reload fails: the key may exist.
    pub(super) async fn key_set_for(&self, kid: &str) -> Result<Arc<KeySet>, StoreError> {
        let current = self.current();
        if current.token_verifying_key(kid).is_some() {
            return Ok(current);
        }
        let mut last = self.last_reload.lock().await;
        if self.env.clock.monotonic() >= last.at + MIN_RELOAD_INTERVAL {
            let outcome = self.reload().await;
            *last = Reload { at: self.env.clock.monotonic(), succeeded: outcome.is_ok() };
            outcome?;
        }
        // Requests that waited for the lock use the reload that just finished.
        if last.succeeded { Ok(self.current()) } else { Err(StoreError::timed_out()) }
    }

    /// Reloads the keys periodically, forever, and creates the one of `tokens.signing_algorithm`.
    pub async fn run_reload(self: Arc<Self>) {
        let mut ticks = interval(RELOAD_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = self.reload_and_create().await {
                warn!(%error, "cannot reload the signing keys");
            }
        }
    }

    async fn reload_and_create(&self) -> Result<(), AuthError> {
        self.reload().await?;
        self.create_if_missing(KeyPurpose::AccessTokens, self.settings.signing_algorithm).await
    }

    /// Creates a key if there is no active one of its purpose and algorithm, and loads it.
    async fn create_if_missing(
        &self,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<(), AuthError> {
        if self.current().has(purpose, algorithm) {
            return Ok(());
        }
        let delay = self.settings.key_publication;
        let key = generate_key(purpose, algorithm, delay, &self.sealing, &self.env).await?;
        self.store.insert_missing_signing_key(&key).await?;
        Ok(self.reload().await?)
    }

    /// Creates another signing key: for access tokens, one of `tokens.signing_algorithm`.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if the key cannot be generated.
    pub async fn rotate(
        &self,
        purpose: KeyPurpose,
        activation: Activation,
    ) -> Result<StoredSigningKey, AuthError> {
        let algorithm = match purpose {
            KeyPurpose::AccessTokens => self.settings.signing_algorithm,
            KeyPurpose::IdTokens => SigningAlgorithm::Rs256,
            KeyPurpose::Checkpoints => SigningAlgorithm::EdDsa,
        };
        let delay = match activation {
            Activation::Now => DISTRIBUTION_TIME,
            Activation::AfterPublication => self.settings.key_publication,
        };
        let key = generate_key(purpose, algorithm, delay, &self.sealing, &self.env).await?;
        self.store.insert_signing_key(&key).await?;
        Ok(key)
    }

    /// Retires a signing key: within ten seconds every node rejects its signatures.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if no such key verifies; [`AuthError::Conflict`] if the key
    /// currently signs.
    pub async fn retire(&self, id: SigningKeyId) -> Result<(), AuthError> {
        if self.current().is_signing(id) {
            return Err(AuthError::Conflict(
                "this key is in use for signing: rotate first, then wait until the new key signs",
            ));
        }
        if self.store.retire_signing_key(id, self.env.clock.now()).await? {
            Ok(())
        } else {
            Err(AuthError::NotFound("signing key, or it is already retired"))
        }
    }

    /// Lists all signing keys, including retired ones, newest first, and returns the keys in use.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    pub async fn list(&self) -> Result<(Vec<SigningKeyMetadata>, Arc<KeySet>), AuthError> {
        let keys = self.store.list_all_signing_keys().await?;
        Ok((keys, self.current()))
    }

    /// Reloads the keys. If a key for access tokens was retired, drops the cache of verified
    /// tokens, since that key may have signed some.
    async fn reload(&self) -> Result<(), StoreError> {
        let stored =
            Store::with_timeout(RELOAD_TIMEOUT, self.store.list_active_signing_keys()).await?;
        let previous = self.current();
        let (algorithm, now) = (self.settings.signing_algorithm, self.env.clock.now());
        let fresh = match KeySet::decrypt(&stored, Some(&previous), &self.sealing, algorithm, now) {
            Ok(fresh) => Arc::new(fresh),
            Err(reason) => {
                error!(reason, "cannot use the signing keys; keeping the previous ones");
                return Ok(());
            }
        };
        if fresh.token_signer() != previous.token_signer() {
            info!(kid = fresh.token_signer(), "access tokens are signed with another key now");
        }
        let has_retired_key = fresh.lacks_token_key_of(&previous);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        if has_retired_key {
            self.verified_tokens.clear();
        }
        Ok(())
    }
}

/// The context that an encrypted key is bound to: a key of one purpose or algorithm cannot stand in
/// for one of another.
fn encryption_context(
    id: SigningKeyId,
    purpose: KeyPurpose,
    algorithm: SigningAlgorithm,
) -> Vec<u8> {
    let use_of_key = format!("{} {}", purpose.as_str(), algorithm.as_str());
    [id.uuid().as_bytes(), use_of_key.as_bytes()].concat()
}

/// Generates a key that signs after `delay`.
async fn generate_key(
    purpose: KeyPurpose,
    algorithm: SigningAlgorithm,
    delay: Duration,
    sealing: &SealingKeys,
    env: &Env,
) -> Result<StoredSigningKey, AuthError> {
    let failed = || AuthError::Internal("cannot create a signing key");
    let private_key = spawn_blocking(move || key_pair::generate(algorithm)).await;
    let private_key = private_key.map_err(|_| failed())?.map_err(|_| failed())?;
    let id: SigningKeyId = env.new_id();
    let created_at = env.clock.now();
    Ok(StoredSigningKey {
        id,
        purpose,
        algorithm,
        sealed_private_key: sealing.seal(
            env,
            &encryption_context(id, purpose, algorithm),
            &private_key,
        )?,
        created_at,
        signs_at: created_at + delay,
    })
}
