//! What a credential may do, and how roles translate into it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use super::Invalid;

/// What a credential may do. Each scope includes those before it, which is also their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Read resources, key metadata, the own workspace and the audit log.
    ReadOnly,
    /// Also create, change and delete resources.
    Write,
    /// Also API keys, members, billing, white-label, the workspace itself.
    Admin,
}

impl Scope {
    /// All of them, least first.
    pub const ALL: [Self; 3] = [Self::ReadOnly, Self::Write, Self::Admin];

    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The name in OAuth's `scope` (RFC 6749, section 3.3).
    #[must_use]
    pub const fn oauth_name(self) -> &'static str {
        match self {
            Self::ReadOnly => "call2me:read",
            Self::Write => "call2me:write",
            Self::Admin => "call2me:admin",
        }
    }

    /// OAuth's `scope` value of a token: this scope's name after those that it includes.
    #[must_use]
    pub fn oauth_scope(self) -> String {
        let names: Vec<_> =
            Self::ALL.into_iter().filter(|scope| *scope <= self).map(Self::oauth_name).collect();
        names.join(" ")
    }

    /// The greatest of ours in an OAuth `scope` value; none is no access.
    #[must_use]
    pub fn from_oauth_scope(value: &str) -> Option<Self> {
        value
            .split(' ')
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
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| Invalid::new("must be read-only, write or admin"))
    }
}

/// By way of a string: what is none is a wrong value to serde, where its own enums say wrong syntax.
impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a person is in a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May look.
    Viewer,
    /// May work.
    Member,
    /// May run the workspace.
    Admin,
    /// May also give it away or delete it.
    Owner,
}

impl Role {
    /// The scope of a session with this role.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Viewer => Scope::ReadOnly,
            Self::Member => Scope::Write,
            Self::Admin | Self::Owner => Scope::Admin,
        }
    }

    /// The name in JSON and in the database.
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
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Viewer, Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| Invalid::new("must be owner, admin, member or viewer"))
    }
}

/// By way of a string, as [`Scope`].
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
        fn names_are_read_back(scope in any_scope()) {
            prop_assert_eq!(scope.as_str().parse(), Ok(scope));
            prop_assert_eq!(Scope::from_oauth_scope(&scope.oauth_scope()), Some(scope));
            prop_assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }

        #[test]
        fn a_greater_scope_names_all_lesser_ones(a in any_scope(), b in any_scope()) {
            let includes = a.oauth_scope().split(' ').any(|name| name == b.oauth_name());
            prop_assert_eq!(includes, a >= b);
        }

        #[test]
        fn other_words_give_no_access(text in "\\PC*") {
            prop_assume!(Scope::ALL.iter().all(|scope| !text.contains(scope.oauth_name())));
            prop_assert_eq!(Scope::from_oauth_scope(&text), None);
        }
    }
}
