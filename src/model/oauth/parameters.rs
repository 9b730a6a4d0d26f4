//! Parameters of OAuth requests (RFC 6749, section 3).

use std::collections::HashSet;

/// The only parameter that may be repeated (RFC 8707, section 2).
pub const RESOURCE: &str = "resource";

/// Maximum length of a value in bytes.
pub const MAX_LEN: usize = 4096;

/// Maximum number of parameters of a request, including unknown ones.
pub const MAX_COUNT: usize = 64;

/// Decoded names and values, in the order of the request. A parameter with an empty value counts as
/// absent.
#[derive(Clone, Default)]
pub struct Parameters(Vec<(String, String)>);

impl std::fmt::Debug for Parameters {
    /// Prints only the names: values can be codes and secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Parameters {
    /// Creates parameters from decoded pairs.
    #[must_use]
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    /// Returns the value of a parameter; the first one if it is repeated.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Returns all values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Returns a description of the first error if the parameters are malformed: too many,
    /// repeated, too long, or with control characters.
    #[must_use]
    pub fn validation_error(&self) -> Option<String> {
        // The count is checked first, to bound the work below.
        if self.0.len() > MAX_COUNT {
            return Some(format!("a request must have at most {MAX_COUNT} parameters"));
        }
        let mut seen = HashSet::new();
        self.0.iter().find_map(|(name, value)| {
            let is_first = seen.insert(&**name);
            if value.len() > MAX_LEN || name.len() > 100 {
                Some(format!("{} must be at most {MAX_LEN} bytes", printable_name(name)))
            } else if value.chars().chain(name.chars()).any(char::is_control) {
                Some(format!("{} must not contain control characters", printable_name(name)))
            } else if name != RESOURCE && !is_first {
                Some(format!("{} must not be repeated", printable_name(name)))
            } else {
                None
            }
        })
    }

    /// Returns true if a parameter occurs more than once.
    #[must_use]
    pub fn is_repeated(&self, name: &str) -> bool {
        self.all(name).count() > 1
    }

    /// Returns the names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// Returns a parameter's name with only characters that `error_description` allows (RFC 6749,
/// section 5.2).
#[must_use]
pub fn printable_name(name: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.chars().filter(is_plain).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters_of(pairs: &[(&str, &str)]) -> Parameters {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Parameters::new(pairs.collect())
    }

    #[test]
    fn empty_parameter_is_absent_and_malformed_one_is_an_error() {
        let parameters =
            parameters_of(&[("a", ""), ("a", "1"), ("resource", "x"), ("resource", "y")]);
        assert_eq!(parameters.get("a"), Some("1"));
        assert_eq!(parameters.all("resource").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(parameters.validation_error(), None);
        let twice = parameters_of(&[("state", "1"), ("state", "1")]);
        assert_eq!(twice.validation_error().as_deref(), Some("state must not be repeated"));
        assert!(twice.is_repeated("state"));
        assert!(
            parameters_of(&[("state", "a\0b")]).validation_error().unwrap().contains("control")
        );
        assert!(
            parameters_of(&[("state", &"x".repeat(5000))])
                .validation_error()
                .unwrap()
                .contains("at most")
        );
        let many: Vec<_> = (0..65).map(|n| (format!("p{n}"), "x".to_owned())).collect();
        assert!(Parameters::new(many[..64].to_vec()).validation_error().is_none());
        assert!(Parameters::new(many).validation_error().unwrap().contains("at most 64"));
        assert!(
            parameters_of(&[("\"><script>", "a\nb")])
                .validation_error()
                .unwrap()
                .starts_with("script")
        );
    }
}
