//! Signing keys for access tokens and for audit log checkpoints: Ed25519 (RFC 8037), encrypted at
//! rest, published as a JWKS.
//!
//! A new key is published at once and starts to sign after [`ACTIVATION_DELAY`], when every node
//! has loaded it. The previous key continues to verify until it is retired. Nodes reload the keys
//! every two seconds.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{sync::Mutex, time::interval};
use tracing::{error, info, warn};

use super::{AuthError, credential_caches::VerifiedTokenCache, sealing::SealingKeys};
use crate::{
    env::Env,
    model::{
        id::{Id, SigningKeyId},
        signing_key::{KeyPurpose, SigningKeyMetadata, StoredSigningKey},
    },
    store::{Store, StoreError},
};

/// The media type of access tokens (RFC 9068, section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// The media type of checkpoints.
pub const CHECKPOINT_TYPE: &str = "audit-checkpoint+jws";

/// Delay between the creation of a key and its first signature.
pub const ACTIVATION_DELAY: Duration = Duration::from_secs(6);
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

/// The keys of both purposes.
pub struct KeySet {
    tokens: PurposeKeys,
    checkpoints: PurposeKeys,
}

/// The keys of one purpose: all that verify, and the one that signs.
struct PurposeKeys {
    signer: EncodingKey,
    header: Header,
    verifiers: Vec<Verifier>,
}

