//! Derives all secret keys of a deployment from its master keys: `keys.encryption_key` and, while
//! that is rotated, `keys.previous_encryption_keys`.
//!
//! HKDF-SHA-256 (RFC 5869) derives a separate key for each purpose, so a value that was encrypted
//! or authenticated for one purpose is never valid for another. Every derived key is a ring, so
//! that values of the previous keys remain valid. [`super::reencryption`] ends a rotation, and
//! [`DiscardedKeys`] applies its end to running nodes.

use std::{collections::HashSet, fmt, time::Duration};

use aws_lc_rs::hkdf;
use data_encoding::HEXLOWER;
use tokio::time::interval;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::sealing::SealingKeys;
use crate::{
    config::{EncryptionKey, Keys},
    idempotency::IdempotencySecrets,
    model::{
        key_ring::{KeyId, KeyRing},
        one_time_token::TokenKey,
    },
    store::{ContextKey, ServiceLogin, Store},
};

/// The interval at which a node checks for discarded keys, and the timeout of a check.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

const DATABASE_CONTEXTS: &[u8] = b"call2me-auth database contexts v1";
const DATABASE_LOGIN: &[u8] = b"call2me-auth database login v1";
const GRANT_REFRESH_SEEDS: &[u8] = b"call2me-auth grant refresh seeds v1";
const IDEMPOTENCY: &[u8] = b"call2me-auth idempotency v1";
const ONE_TIME_TOKENS: &[u8] = b"call2me-auth one-time tokens v1";
const SECOND_FACTORS: &[u8] = b"call2me-auth second factors v1";
const SESSION_REFRESH_SEEDS: &[u8] = b"call2me-auth session refresh seeds v1";
const SIGNING_KEYS: &[u8] = b"call2me-auth signing keys v1";

/// The master keys, from which all others are derived. Their `Debug` output hides them.
pub struct MasterKeys(KeyRing<hkdf::Prk>);

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKeys(…)")
    }
}

impl MasterKeys {
    /// Prepares the configured keys for derivation.
    #[must_use]
    pub fn new(keys: &Keys) -> Self {
        let ring =
            KeyRing::new(&keys.encryption_key, keys.previous_encryption_keys.iter().collect());
        Self::from_ring(&ring)
    }

    /// Prepares a ring of keys for derivation.
    #[must_use]
    pub fn from_ring(keys: &KeyRing<&EncryptionKey>) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
        Self(keys.map(|key| salt.extract(key.expose())))
    }

    /// Derives the keys that authenticate the contexts of database transactions. Their ids are also
    /// those of the master keys.
    ///
    /// # Errors
    /// A message for the operator, if the cryptographic library fails.
    pub fn context_keys(&self) -> Result<KeyRing<ContextKey>, String> {
        self.0.try_map(|root| derive(root, DATABASE_CONTEXTS).map(ContextKey::new))
    }

    /// Derives the logins of the service to a database, for a deployment that states only the URL
    /// of the owner.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn service_logins(&self, database: &str) -> Result<KeyRing<ServiceLogin>, String> {
        Ok(self.derive(DATABASE_LOGIN)?.map(|key| ServiceLogin::derive(key, database)))
    }

    /// Derives the MAC keys of one-time tokens, such as those of mailed links.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn token_key(&self) -> Result<TokenKey, String> {
        Ok(TokenKey::new(&self.derive(ONE_TIME_TOKENS)?))
    }

    /// Derives the keys that fingerprint idempotent requests and encrypt their stored responses.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn idempotency_secrets(&self) -> Result<KeyRing<IdempotencySecrets>, String> {
        Ok(self.derive(IDEMPOTENCY)?.map(|key| IdempotencySecrets::new(key)))
    }

    /// Derives the keys that encrypt private signing keys.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn signing_key_sealing(&self) -> Result<SealingKeys, String> {
        self.sealing(SIGNING_KEYS)
    }

    /// Derives the keys that encrypt the seeds of sessions' refresh tokens.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn session_seed_sealing(&self) -> Result<SealingKeys, String> {
        self.sealing(SESSION_REFRESH_SEEDS)
    }

    /// Derives the keys that encrypt the seeds of OAuth grants' refresh tokens.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn grant_seed_sealing(&self) -> Result<SealingKeys, String> {
        self.sealing(GRANT_REFRESH_SEEDS)
    }

    /// Derives the keys that encrypt the secrets of authenticator apps.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn second_factor_sealing(&self) -> Result<SealingKeys, String> {
        self.sealing(SECOND_FACTORS)
    }

    /// Derives the ids of the keys.
    ///
    /// # Errors
    /// As [`Self::context_keys`].
    pub fn ids(&self) -> Result<KeyRing<KeyId>, String> {
        Ok(self.context_keys()?.map(ContextKey::id))
    }

    fn sealing(&self, purpose: &[u8]) -> Result<SealingKeys, String> {
        let keys = self.0.try_map(|root| {
            Ok::<_, String>((
                ContextKey::new(derive(root, DATABASE_CONTEXTS)?).id(),
                derive(root, purpose)?,
            ))
        })?;
        SealingKeys::new(&keys)
    }

    fn derive(&self, purpose: &[u8]) -> Result<KeyRing<Zeroizing<[u8; 32]>>, String> {
        self.0.try_map(|root| derive(root, purpose))
    }
}

