//! The keys that sign access tokens, and those that sign checkpoints of audit logs: Ed25519 (RFC 8037),
//! sealed at rest, published as a JWKS.
//!
//! A key that is rotated in is published at once and signs [`ACTIVATION`] later, when every node has it;
//! the one before goes on verifying until it is retired. Nodes look for both every other second.

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
use zeroize::Zeroizing;

use super::{Auth, AuthError, secrets::Secrets};
use crate::{
    env::Env,
    model::{
        id::{Id, SigningKeyId},
        signing_key::{KeyPurpose, SigningKeyState, StoredSigningKey},
    },
    store::{Store, StoreError},
};

/// The media type of access tokens (RFC 9068, section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// The media type of checkpoints.
pub const CHECKPOINT_TYPE: &str = "audit-checkpoint+jws";

/// How long after it was made a key signs.
pub const ACTIVATION: Duration = Duration::from_secs(6);
/// How often a node looks for keys.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The longest that a look may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks, at most, since a token names a key that it does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The keys of a node, as it last read them.
pub struct SigningKeys {
    store: Store,
    secrets: Secrets,
    env: Env,
    current: RwLock<Arc<KeySet>>,
    /// When somebody last looked because of a token.
    last_look: Mutex<Look>,
}

/// A look for a key that a token names.
struct Look {
    /// When, by the monotonic clock.
    at: Duration,
    /// Whether PostgreSQL answered.
    succeeded: bool,
}

/// The keys of both purposes.
pub struct KeySet {
    tokens: Keys,
    checkpoints: Keys,
}

/// All keys of a purpose whose signatures are believed, and the one that signs.
struct Keys {
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
    /// Loads the keys; on a fresh database makes the first, whichever node is faster.
    ///
    /// # Errors
    /// With one line for the operator.
    pub async fn load_or_create(store: Store, secrets: Secrets, env: Env) -> Result<Self, String> {
        let away = |error| format!("cannot load the signing keys: {error}");
        let mut stored = store.signing_keys().await.map_err(away)?;
        for purpose in [KeyPurpose::AccessTokens, KeyPurpose::Checkpoints] {
            if stored.iter().all(|key| key.purpose != purpose) {
                let first = generate(purpose, &secrets, &env)?;
                store.insert_first_signing_key(&first).await.map_err(away)?;
                stored = store.signing_keys().await.map_err(away)?;
            }
        }
        let current = Arc::new(KeySet::open(&stored, &secrets, env.clock.now())?);
        let last_look = Mutex::new(Look { at: env.clock.monotonic(), succeeded: true });
        Ok(Self { store, secrets, env, current: RwLock::new(current), last_look })
    }

    /// The keys as they were last read.
    #[must_use]
    pub fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys among which a token's is, if it is known at all: where it is not, they are read anew, at
    /// most once a second, whatever tokens come. Also whether one was found to be gone.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached: nobody knows whether there is such a key.
    async fn with_key(&self, kid: &str) -> Result<(Arc<KeySet>, bool), StoreError> {
        let current = self.current();
        if current.verifier(kid).is_some() {
            return Ok((current, false));
        }
        let mut is_gone = false;
        let mut last = self.last_look.lock().await;
        if self.env.clock.monotonic() >= last.at + LOOK_AGAIN {
            let outcome = self.read().await;
            *last = Look { at: self.env.clock.monotonic(), succeeded: outcome.is_ok() };
            is_gone = outcome?;
        }
        // Those who waited meanwhile do not wait for another one.
        if last.succeeded { Ok((self.current(), is_gone)) } else { Err(StoreError::late()) }
    }

    /// Reads the keys anew; answers whether one is gone.
    async fn read(&self) -> Result<bool, StoreError> {
        let stored = Store::within(PATIENCE, self.store.signing_keys()).await?;
        let fresh = match KeySet::open(&stored, &self.secrets, self.env.clock.now()) {
            Ok(fresh) => Arc::new(fresh),
            Err(why) => {
                error!(why, "the signing keys cannot be used: the ones before are kept");
                return Ok(false);
            }
        };
        let before = self.current();
        if fresh.tokens.header.kid != before.tokens.header.kid {
            info!(kid = fresh.tokens.header.kid, "another key signs access tokens");
        }
        let is_gone = before.tokens.verifiers.iter().any(|old| fresh.verifier(&old.kid).is_none());
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(is_gone)
    }
}

