//! Passwords, as people type them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::{Invalid, email::Email};

/// The least length, in characters.
pub const MIN_CHARS: usize = 12;
/// The greatest length, in characters: checked before anything is hashed.
pub const MAX_CHARS: usize = 256;

/// A password. It cannot be printed; it is wiped when dropped.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// A password from anywhere but a request.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// The bytes, for the hash.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether the text is short enough to be hashed at all.
    #[must_use]
    pub fn is_hashable(&self) -> bool {
        // Characters are at most four bytes: the cheap test first.
        self.expose().len() <= 4 * MAX_CHARS && self.expose().chars().count() <= MAX_CHARS
    }

    /// Whether a person may choose it: long enough, and not the person's own address or name. No
    /// rules about kinds of characters (NIST SP 800-63B, section 3.1.1.2).
    ///
    /// # Errors
    /// With a sentence for its author, which does not quote it.
    pub fn check_policy(&self, email: &Email, full_name: Option<&str>) -> Result<(), Invalid> {
        let chars = self.expose().chars().count();
        if !(MIN_CHARS..=MAX_CHARS).contains(&chars) {
            return Err(Invalid::new(format!(
                "password must be {MIN_CHARS} to {MAX_CHARS} characters"
            )));
        }
        let bare = |text: &str| -> String {
            text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        let password = bare(self.expose());
        let own = [Some(email.as_str()), email.as_str().split('@').next(), full_name];
        if own.into_iter().flatten().any(|text| bare(text) == password) {
            return Err(Invalid::new("password must not be your own e-mail address or name"));
        }
        let first = self.expose().chars().next();
        if self.expose().chars().all(|c| Some(c) == first) {
            return Err(Invalid::new("password must not be one character repeated"));
        }
        Ok(())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(password: &str) -> Result<(), Invalid> {
        let email = Email::parse("dana.meyer@acme.example").unwrap();
        Password::new(password.into()).check_policy(&email, Some("Dana Q. Meyerson"))
    }

    #[test]
    fn length_counts_characters() {
        assert!(check("correct hors").is_ok());
        assert!(check("correct hor").is_err());
        assert!(check("пароль-длинн").is_ok());
        assert!(check(&"aб".repeat(128)).is_ok());
        assert!(check(&"aб".repeat(129)).is_err());
    }

    #[test]
    fn ones_own_name_and_address_are_refused() {
        for own in
            ["dana.meyer@acme.example", "DanaQMeyerson", "dana q meyerson!", "aaaaaaaaaaaaaaa"]
        {
            assert!(check(own).is_err(), "{own}");
        }
    }
}