/// Notices that the operator has removed previous keys from the database, and stops reading with
/// them: values of a leaked key must not be accepted until the node is restarted.
#[derive(Debug, Clone)]
pub struct DiscardedKeys {
    store: Store,
    ids: KeyRing<KeyId>,
    /// The keys that the database has had. One that it does not have yet is not discarded: nodes
    /// read with the new key of a rotation before one writes with it.
    known: HashSet<Vec<u8>>,
}

impl DiscardedKeys {
    /// Watches the previous keys of `keys`, and of all keys that are derived from them.
    ///
    /// # Errors
    /// As [`MasterKeys::context_keys`].
    pub fn new(store: Store, keys: &MasterKeys) -> Result<Self, String> {
        Ok(Self { store, ids: keys.ids()?, known: HashSet::new() })
    }

    /// Compares the keys with those of the database periodically, forever.
    pub async fn run(mut self) {
        let mut ticks = interval(CHECK_INTERVAL);
        loop {
            ticks.tick().await;
            match Store::with_timeout(CHECK_INTERVAL, self.store.list_encryption_keys()).await {
                Ok(stored) => self.update(stored),
                Err(error) => warn!(%error, "cannot check for discarded encryption keys"),
            }
        }
    }

    fn update(&mut self, stored: Vec<Vec<u8>>) {
        let (known, ids) = (&self.known, &self.ids);
        if ids.set_discarded(|id| known.contains(&id[..]) && stored.iter().all(|it| it[..] != *id))
        {
            let ids: Vec<_> = ids.previous().map(|id| HEXLOWER.encode(id)).collect();
            info!(?ids, "the previous encryption keys that this node still reads with");
        }
        self.known.extend(stored);
    }
}

fn derive(root: &hkdf::Prk, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, String> {
    let mut key = Zeroizing::new([0; 32]);
    root.expand(&[purpose], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .map_err(|_| "cannot derive a key".to_owned())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    fn keys(current: u8, previous: &[u8]) -> MasterKeys {
        let key = |byte: &u8| EncryptionKey::new([*byte; 32]);
        let (current, previous) = (key(&current), previous.iter().map(key).collect::<Vec<_>>());
        MasterKeys::from_ring(&KeyRing::new(&current, previous.iter().collect()))
    }

    #[test]
    fn sealed_secret_opens_with_its_own_key_context_and_purpose_only() {
        let env = Env::system();
        let sealing = keys(1, &[]).signing_key_sealing().unwrap();
        let sealed = sealing.seal(&env, b"kid", &[9; 32]).unwrap();
        assert!(!sealed.windows(8).any(|part| part == [9; 8]));
        assert_eq!(**sealing.open(b"kid", &sealed).unwrap(), [9; 32]);
        assert!(sealing.open(b"other", &sealed).is_none());
        assert!(sealing.open(b"kid", &sealed[..5]).is_none());
        assert!(sealing.open(b"kid", &[]).is_none());
        assert!(keys(1, &[]).session_seed_sealing().unwrap().open(b"kid", &sealed).is_none());
        assert!(keys(2, &[]).signing_key_sealing().unwrap().open(b"kid", &sealed).is_none());
    }

    #[test]
    fn previous_key_opens_and_current_key_seals() {
        let env = Env::system();
        let old = keys(1, &[]).signing_key_sealing().unwrap();
        let ring = keys(2, &[3, 1]).signing_key_sealing().unwrap();
        let new = keys(2, &[]).signing_key_sealing().unwrap();
        let sealed = old.seal(&env, b"kid", &[9; 32]).unwrap();
        assert!(!ring.is_current(&sealed));
        let renewed = ring.seal(&env, b"kid", &ring.open(b"kid", &sealed).unwrap()).unwrap();
        assert!(ring.is_current(&renewed));
        assert_eq!(**new.open(b"kid", &renewed).unwrap(), [9; 32]);
        assert!(old.open(b"kid", &renewed).is_none());
        // The id of a key is authenticated by the decryption.
        let relabeled = [&renewed[..8], &sealed[8..]].concat();
        assert!(ring.open(b"kid", &relabeled).is_none());
    }

    #[test]
    fn ids_of_keys_differ() {
        let ids: Vec<_> = keys(1, &[2, 3]).ids().unwrap().iter().copied().collect();
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    }
}
