//! Creating requests that may come again: a client that got no answer sends the same once more, with the
//! same `Idempotency-Key`, and nothing is done twice.
//!
//! The answer is stored in the transaction of the work, so there are both or neither, and only good ones. Of
//! the client's key the database holds a MAC; the answer, which may show a secret, is sealed under a key that
//! is derived from it, so that neither the database nor the deployment's own secret alone opens it.

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
    model::{audit::Actor, id::Id, principal::Caller},
    store::{
        Store, StoreError, Tx,
        kept_answers::{self, Earlier},
    },
};

/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// Why a request is neither worked on nor answered as before.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for a request with another body")]
    Conflict,
    /// The first one is still worked on.
    #[error("a request with this Idempotency-Key is still in progress; retry")]
    InProgress,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A fault of this service.
    #[error("{0}")]
    Internal(&'static str),
}

/// The keys that requests are known and answers sealed under; never printed. Cheap to clone.
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
    /// From 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Arc::new(Keys {
            mac: hmac::Key::new(HMAC_SHA256, bytes),
            root: hkdf::Salt::new(hkdf::HKDF_SHA256, b"answers").extract(bytes),
        }))
    }

    /// A MAC over parts, none of which can run into the next.
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

    fn sealing_key(&self, key: &SecretString) -> Result<LessSafeKey, IdempotencyError> {
        let failed = |_| IdempotencyError::Internal("cannot derive a key");
        let info = [key.expose_secret().as_bytes()];
        let derived = self.0.root.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(LessSafeKey::new(UnboundKey::from(derived)))
    }
}

/// A creating request, as far as it can come again. It does not print: a body may be guessed by its digest.
pub struct Attempt {
    /// The client's `Idempotency-Key`; none: it does not care.
    pub key: Option<SecretString>,
    /// SHA-256 of the body.
    pub body: [u8; 32],
}

impl Attempt {
    /// A request with this body.
    #[must_use]
    pub fn new(key: Option<SecretString>, body: &[u8]) -> Self {
        Self { key, body: Sha256::digest(body).into() }
    }
}

/// A good answer. It does not print: that to a mint shows the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The `Location`.
    pub location: String,
    /// The body, which is JSON.
    pub body: String,
}

/// What becomes of a creating request.
pub enum Begun {
    /// It is to be worked on.
    Work(Work),
    /// It was, and answered so.
    Answered(KeptAnswer),
}

/// The transaction of a creating request.
pub struct Work {
    tx: Tx,
    keeping: Option<Keeping>,
}

/// How the answer is kept.
struct Keeping {
    id: [u8; 32],
    request: [u8; 32],
    key: SecretString,
    secrets: IdempotencySecrets,
    env: Env,
}

/// Knows creating requests again. Cheap to clone.
#[derive(Clone)]
pub struct Idempotency {
    store: Store,
    env: Env,
    secrets: IdempotencySecrets,
}

impl Idempotency {
    /// Over a database, under these keys.
    #[must_use]
    pub fn new(store: Store, env: Env, secrets: IdempotencySecrets) -> Self {
        Self { store, env, secrets }
    }

    /// Begins the work of a creating request, in its caller's workspace, unless it was done before.
    ///
    /// # Errors
    /// [`IdempotencyError::Conflict`], [`IdempotencyError::InProgress`].
    pub async fn begin(
        &self,
        caller: &Caller,
        attempt: Attempt,
    ) -> Result<Begun, IdempotencyError> {
        let mut tx = self.store.begin(caller.workspace(), caller.principal.person()).await?;
        let Some(key) = attempt.key else { return Ok(Begun::Work(Work { tx, keeping: None })) };
        let id = self.id(caller, &key);
        let request = self.secrets.mac(&[b"body", &attempt.body]);
        match kept_answers::find(&mut tx, &id, self.env.clock.now()).await? {
            Earlier::InProgress => Err(IdempotencyError::InProgress),
            Earlier::Answered { request: first, answer } => {
                if !bool::from(first.ct_eq(&request)) {
                    return Err(IdempotencyError::Conflict);
                }
                open(&self.secrets.sealing_key(&key)?, &id, answer).map(Begun::Answered)
            }
            Earlier::None => {
                let (secrets, env) = (self.secrets.clone(), self.env.clone());
                let keeping = Some(Keeping { id, request, key, secrets, env });
                Ok(Begun::Work(Work { tx, keeping }))
            }
        }
    }

