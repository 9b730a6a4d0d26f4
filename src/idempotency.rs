//! Idempotency of requests that create something: a client that received no response sends the
//! request again with the same `Idempotency-Key`, and nothing is created twice.
//!
//! The response is stored in the transaction that creates the resource, so either both exist or
//! neither. Only successful responses are stored. The database holds a MAC of the client's key. The
//! response, which may contain a secret, is encrypted with a key that is derived from the client's
//! key and the deployment's secret, so neither the database nor that secret alone can decrypt it.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    hmac::{self, HMAC_SHA256},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    env::Env,
    model::{audit::Actor, id::Id, key_ring::KeyRing, principal::Caller},
    store::{
        Audited, Committed, Store, StoreError, Tx,
        idempotency_keys::{self, IdempotencyRecord},
    },
};

/// Time for which a response is stored.
pub const RETENTION: Duration = Duration::from_hours(24);

/// A request that can neither be processed nor get a stored response.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// The key was used for a request with a different body.
    #[error("this Idempotency-Key was already used for a request with a different body")]
    Conflict,
    /// The first request with the key is still in progress.
    #[error("a request with this Idempotency-Key is still in progress; retry")]
    InProgress,
    /// A database error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An internal error of this service.
    #[error("{0}")]
    Internal(&'static str),
}

/// The keys that identify requests and encrypt responses; never printed. Cheap to clone.
#[derive(Clone)]
pub struct IdempotencySecrets(Arc<Keys>);

struct Keys {
    mac: hmac::Key,
    root: hkdf::Prk,
}

impl fmt::Debug for IdempotencySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencySecrets(…)")
    }
}

impl IdempotencySecrets {
    /// Derives the keys from 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Arc::new(Keys {
            mac: hmac::Key::new(HMAC_SHA256, bytes),
            root: hkdf::Salt::new(hkdf::HKDF_SHA256, b"answers").extract(bytes),
        }))
    }

    /// Computes a MAC over several parts. Each is prefixed with its length, so that different parts
    /// never form the same input.
    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0.mac);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    fn encryption_key(&self, key: &SecretString) -> Result<LessSafeKey, IdempotencyError> {
        let failed = |_| IdempotencyError::Internal("cannot derive a key");
        let info = [key.expose_secret().as_bytes()];
        let derived = self.0.root.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

/// The identity of a request that may be a retry. It has no `Debug`, because a body could be
/// guessed from its digest.
pub struct IdempotentRequest {
    /// The client's `Idempotency-Key`; `None` if the request has none.
    pub key: Option<SecretString>,
    /// The SHA-256 hash of the body.
    pub body_hash: [u8; 32],
}

impl IdempotentRequest {
    /// Creates the identity of a request with this body.
    #[must_use]
    pub fn new(key: Option<SecretString>, body: &[u8]) -> Self {
        Self { key, body_hash: Sha256::digest(body).into() }
    }
}

/// A successful response. It has no `Debug`, because the response of a key creation contains the
/// secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResponse {
    /// The HTTP status.
    pub status: u16,
    /// The `Location` header.
    pub location: String,
    /// The JSON body.
    pub body: String,
}

/// The outcome of checking a request for an earlier attempt.
pub enum IdempotencyOutcome {
    /// The request is new: process it in this transaction.
    New(IdempotentTransaction),
    /// The request is a retry: return the stored response.
    Replayed(StoredResponse),
}

/// The transaction of a request, which also stores its response.
pub struct IdempotentTransaction {
    tx: Tx,
    pending: Option<PendingResponse>,
}

/// The data needed to store the response of a request with an `Idempotency-Key`.
struct PendingResponse {
    /// The MAC that identifies the request.
    id: [u8; 32],
    /// The MAC of the body.
    request: [u8; 32],
    key: SecretString,
    secrets: IdempotencySecrets,
    env: Env,
}

/// Detects retries of requests. Cheap to clone.
#[derive(Clone)]
pub struct Idempotency {
    store: Store,
    env: Env,
    secrets: Arc<KeyRing<IdempotencySecrets>>,
}

impl Idempotency {
    /// Creates the service with these keys.
    #[must_use]
    pub fn new(store: Store, env: Env, secrets: KeyRing<IdempotencySecrets>) -> Self {
        Self { store, env, secrets: Arc::new(secrets) }
    }

