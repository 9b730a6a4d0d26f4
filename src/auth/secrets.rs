//! Keys derived from the deployment's one secret, `keys.encryption_key`.
//!
//! HKDF-SHA-256 (RFC 5869) gives each purpose a key of its own, so that what is sealed or signed for
//! one can never pass for another.

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
};

const REFRESH_TOKENS: &[u8] = b"call2me-auth refresh tokens v1";
const GRANT_REFRESH_TOKENS: &[u8] = b"call2me-auth grant refresh tokens v1";
const IDEMPOTENCY: &[u8] = b"call2me-auth idempotency v1";
const ONE_TIME_TOKENS: &[u8] = b"call2me-auth one-time tokens v1";
const SECOND_FACTORS: &[u8] = b"call2me-auth second factors v1";
const SIGNING_KEYS: &[u8] = b"call2me-auth signing keys v1";

/// Derives keys; never printed.
pub struct Secrets {
    root: hkdf::Prk,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// Over the deployment's secret.
    #[must_use]
    pub fn new(key: &EncryptionKey) -> Self {
        Self { root: hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(key.expose()) }
    }

    /// The key that refresh tokens are derived under.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn refresh_key(&self) -> Result<RefreshKey<SessionId>, String> {
        Ok(RefreshKey::new(&*self.derive(REFRESH_TOKENS)?))
    }

    /// The key that refresh tokens of grants are derived under.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn grant_refresh_key(&self) -> Result<RefreshKey<GrantId>, String> {
        Ok(RefreshKey::new(&*self.derive(GRANT_REFRESH_TOKENS)?))
    }

    /// The key that the tokens of mailed links are derived under.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn token_key(&self) -> Result<TokenKey, String> {
        Ok(TokenKey::new(&*self.derive(ONE_TIME_TOKENS)?))
    }

    /// The key that second factors are derived under.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn second_factor_key(&self) -> Result<SecondFactorKey, String> {
        Ok(SecondFactorKey::new(&*self.derive(SECOND_FACTORS)?))
    }

    /// The keys that creating requests are known and their answers sealed under.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn idempotency_secrets(&self) -> Result<IdempotencySecrets, String> {
        Ok(IdempotencySecrets::new(&*self.derive(IDEMPOTENCY)?))
    }

    /// Seals a signing key's private half; `context` is bound to it.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn seal(&self, env: &Env, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
        let nonce: [u8; NONCE_LEN] = env.entropy.bytes();
        let mut sealed = plain.to_vec();
        self.sealing_key()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut sealed,
            )
            .map_err(|_| "cannot seal a signing key".to_owned())?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what [`Self::seal`] made; none under another key or context.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn open(
        &self,
        context: &[u8],
        sealed: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            return Ok(None);
        };
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let opened = self.sealing_key()?.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(context),
            &mut buffer,
        );
        Ok(opened.ok().map(|plain| Zeroizing::new(plain.to_vec())))
    }

    fn sealing_key(&self) -> Result<LessSafeKey, String> {
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
    fn what_is_sealed_opens_under_its_key_and_context_only() {
        let env = Env::system();
        let secrets = Secrets::new(&EncryptionKey::new([1; 32]));
        let sealed = secrets.seal(&env, b"kid", b"private").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(secrets.open(b"kid", &sealed).unwrap().unwrap().as_slice(), b"private");
        assert_eq!(secrets.open(b"other", &sealed).unwrap(), None);
        let others = Secrets::new(&EncryptionKey::new([2; 32]));
        assert_eq!(others.open(b"kid", &sealed).unwrap(), None);
        assert_eq!(secrets.open(b"kid", &sealed[..5]).unwrap(), None);
    }
}
