//! Proof Key for Code Exchange (PKCE, RFC 7636), only with the method S256.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A code challenge: the SHA-256 of the code verifier that the client sends later.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CodeChallenge([u8; 32]);

impl CodeChallenge {
    /// Parses a challenge (RFC 7636, section 4.2); returns `None` if it is not 32 bytes in
    /// base64url.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Creates a challenge from the bytes in the database.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns true if the verifier is well-formed (RFC 7636, section 4.1) and has this challenge.
    /// The comparison takes constant time.
    #[must_use]
    pub fn matches_verifier(&self, verifier: &str) -> bool {
        let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        (43..=128).contains(&verifier.len())
            && verifier.bytes().all(is_unreserved)
            && bool::from(Sha256::digest(verifier).as_slice().ct_eq(&self.0))
    }
}

impl fmt::Debug for CodeChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeChallenge(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7636_example_matches() {
        // RFC 7636, appendix B.
        let challenge =
            CodeChallenge::parse("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM").unwrap();
        assert!(challenge.matches_verifier("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        for other in [
            "",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXK",
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        ] {
            assert!(!challenge.matches_verifier(other), "{other}");
        }
    }

    #[test]
    fn malformed_challenge_is_rejected() {
        for text in [
            "",
            "abc",
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM=",
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw+cM",
        ] {
            assert!(CodeChallenge::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn verifier_of_wrong_length_or_alphabet_is_rejected() {
        let accepts = |verifier: &str| {
            CodeChallenge(Sha256::digest(verifier).into()).matches_verifier(verifier)
        };
        assert!(accepts(&"a".repeat(43)) && accepts(&"~".repeat(128)));
        assert!(!accepts(&"a".repeat(42)) && !accepts(&"a".repeat(129)));
        assert!(!accepts(&" ".repeat(50)));
    }
}
