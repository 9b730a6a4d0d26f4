//! The keys that sign access tokens: Ed25519 (RFC 8037), sealed at rest, published as a JWKS.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::error;
use zeroize::Zeroizing;

use super::secrets::Secrets;
use crate::{
    env::Env,
    model::{
        id::{Id, SigningKeyId},
        signing_key::StoredSigningKey,
    },
    store::Store,
};

/// The media type of access tokens (RFC 9068, section 2.1).
pub const ACCESS_TOKEN_TYPE: &str = "at+jwt";

/// All keys whose tokens are believed, and the one that signs.
pub struct SigningKeys {
    signer: EncodingKey,
    header: Header,
    verifiers: Vec<Verifier>,
}

struct Verifier {
    kid: String,
    key: DecodingKey,
    public_key: Vec<u8>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.verifiers.iter().map(|verifier| &verifier.kid)).finish()
    }
}

impl SigningKeys {
    /// Loads the keys; on a fresh database makes the first, whichever node is faster.
    ///
    /// # Errors
    /// With one line for the operator.
    pub async fn load_or_create(
        store: &Store,
        secrets: &Secrets,
        env: &Env,
    ) -> Result<Self, String> {
        let away = |error| format!("cannot load the signing keys: {error}");
        let mut stored = store.signing_keys().await.map_err(away)?;
        if stored.is_empty() {
            store.insert_first_signing_key(&generate(secrets, env)?).await.map_err(away)?;
            stored = store.signing_keys().await.map_err(away)?;
        }
        Self::open(&stored, secrets)
    }

    fn open(stored: &[StoredSigningKey], secrets: &Secrets) -> Result<Self, String> {
        let (mut keys, mut foreign) = (Vec::new(), Vec::new());
        for key in stored {
            match open_pair(key, secrets)? {
                Some(pair) => keys.push((key, pair)),
                None => foreign.push(key.id),
            }
        }
        let (youngest, pair) = keys.first().ok_or(
            "keys.encryption_key is not the one that this database's signing keys were sealed with",
        )?;
        // Nobody signs or is believed with a key that somebody else put there.
        for kid in foreign {
            error!(%kid, "a signing key is not of this deployment: passed over");
        }
        let pkcs8 = pair.to_pkcs8().map_err(|_| "a signing key is damaged")?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(ACCESS_TOKEN_TYPE.to_owned());
        header.kid = Some(youngest.id.to_string());
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

    /// Signs claims as an access token.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&self.header, claims, &self.signer)
    }

    /// The key with an id, to verify with.
    #[must_use]
    pub fn verifier(&self, kid: &str) -> Option<&DecodingKey> {
        self.verifiers.iter().find(|verifier| verifier.kid == kid).map(|verifier| &verifier.key)
    }

    /// The public halves (RFC 7517, RFC 8037).
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.verifiers.iter().map(|verifier| {
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

/// Both halves of a key; none where the private one does not open, or does not fit the public one.
fn open_pair(key: &StoredSigningKey, secrets: &Secrets) -> Result<Option<Ed25519KeyPair>, String> {
    let seed = secrets.open(key.id.uuid().as_bytes(), &key.sealed_private_key)?;
    Ok(seed.and_then(|seed| Ed25519KeyPair::from_seed_and_public_key(&seed, &key.public_key).ok()))
}

fn generate(secrets: &Secrets, env: &Env) -> Result<StoredSigningKey, String> {
    let id: SigningKeyId = env.new_id();
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(env.entropy.bytes());
    let pair = Ed25519KeyPair::from_seed_unchecked(&*seed)
        .map_err(|_| "cannot make a signing key".to_owned())?;
    Ok(StoredSigningKey {
        id,
        public_key: pair.public_key().as_ref().to_vec(),
        sealed_private_key: secrets.seal(env, id.uuid().as_bytes(), &*seed)?,
        created_at: env.clock.now(),
    })
}
