//! Passwords in plain text, and the policy for new ones.
//!
//! A password is never printed or stored; `auth::password_hashing` hashes it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use zxcvbn::{Score, zxcvbn};

use super::{ValidationError, email::Email};

/// Minimum length in characters.
pub const MIN_CHARS: usize = 12;
/// Maximum length in characters, checked before a password is hashed.
pub const MAX_CHARS: usize = 256;

/// A password. `Debug` does not print it; its memory is zeroed on drop.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// Creates a password from a text that is not part of a JSON request.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// Returns the plain text, for the hash.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns true if the password is short enough to be hashed.
    #[must_use]
    pub fn is_hashable(&self) -> bool {
        // The cheap test first: a character has at most four bytes.
        self.expose().len() <= 4 * MAX_CHARS && self.expose().chars().count() <= MAX_CHARS
    }

    /// Checks the password policy: long enough, not common, not derived from the user's address or
    /// name. There are no rules about classes of characters (NIST SP 800-63B, section 3.1.1.2).
    ///
    /// The check takes several milliseconds of CPU time.
    ///
    /// # Errors
    /// [`ValidationError`] if the policy is violated. The message does not contain the password.
    pub fn check_policy(
        &self,
        email: &Email,
        full_name: Option<&str>,
    ) -> Result<(), ValidationError> {
        let chars = self.expose().chars().count();
        if !(MIN_CHARS..=MAX_CHARS).contains(&chars) {
            return Err(ValidationError::new(format!(
                "password must be {MIN_CHARS} to {MAX_CHARS} characters"
            )));
        }
        let texts = [email.as_str(), full_name.unwrap_or_default()];
        let words: Vec<&str> =
            texts.into_iter().flat_map(|text| text.split(is_separator)).collect();
        if self.without_words(&words).chars().count() < MIN_CHARS / 2 {
            return Err(ValidationError::new(
                "password must not consist of your email address or name",
            ));
        }
        // zxcvbn knows common passwords, names and words, keyboard patterns, repetitions and dates.
        if zxcvbn(self.expose(), &words).score() < Score::Two {
            return Err(ValidationError::new(
                "password is too easy to guess: it is common or consists of few known words",
            ));
        }
        Ok(())
    }
}

impl Password {
    /// Returns the letters and digits in lower case, without these words.
    fn without_words(&self, words: &[&str]) -> String {
        let letters = self.expose().chars().filter(|c| !is_separator(*c));
        let bare: String = letters.flat_map(char::to_lowercase).collect();
        let mut words: Vec<_> = words.iter().map(|word| word.to_lowercase()).collect();
        words.retain(|word| word.chars().count() >= 3);
        // The longest word first, because one word can contain another.
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        words.iter().fold(bare, |rest, word| rest.replace(word, ""))
    }
}

fn is_separator(c: char) -> bool {
    !c.is_alphanumeric()
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

    fn check(password: &str) -> Result<(), ValidationError> {
        let email = Email::parse("dana.meyer@acme.example").unwrap();
        Password::new(password.into()).check_policy(&email, Some("Dana Q. Meyerson"))
    }

    #[test]
    fn length_is_counted_in_characters() {
        assert!(check("correct hors").is_ok());
        assert!(check("correct hor").is_err());
        assert!(check("пароль-длинн").is_ok());
        let letter = |n: u32| char::from_u32('а' as u32 + n * n * 7 % 31).unwrap();
        assert!(check(&(0..256).map(letter).collect::<String>()).is_ok());
        assert!(check(&(0..257).map(letter).collect::<String>()).is_err());
    }

    #[test]
    fn common_password_is_rejected_and_sentence_is_accepted() {
        for common in [
            "123456789012",
            "password1234",
            "passwordpassword",
            "qwertyuiop123",
            "qwerty123456",
            "iloveyou1234",
            "administrator",
            "1q2w3e4r5t6y",
            "letmeinletmein",
            "abcdefghijklmnop",
        ] {
            assert!(check(common).is_err(), "{common}");
        }
        for good in [
            "correct horse battery staple",
            "a walk in the park",
            "Tr0ub4dor&3-again",
            "correcthorsebatterystaple",
            "S3cure-Passw0rd-2026",
            "my-test-password-1",
            "пароль-длинный-и-свой",
            "Xk7#pQ9!mZ2$",
            "integration-test-pw",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn password_of_own_name_or_address_is_rejected() {
        for own in [
            "dana.meyer@acme.example",
            "DanaQMeyerson",
            "dana q meyerson!",
            "aaaaaaaaaaaaaaa",
            "dana.meyer.9",
            "meyerson meyerson",
        ] {
            assert!(check(own).is_err(), "{own}");
        }
    }
}
