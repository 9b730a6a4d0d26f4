//! The keys that a node has loaded: the ones that sign, those that verify, and the JWKS.

use std::{fmt, sync::Arc};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{DecodingKey, Validation, jwk::Jwk};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tracing::error;

use super::{
    encryption_context,
    key_pair::{KeyPair, jwt_algorithm},
};
use crate::{
    auth::{AuthError, sealing::SealingKeys},
    model::{
        id::SigningKeyId,
        signing_key::{KeyPurpose, SigningAlgorithm, StoredSigningKey},
    },
};

/// The media type of access tokens (RFC 9068, section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// The media type of checkpoints.
pub const CHECKPOINT_TYPE: &str = "audit-checkpoint+jws";

/// The active keys.
pub struct KeySet {
    tokens: PurposeKeys,
    checkpoints: PurposeKeys,
    /// The keys of [`KeyPurpose::IdTokens`]. There are none until a client asks for RS256.
    id_tokens: Option<PurposeKeys>,
}

/// The keys of one purpose. The first one signs, all of them verify.
struct PurposeKeys(Vec<Arc<LoadedKey>>);

struct LoadedKey {
    id: SigningKeyId,
    kid: String,
    algorithm: SigningAlgorithm,
    signs_at: OffsetDateTime,
    pair: KeyPair,
    verifier: DecodingKey,
    /// The public key for the JWKS.
    jwk: Value,
}

/// A public key that verifies signatures of one algorithm.
pub(in crate::auth) struct VerifyingKey<'a>(&'a LoadedKey);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(|key| &key.kid)).finish()
    }
}

impl KeySet {
    /// Decrypts the active keys, which are sorted from new to old. `previous` has parsed some of
    /// them. A node with `algorithm` signs access tokens with the newest key of that algorithm, or
    /// of any other until that key signs.
    pub(super) fn decrypt(
        stored: &[StoredSigningKey],
        previous: Option<&Self>,
        sealing: &SealingKeys,
        algorithm: SigningAlgorithm,
        now: OffsetDateTime,
    ) -> Result<Self, String> {
        let load = |purpose| {
            let keys = stored.iter().filter(|key| key.purpose == purpose);
            let mut loaded = Vec::new();
            for key in keys {
                if let Some(key) = LoadedKey::decrypt(key, previous, sealing) {
                    loaded.push(key);
                } else {
                    // Never use a key that another party has inserted into the database.
                    error!(kid = %key.id, "ignoring a signing key that is not of this deployment");
                }
            }
            loaded
        };
        let required = |keys: Option<PurposeKeys>| {
            keys.ok_or(
                "keys.encryption_key is not the key that encrypted this database's signing keys",
            )
        };
        let preferred = Some(algorithm);
        Ok(Self {
            tokens: required(PurposeKeys::new(load(KeyPurpose::AccessTokens), preferred, now))?,
            checkpoints: required(PurposeKeys::new(load(KeyPurpose::Checkpoints), None, now))?,
            id_tokens: PurposeKeys::new(load(KeyPurpose::IdTokens), None, now),
        })
    }

    /// Signs the claims of an access token.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if the cryptographic library fails.
    pub fn sign_access_token(&self, claims: &impl Serialize) -> Result<String, AuthError> {
        self.tokens.signer().sign(ACCESS_TOKEN_TYPE, claims)
    }

    /// Signs a checkpoint.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if the cryptographic library fails.
    pub fn sign_checkpoint(&self, claims: &impl Serialize) -> Result<String, AuthError> {
        self.checkpoints.signer().sign(CHECKPOINT_TYPE, claims)
    }

