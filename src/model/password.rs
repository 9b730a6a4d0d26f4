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

/// Number of characters that are estimated at a time. The time grows with their square.
const ESTIMATED_CHARS: usize = 32;
/// Maximum number of ways to read the l33t characters of an estimated part. The time grows with it.
const MAX_LEET_READINGS: usize = 16;
/// The symbols and digits that the estimator also reads as a letter.
const LEET_TABLE: [(char, &str); 12] = [
    ('a', "@4"),
    ('b', "8"),
    ('c', "({[<"),
    ('e', "3"),
    ('g', "69"),
    ('i', "!|1"),
    ('l', "|17"),
    ('o', "0"),
    ('s', "$5"),
    ('t', "+7"),
    ('x', "%"),
    ('z', "2"),
];

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
    /// The check takes up to a fifth of a second of CPU time.
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
        if is_guessable(self.expose(), &words) {
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

/// Returns true if a password is easy to guess: common, or a few words, a keyboard pattern, a
/// repetition or a date.
///
/// zxcvbn estimates it part by part, which bounds the time. A password is at least as hard to guess
/// as its hardest part. A repeated text is as easy to guess as the text itself, so only that is
/// estimated: parts that start in the middle of it would look harder.
fn is_guessable(password: &str, words: &[&str]) -> bool {
    let chars: Vec<char> = password.chars().collect();
    chars[..period(&chars)]
        .chunks(ESTIMATED_CHARS)
        .all(|part| zxcvbn(&with_few_leet_readings(part), words).score() < Score::Two)
}

/// Returns the length of the shortest text that, repeated, starts with these characters.
fn period(chars: &[char]) -> usize {
    let repeats_after = |&length: &usize| chars[length..] == chars[..chars.len() - length];
    (1..chars.len()).find(repeats_after).unwrap_or(chars.len())
}

/// Returns the text. If its l33t characters can be read in too many ways, symbols are replaced by a
/// letter that they stand for. Digits stay: they can also be a date or a sequence.
fn with_few_leet_readings(part: &[char]) -> String {
    if leet_readings(part) <= MAX_LEET_READINGS {
        return part.iter().collect();
    }
    let letter = |c: char| LEET_TABLE.iter().find(|(_, symbols)| symbols.contains(c));
    let replace = |c: char| letter(c).filter(|_| !c.is_ascii_digit()).map_or(c, |(l, _)| *l);
    part.iter().map(|c| replace(*c)).collect()
}

/// Returns the number of ways in which the estimator reads the l33t characters of a text.
fn leet_readings(text: &[char]) -> usize {
    LEET_TABLE
        .iter()
        .map(|(_, symbols)| symbols.chars().filter(|symbol| text.contains(symbol)).count().max(1))
        .product()
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

    /// The estimator took 2.4 seconds for each of these passwords.
    #[test]
    fn leet_readings_are_bounded() {
        let leet = "4@8({[<369!1|0$5+7%2";
        let reversed: String = leet.chars().rev().collect();
        let mixed: String =
            leet.chars().zip("qwertyuiopasdfghjklz".chars()).flat_map(<[char; 2]>::from).collect();
        for text in [leet, &reversed, &mixed] {
            let long: String = text.chars().cycle().take(MAX_CHARS - 1).collect();
            assert!(check(&long).is_ok(), "{long}");
            let chars: Vec<char> = long.chars().collect();
            for part in chars.chunks(ESTIMATED_CHARS) {
                let estimated: Vec<char> = with_few_leet_readings(part).chars().collect();
                assert!(leet_readings(&estimated) <= MAX_LEET_READINGS, "{estimated:?}");
            }
        }
        let digits: Vec<char> = ('0'..='9').collect();
        assert!(leet_readings(&digits) <= MAX_LEET_READINGS);
    }

    #[test]
    fn long_password_is_judged_by_its_hardest_part() {
        let weak =
            ["password", "administrator", "administrator123456", "qwertyuiop", "a", "p@$$w0rd"];
        for text in weak {
            let long: String = text.chars().cycle().take(MAX_CHARS).collect();
            assert!(check(&long).is_err(), "{long}");
            let good = format!("{}vTq9mZ xKw4 hRj", &long[..200]);
            assert!(check(&good).is_ok(), "{good}");
        }
        // All parts of a hundred characters are weak.
        let parts = ["password", "12345678", "qwerty"].map(|text| text.repeat(32)[..32].to_owned());
        assert!(check(&parts.concat()).is_err());
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
