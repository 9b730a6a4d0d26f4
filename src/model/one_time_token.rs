//! Tokens of links that people are mailed, of browsers and of forms: derived from an id, not stored.
//!
//! base64url of (id, MAC). The MAC is HMAC-SHA-256 over the purpose and the id, under a key that the
//! database does not hold. So a dump of the database, or a mail that waits in it, opens nothing, and a
//! token of one purpose is none of another.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use secrecy::SecretString;
use uuid::Uuid;

const ID_LEN: usize = 16;
const TOKEN_LEN: usize = ID_LEN + 32;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To choose a new password without knowing the old one.
    ResetPassword,
    /// To show that an address is one's own.
    VerifyEmail,
    /// To join a workspace.
    Invitation,
    /// To complete a sign-in by a second factor.
    SecondFactor,
    /// To be answered by a passkey.
    Passkey,
    /// To be answered by making a passkey.
    NewPasskey,
    /// To be known by, for a browser; of a session's id.
    Cookie,
    /// To send a form with; of the browser it was made for.
    Form,
    /// To send a form with; of the session it was made for.
    SessionForm,
    /// To get an OAuth grant's first tokens with; of the grant (RFC 6749, section 4.1.2).
    AuthorizationCode,
    /// To ask for the tokens of a device with (RFC 8628, section 3.2).
    DeviceCode,
}

impl Purpose {
    /// The name in the database, and in the MAC.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResetPassword => "reset_password",
            Self::VerifyEmail => "verify_email",
            Self::Invitation => "invitation",
            Self::SecondFactor => "second_factor",
            Self::Passkey => "passkey",
            Self::NewPasskey => "new_passkey",
            Self::Cookie => "cookie",
            Self::Form => "form",
            Self::SessionForm => "session_form",
            Self::AuthorizationCode => "authorization_code",
            Self::DeviceCode => "device_code",
        }
    }
}

/// The key of the MAC, derived from the deployment's `keys.encryption_key`.
#[derive(Clone)]
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// A key of 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The token of an id.
    #[must_use]
    pub fn derive(&self, purpose: Purpose, id: Uuid) -> SecretString {
        let mac = hmac::sign(&self.0, &input(purpose, id));
        BASE64URL_NOPAD.encode(&[id.as_bytes(), mac.as_ref()].concat()).into()
    }

    /// The id of a genuine token; compared in constant time.
    #[must_use]
    pub fn verify(&self, purpose: Purpose, token: &str) -> Option<Uuid> {
        self.verify_input(token, |id| input(purpose, id))
    }

    /// The token of an id, for somebody alone.
    #[must_use]
    pub fn derive_for(&self, whom: Uuid, purpose: Purpose, id: Uuid) -> SecretString {
        let mac = hmac::sign(&self.0, &input_for(whom, purpose, id));
        BASE64URL_NOPAD.encode(&[id.as_bytes(), mac.as_ref()].concat()).into()
    }

    /// The id of a genuine token that is for somebody.
    #[must_use]
    pub fn verify_for(&self, whom: Uuid, purpose: Purpose, token: &str) -> Option<Uuid> {
        self.verify_input(token, |id| input_for(whom, purpose, id))
    }

    /// What is kept of a code that a person types in on a device's behalf: so short a code would be found by
    /// its mere hash.
    #[must_use]
    pub fn of_user_code(&self, letters: &str) -> [u8; 32] {
        let mac = hmac::sign(&self.0, format!("user_code {letters}").as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(mac.as_ref());
        bytes
    }

    fn verify_input(&self, token: &str, input: impl Fn(Uuid) -> Vec<u8>) -> Option<Uuid> {
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        if bytes.len() != TOKEN_LEN {
            return None;
        }
        let (id, mac) = bytes.split_at(ID_LEN);
        let id = Uuid::from_slice(id).ok()?;
        hmac::verify(&self.0, &input(id), mac).ok().map(|()| id)
    }
}

fn input(purpose: Purpose, id: Uuid) -> Vec<u8> {
    // The id has a fixed length, so no two purposes and ids give the same text.
    [purpose.as_str().as_bytes(), id.as_bytes()].concat()
}

fn input_for(whom: Uuid, purpose: Purpose, id: Uuid) -> Vec<u8> {
    // Nor do these: no purpose is another and as much as an id.
    [&input(purpose, id), &whom.as_bytes()[..]].concat()
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
        fn a_token_is_genuine_for_its_purpose_and_key_only(id: u128, key: [u8; 32], other: [u8; 32]) {
            let (id, own) = (Uuid::from_u128(id), TokenKey::new(&key));
            let token = own.derive(Purpose::ResetPassword, id);
            let token = token.expose_secret();
            prop_assert_eq!(own.verify(Purpose::ResetPassword, token), Some(id));
            prop_assert_eq!(own.verify(Purpose::VerifyEmail, token), None);
            prop_assert_eq!(own.verify_for(id, Purpose::ResetPassword, token), None);
            let theirs = own.derive_for(id, Purpose::NewPasskey, id);
            let theirs = theirs.expose_secret();
            prop_assert_eq!(own.verify_for(id, Purpose::NewPasskey, theirs), Some(id));
            prop_assert_eq!(own.verify_for(id, Purpose::Passkey, theirs), None);
            prop_assert_eq!(own.verify_for(Uuid::max(), Purpose::NewPasskey, theirs), None);
            prop_assert_eq!(own.verify(Purpose::NewPasskey, theirs), None);
            prop_assume!(key != other);
            prop_assert_eq!(TokenKey::new(&other).verify(Purpose::ResetPassword, token), None);
        }

        #[test]
        fn a_changed_token_is_not_genuine(id: u128, at in 0_usize..64, to in 0_usize..64) {
            let (id, key) = (Uuid::from_u128(id), TokenKey::new(&[7; 32]));
            let mut text = key.derive(Purpose::VerifyEmail, id).expose_secret().as_bytes().to_vec();
            let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[to];
            prop_assume!(text[at] != letter);
            text[at] = letter;
            let text = std::str::from_utf8(&text).unwrap();
            prop_assert_eq!(key.verify(Purpose::VerifyEmail, text), None);
            prop_assert_eq!(key.verify(Purpose::VerifyEmail, &text[..63]), None);
        }
    }
}
