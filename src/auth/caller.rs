//! Callers as types: what the access check of a route has proved about a caller.
//!
//! The extractor of a route hands them to the services, which need no further check of the kind of
//! credential.

use std::ops::Deref;

use super::{AuthError, check_scope};
use crate::model::{
    id::{ApiKeyId, SessionId, UserId},
    principal::{Caller, Credential},
    scope::{Role, Scope},
};

/// A caller that is a user's session.
#[derive(Debug, Clone)]
pub struct SessionCaller {
    caller: Caller,
    session: SessionId,
    user: UserId,
    role: Role,
}

impl SessionCaller {
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is an API key or an OAuth client.
    pub fn new(caller: Caller) -> Result<Self, AuthError> {
        match &caller.principal.credential {
            Credential::Session { id, user_id, role, .. } => {
                let (session, user, role) = (*id, *user_id, *role);
                Ok(Self { caller, session, user, role })
            }
            Credential::ApiKey { .. } | Credential::Grant { .. } => {
                Err(AuthError::Forbidden("this requires a user session"))
            }
        }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The session's user.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// The user's role in the session's workspace.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }
}

impl Deref for SessionCaller {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// A caller with the admin scope that is an API key or a user's session. OAuth clients must not
/// create credentials or members for themselves.
#[derive(Debug, Clone)]
pub struct AdminCaller {
    caller: Caller,
    credential: AdminCredential,
}

/// The credential of an [`AdminCaller`].
#[derive(Debug, Clone, Copy)]
pub enum AdminCredential {
    /// An API key.
    ApiKey(ApiKeyId),
    /// A session of this user.
    Session(UserId, SessionId),
}

impl AdminCaller {
    /// # Errors
    /// [`AuthError::Forbidden`] for an OAuth client; [`AuthError::InsufficientScope`] without the
    /// admin scope.
    pub fn new(caller: Caller) -> Result<Self, AuthError> {
        check_scope::check_scope(&caller.principal, Scope::Admin)?;
        let credential = match &caller.principal.credential {
            Credential::ApiKey { id, .. } => AdminCredential::ApiKey(*id),
            Credential::Session { user_id, id, .. } => AdminCredential::Session(*user_id, *id),
            Credential::Grant { .. } => return Err(check_scope::FIRST_PARTY_REQUIRED),
        };
        Ok(Self { caller, credential })
    }

    /// The credential.
    #[must_use]
    pub fn credential(&self) -> AdminCredential {
        self.credential
    }
}

impl Deref for AdminCaller {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}
