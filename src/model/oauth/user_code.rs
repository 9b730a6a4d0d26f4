//! What a person types in to let a device in (RFC 8628, section 6.1).

use std::fmt;

/// Consonants that are told apart and make no words: twenty of them, so eight give 34 bits.
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const LEN: usize = 8;

/// A code of eight letters, without what people write between them.
#[derive(Clone, PartialEq, Eq)]
pub struct UserCode(String);

impl UserCode {
    /// Makes one of random bytes, which `draw` gives one at a time.
    pub fn generate(mut draw: impl FnMut() -> u8) -> Self {
        let mut letters = String::with_capacity(LEN);
        while letters.len() < LEN {
            // Those from 240 on would make some letters likelier.
            let byte = usize::from(draw());
            if byte < 240 {
                letters.push(char::from(ALPHABET[byte % ALPHABET.len()]));
            }
        }
        Self(letters)
    }

    /// Reads what somebody typed in: in small letters or with other signs in between.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 100 {
            return None;
        }
        let letters: String = text
            .chars()
            .filter(|c| !matches!(c, '-' | ' ' | '.' | '_'))
            .collect::<String>()
            .to_ascii_uppercase();
        let fits = letters.len() == LEN && letters.bytes().all(|letter| ALPHABET.contains(&letter));
        fits.then_some(Self(letters))
    }

    /// The letters.
    #[must_use]
    pub fn letters(&self) -> &str {
        &self.0
    }

    /// As people read it: in two halves.
    #[must_use]
    pub fn shown(&self) -> String {
        let (first, second) = self.0.split_at(LEN / 2);
        format!("{first}-{second}")
    }
}

impl fmt::Debug for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserCode(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_shown_is_read(bytes in proptest::collection::vec(0_u8..240, 8)) {
            let mut bytes = bytes.into_iter();
            let code = UserCode::generate(|| bytes.next().unwrap());
            prop_assert_eq!(UserCode::parse(&code.shown()), Some(code.clone()));
            prop_assert_eq!(UserCode::parse(&code.shown().to_lowercase().replace('-', " ")), Some(code));
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in ["", "BCDF-GHJ", "BCDF-GHJKL", "ABCD-EFGH", "BCDF-GHJ1", "BCDFGHJÄ"] {
            assert!(UserCode::parse(text).is_none(), "{text}");
        }
    }
}
