//! E-mail addresses, as far as a sign-in needs them.

use std::fmt;

use super::Invalid;

/// An e-mail address: the text as it was given, and the form in which addresses are compared.
///
/// Only ASCII is taken (the addr-spec of RFC 5321 without quoting): two addresses that look alike
/// to a person must not be two accounts.
#[derive(Clone, PartialEq, Eq)]
pub struct Email {
    text: String,
    key: String,
}

impl Email {
    /// Reads an address; spaces around it are dropped.
    ///
    /// # Errors
    /// With a sentence for its author.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let refuse = || Err(Invalid::new("email must be an e-mail address"));
        if text.len() > 254 {
            return refuse();
        }
        match text.rsplit_once('@') {
            Some((local, domain)) if is_local(local) && is_domain(domain) => {
                Ok(Self { text: text.to_owned(), key: text.to_ascii_lowercase() })
            }
            _ => refuse(),
        }
    }

    /// The address as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address in lower case: what is unique.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Debug for Email {
    /// Addresses are personal data: a log shows the first letter and the domain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = self.key.rsplit_once('@').map_or("", |(_, domain)| domain);
        write!(f, "{}…@{domain}", &self.key[..1])
    }
}

fn is_local(local: &str) -> bool {
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
    fn addresses_compare_without_case() {
        let [a, b] = ["Dana@Acme.Example", " dana@acme.example "].map(|t| Email::parse(t).unwrap());
        assert_eq!(a.key(), b.key());
        assert_eq!(a.as_str(), "Dana@Acme.Example");
    }

    #[test]
    fn what_is_no_address_is_refused() {
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
