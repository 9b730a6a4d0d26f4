//! Derives all secret keys of a deployment from one master key, `keys.encryption_key`.
//!
//! HKDF-SHA-256 (RFC 5869) derives a separate key for each purpose, so a value that was encrypted
//! or authenticated for one purpose is never valid for another.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use zeroize::Zeroizing;

use crate::{
    config::EncryptionKey,
    env::Env,
    idempotency::IdempotencySecrets,
    model::{
        id::{GrantId, SessionId},
        one_time_token::TokenKey,
        refresh_token::RefreshKey,
        second_factor::SecondFactorKey,
    },
    store::{ContextKey, ServiceLogin},
};

const REFRESH_TOKENS: &[u8] = b"call2me-auth refresh tokens v1";
const DATABASE_CONTEXTS: &[u8] = b"call2me-auth database contexts v1";
const DATABASE_LOGIN: &[u8] = b"call2me-auth database login v1";
const GRANT_REFRESH_TOKENS: &[u8] = b"call2me-auth grant refresh tokens v1";
const IDEMPOTENCY: &[u8] = b"call2me-auth idempotency v1";
const ONE_TIME_TOKENS: &[u8] = b"call2me-auth one-time tokens v1";
const SECOND_FACTORS: &[u8] = b"call2me-auth second factors v1";
const SIGNING_KEYS: &[u8] = b"call2me-auth signing keys v1";

/// The master key, from which all others are derived. Its `Debug` output hides it.
pub struct MasterKey {
    root: hkdf::Prk,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl MasterKey {
    /// Prepares the configured key for derivation.
    #[must_use]
    pub fn new(key: &EncryptionKey) -> Self {
        Self { root: hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(key.expose()) }
    }

    /// Derives the MAC key of session refresh tokens.
    ///
    /// # Errors
    /// A message for the operator, if the cryptographic library fails.
    pub fn refresh_key(&self) -> Result<RefreshKey<SessionId>, String> {
        Ok(RefreshKey::new(&*self.derive(REFRESH_TOKENS)?))
    }

    /// Derives the MAC key of OAuth grant refresh tokens.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn grant_refresh_key(&self) -> Result<RefreshKey<GrantId>, String> {
        Ok(RefreshKey::new(&*self.derive(GRANT_REFRESH_TOKENS)?))
    }

    /// Derives the key that authenticates the contexts of database transactions.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn context_key(&self) -> Result<ContextKey, String> {
        Ok(ContextKey::new(self.derive(DATABASE_CONTEXTS)?))
    }

    /// Derives the login of the service to a database, for a deployment that states only the URL of
    /// the owner.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn service_login(&self, database: &str) -> Result<ServiceLogin, String> {
        Ok(ServiceLogin::derive(&*self.derive(DATABASE_LOGIN)?, database))
    }

    /// Derives the MAC key of one-time tokens, such as those of mailed links.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn token_key(&self) -> Result<TokenKey, String> {
        Ok(TokenKey::new(&*self.derive(ONE_TIME_TOKENS)?))
    }

    /// Derives the key of TOTP secrets and recovery codes.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn second_factor_key(&self) -> Result<SecondFactorKey, String> {
        Ok(SecondFactorKey::new(&*self.derive(SECOND_FACTORS)?))
    }

    /// Derives the keys that fingerprint idempotent requests and encrypt their stored responses.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn idempotency_secrets(&self) -> Result<IdempotencySecrets, String> {
        Ok(IdempotencySecrets::new(&*self.derive(IDEMPOTENCY)?))
    }

    /// Encrypts a private signing key with AES-256-GCM. The result is valid only with the same
    /// `context`.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn encrypt(&self, env: &Env, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
        let nonce: [u8; NONCE_LEN] = env.entropy.bytes();
        let mut sealed = plain.to_vec();
        self.encryption_key()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut sealed,
            )
            .map_err(|_| "cannot encrypt a signing key".to_owned())?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts the output of [`Self::encrypt`]. Returns `None` if the key or context is another
    /// one.
    ///
    /// # Errors
    /// As [`Self::refresh_key`].
    pub fn decrypt(
        &self,
        context: &[u8],
        sealed: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            return Ok(None);
        };
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let opened = self.encryption_key()?.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(context),
            &mut buffer,
        );
        Ok(opened.ok().map(|plain| Zeroizing::new(plain.to_vec())))
    }

    fn encryption_key(&self) -> Result<LessSafeKey, String> {
        let key = self.derive(SIGNING_KEYS)?;
        UnboundKey::new(&AES_256_GCM, &*key)
            .map(LessSafeKey::new)
            .map_err(|_| "cannot set up AES-256-GCM".to_owned())
    }

    fn derive(&self, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, String> {
        let mut key = Zeroizing::new([0; 32]);
        self.root
            .expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *key))
            .map_err(|_| "cannot derive a key".to_owned())?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_key_opens_with_its_own_key_and_context_only() {
        let env = Env::system();
        let secrets = MasterKey::new(&EncryptionKey::new([1; 32]));
        let sealed = secrets.encrypt(&env, b"kid", b"private").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(secrets.decrypt(b"kid", &sealed).unwrap().unwrap().as_slice(), b"private");
        assert_eq!(secrets.decrypt(b"other", &sealed).unwrap(), None);
        let other_secrets = MasterKey::new(&EncryptionKey::new([2; 32]));
        assert_eq!(other_secrets.decrypt(b"kid", &sealed).unwrap(), None);
        assert_eq!(secrets.decrypt(b"kid", &sealed[..5]).unwrap(), None);
    }
}
