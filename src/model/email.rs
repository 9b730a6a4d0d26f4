//! Email addresses that identify users at sign-in.

use std::fmt;

use sha2::{Digest, Sha256};

use super::ValidationError;

/// An email address, with its original spelling and its normalized form for comparison.
///
/// Only ASCII addresses are valid (the addr-spec of RFC 5321, without quoting): two addresses that
/// look the same must not belong to two accounts.
#[derive(Clone, PartialEq, Eq)]
pub struct Email {
    text: String,
    normalized: String,
}

impl Email {
    /// Parses an address; surrounding whitespace is removed.
    ///
    /// # Errors
    /// [`ValidationError`] if the text is not an ASCII email address of at most 254 bytes.
    pub fn parse(text: &str) -> Result<Self, ValidationError> {
        let text = text.trim();
        let invalid = || Err(ValidationError::new("email must be a valid email address"));
        if text.len() > 254 {
            return invalid();
        }
        match text.rsplit_once('@') {
            Some((local, domain)) if is_local_part(local) && is_domain(domain) => {
                Ok(Self { text: text.to_owned(), normalized: text.to_ascii_lowercase() })
            }
            _ => invalid(),
        }
    }

    /// Returns the address in its original spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the address in lower case. This form is unique among users.
    #[must_use]
    pub fn normalized(&self) -> &str {
        &self.normalized
    }

    /// Returns the SHA-256 digest of the address in lower case, for counters and locks of accounts:
    /// users enter other secrets in this field by mistake.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.normalized).into()
    }
}

impl fmt::Debug for Email {
    /// Prints only the first letter and the domain: addresses are personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = self.normalized.rsplit_once('@').map_or("", |(_, domain)| domain);
        write!(f, "{}…@{domain}", &self.normalized[..1])
    }
}

fn is_local_part(local: &str) -> bool {
    let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+/=?^_`{|}~-".contains(c);
    (1..=64).contains(&local.len())
        && local.split('.').all(|part| !part.is_empty() && part.chars().all(atom))
}

fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.contains('.') && domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_differ_in_case_are_normalized_equally() {
        let [a, b] = ["Dana@Acme.Example", " dana@acme.example "].map(|t| Email::parse(t).unwrap());
        assert_eq!(a.normalized(), b.normalized());
        assert_eq!(a.as_str(), "Dana@Acme.Example");
    }

    #[test]
    fn malformed_address_is_rejected() {
        for text in [
            "",
            "dana",
            "@acme.example",
            "dana@",
            "dana@acme",
            "da na@acme.example",
            ".a@acme.example",
            "a..b@acme.example",
            "dana@acme..example",
            "dana@-acme.example",
            "dana\0@acme.example",
            "dаna@acme.example",
            "dana@acme.example\nBcc: x@y.example",
            "\"a b\"@acme.example",
        ] {
            assert!(Email::parse(text).is_err(), "{text}");
        }
    }
}
