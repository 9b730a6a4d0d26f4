//! Tokens that are derived from an id and not stored: in mailed links, forms and OAuth codes.
//!
//! A token is base64url of (id, MAC). The MAC is HMAC-SHA-256 over the purpose and the id, under a
//! key that is not in the database. A dump of the database, or an email in its outbox, therefore
//! gives no access, and a token of one purpose is invalid for every other.
//!
//! This module does not limit how often a token works: the store does, by the token's id.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key_ring::KeyRing;

const ID_LEN: usize = 16;
const TOKEN_LEN: usize = ID_LEN + 32;

/// The purpose of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPurpose {
    /// Password reset, without the current password.
    PasswordReset,
    /// Email verification.
    EmailVerification,
    /// Acceptance of an invitation to a workspace.
    Invitation,
    /// Completion of a sign-in with a second factor.
    SecondFactor,
    /// Challenge for a sign-in with a passkey.
    PasskeyAuthentication,
    /// Challenge for the registration of a passkey.
    PasskeyRegistration,
    /// CSRF token of a form before sign-in; its id is the browser's.
    BrowserCsrf,
    /// CSRF token of a form after sign-in; its id is derived from the session.
    SessionCsrf,
    /// OAuth authorization code; its id is the grant's (RFC 6749, section 4.1.2).
    AuthorizationCode,
    /// OAuth device code (RFC 8628, section 3.2).
    DeviceCode,
}

impl TokenPurpose {
    /// Returns the name that the database stores and that the MAC covers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PasswordReset => "reset_password",
            Self::EmailVerification => "verify_email",
            Self::Invitation => "invitation",
            Self::SecondFactor => "second_factor",
            Self::PasskeyAuthentication => "passkey",
            Self::PasskeyRegistration => "new_passkey",
            Self::BrowserCsrf => "form",
            Self::SessionCsrf => "session_form",
            Self::AuthorizationCode => "authorization_code",
            Self::DeviceCode => "device_code",
        }
    }
}

/// The MAC key, derived from the deployment's `keys.encryption_key`, and the previous ones. New
/// tokens are derived with the current key; those of the previous keys are valid too.
#[derive(Clone)]
pub struct TokenKey(KeyRing<hmac::Key>);

impl TokenKey {
    /// Creates the keys from 32 secret bytes each.
    #[must_use]
    pub fn new(keys: &KeyRing<Zeroizing<[u8; 32]>>) -> Self {
        Self(keys.map(|bytes| hmac::Key::new(hmac::HMAC_SHA256, &**bytes)))
    }

    /// Returns the token of an id.
    #[must_use]
    pub fn derive(&self, purpose: TokenPurpose, id: Uuid) -> SecretString {
        let mac = hmac::sign(self.0.current(), &mac_input(purpose, id));
        BASE64URL_NOPAD.encode(&[id.as_bytes(), mac.as_ref()].concat()).into()
    }

    /// Returns the id of a token, or `None` if its MAC is wrong. The comparison takes constant
    /// time.
    #[must_use]
    pub fn verify(&self, purpose: TokenPurpose, token: &str) -> Option<Uuid> {
        self.verify_input(token, |id| mac_input(purpose, id))
    }

    /// Returns the token of an id, bound to an owner such as a session.
    #[must_use]
    pub fn derive_for(&self, owner: Uuid, purpose: TokenPurpose, id: Uuid) -> SecretString {
        let mac = hmac::sign(self.0.current(), &mac_input_for(owner, purpose, id));
        BASE64URL_NOPAD.encode(&[id.as_bytes(), mac.as_ref()].concat()).into()
    }

    /// Returns the id of a token that is bound to this owner, or `None` if its MAC is wrong.
    #[must_use]
    pub fn verify_for(&self, owner: Uuid, purpose: TokenPurpose, token: &str) -> Option<Uuid> {
        self.verify_input(token, |id| mac_input_for(owner, purpose, id))
    }

    /// Returns the MACs under which a device's user code may be stored, the one for new codes as
    /// the current. An unkeyed hash of such a short code could be inverted by brute force.
    #[must_use]
    pub fn user_code_macs(&self, letters: &str) -> KeyRing<[u8; 32]> {
        self.0.map(|key| {
            let mac = hmac::sign(key, format!("user_code {letters}").as_bytes());
            let mut bytes = [0; 32];
            bytes.copy_from_slice(mac.as_ref());
            bytes
        })
    }

