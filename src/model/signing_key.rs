//! Stored keys that sign access tokens, ID tokens and audit checkpoints.

use std::{fmt, str::FromStr};

use time::OffsetDateTime;

use super::{ValidationError, id::SigningKeyId};

/// The purpose of a signing key. No other signature of the key is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Access tokens, and ID tokens of clients that ask for no other algorithm.
    AccessTokens,
    /// ID tokens of clients that ask for RS256.
    IdTokens,
    /// Audit checkpoints. They are kept for years, so the key stays published forever.
    Checkpoints,
}

impl KeyPurpose {
    /// All purposes.
    pub const ALL: [Self; 3] = [Self::AccessTokens, Self::IdTokens, Self::Checkpoints];

    /// Returns the name that the database stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessTokens => "access tokens",
            Self::IdTokens => "id tokens",
            Self::Checkpoints => "checkpoints",
        }
    }
}

impl FromStr for KeyPurpose {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        Self::ALL
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
            .ok_or_else(|| ValidationError::new("must be the purpose of a signing key"))
    }
}

/// The algorithm of a signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3), with keys of 2048 bits.
    Rs256,
}

impl SigningAlgorithm {
    /// All algorithms.
    pub const ALL: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    /// Returns the `alg` of its signatures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

impl FromStr for SigningAlgorithm {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
            .ok_or_else(|| ValidationError::new("must be EdDSA, ES256 or RS256"))
    }
}

/// A signing key in the database, with an encrypted private key.
pub struct StoredSigningKey {
    /// The key's id; the `kid` of the JWKS.
    pub id: SigningKeyId,
    /// The key's purpose.
    pub purpose: KeyPurpose,
    /// The key's algorithm.
    pub algorithm: SigningAlgorithm,
    /// The private key (PKCS #8), encrypted under a key that is not in the database.
    pub sealed_private_key: Vec<u8>,
    /// Time of creation, from which the key is published.
    pub created_at: OffsetDateTime,
    /// The time from which the key signs.
    pub signs_at: OffsetDateTime,
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
    /// The key's algorithm.
    pub algorithm: SigningAlgorithm,
    /// Time of creation, from which the key is published.
    pub created_at: OffsetDateTime,
    /// The time from which the key signs.
    pub signs_at: OffsetDateTime,
    /// Time of retirement; tokens of a retired key are invalid.
    pub retired_at: Option<OffsetDateTime>,
}
