//! Keys that sign access tokens, as they are stored.

use std::{fmt, str::FromStr};

use time::OffsetDateTime;

use super::{Invalid, id::SigningKeyId};

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Access tokens.
    AccessTokens,
    /// Checkpoints of audit logs. They are kept for years, so such a key is published for good.
    Checkpoints,
}

impl KeyPurpose {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessTokens => "access tokens",
            Self::Checkpoints => "checkpoints",
        }
    }
}

impl FromStr for KeyPurpose {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::AccessTokens, Self::Checkpoints]
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
            .ok_or_else(|| Invalid::new("must be a purpose of signing keys"))
    }
}

/// A signing key as the database has it: the private half is sealed.
pub struct StoredSigningKey {
    /// The `kid`.
    pub id: SigningKeyId,
    /// What it signs.
    pub purpose: KeyPurpose,
    /// Ed25519, 32 bytes.
    pub public_key: Vec<u8>,
    /// The seed, sealed under a key that the database does not hold.
    pub sealed_private_key: Vec<u8>,
    /// When it was made; the youngest signs, a while later.
    pub created_at: OffsetDateTime,
}

impl fmt::Debug for StoredSigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredSigningKey({})", self.id)
    }
}

/// Where a signing key stands.
#[derive(Debug)]
pub struct SigningKeyState {
    /// The `kid`.
    pub id: SigningKeyId,
    /// What it signs.
    pub purpose: KeyPurpose,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Since when its tokens are worth nothing.
    pub retired_at: Option<OffsetDateTime>,
}