struct Verifier {
    kid: String,
    key: DecodingKey,
    public_key: Vec<u8>,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.verifiers().map(|verifier| &verifier.kid)).finish()
    }
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
        verified_tokens: VerifiedTokenCache,
    ) -> Result<Self, String> {
        let load_error = |error| format!("cannot load the signing keys: {error}");
        let mut stored = store.list_active_signing_keys().await.map_err(load_error)?;
        for purpose in [KeyPurpose::AccessTokens, KeyPurpose::Checkpoints] {
            if stored.iter().all(|key| key.purpose != purpose) {
                let first = generate_key(purpose, &sealing, &env)
                    .map_err(|error| format!("cannot create a signing key: {error}"))?;
                store.insert_first_signing_key(&first).await.map_err(load_error)?;
                stored = store.list_active_signing_keys().await.map_err(load_error)?;
            }
        }
        let current = Arc::new(KeySet::decrypt(&stored, &sealing, env.clock.now())?);
        let last_reload = Mutex::new(Reload { at: env.clock.monotonic(), succeeded: true });
        let current = RwLock::new(current);
        Ok(Self { store, sealing, env, verified_tokens, current, last_reload })
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

    /// Reloads the keys periodically, forever.
    pub async fn run_reload(self: Arc<Self>) {
        let mut ticks = interval(RELOAD_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = self.reload().await {
                warn!(%error, "cannot reload the signing keys");
            }
        }
    }

    /// Creates a new signing key. Every node signs with it within ten seconds.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if the key cannot be generated.
    pub async fn rotate(&self, purpose: KeyPurpose) -> Result<SigningKeyId, AuthError> {
        let new_key = generate_key(purpose, &self.sealing, &self.env)?;
        self.store.insert_signing_key(&new_key).await?;
        Ok(new_key.id)
    }

    /// Retires a signing key: within ten seconds every node rejects its signatures.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if no such key verifies; [`AuthError::Conflict`] if the key
    /// currently signs.
    pub async fn retire(&self, id: SigningKeyId) -> Result<(), AuthError> {
        if self.current().is_signing(&id.to_string()) {
            return Err(AuthError::Conflict(
                "this key is in use for signing: rotate first, then wait ten seconds",
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
        let fresh = match KeySet::decrypt(&stored, &self.sealing, self.env.clock.now()) {
            Ok(fresh) => Arc::new(fresh),
            Err(reason) => {
                error!(reason, "cannot use the signing keys; keeping the previous ones");
                return Ok(());
            }
        };
        let previous = self.current();
        if fresh.tokens.header.kid != previous.tokens.header.kid {
            info!(kid = fresh.tokens.header.kid, "access tokens are signed with another key now");
        }
        let has_retired_key = previous
            .tokens
            .verifiers
            .iter()
            .any(|old| fresh.token_verifying_key(&old.kid).is_none());
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        if has_retired_key {
            self.verified_tokens.clear();
        }
        Ok(())
    }
}

impl PurposeKeys {
    /// Decrypts the keys of one purpose. Keys of another deployment are skipped and logged.
    fn decrypt(
        stored: &[StoredSigningKey],
        purpose: KeyPurpose,
        sealing: &SealingKeys,
        now: OffsetDateTime,
    ) -> Result<Self, String> {
        let (mut keys, mut foreign) = (Vec::new(), Vec::new());
        for key in stored.iter().filter(|key| key.purpose == purpose) {
            match decrypt_key_pair(key, sealing) {
                Some(pair) => keys.push((key, pair)),
                None => foreign.push(key.id),
            }
        }
        // The newest key that every node has loaded. If all are newer than that, the oldest.
        let is_distributed =
            |(key, _): &&(&StoredSigningKey, _)| key.created_at + ACTIVATION_DELAY <= now;
        let (signing, pair) = keys.iter().find(is_distributed).or(keys.last()).ok_or(
            "keys.encryption_key is not the key that encrypted this database's signing keys",
        )?;
        // Never sign or verify with a key that another party has inserted into the database.
        for kid in foreign {
            error!(%kid, "ignoring a signing key that is not of this deployment");
        }
        let pkcs8 = pair.to_pkcs8().map_err(|_| "a signing key is damaged")?;
        let mut header = Header::new(Algorithm::EdDSA);
        let media_type = match purpose {
            KeyPurpose::AccessTokens => ACCESS_TOKEN_TYPE,
            KeyPurpose::Checkpoints => CHECKPOINT_TYPE,
        };
        header.typ = Some(media_type.to_owned());
        header.kid = Some(signing.id.to_string());
        let verifiers = keys.iter().map(|(key, _)| Verifier {
            kid: key.id.to_string(),
            key: DecodingKey::from_ed_der(&key.public_key),
            public_key: key.public_key.clone(),
        });
        Ok(Self {
            signer: EncodingKey::from_ed_der(pkcs8.as_ref()),
            header,
            verifiers: verifiers.collect(),
        })
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&self.header, claims, &self.signer)
    }

    fn verifier(&self, kid: &str) -> Option<&DecodingKey> {
        self.verifiers.iter().find(|verifier| verifier.kid == kid).map(|verifier| &verifier.key)
    }
}

impl KeySet {
    fn decrypt(
        stored: &[StoredSigningKey],
        sealing: &SealingKeys,
        now: OffsetDateTime,
    ) -> Result<Self, String> {
        Ok(Self {
            tokens: PurposeKeys::decrypt(stored, KeyPurpose::AccessTokens, sealing, now)?,
            checkpoints: PurposeKeys::decrypt(stored, KeyPurpose::Checkpoints, sealing, now)?,
        })
    }

    /// Signs the claims of an access token.
    ///
    /// # Errors
    /// If the cryptographic library fails.
    pub fn sign_access_token(
        &self,
        claims: &impl Serialize,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        self.tokens.sign(claims)
    }

    /// The public key for access tokens with this key id.
    #[must_use]
    pub fn token_verifying_key(&self, kid: &str) -> Option<&DecodingKey> {
        self.tokens.verifier(kid)
    }

    /// Signs a checkpoint.
    ///
    /// # Errors
    /// If the cryptographic library fails.
    pub fn sign_checkpoint(
        &self,
        claims: &impl Serialize,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        self.checkpoints.sign(claims)
    }

    /// The public key for checkpoints with this key id.
    #[must_use]
    pub fn checkpoint_verifying_key(&self, kid: &str) -> Option<&DecodingKey> {
        self.checkpoints.verifier(kid)
    }

    /// True if the key with this id currently signs.
    #[must_use]
    pub fn is_signing(&self, kid: &str) -> bool {
        let signs = |keys: &PurposeKeys| keys.header.kid.as_deref() == Some(kid);
        signs(&self.tokens) || signs(&self.checkpoints)
    }

    fn verifiers(&self) -> impl Iterator<Item = &Verifier> {
        self.tokens.verifiers.iter().chain(&self.checkpoints.verifiers)
    }

    /// The public keys as a JSON Web Key Set (RFC 7517, RFC 8037).
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.verifiers().map(|verifier| {
            json!({
                "kty": "OKP",
                "crv": "Ed25519",
                "alg": "EdDSA",
                "use": "sig",
                "kid": verifier.kid,
                "x": BASE64URL_NOPAD.encode(&verifier.public_key),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

/// The context that an encrypted key is bound to. It differs by purpose, so a key of one purpose
/// cannot stand in for one of the other.
fn encryption_context(id: SigningKeyId, purpose: KeyPurpose) -> Vec<u8> {
    let mut context = id.uuid().as_bytes().to_vec();
    if purpose == KeyPurpose::Checkpoints {
        context.extend_from_slice(purpose.as_str().as_bytes());
    }
    context
}

/// Decrypts a key pair. Returns `None` if it is of another deployment: the private key cannot be
/// decrypted or does not match the public one.
fn decrypt_key_pair(key: &StoredSigningKey, sealing: &SealingKeys) -> Option<Ed25519KeyPair> {
    let context = encryption_context(key.id, key.purpose);
    let seed = sealing.open(&context, &key.sealed_private_key)?;
    Ed25519KeyPair::from_seed_and_public_key(&*seed, &key.public_key).ok()
}

fn generate_key(
    purpose: KeyPurpose,
    sealing: &SealingKeys,
    env: &Env,
) -> Result<StoredSigningKey, AuthError> {
    let id: SigningKeyId = env.new_id();
    let (seed, sealed_private_key) = sealing.generate(env, &encryption_context(id, purpose))?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&*seed)
        .map_err(|_| AuthError::Internal("cannot create a signing key"))?;
    Ok(StoredSigningKey {
        id,
        purpose,
        public_key: pair.public_key().as_ref().to_vec(),
        sealed_private_key,
        created_at: env.clock.now(),
    })
}
