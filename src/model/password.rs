//! Passwords, as people type them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use zxcvbn::{Score, zxcvbn};

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

    /// Whether a person may choose it: long enough, not common, not made of the person's own address
    /// or name. No rules about kinds of characters (NIST SP 800-63B, section 3.1.1.2).
    ///
    /// Takes some milliseconds.
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
        let own = [email.as_str(), full_name.unwrap_or_default()];
        let words: Vec<&str> = own.into_iter().flat_map(|text| text.split(is_separator)).collect();
        if self.without(&words).chars().count() < MIN_CHARS / 2 {
            return Err(Invalid::new("password must not be made of your own address or name"));
        }
        // Lists of common passwords, names and words, keyboard walks, repeats, dates.
        if zxcvbn(self.expose(), &words).score() < Score::Two {
            return Err(Invalid::new(
                "password is too easy to guess: it is common, or made of few known words",
            ));
        }
        Ok(())
    }
}

impl Password {
    /// Its letters and digits, in lower case, without a person's own words.
    fn without(&self, words: &[&str]) -> String {
        let letters = self.expose().chars().filter(|c| !is_separator(*c));
        let bare: String = letters.flat_map(char::to_lowercase).collect();
        let mut words: Vec<_> = words.iter().map(|word| word.to_lowercase()).collect();
        words.retain(|word| word.chars().count() >= 3);
        // A name may hold another: the longest goes first.
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

    fn check(password: &str) -> Result<(), Invalid> {
        let email = Email::parse("dana.meyer@acme.example").unwrap();
        Password::new(password.into()).check_policy(&email, Some("Dana Q. Meyerson"))
    }

    #[test]
    fn length_counts_characters() {
        assert!(check("correct hors").is_ok());
        assert!(check("correct hor").is_err());
        assert!(check("пароль-длинн").is_ok());
        let letter = |n: u32| char::from_u32('а' as u32 + n * n * 7 % 31).unwrap();
        assert!(check(&(0..256).map(letter).collect::<String>()).is_ok());
        assert!(check(&(0..257).map(letter).collect::<String>()).is_err());
    }

    #[test]
    fn common_passwords_are_refused_and_plain_sentences_are_not() {
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
    fn ones_own_name_and_address_are_refused() {
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