    /// Starts the transaction of a request in the caller's workspace, or returns the stored
    /// response of an earlier attempt.
    ///
    /// # Errors
    /// [`IdempotencyError::Conflict`] if the key was used with a different body,
    /// [`IdempotencyError::InProgress`] if the first attempt has not finished.
    pub async fn begin(
        &self,
        caller: &Caller,
        attempt: IdempotentRequest,
    ) -> Result<IdempotencyOutcome, IdempotencyError> {
        let mut tx = self.store.begin_as(caller).await?;
        let Some(key) = attempt.key else {
            return Ok(IdempotencyOutcome::New(IdempotentTransaction { tx, pending: None }));
        };
        // The first attempt may have been answered by a node with another key. Its response cannot
        // be encrypted again without the client's key, so it stays under that one until it expires.
        for secrets in self.secrets.iter() {
            let id = request_mac(secrets, caller, &key);
            match idempotency_keys::find_and_lock(&mut tx, &id, self.env.clock.now()).await? {
                IdempotencyRecord::InProgress => return Err(IdempotencyError::InProgress),
                IdempotencyRecord::Completed { request_mac: first, sealed_response: answer } => {
                    // Before the response: the client's next request must not find the key locked.
                    tx.rollback().await?;
                    if !bool::from(first.ct_eq(&body_mac(secrets, &attempt.body_hash))) {
                        return Err(IdempotencyError::Conflict);
                    }
                    return decrypt(&secrets.encryption_key(&key)?, &id, answer)
                        .map(IdempotencyOutcome::Replayed);
                }
                IdempotencyRecord::New => {}
            }
        }
        let (secrets, env) = (self.secrets.current().clone(), self.env.clone());
        let id = request_mac(&secrets, caller, &key);
        let request = body_mac(&secrets, &attempt.body_hash);
        let pending = Some(PendingResponse { id, request, key, secrets, env });
        Ok(IdempotencyOutcome::New(IdempotentTransaction { tx, pending }))
    }
}

/// Computes the MAC that identifies a request: workspace, caller, method, path and the client's
/// key.
fn request_mac(secrets: &IdempotencySecrets, caller: &Caller, key: &SecretString) -> [u8; 32] {
    let actor = Actor::from(&*caller.principal);
    secrets.mac(&[
        b"request",
        caller.workspace().uuid().as_bytes(),
        actor.kind.as_str().as_bytes(),
        actor.id.unwrap_or_default().as_bytes(),
        // An OAuth client acts for several users.
        caller.principal.subject().as_bytes(),
        caller.request.method.as_bytes(),
        caller.request.path.as_bytes(),
        key.expose_secret().as_bytes(),
    ])
}

fn body_mac(secrets: &IdempotencySecrets, body_hash: &[u8; 32]) -> [u8; 32] {
    secrets.mac(&[b"body", body_hash])
}

impl IdempotentTransaction {
    /// Returns the transaction.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// Stores the response and commits the transaction with the audit event of its change.
    ///
    /// # Errors
    /// [`IdempotencyError::Store`] if the commit fails. Its result may then be unknown; the
    /// resource and the response both exist, or neither.
    pub async fn commit(
        mut self,
        response: &StoredResponse,
        audited: Audited,
    ) -> Result<Committed, IdempotencyError> {
        if let Some(PendingResponse { id, request, key, secrets, env }) = self.pending {
            let encrypted = encrypt(&secrets.encryption_key(&key)?, &env, &id, response)?;
            let until = env.clock.now() + RETENTION;
            idempotency_keys::store_response(&mut self.tx, &id, &request, &encrypted, until)
                .await?;
        }
        Ok(self.tx.commit(audited).await?)
    }
}

fn encrypt(
    key: &LessSafeKey,
    env: &Env,
    id: &[u8; 32],
    response: &StoredResponse,
) -> Result<Vec<u8>, IdempotencyError> {
    let nonce: [u8; NONCE_LEN] = env.entropy.bytes();
    let failed = IdempotencyError::Internal("cannot encrypt a response");
    let Ok(mut encrypted) = serde_json::to_vec(response) else { return Err(failed) };
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    if key.seal_in_place_append_tag(nonce_used, Aad::from(id), &mut encrypted).is_err() {
        return Err(failed);
    }
    Ok([&nonce[..], &encrypted].concat())
}

fn decrypt(
    key: &LessSafeKey,
    id: &[u8; 32],
    mut encrypted: Vec<u8>,
) -> Result<StoredResponse, IdempotencyError> {
    let failed = || IdempotencyError::Internal("cannot decrypt a stored response");
    let (nonce, encrypted) = encrypted.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(failed)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = key.open_in_place(nonce, Aad::from(id), encrypted).map_err(|_| failed())?;
    serde_json::from_slice(plain).map_err(|_| failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_response_decrypts_only_with_its_own_key_and_id() {
        let secrets = IdempotencySecrets::new(&[1; 32]);
        let response =
            StoredResponse { status: 201, location: "/x".into(), body: "{\"key\":\"s\"}".into() };
        let own = secrets.encryption_key(&"mine".into()).unwrap();
        let encrypted = encrypt(&own, &Env::system(), &[7; 32], &response).unwrap();
        assert!(!encrypted.windows(3).any(|part| part == b"key"));
        assert!(decrypt(&own, &[7; 32], encrypted.clone()).is_ok_and(|it| it == response));
        assert!(decrypt(&own, &[8; 32], encrypted.clone()).is_err());
        let other = secrets.encryption_key(&"yours".into()).unwrap();
        assert!(decrypt(&other, &[7; 32], encrypted.clone()).is_err());
        let elsewhere = IdempotencySecrets::new(&[2; 32]).encryption_key(&"mine".into()).unwrap();
        assert!(decrypt(&elsewhere, &[7; 32], encrypted.clone()).is_err());
        assert!(decrypt(&own, &[7; 32], encrypted[..5].to_vec()).is_err());
    }

    #[test]
    fn mac_of_differently_split_parts_differs() {
        let secrets = IdempotencySecrets::new(&[1; 32]);
        assert_ne!(secrets.mac(&[b"ab", b"c"]), secrets.mac(&[b"a", b"bc"]));
    }
}