impl Auth {
    /// Reads the signing keys anew, again and again. What was verified with a key that is gone is
    /// believed no more.
    pub async fn keep_signing_keys(self) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            match self.signing_keys.read().await {
                Ok(true) => self.caches.tokens.forget_all(),
                Ok(false) => {}
                Err(error) => warn!(%error, "cannot look for signing keys"),
            }
        }
    }

    /// The keys among which the one of a token is, if it is known.
    pub(super) async fn keys_for(&self, kid: &str) -> Result<Arc<KeySet>, AuthError> {
        let (keys, is_gone) = self.signing_keys.with_key(kid).await?;
        if is_gone {
            self.caches.tokens.forget_all();
        }
        Ok(keys)
    }

    /// Makes another signing key. Every node signs with it within ten seconds.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn rotate_signing_key(&self, purpose: KeyPurpose) -> Result<SigningKeyId, AuthError> {
        let keys = &self.signing_keys;
        let made = generate(purpose, &keys.secrets, &self.env);
        let made = made.map_err(|_| AuthError::Internal("cannot make a signing key"))?;
        self.store.insert_signing_key(&made).await?;
        Ok(made.id)
    }

    /// Retires a signing key: its tokens are worth nothing within ten seconds, on every node.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for none that verifies, [`AuthError::Conflict`] for the one that signs.
    pub async fn retire_signing_key(&self, id: SigningKeyId) -> Result<(), AuthError> {
        if self.signing_keys.current().signs(&id.to_string()) {
            return Err(AuthError::Conflict("this key signs: rotate first, and wait ten seconds"));
        }
        if self.store.retire_signing_key(id, self.env.clock.now()).await? {
            Ok(())
        } else {
            Err(AuthError::NotFound("signing key that verifies"))
        }
    }

    /// All signing keys that there ever were, the youngest first, and which of them sign.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn list_signing_keys(
        &self,
    ) -> Result<(Vec<SigningKeyState>, Arc<KeySet>), AuthError> {
        let keys = self.store.all_signing_keys().await?;
        Ok((keys, self.signing_keys.current()))
    }
}

impl Keys {
    /// Those of one purpose; of the rest it is told that they are not ours.
    fn open(
        stored: &[StoredSigningKey],
        purpose: KeyPurpose,
        secrets: &Secrets,
        now: OffsetDateTime,
    ) -> Result<Self, String> {
        let (mut keys, mut foreign) = (Vec::new(), Vec::new());
        for key in stored.iter().filter(|key| key.purpose == purpose) {
            match open_pair(key, secrets)? {
                Some(pair) => keys.push((key, pair)),
                None => foreign.push(key.id),
            }
        }
        // The youngest that every node has; of several that were just made, the oldest.
        let known = |(key, _): &&(&StoredSigningKey, _)| key.created_at + ACTIVATION <= now;
        let (signing, pair) = keys.iter().find(known).or(keys.last()).ok_or(
            "keys.encryption_key is not the one that this database's signing keys were sealed with",
        )?;
        // Nobody signs or is believed with a key that somebody else put there.
        for kid in foreign {
            error!(%kid, "a signing key is not of this deployment: passed over");
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
    fn open(
        stored: &[StoredSigningKey],
        secrets: &Secrets,
        now: OffsetDateTime,
    ) -> Result<Self, String> {
        Ok(Self {
            tokens: Keys::open(stored, KeyPurpose::AccessTokens, secrets, now)?,
            checkpoints: Keys::open(stored, KeyPurpose::Checkpoints, secrets, now)?,
        })
    }

    /// Signs claims as an access token.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        self.tokens.sign(claims)
    }

    /// The key of access tokens with an id, to verify with.
    #[must_use]
    pub fn verifier(&self, kid: &str) -> Option<&DecodingKey> {
        self.tokens.verifier(kid)
    }

    /// Signs a checkpoint.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign_checkpoint(
        &self,
        claims: &impl Serialize,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        self.checkpoints.sign(claims)
    }

    /// The key of checkpoints with an id, to verify with.
    #[must_use]
    pub fn checkpoint_verifier(&self, kid: &str) -> Option<&DecodingKey> {
        self.checkpoints.verifier(kid)
    }

    /// Whether the key with this id is one that signs.
    #[must_use]
    pub fn signs(&self, kid: &str) -> bool {
        let signs = |keys: &Keys| keys.header.kid.as_deref() == Some(kid);
        signs(&self.tokens) || signs(&self.checkpoints)
    }

    fn verifiers(&self) -> impl Iterator<Item = &Verifier> {
        self.tokens.verifiers.iter().chain(&self.checkpoints.verifiers)
    }

    /// The public halves (RFC 7517, RFC 8037).
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

/// What a sealed key is bound to: neither passes for one of the other purpose.
fn context(id: SigningKeyId, purpose: KeyPurpose) -> Vec<u8> {
    let mut context = id.uuid().as_bytes().to_vec();
    if purpose == KeyPurpose::Checkpoints {
        context.extend_from_slice(purpose.as_str().as_bytes());
    }
    context
}

/// Both halves of a key; none where the private one does not open, or does not fit the public one.
fn open_pair(key: &StoredSigningKey, secrets: &Secrets) -> Result<Option<Ed25519KeyPair>, String> {
    let seed = secrets.open(&context(key.id, key.purpose), &key.sealed_private_key)?;
    Ok(seed.and_then(|seed| Ed25519KeyPair::from_seed_and_public_key(&seed, &key.public_key).ok()))
}

fn generate(purpose: KeyPurpose, secrets: &Secrets, env: &Env) -> Result<StoredSigningKey, String> {
    let id: SigningKeyId = env.new_id();
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(env.entropy.bytes());
    let pair = Ed25519KeyPair::from_seed_unchecked(&*seed)
        .map_err(|_| "cannot make a signing key".to_owned())?;
    Ok(StoredSigningKey {
        id,
        purpose,
        public_key: pair.public_key().as_ref().to_vec(),
        sealed_private_key: secrets.seal(env, &context(id, purpose), &*seed)?,
        created_at: env.clock.now(),
    })
}
