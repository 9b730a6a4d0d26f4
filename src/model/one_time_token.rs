//! Tokens that are derived from an id and not stored: in mailed links, forms and OAuth codes.
//!
//! A token is base64url of (id, MAC). The MAC is HMAC-SHA-256 over the purpose and the id, under a
//! key that is not in the database. A dump of the database, or an email in its outbox, therefore
//! gives no access, and a token of one purpose is invalid for every other.
//!
//! The MAC of a [`BoundTokenPurpose`] covers the [`TokenOwner`] too, such as the account and the
//! address. SQL that an attacker injects can bind the row of a token's id to another account, but
//! the token is then valid for neither.
//!
//! This module does not limit how often a token works: the store does, by the token's id.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    email::Email,
    id::{Id, SessionId, UserId, WorkspaceId},
    key_ring::KeyRing,
};

const ID_LEN: usize = 16;
const TOKEN_LEN: usize = ID_LEN + 32;

/// The purpose of a token that is bound to an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundTokenPurpose {
    /// Password reset, without the current password.
    PasswordReset,
    /// Email verification.
    EmailVerification,
    /// Acceptance of an invitation to a workspace.
    Invitation,
    /// Completion of a sign-in with a second factor.
    SecondFactor,
    /// Challenge for the registration of a passkey.
    PasskeyRegistration,
}

impl BoundTokenPurpose {
    /// Returns the name that the database stores and that the MAC covers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PasswordReset => "reset_password",
            Self::EmailVerification => "verify_email",
            Self::Invitation => "invitation",
            Self::SecondFactor => "second_factor",
            Self::PasskeyRegistration => "new_passkey",
        }
    }
}

/// The owner of a token: the token is valid for no other one.
#[derive(Debug, Clone, Copy)]
pub enum TokenOwner<'a> {
    /// A user whose address is not part of the token.
    User(UserId),
    /// A session.
    Session(SessionId),
    /// An account, and the address that the token is mailed to.
    Account(UserId, &'a Email),
    /// An invited address in a workspace.
    Invitee(WorkspaceId, &'a Email),
}

impl TokenOwner<'_> {
    fn mac_input(self) -> Vec<u8> {
        let (id, email) = match self {
            Self::User(user) => (user.uuid(), None),
            Self::Session(session) => (session.uuid(), None),
            Self::Account(user, email) => (user.uuid(), Some(email)),
            Self::Invitee(workspace, email) => (workspace.uuid(), Some(email)),
        };
        [id.as_bytes(), &email.map(Email::digest).unwrap_or_default()[..]].concat()
    }
}

/// The purpose of a token that is bound to its id alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPurpose {
    /// Challenge for a sign-in with a passkey.
    PasskeyAuthentication,
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
    const fn as_str(self) -> &'static str {
        match self {
            Self::PasskeyAuthentication => "passkey",
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
        self.encode(id, &mac_input(purpose.as_str(), id, &[]))
    }

    /// Returns the id of a token, or `None` if its MAC is wrong. The comparison takes constant
    /// time.
    #[must_use]
    pub fn verify(&self, purpose: TokenPurpose, token: &str) -> Option<Uuid> {
        self.verify_input(token, |id| mac_input(purpose.as_str(), id, &[]))
    }

    /// Returns the token of an id, bound to an owner.
    #[must_use]
    pub fn derive_for(
        &self,
        owner: TokenOwner<'_>,
        purpose: BoundTokenPurpose,
        id: Uuid,
    ) -> SecretString {
        self.encode(id, &mac_input(purpose.as_str(), id, &owner.mac_input()))
    }

    /// Returns the id of a token that is bound to this owner, or `None` if its MAC is wrong. The
    /// comparison takes constant time.
    #[must_use]
    pub fn verify_for(
        &self,
        owner: TokenOwner<'_>,
        purpose: BoundTokenPurpose,
        token: &str,
    ) -> Option<Uuid> {
        let owner = owner.mac_input();
        self.verify_input(token, |id| mac_input(purpose.as_str(), id, &owner))
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

    fn encode(&self, id: Uuid, mac_input: &[u8]) -> SecretString {
        let mac = hmac::sign(self.0.current(), mac_input);
        BASE64URL_NOPAD.encode(&[id.as_bytes(), mac.as_ref()].concat()).into()
    }

    fn verify_input(&self, token: &str, input: impl Fn(Uuid) -> Vec<u8>) -> Option<Uuid> {
        let (id, mac) = decode(token)?;
        let input = input(id);
        // Every key is tried, so that the duration does not say which one matches.
        let matches = self.0.iter().filter(|key| hmac::verify(key, &input, &mac).is_ok()).count();
        (matches > 0).then_some(id)
    }
}

/// Returns the id in a token, to look up its owner. Its MAC is not verified yet.
#[must_use]
pub fn unverified_id(token: &str) -> Option<Uuid> {
    decode(token).map(|(id, _)| id)
}

fn decode(token: &str) -> Option<(Uuid, Vec<u8>)> {
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
    if bytes.len() != TOKEN_LEN {
        return None;
    }
    let (id, mac) = bytes.split_at(ID_LEN);
    Some((Uuid::from_slice(id).ok()?, mac.to_vec()))
}

