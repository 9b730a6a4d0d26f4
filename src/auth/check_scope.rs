//! Access requirements of routes, and the check of a principal against them.
//!
//! Every route states one requirement (see `http/routes.rs`), and only [`check_access`] decides
//! whether a caller meets it.

use std::net::IpAddr;

use super::AuthError;
use crate::model::{
    principal::{Credential, Principal},
    scope::Scope,
};

/// The error for an OAuth client where an API key or a user session is required.
const FIRST_PARTY_REQUIRED: AuthError =
    AuthError::Forbidden("OAuth clients may not do this; use an API key or a user session");

/// The error for an address outside of the networks that an API key allows.
pub const ADDRESS_NOT_ALLOWED: AuthError =
    AuthError::Forbidden("the key may not be used from this address");

/// The access that a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRequirement {
    /// Any credential with at least this scope.
    Scope(Scope),
    /// An API key or user session with at least this scope. OAuth clients are refused: they must
    /// not create credentials or members for themselves.
    FirstParty(Scope),
    /// A user session with any role: for what users do with their own account.
    UserSession,
    /// A user session with the admin scope.
    AdminSession,
}

impl AccessRequirement {
    /// The required scope, if the route requires one.
    #[must_use]
    pub const fn scope(self) -> Option<Scope> {
        match self {
            Self::Scope(scope) | Self::FirstParty(scope) => Some(scope),
            Self::AdminSession => Some(Scope::Admin),
            Self::UserSession => None,
        }
    }
}

/// Checks that a principal at an address meets a route's requirement.
///
/// # Errors
/// [`AuthError::Forbidden`] for a wrong kind of credential or an address that the key does not
/// allow, [`AuthError::MissingSecondFactor`], or [`AuthError::InsufficientScope`].
pub fn check_access(
    requirement: AccessRequirement,
    principal: &Principal,
    address: IpAddr,
) -> Result<(), AuthError> {
    if !principal.allows_address(address) {
        return Err(ADDRESS_NOT_ALLOWED);
    }
    let required = match requirement {
        AccessRequirement::Scope(scope) => scope,
        AccessRequirement::FirstParty(scope) => {
            require_first_party(principal)?;
            scope
        }
        AccessRequirement::UserSession => return check_user_session(principal),
        AccessRequirement::AdminSession => {
            check_user_session(principal)?;
            Scope::Admin
        }
    };
    if principal.lacks_second_factor {
        return Err(AuthError::MissingSecondFactor);
    }
    check_scope(principal, required)
}

/// Checks that a principal has a scope.
///
/// # Errors
/// [`AuthError::InsufficientScope`] if it has not.
pub fn check_scope(principal: &Principal, required: Scope) -> Result<(), AuthError> {
    if principal.scope < required {
        return Err(AuthError::InsufficientScope { required, held: principal.scope });
    }
    Ok(())
}

/// Refuses OAuth clients: they must not create credentials or members for themselves.
///
/// # Errors
/// [`AuthError::Forbidden`] for an OAuth client.
pub fn require_first_party(principal: &Principal) -> Result<(), AuthError> {
    match principal.credential {
        Credential::ApiKey { .. } | Credential::Session { .. } => Ok(()),
        Credential::Grant { .. } => Err(FIRST_PARTY_REQUIRED),
    }
}

fn check_user_session(principal: &Principal) -> Result<(), AuthError> {
    match principal.credential {
        Credential::Session { .. } => Ok(()),
        Credential::ApiKey { .. } => {
            Err(AuthError::Forbidden("this requires a user session; API keys are not accepted"))
        }
        Credential::Grant { .. } => Err(AuthError::Forbidden(
            "this requires a user session; OAuth clients are not accepted",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::model::scope::Role;

    fn scope() -> impl Strategy<Value = Scope> {
        proptest::sample::select(Scope::ALL.to_vec())
    }

    fn key(scope: Scope, allowed: &[&str]) -> Principal {
        Principal {
            workspace_id: Uuid::nil().into(),
            scope,
            rate_limit_per_minute: None,
            lacks_second_factor: false,
            credential: Credential::ApiKey {
                id: Uuid::nil().into(),
                name: "key".into(),
                allowed_ips: allowed.iter().map(|net| net.parse().unwrap()).collect(),
                creator: None,
                rate_limit_per_minute: None,
            },
        }
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    proptest! {
        #[test]
        fn scope_allows_what_it_includes_and_no_more(held in scope(), required in scope()) {
            let checked = check_access(AccessRequirement::Scope(required), &key(held, &[]), ADDRESS);
            prop_assert_eq!(checked.is_ok(), held >= required);
        }

        #[test]
        fn api_key_is_rejected_where_a_user_session_is_required(held in scope()) {
            prop_assert!(check_access(AccessRequirement::UserSession, &key(held, &[]), ADDRESS).is_err());
        }

        #[test]
        fn address_outside_allowed_networks_is_rejected_for_every_scope(held in scope(), last: u8) {
            let key = key(held, &["10.0.0.0/8", "2001:db8::/32"]);
            let inside = IpAddr::from([10, 1, 2, last]);
            let outside = IpAddr::from([11, 1, 2, last]);
            let rule = AccessRequirement::Scope(Scope::ReadOnly);
            prop_assert!(check_access(rule, &key, inside).is_ok());
            prop_assert!(matches!(check_access(rule, &key, outside), Err(AuthError::Forbidden(_))));
        }
    }

    fn session(role: Role) -> Principal {
        let credential = Credential::Session {
            id: Uuid::nil().into(),
            user_id: Uuid::nil().into(),
            name: "Dana".into(),
            role,
            credential_generation: 0,
        };
        Principal { credential, ..key(role.scope(), &[]) }
    }

    #[test]
    fn session_of_any_role_passes_where_a_user_session_is_required() {
        for role in [Role::Viewer, Role::Member, Role::Admin, Role::Owner] {
            let checked = check_access(AccessRequirement::UserSession, &session(role), ADDRESS);
            assert!(checked.is_ok());
        }
    }

    #[test]
    fn admin_session_requires_both_a_session_and_the_scope() {
        let check = |principal| check_access(AccessRequirement::AdminSession, &principal, ADDRESS);
        assert!(check(session(Role::Admin)).is_ok());
        let insufficient = check(session(Role::Member));
        assert!(matches!(insufficient, Err(AuthError::InsufficientScope { .. })));
        assert!(matches!(check(key(Scope::Admin, &[])), Err(AuthError::Forbidden(_))));
        let lacking = Principal { lacks_second_factor: true, ..session(Role::Owner) };
        assert!(matches!(check(lacking), Err(AuthError::MissingSecondFactor)));
    }
}
