//! The parameters of a request (RFC 6749, section 3).

use std::collections::HashSet;

/// The one parameter that may stand several times (RFC 8707, section 2).
pub const RESOURCE: &str = "resource";

/// The longest value that is read, in bytes.
pub const MAX_LEN: usize = 4096;

/// Parameters that a request may have, known or not.
pub const MAX_COUNT: usize = 64;

/// Names and values, decoded, in their order. Those without a value count as left out.
#[derive(Clone, Default)]
pub struct Parameters(Vec<(String, String)>);

impl std::fmt::Debug for Parameters {
    /// Names alone: values may be codes and secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Parameters {
    /// Of these pairs.
    #[must_use]
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    /// A parameter's value; the first, where it is repeated.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Why a request with these parameters is malformed, if it is: one is repeated, too long, or holds
    /// control characters.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        // Before any is compared with others.
        if self.0.len() > MAX_COUNT {
            return Some(format!("there must be at most {MAX_COUNT} parameters"));
        }
        let mut seen = HashSet::new();
        self.0.iter().find_map(|(name, value)| {
            let is_first = seen.insert(&**name);
            if value.len() > MAX_LEN || name.len() > 100 {
                Some(format!("{} must be at most {MAX_LEN} bytes", shown(name)))
            } else if value.chars().chain(name.chars()).any(char::is_control) {
                Some(format!("{} must not contain control characters", shown(name)))
            } else if name != RESOURCE && !is_first {
                Some(format!("{} must not be repeated", shown(name)))
            } else {
                None
            }
        })
    }

    /// Whether a parameter stands there more than once.
    #[must_use]
    pub fn is_repeated(&self, name: &str) -> bool {
        self.all(name).count() > 1
    }

    /// The pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// A name as it may stand in a description (RFC 6749, section 5.2).
fn shown(name: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.chars().filter(is_plain).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Parameters {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Parameters::new(pairs.collect())
    }

    #[test]
    fn empty_ones_are_left_out_and_repeated_ones_a_fault() {
        let parameters = of(&[("a", ""), ("a", "1"), ("resource", "x"), ("resource", "y")]);
        assert_eq!(parameters.get("a"), Some("1"));
        assert_eq!(parameters.all("resource").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(parameters.fault(), None);
        let twice = of(&[("state", "1"), ("state", "1")]);
        assert_eq!(twice.fault().as_deref(), Some("state must not be repeated"));
        assert!(twice.is_repeated("state"));
        assert!(of(&[("state", "a\0b")]).fault().unwrap().contains("control"));
        assert!(of(&[("state", &"x".repeat(5000))]).fault().unwrap().contains("at most"));
        let many: Vec<_> = (0..65).map(|n| (format!("p{n}"), "x".to_owned())).collect();
        assert!(Parameters::new(many[..64].to_vec()).fault().is_none());
        assert!(Parameters::new(many).fault().unwrap().contains("at most 64"));
        assert!(of(&[("\"><script>", "a\nb")]).fault().unwrap().starts_with("script"));
    }
}
