//! WHERE SCOPE IS CHECKED.

use std::net::IpAddr;

use super::AuthError;
use crate::model::{
    principal::{Credential, Principal},
    scope::Scope,
};

/// What a route asks of its caller. Every route states one; see `http/routes.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// A credential with at least this scope.
    Scope(Scope),
    /// The same, of a key or a person: no OAuth client makes credentials or members for itself.
    FirstParty(Scope),
    /// A person's own session, whatever its role: what one does about oneself.
    OwnSession,
}

impl Requirement {
    /// The scope that the route asks for, where it asks for one.
    #[must_use]
    pub const fn scope(self) -> Option<Scope> {
        match self {
            Self::Scope(scope) | Self::FirstParty(scope) => Some(scope),
            Self::OwnSession => None,
        }
    }
}

/// Whether a principal at an address may do what a route is for.
///
/// # Errors
/// [`AuthError::Forbidden`] or [`AuthError::InsufficientScope`].
pub fn check(
    requirement: Requirement,
    principal: &Principal,
    address: IpAddr,
) -> Result<(), AuthError> {
    if !principal.allows_address(address) {
        return Err(AuthError::Forbidden("the key may not be used from this address"));
    }
    let required = match requirement {
        Requirement::Scope(scope) => scope,
        Requirement::FirstParty(scope) => {
            if matches!(principal.credential, Credential::Grant { .. }) {
                return Err(AuthError::Forbidden(
                    "OAuth clients may not do this: it takes an API key or a person's own session",
                ));
            }
            scope
        }
        Requirement::OwnSession => return own_session(principal),
    };
    if principal.lacks_second_factor {
        return Err(AuthError::NoSecondFactor);
    }
    if principal.scope < required {
        return Err(AuthError::InsufficientScope { required, held: principal.scope });
    }
    Ok(())
}

fn own_session(principal: &Principal) -> Result<(), AuthError> {
    match principal.credential {
        Credential::Session { .. } => Ok(()),
        Credential::ApiKey { .. } => {
            Err(AuthError::Forbidden("this is for a person's own session, not for API keys"))
        }
        Credential::Grant { .. } => {
            Err(AuthError::Forbidden("this is for a person's own session, not for OAuth clients"))
        }
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
            },
        }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    proptest! {
        #[test]
        fn a_scope_does_what_it_includes_and_no_more(held in scope(), required in scope()) {
            let checked = check(Requirement::Scope(required), &key(held, &[]), HERE);
            prop_assert_eq!(checked.is_ok(), held >= required);
        }

        #[test]
        fn no_key_passes_for_a_person(held in scope()) {
            prop_assert!(check(Requirement::OwnSession, &key(held, &[]), HERE).is_err());
        }

        #[test]
        fn an_address_elsewhere_is_refused_whatever_the_scope(held in scope(), last: u8) {
            let key = key(held, &["10.0.0.0/8", "2001:db8::/32"]);
            let inside = IpAddr::from([10, 1, 2, last]);
            let outside = IpAddr::from([11, 1, 2, last]);
            let rule = Requirement::Scope(Scope::ReadOnly);
            prop_assert!(check(rule, &key, inside).is_ok());
            prop_assert!(matches!(check(rule, &key, outside), Err(AuthError::Forbidden(_))));
        }
    }

    #[test]
    fn a_session_of_any_role_passes_for_its_person() {
        for role in [Role::Viewer, Role::Member, Role::Admin, Role::Owner] {
            let mut session = key(role.scope(), &[]);
            session.credential = Credential::Session {
                id: Uuid::nil().into(),
                user_id: Uuid::nil().into(),
                name: "Dana".into(),
                role,
            };
            assert!(check(Requirement::OwnSession, &session, HERE).is_ok());
        }
    }
}
