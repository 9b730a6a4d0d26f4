//! Refresh tokens: derived from a session or a grant, not stored.
//!
//! A token is `rt_call2me_` + base64url of (id, generation, MAC). The MAC is HMAC-SHA-256 over the
//! id and the generation, under the random seed of the session or grant. The database stores only
//! the current generation and the seed, encrypted under a key that is not in the database.
//! Nevertheless:
//!
//! - a retry of the last refresh gets the *same* successor, because it is computed, not random;
//! - every older token is recognized as reused, not as unknown, however old it is;
//! - a forged token fails the MAC and therefore cannot end a session;
//! - a dump of the database reveals no tokens.
//!
//! The rotation and the reuse detection are in `auth::sessions::refresh` and
//! `oauth::token_endpoint`.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::id::Id;

const PREFIX: &str = "rt_call2me_";
const ID_LEN: usize = 16;
const HEAD_LEN: usize = ID_LEN + 4;
const TOKEN_LEN: usize = HEAD_LEN + 32;

/// The MAC key of the refresh tokens of one session or grant. It is stored encrypted.
#[derive(Clone)]
pub struct RefreshSeed(Zeroizing<[u8; 32]>);

impl RefreshSeed {
    /// Creates a seed from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// Returns the token of a generation.
    #[must_use]
    pub fn derive(&self, id: impl Id, generation: u32) -> SecretString {
        let mut token = Zeroizing::new([0; TOKEN_LEN]);
        token[..ID_LEN].copy_from_slice(id.uuid().as_bytes());
        token[ID_LEN..HEAD_LEN].copy_from_slice(&generation.to_be_bytes());
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        let mac = hmac::sign(&key, &token[..HEAD_LEN]);
        token[HEAD_LEN..].copy_from_slice(mac.as_ref());
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&*token)).into()
    }
}

impl fmt::Debug for RefreshSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshSeed(…)")
    }
}

/// A refresh token that a client sent: well-formed, but not yet verified.
pub struct PresentedToken<I> {
    id: I,
    generation: u32,
    text: SecretString,
}

impl<I: Id> PresentedToken<I> {
    /// Parses a token; returns `None` if it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(PREFIX)?;
        let mut bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).ok()?;
        if bytes.len() != TOKEN_LEN {
            return None;
        }
        let id = Uuid::from_slice(&bytes[..ID_LEN]).ok()?.into();
        let generation = u32::from_be_bytes(bytes[ID_LEN..HEAD_LEN].try_into().ok()?);
        bytes.zeroize();
        Some(Self { id, generation, text: text.to_owned().into() })
    }

    /// Returns the id of the session or grant that the token claims to belong to.
    #[must_use]
    pub fn id(&self) -> I {
        self.id
    }

    /// Returns the token's generation, or `None` if the token is not genuine. It is compared in
    /// constant time with the token that this service derives for the same generation.
    #[must_use]
    pub fn verify(&self, seed: &RefreshSeed) -> Option<u32> {
        use subtle::ConstantTimeEq as _;
        let genuine = seed.derive(self.id, self.generation);
        let same = genuine.expose_secret().as_bytes().ct_eq(self.text.expose_secret().as_bytes());
        bool::from(same).then_some(self.generation)
    }
}

impl<I: fmt::Display> fmt::Debug for PresentedToken<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedToken({}, …)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::id::SessionId;

    proptest! {
        #[test]
        fn token_verifies_only_with_its_seed(
            id: u128, generation: u32, seed: [u8; 32], other: [u8; 32],
        ) {
            let session = SessionId::from(Uuid::from_u128(id));
            prop_assume!(other != seed);
            let [seed, other] = [seed, other].map(|bytes| RefreshSeed::new(Zeroizing::new(bytes)));
            let token = seed.derive(session, generation);
            let read = PresentedToken::<SessionId>::parse(token.expose_secret()).unwrap();
            prop_assert_eq!(read.id(), session);
            prop_assert_eq!(read.verify(&seed), Some(generation));
            prop_assert_eq!(read.verify(&other), None);
        }

        #[test]
        fn modified_token_does_not_verify(generation: u32, at in 11_usize..81, to in 0_usize..64) {
            let seed = RefreshSeed::new(Zeroizing::new([2; 32]));
            let token = seed.derive(SessionId::from(Uuid::from_u128(3)), generation);
            let mut bytes = token.expose_secret().as_bytes().to_vec();
            prop_assume!(at < bytes.len());
            let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[to];
            prop_assume!(bytes[at] != letter);
            bytes[at] = letter;
            let read = PresentedToken::<SessionId>::parse(std::str::from_utf8(&bytes).unwrap());
            prop_assert!(read.is_none_or(|token| token.verify(&seed).is_none()));
        }
    }
}