fn mac_input(purpose: &str, id: Uuid, owner: &[u8]) -> Vec<u8> {
    // No purpose starts with another one, so the input starts with the purpose of its token. The
    // parts after it have fixed lengths.
    [purpose.as_bytes(), id.as_bytes(), owner].concat()
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

    const BOUND: [BoundTokenPurpose; 5] = [
        BoundTokenPurpose::PasswordReset,
        BoundTokenPurpose::EmailVerification,
        BoundTokenPurpose::Invitation,
        BoundTokenPurpose::SecondFactor,
        BoundTokenPurpose::PasskeyRegistration,
    ];
    const UNBOUND: [TokenPurpose; 5] = [
        TokenPurpose::PasskeyAuthentication,
        TokenPurpose::BrowserCsrf,
        TokenPurpose::SessionCsrf,
        TokenPurpose::AuthorizationCode,
        TokenPurpose::DeviceCode,
    ];

    #[test]
    fn no_purpose_starts_with_another() {
        let names = BOUND.map(BoundTokenPurpose::as_str);
        let names: Vec<_> = names.into_iter().chain(UNBOUND.map(TokenPurpose::as_str)).collect();
        for (index, name) in names.iter().enumerate() {
            let mut others = names.iter().enumerate().filter(|(other, _)| *other != index);
            assert!(others.all(|(_, other)| !other.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn bound_token_verifies_only_for_its_owner() {
        let key = TokenKey::new(&Zeroizing::new([7; 32]).into());
        let [first, second] = [1, 2].map(Uuid::from_u128);
        let [dana, sam] =
            ["dana@acme.example", "sam@acme.example"].map(|t| Email::parse(t).unwrap());
        let owners = [
            TokenOwner::Account(first.into(), &dana),
            TokenOwner::Account(first.into(), &sam),
            TokenOwner::Account(second.into(), &dana),
            TokenOwner::User(first.into()),
            TokenOwner::User(second.into()),
        ];
        for (bound_to, owner) in owners.into_iter().enumerate() {
            let token = key.derive_for(owner, BoundTokenPurpose::PasswordReset, first);
            let token = token.expose_secret();
            assert_eq!(unverified_id(token), Some(first));
            for (presented, owner) in owners.into_iter().enumerate() {
                let verified = key.verify_for(owner, BoundTokenPurpose::PasswordReset, token);
                assert_eq!(verified.is_some(), bound_to == presented, "{bound_to} {presented}");
            }
        }
        // The spelling of an address does not matter.
        let spelled = Email::parse("Dana@Acme.example").unwrap();
        let token = key.derive_for(
            TokenOwner::Invitee(first.into(), &spelled),
            BoundTokenPurpose::Invitation,
            second,
        );
        let owner = TokenOwner::Invitee(first.into(), &dana);
        let verified = key.verify_for(owner, BoundTokenPurpose::Invitation, token.expose_secret());
        assert_eq!(verified, Some(second));
    }

    proptest! {
        #[test]
        fn token_verifies_only_for_its_purpose_owner_and_key(
            id: u128, key: [u8; 32], other: [u8; 32],
        ) {
            let (id, own) = (Uuid::from_u128(id), TokenKey::new(&Zeroizing::new(key).into()));
            let code = TokenPurpose::AuthorizationCode;
            let token = own.derive(code, id);
            let token = token.expose_secret();
            prop_assert_eq!(own.verify(code, token), Some(id));
            prop_assert_eq!(own.verify(TokenPurpose::DeviceCode, token), None);
            let owner = TokenOwner::Session(id.into());
            for purpose in BOUND {
                prop_assert_eq!(own.verify_for(owner, purpose, token), None);
                let bound = own.derive_for(owner, purpose, id);
                let bound = bound.expose_secret();
                for presented in BOUND {
                    let expected = (presented == purpose).then_some(id);
                    prop_assert_eq!(own.verify_for(owner, presented, bound), expected);
                }
                let stranger = TokenOwner::Session(Uuid::max().into());
                prop_assert_eq!(own.verify_for(stranger, purpose, bound), None);
                prop_assert!(UNBOUND.iter().all(|unbound| own.verify(*unbound, bound).is_none()));
            }
            prop_assume!(key != other);
            let other = Zeroizing::new(other);
            let stranger = TokenKey::new(&other.clone().into());
            prop_assert_eq!(stranger.verify(code, token), None);
            let rotated = TokenKey::new(&KeyRing::new(other, vec![Zeroizing::new(key)]));
            prop_assert_eq!(rotated.verify(code, token), Some(id));
            prop_assert_eq!(rotated.verify(TokenPurpose::DeviceCode, token), None);
            let renewed = rotated.derive(code, id);
            let renewed = renewed.expose_secret();
            prop_assert_eq!(stranger.verify(code, renewed), Some(id));
            prop_assert_eq!(own.verify(code, renewed), None);
        }

        #[test]
        fn modified_token_does_not_verify(id: u128, at in 0_usize..64, to in 0_usize..64) {
            let (id, key) = (Uuid::from_u128(id), TokenKey::new(&Zeroizing::new([7; 32]).into()));
            let owner = TokenOwner::User(id.into());
            let purpose = BoundTokenPurpose::SecondFactor;
            let mut text = key.derive_for(owner, purpose, id).expose_secret().as_bytes().to_vec();
            let letter = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[to];
            prop_assume!(text[at] != letter);
            text[at] = letter;
            let text = std::str::from_utf8(&text).unwrap();
            prop_assert_eq!(key.verify_for(owner, purpose, text), None);
            prop_assert_eq!(key.verify_for(owner, purpose, &text[..63]), None);
        }
    }
}
