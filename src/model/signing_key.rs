//! Keys that sign access tokens, as they are stored.

use std::fmt;

use time::OffsetDateTime;

use super::id::SigningKeyId;

/// A signing key as the database has it: the private half is sealed.
pub struct StoredSigningKey {
    /// The `kid`.
    pub id: SigningKeyId,
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
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Since when its tokens are worth nothing.
    pub retired_at: Option<OffsetDateTime>,
}