    /// The public key for access tokens with this key id.
    pub(in crate::auth) fn token_verifying_key(&self, kid: &str) -> Option<VerifyingKey<'_>> {
        self.tokens.find(kid)
    }

    /// The public key for checkpoints with this key id.
    pub(in crate::auth) fn checkpoint_verifying_key(&self, kid: &str) -> Option<VerifyingKey<'_>> {
        self.checkpoints.find(kid)
    }

    /// The id of the key that signs access tokens.
    pub(super) fn token_signer(&self) -> &str {
        &self.tokens.signer().kid
    }

    /// True if there is an active key of a purpose and algorithm.
    pub(super) fn has(&self, purpose: KeyPurpose, algorithm: SigningAlgorithm) -> bool {
        let keys = self.of(purpose);
        keys.is_some_and(|keys| keys.0.iter().any(|key| key.algorithm == algorithm))
    }

    /// True if a key of `previous` for access tokens is no longer among the keys.
    pub(super) fn lacks_token_key_of(&self, previous: &Self) -> bool {
        previous.tokens.0.iter().any(|old| self.tokens.find(&old.kid).is_none())
    }

    /// True if the key with this id currently signs.
    #[must_use]
    pub fn is_signing(&self, id: SigningKeyId) -> bool {
        let purposes = KeyPurpose::ALL.into_iter().filter_map(|purpose| self.of(purpose));
        purposes.map(PurposeKeys::signer).any(|key| key.id == id)
    }

    /// The keys of access and ID tokens, as a JSON Web Key Set (RFC 7517). The key that signs
    /// access tokens is the first, because some resource servers take that.
    #[must_use]
    pub fn jwks(&self) -> Value {
        jwks(self.tokens.0.iter().chain(self.id_tokens.iter().flat_map(|keys| &keys.0)))
    }

    /// The keys of checkpoints, as a JSON Web Key Set.
    #[must_use]
    pub fn checkpoint_jwks(&self) -> Value {
        jwks(self.checkpoints.0.iter())
    }

    fn of(&self, purpose: KeyPurpose) -> Option<&PurposeKeys> {
        match purpose {
            KeyPurpose::AccessTokens => Some(&self.tokens),
            KeyPurpose::Checkpoints => Some(&self.checkpoints),
            KeyPurpose::IdTokens => self.id_tokens.as_ref(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<LoadedKey>> {
        KeyPurpose::ALL.into_iter().filter_map(|purpose| self.of(purpose)).flat_map(|keys| &keys.0)
    }
}

fn jwks<'a>(keys: impl Iterator<Item = &'a Arc<LoadedKey>>) -> Value {
    json!({ "keys": keys.map(|key| &key.jwk).collect::<Vec<_>>() })
}

impl PurposeKeys {
    /// Selects the key that signs among keys that are sorted from new to old. `None` without keys.
    fn new(
        mut keys: Vec<Arc<LoadedKey>>,
        preferred: Option<SigningAlgorithm>,
        now: OffsetDateTime,
    ) -> Option<Self> {
        let signs = |key: &Arc<LoadedKey>| key.signs_at <= now;
        let is_preferred = |key: &Arc<LoadedKey>| Some(key.algorithm) == preferred;
        let signer = keys
            .iter()
            .position(|key| signs(key) && is_preferred(key))
            .or_else(|| keys.iter().position(signs))
            .or_else(|| keys.len().checked_sub(1))?;
        keys.get_mut(..=signer)?.rotate_right(1);
        Some(Self(keys))
    }

    fn signer(&self) -> &LoadedKey {
        &self.0[0]
    }

    fn find(&self, kid: &str) -> Option<VerifyingKey<'_>> {
        self.0.iter().find(|key| key.kid == kid).map(|key| VerifyingKey(key))
    }
}

impl LoadedKey {
    /// Decrypts a key. `None` if it is of another deployment. A key that `previous` has parsed is
    /// not parsed again, which takes a millisecond for RSA.
    fn decrypt(
        key: &StoredSigningKey,
        previous: Option<&KeySet>,
        sealing: &SealingKeys,
    ) -> Option<Arc<Self>> {
        let context = encryption_context(key.id, key.purpose, key.algorithm);
        let private_key = sealing.open(&context, &key.sealed_private_key)?;
        let known = previous.and_then(|keys| keys.all().find(|known| known.id == key.id));
        if let Some(known) = known {
            return Some(Arc::clone(known));
        }
        let pair = KeyPair::from_pkcs8(key.algorithm, &private_key)?;
        let kid = key.id.to_string();
        let mut jwk = pair.public_jwk();
        let metadata = [("use", "sig"), ("alg", key.algorithm.as_str()), ("kid", &*kid)];
        let members = metadata.map(|(name, value)| (name.to_owned(), value.into()));
        jwk.as_object_mut()?.extend(members);
        let verifier = DecodingKey::from_jwk(&Jwk::deserialize(&jwk).ok()?).ok()?;
        let (id, algorithm, signs_at) = (key.id, key.algorithm, key.signs_at);
        Some(Arc::new(Self { id, kid, algorithm, signs_at, pair, verifier, jwk }))
    }

    /// Signs claims as a JWS of a media type, in compact form (RFC 7515, section 3.1).
    fn sign(&self, media_type: &str, claims: &impl Serialize) -> Result<String, AuthError> {
        let failed = || AuthError::Internal("cannot sign a token");
        let header = json!({
            "typ": media_type, "alg": self.algorithm.as_str(), "kid": self.kid,
        });
        let claims = serde_json::to_vec(claims).map_err(|_| failed())?;
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let message = format!("{}.{}", encode(header.to_string().as_bytes()), encode(&claims));
        let signature = self.pair.sign(message.as_bytes()).map_err(|_| failed())?;
        Ok(format!("{message}.{}", encode(&signature)))
    }
}

impl VerifyingKey<'_> {
    /// The `alg` of the key's signatures.
    pub(in crate::auth) fn algorithm(&self) -> &'static str {
        self.0.algorithm.as_str()
    }

    /// Returns the claims of a token that this key has signed. `rules` adds checks to that of the
    /// signature; by default there are none.
    pub(in crate::auth) fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        rules: impl FnOnce(&mut Validation),
    ) -> Option<T> {
        let mut validation = Validation::new(jwt_algorithm(self.0.algorithm));
        validation.required_spec_claims.clear();
        // Callers check the expiry: by the service's own clock, and without leeway.
        validation.validate_exp = false;
        validation.validate_aud = false;
        rules(&mut validation);
        jsonwebtoken::decode(token, &self.0.verifier, &validation).ok().map(|token| token.claims)
    }
}
