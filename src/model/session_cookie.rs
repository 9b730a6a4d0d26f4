//! Session cookies: the credential of a browser on the dashboard.
//!
//! A cookie is base64url of (session id, secret). The secret is random and belongs to the cookie
//! alone; the database stores its SHA-256. So neither a session id, which is in tokens and logs,
//! nor the deployment's keys, nor a dump of the database is sufficient to make a cookie.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::id::{Id, SessionId};

const ID_LEN: usize = 16;
const SECRET_LEN: usize = 32;

/// A session cookie, as issued or as a browser sent it.
pub struct SessionCookie {
    session: SessionId,
    secret: [u8; SECRET_LEN],
}

/// The SHA-256 of the secret of a session cookie.
#[derive(Clone, Copy)]
pub struct CookieDigest([u8; 32]);

impl SessionCookie {
    /// Creates the cookie of a session from 32 random bytes.
    #[must_use]
    pub const fn new(session: SessionId, secret: [u8; SECRET_LEN]) -> Self {
        Self { session, secret }
    }

    /// Parses the value of a cookie. `None` if it is malformed.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(value.as_bytes()).ok()?);
        let (id, secret) = bytes.split_at_checked(ID_LEN)?;
        let session = SessionId::from(Uuid::from_slice(id).ok()?);
        Some(Self { session, secret: secret.try_into().ok()? })
    }

    /// Returns the value of the cookie.
    #[must_use]
    pub fn value(&self) -> SecretString {
        let mut bytes = [0; ID_LEN + SECRET_LEN];
        bytes[..ID_LEN].copy_from_slice(self.session.uuid().as_bytes());
        bytes[ID_LEN..].copy_from_slice(&self.secret);
        let value = BASE64URL_NOPAD.encode(&bytes).into();
        bytes.zeroize();
        value
    }

    /// Returns the session that the cookie names. It is verified only by its digest.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Returns the digest of the secret.
    #[must_use]
    pub fn digest(&self) -> CookieDigest {
        CookieDigest(Sha256::digest(self.secret).into())
    }
}

impl Drop for SessionCookie {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionCookie({}, …)", self.session)
    }
}

impl CookieDigest {
    /// Wraps a stored digest.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True if both are the same digest. Takes constant time.
    #[must_use]
    pub fn matches(&self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for CookieDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieDigest(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    proptest! {
        #[test]
        fn cookie_matches_only_its_own_digest(id: u128, secret: [u8; 32], other: [u8; 32]) {
            let session = SessionId::from(Uuid::from_u128(id));
            let cookie = SessionCookie::new(session, secret);
            let parsed = SessionCookie::parse(cookie.value().expose_secret()).unwrap();
            prop_assert_eq!(parsed.session(), session);
            prop_assert!(parsed.digest().matches(cookie.digest()));
            prop_assume!(secret != other);
            prop_assert!(!parsed.digest().matches(SessionCookie::new(session, other).digest()));
        }

        #[test]
        fn text_of_another_length_is_no_cookie(text in "[A-Za-z0-9_-]{0,200}") {
            prop_assume!(text.len() != 64);
            prop_assert!(SessionCookie::parse(&text).is_none());
        }
    }

    #[test]
    fn cookie_and_digest_do_not_print_their_secrets() {
        let cookie = SessionCookie::new(SessionId::from(Uuid::from_u128(1)), [7; 32]);
        let printed = format!("{cookie:?} {:?}", cookie.digest());
        assert!(printed.contains("session_") && !printed.contains('7'), "{printed}");
    }
}
