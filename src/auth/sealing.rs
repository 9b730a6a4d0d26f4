//! Sealing: secrets that are stored encrypted, with AES-256-GCM.
//!
//! A sealed secret is the id of its key, a nonce, and the ciphertext with its tag. It is valid only
//! with the context that it was sealed for, such as the id of its row. So an attacker who can write
//! to the database can neither create one nor move one to another row.

use std::{fmt, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::AuthError;
use crate::{
    env::Env,
    model::key_ring::{KEY_ID_LEN, KeyId, KeyRing},
};

const UNKNOWN_KEY: AuthError = AuthError::Internal(
    "a stored secret cannot be decrypted: its encryption key is not configured, or it was changed",
);

/// The keys that seal and open the secrets of one purpose. Cheap to clone.
#[derive(Clone)]
pub struct SealingKeys(Arc<KeyRing<SealingKey>>);

struct SealingKey {
    id: KeyId,
    key: LessSafeKey,
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKeys(…)")
    }
}

impl SealingKeys {
    /// Creates the keys from their ids and secret bytes.
    pub(super) fn new(keys: &KeyRing<(KeyId, Zeroizing<[u8; 32]>)>) -> Result<Self, String> {
        let keys = keys.try_map(|(id, key)| {
            let key = UnboundKey::new(&AES_256_GCM, &**key).map(LessSafeKey::new);
            let key = key.map_err(|_| "cannot set up AES-256-GCM".to_owned())?;
            Ok::<_, String>(SealingKey { id: *id, key })
        })?;
        Ok(Self(Arc::new(keys)))
    }

    /// Encrypts a secret under the current key.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if the cryptographic library fails.
    pub fn seal(&self, env: &Env, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, AuthError> {
        let SealingKey { id, key } = self.0.current();
        let nonce: [u8; NONCE_LEN] = env.entropy.bytes();
        let mut sealed = Zeroizing::new(secret.to_vec());
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut *sealed,
        )
        .map_err(|_| AuthError::Internal("cannot encrypt a secret"))?;
        Ok([&id[..], &nonce[..], &sealed[..]].concat())
    }

    /// Creates a random secret of 32 bytes. Returns it with its sealed form.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn generate(
        &self,
        env: &Env,
        context: &[u8],
    ) -> Result<(Zeroizing<[u8; 32]>, Vec<u8>), AuthError> {
        let secret: Zeroizing<[u8; 32]> = Zeroizing::new(env.entropy.bytes());
        let sealed = self.seal(env, context, &*secret)?;
        Ok((secret, sealed))
    }

    /// Decrypts a sealed secret. `None` if it is of another key or context.
    #[must_use]
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (id, sealed) = sealed.split_first_chunk::<KEY_ID_LEN>()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let SealingKey { key, .. } = self.0.iter().find(|key| key.id == *id)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let len = key.open_in_place(nonce, Aad::from(context), &mut buffer).ok()?.len();
        buffer.truncate(len);
        Some(buffer)
    }

    /// Decrypts a sealed secret of 32 bytes that this deployment has stored.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if it is of another key or context. It is no proof that a
    /// credential is wrong, so clients must not drop theirs.
    pub fn open_stored(
        &self,
        context: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, AuthError> {
        let secret = self.open(context, sealed).ok_or(UNKNOWN_KEY)?;
        Ok(Zeroizing::new(secret.as_slice().try_into().map_err(|_| UNKNOWN_KEY)?))
    }

    /// True if a secret is sealed under the current key.
    #[must_use]
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(&self.0.current().id)
    }
}
