//! Stored keys that sign access tokens and audit checkpoints.

use std::{fmt, str::FromStr};

use time::OffsetDateTime;

use super::{ValidationError, id::SigningKeyId};

/// The purpose of a signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Access tokens.
    AccessTokens,
    /// Audit checkpoints. They are kept for years, so the key stays published forever.
    Checkpoints,
}

impl KeyPurpose {
    /// Returns the name that the database stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessTokens => "access tokens",
            Self::Checkpoints => "checkpoints",
        }
    }
}

impl FromStr for KeyPurpose {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        [Self::AccessTokens, Self::Checkpoints]
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
            .ok_or_else(|| ValidationError::new("must be \"access tokens\" or \"checkpoints\""))
    }
}

/// A signing key in the database, with an encrypted private key.
pub struct StoredSigningKey {
    /// The key's id; the `kid` of the JWKS.
    pub id: SigningKeyId,
    /// The key's purpose.
    pub purpose: KeyPurpose,
    /// The Ed25519 public key, 32 bytes.
    pub public_key: Vec<u8>,
    /// The Ed25519 seed, encrypted under a key that is not in the database.
    pub sealed_private_key: Vec<u8>,
    /// Time of creation. The newest key signs, after a delay.
    pub created_at: OffsetDateTime,
}

impl fmt::Debug for StoredSigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredSigningKey({})", self.id)
    }
}

/// The metadata of a signing key, without key material.
#[derive(Debug)]
pub struct SigningKeyMetadata {
    /// The key's id; the `kid` of the JWKS.
    pub id: SigningKeyId,
    /// The key's purpose.
    pub purpose: KeyPurpose,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time of retirement; tokens of a retired key are invalid.
    pub retired_at: Option<OffsetDateTime>,
}