    fn verify_input(&self, token: &str, input: impl Fn(Uuid) -> Vec<u8>) -> Option<Uuid> {
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        if bytes.len() != TOKEN_LEN {
            return None;
        }
        let (id, mac) = bytes.split_at(ID_LEN);
        let id = Uuid::from_slice(id).ok()?;
        let input = input(id);
        // Every key is tried, so that the duration does not say which one matches.
        let matches = self.0.iter().filter(|key| hmac::verify(key, &input, mac).is_ok()).count();
        (matches > 0).then_some(id)
    }
}

fn mac_input(purpose: TokenPurpose, id: Uuid) -> Vec<u8> {
    // The id has a fixed length, so the input is different for every purpose and id.
    [purpose.as_str().as_bytes(), id.as_bytes()].concat()
}

fn mac_input_for(owner: Uuid, purpose: TokenPurpose, id: Uuid) -> Vec<u8> {
    // Different from every `mac_input`: no purpose is another purpose plus 16 bytes.
    [&mac_input(purpose, id), &owner.as_bytes()[..]].concat()
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    proptest! {
        #[test]
        fn token_verifies_only_for_its_purpose_owner_and_key(
            id: u128, key: [u8; 32], other: [u8; 32],
        ) {
            let (id, own) = (Uuid::from_u128(id), TokenKey::new(&Zeroizing::new(key).into()));
            let token = own.derive(TokenPurpose::PasswordReset, id);
            let token = token.expose_secret();
            prop_assert_eq!(own.verify(TokenPurpose::PasswordReset, token), Some(id));
            prop_assert_eq!(own.verify(TokenPurpose::EmailVerification, token), None);
            prop_assert_eq!(own.verify_for(id, TokenPurpose::PasswordReset, token), None);
            let bound = own.derive_for(id, TokenPurpose::PasskeyRegistration, id);
            let bound = bound.expose_secret();
            prop_assert_eq!(own.verify_for(id, TokenPurpose::PasskeyRegistration, bound), Some(id));
            prop_assert_eq!(own.verify_for(id, TokenPurpose::PasskeyAuthentication, bound), None);
            prop_assert_eq!(own.verify_for(Uuid::max(), TokenPurpose::PasskeyRegistration, bound), None);
            prop_assert_eq!(own.verify(TokenPurpose::PasskeyRegistration, bound), None);
            prop_assume!(key != other);
            let other = Zeroizing::new(other);
            let stranger = TokenKey::new(&other.clone().into());
            prop_assert_eq!(stranger.verify(TokenPurpose::PasswordReset, token), None);
            let rotated = TokenKey::new(&KeyRing::new(other, vec![Zeroizing::new(key)]));
            prop_assert_eq!(rotated.verify(TokenPurpose::PasswordReset, token), Some(id));
            prop_assert_eq!(rotated.verify(TokenPurpose::EmailVerification, token), None);
            let renewed = rotated.derive(TokenPurpose::PasswordReset, id);
            let renewed = renewed.expose_secret();
            prop_assert_eq!(stranger.verify(TokenPurpose::PasswordReset, renewed), Some(id));
            prop_assert_eq!(own.verify(TokenPurpose::PasswordReset, renewed), None);
        }

        #[test]
        fn modified_token_does_not_verify(id: u128, at in 0_usize..64, to in 0_usize..64) {
            let (id, key) = (Uuid::from_u128(id), TokenKey::new(&Zeroizing::new([7; 32]).into()));
            let mut text = key.derive(TokenPurpose::EmailVerification, id).expose_secret().as_bytes().to_vec();
            let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[to];
            prop_assume!(text[at] != letter);
            text[at] = letter;
            let text = std::str::from_utf8(&text).unwrap();
            prop_assert_eq!(key.verify(TokenPurpose::EmailVerification, text), None);
            prop_assert_eq!(key.verify(TokenPurpose::EmailVerification, &text[..63]), None);
        }
    }
}