    /// What a request is known by: who asks, in which workspace, how, where, and the client's key.
    fn id(&self, caller: &Caller, key: &SecretString) -> [u8; 32] {
        let actor = Actor::from(&*caller.principal);
        self.secrets.mac(&[
            b"request",
            caller.workspace().uuid().as_bytes(),
            actor.kind.as_str().as_bytes(),
            actor.id.unwrap_or_default().as_bytes(),
            // A client acts for several people.
            caller.principal.subject().as_bytes(),
            caller.request.method.as_bytes(),
            caller.request.path.as_bytes(),
            key.expose_secret().as_bytes(),
        ])
    }
}

impl Work {
    /// The transaction, for the work.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// Makes the work last, and the answer with it.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached: then there are both or neither.
    pub async fn finish(mut self, answer: &KeptAnswer) -> Result<(), IdempotencyError> {
        if let Some(Keeping { id, request, key, secrets, env }) = self.keeping {
            let sealed = seal(&secrets.sealing_key(&key)?, &env, &id, answer)?;
            let until = env.clock.now() + KEPT_FOR;
            kept_answers::keep(&mut self.tx, &id, &request, &sealed, until).await?;
        }
        Ok(self.tx.commit().await?)
    }
}

fn seal(
    key: &LessSafeKey,
    env: &Env,
    id: &[u8; 32],
    answer: &KeptAnswer,
) -> Result<Vec<u8>, IdempotencyError> {
    let nonce: [u8; NONCE_LEN] = env.entropy.bytes();
    let failed = IdempotencyError::Internal("cannot seal an answer");
    let Ok(mut sealed) = serde_json::to_vec(answer) else { return Err(failed) };
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    if key.seal_in_place_append_tag(nonce_used, Aad::from(id), &mut sealed).is_err() {
        return Err(failed);
    }
    Ok([&nonce[..], &sealed].concat())
}

fn open(
    key: &LessSafeKey,
    id: &[u8; 32],
    mut sealed: Vec<u8>,
) -> Result<KeptAnswer, IdempotencyError> {
    let failed = || IdempotencyError::Internal("a kept answer does not open");
    let (nonce, sealed) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or_else(failed)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = key.open_in_place(nonce, Aad::from(id), sealed).map_err(|_| failed())?;
    serde_json::from_slice(plain).map_err(|_| failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_opens_with_its_own_key_in_its_own_place() {
        let secrets = IdempotencySecrets::new(&[1; 32]);
        let answer =
            KeptAnswer { status: 201, location: "/x".into(), body: "{\"key\":\"s\"}".into() };
        let own = secrets.sealing_key(&"mine".into()).unwrap();
        let sealed = seal(&own, &Env::system(), &[7; 32], &answer).unwrap();
        assert!(!sealed.windows(3).any(|part| part == b"key"));
        assert!(open(&own, &[7; 32], sealed.clone()).is_ok_and(|opened| opened == answer));
        assert!(open(&own, &[8; 32], sealed.clone()).is_err());
        let other = secrets.sealing_key(&"yours".into()).unwrap();
        assert!(open(&other, &[7; 32], sealed.clone()).is_err());
        let elsewhere = IdempotencySecrets::new(&[2; 32]).sealing_key(&"mine".into()).unwrap();
        assert!(open(&elsewhere, &[7; 32], sealed.clone()).is_err());
        assert!(open(&own, &[7; 32], sealed[..5].to_vec()).is_err());
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let secrets = IdempotencySecrets::new(&[1; 32]);
        assert_ne!(secrets.mac(&[b"ab", b"c"]), secrets.mac(&[b"a", b"bc"]));
    }
}
