//! Refresh tokens: derived from a session or a grant, not stored.
//!
//! A token is `rt_call2me_` + base64url of (id, generation, MAC). The MAC is HMAC-SHA-256 over the
//! id, the generation and a random seed, under a key that is not in the database. The database
//! stores only the seed and the current generation. Nevertheless:
//!
//! - a retry of the last refresh gets the *same* successor, because it is computed, not random;
//! - every older token is recognized as reused, not as unknown, however old it is;
//! - a forged token fails the MAC and therefore cannot end a session;
//! - a dump of the database reveals no tokens.
//!
//! The rotation and the reuse detection are in `auth::sessions::refresh` and
//! `oauth::token_endpoint`.

use std::{fmt, marker::PhantomData};

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;
use zeroize::Zeroize;

use super::id::Id;

const PREFIX: &str = "rt_call2me_";
const ID_LEN: usize = 16;
const HEAD_LEN: usize = ID_LEN + 4;
const TOKEN_LEN: usize = HEAD_LEN + 32;

/// The random part of the MAC input, one for each session or grant.
#[derive(Clone)]
pub struct RefreshSeed([u8; 32]);

impl RefreshSeed {
    /// Creates a seed from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for RefreshSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for RefreshSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshSeed(…)")
    }
}

/// The MAC key, derived from the deployment's `keys.encryption_key`. Sessions and grants have
/// different keys, so that a token of one is invalid for the other.
pub struct RefreshKey<I>(hmac::Key, PhantomData<fn() -> I>);

impl<I> Clone for RefreshKey<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<I: Id> RefreshKey<I> {
    /// Creates a key from 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes), PhantomData)
    }

    /// Returns the token of a generation.
    #[must_use]
    pub fn derive(&self, id: I, generation: u32, seed: &RefreshSeed) -> SecretString {
        let mut token = [0; TOKEN_LEN];
        token[..ID_LEN].copy_from_slice(id.uuid().as_bytes());
        token[ID_LEN..HEAD_LEN].copy_from_slice(&generation.to_be_bytes());
        let mac = self.mac(&token[..HEAD_LEN], seed);
        token[HEAD_LEN..].copy_from_slice(mac.as_ref());
        let text = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&token));
        token.zeroize();
        text.into()
    }

    fn mac(&self, head: &[u8], seed: &RefreshSeed) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(head);
        context.update(&seed.0);
        context.sign()
    }
}

impl<I> fmt::Debug for RefreshKey<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshKey(…)")
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
    pub fn verify(&self, key: &RefreshKey<I>, seed: &RefreshSeed) -> Option<u32> {
        use subtle::ConstantTimeEq as _;
        let genuine = key.derive(self.id, self.generation, seed);
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
        fn token_verifies_only_with_its_key_and_seed(
            id: u128, generation: u32, key: [u8; 32], seed: [u8; 32], other: [u8; 32],
        ) {
            let session = SessionId::from(Uuid::from_u128(id));
            let (key, seed) = (RefreshKey::new(&key), RefreshSeed::new(seed));
            let token = key.derive(session, generation, &seed);
            let read = PresentedToken::parse(token.expose_secret()).unwrap();
            prop_assert_eq!(read.id(), session);
            prop_assert_eq!(read.verify(&key, &seed), Some(generation));
            prop_assume!(other != seed.0);
            prop_assert_eq!(read.verify(&key, &RefreshSeed::new(other)), None);
            prop_assert_eq!(read.verify(&RefreshKey::new(&other), &seed), None);
        }

        #[test]
        fn modified_token_does_not_verify(generation: u32, at in 11_usize..81, to in 0_usize..64) {
            let (key, seed) = (RefreshKey::new(&[1; 32]), RefreshSeed::new([2; 32]));
            let token = key.derive(SessionId::from(Uuid::from_u128(3)), generation, &seed);
            let mut bytes = token.expose_secret().as_bytes().to_vec();
            prop_assume!(at < bytes.len());
            let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[to];
            prop_assume!(bytes[at] != letter);
            bytes[at] = letter;
            let read = PresentedToken::parse(std::str::from_utf8(&bytes).unwrap());
            prop_assert!(read.is_none_or(|token| token.verify(&key, &seed).is_none()));
        }
    }
}
