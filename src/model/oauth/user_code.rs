//! User codes of the device authorization grant (RFC 8628, section 6.1).

use std::fmt;

/// Twenty consonants that are easy to distinguish and form no words. Eight of them have 34 bits.
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const LEN: usize = 8;

/// A user code: eight letters, without separators.
#[derive(Clone, PartialEq, Eq)]
pub struct UserCode(String);

impl UserCode {
    /// Generates a code; `draw` returns one random byte per call.
    pub fn generate(mut draw: impl FnMut() -> u8) -> Self {
        let mut letters = String::with_capacity(LEN);
        while letters.len() < LEN {
            // 240 is a multiple of 20; the bytes above it would make some letters more likely.
            let byte = usize::from(draw());
            if byte < 240 {
                letters.push(char::from(ALPHABET[byte % ALPHABET.len()]));
            }
        }
        Self(letters)
    }

    /// Parses a code as a user types it. Case, spaces, hyphens, dots and underscores are ignored.
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
        let is_valid =
            letters.len() == LEN && letters.bytes().all(|letter| ALPHABET.contains(&letter));
        is_valid.then_some(Self(letters))
    }

    /// Returns the letters, without separators.
    #[must_use]
    pub fn letters(&self) -> &str {
        &self.0
    }

    /// Returns the code for display, in two halves: `BCDF-GHJK`.
    #[must_use]
    pub fn to_display_string(&self) -> String {
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
        fn displayed_code_parses_back(bytes in proptest::collection::vec(0_u8..240, 8)) {
            let mut bytes = bytes.into_iter();
            let code = UserCode::generate(|| bytes.next().unwrap());
            prop_assert_eq!(UserCode::parse(&code.to_display_string()), Some(code.clone()));
            let respelled = code.to_display_string().to_lowercase().replace('-', " ");
            prop_assert_eq!(UserCode::parse(&respelled), Some(code));
        }
    }

    #[test]
    fn malformed_code_is_rejected() {
        for text in ["", "BCDF-GHJ", "BCDF-GHJKL", "ABCD-EFGH", "BCDF-GHJ1", "BCDFGHJÄ"] {
            assert!(UserCode::parse(text).is_none(), "{text}");
        }
    }
}
