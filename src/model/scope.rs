//! Scopes of credentials and roles of members.
//!
//! A role implies a scope ([`Role::scope`]), and each scope includes the lower ones.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use super::ValidationError;

/// The rights of a credential. Each scope includes the ones before it, and they compare in this
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Read resources, key metadata, the workspace and the audit log.
    ReadOnly,
    /// Also create, change and delete resources.
    Write,
    /// Also manage API keys, members, billing, branding and the workspace itself.
    Admin,
}

impl Scope {
    /// All scopes, lowest first.
    pub const ALL: [Self; 3] = [Self::ReadOnly, Self::Write, Self::Admin];

    /// Returns the name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// Returns the name in an OAuth `scope` value (RFC 6749, section 3.3).
    #[must_use]
    pub const fn oauth_name(self) -> &'static str {
        match self {
            Self::ReadOnly => "call2me:read",
            Self::Write => "call2me:write",
            Self::Admin => "call2me:admin",
        }
    }

    /// Returns the OAuth `scope` value of a token: the names of all included scopes, lowest first.
    #[must_use]
    pub fn oauth_scope(self) -> String {
        let names: Vec<_> =
            Self::ALL.into_iter().filter(|scope| *scope <= self).map(Self::oauth_name).collect();
        names.join(" ")
    }

    /// Returns the highest known scope in an OAuth `scope` value; `None` means no access. Unknown
    /// names are ignored. Names may also be separated by commas, as some clients do.
    #[must_use]
    pub fn from_oauth_scope(value: &str) -> Option<Self> {
        value
            .split([' ', ','])
            .filter_map(|name| Self::ALL.into_iter().find(|scope| scope.oauth_name() == name))
            .max()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| ValidationError::new("must be read-only, write or admin"))
    }
}

/// Deserializes from a string. An unknown name is then reported as an invalid value; the derived
/// implementation would report a syntax error.
impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The rights of a member in a workspace. Each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Can read.
    Viewer,
    /// Can also create, change and delete resources.
    Member,
    /// Can also manage the workspace.
    Admin,
    /// Can also transfer or delete the workspace.
    Owner,
}

impl Role {
    /// Returns the scope of a session with this role.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Viewer => Scope::ReadOnly,
            Self::Member => Scope::Write,
            Self::Admin | Self::Owner => Scope::Admin,
        }
    }

    /// Returns the name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

impl FromStr for Role {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        [Self::Viewer, Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| ValidationError::new("must be owner, admin, member or viewer"))
    }
}

/// Deserializes from a string, for the same reason as [`Scope`].
impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_scope() -> impl Strategy<Value = Scope> {
        proptest::sample::select(Scope::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn scope_names_parse_back(scope in any_scope()) {
            prop_assert_eq!(scope.as_str().parse(), Ok(scope));
            prop_assert_eq!(Scope::from_oauth_scope(&scope.oauth_scope()), Some(scope));
            prop_assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }

        #[test]
        fn oauth_scope_names_all_included_scopes(a in any_scope(), b in any_scope()) {
            let includes = a.oauth_scope().split(' ').any(|name| name == b.oauth_name());
            prop_assert_eq!(includes, a >= b);
        }

        #[test]
        fn unknown_oauth_scope_gives_no_access(text in "\\PC*") {
            prop_assume!(Scope::ALL.iter().all(|scope| !text.contains(scope.oauth_name())));
            prop_assert_eq!(Scope::from_oauth_scope(&text), None);
        }
    }
}
