//! Callers as types: what the access check of a route has proved about a caller.
//!
//! The extractor of a route hands them to the services, which need no further check of the kind of
//! credential.

use std::ops::Deref;

use super::{AuthError, check_scope};
use crate::model::{
    id::{SessionId, UserId},
    principal::{Caller, Credential},
    scope::{Role, Scope},
    session::PresentedSession,
};

/// A caller that is a user's session.
#[derive(Debug, Clone)]
pub struct SessionCaller {
    caller: Caller,
    session: PresentedSession,
    user: UserId,
    role: Role,
}

impl SessionCaller {
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is an API key or an OAuth client.
    pub fn new(caller: Caller) -> Result<Self, AuthError> {
        match caller.principal.credential {
            Credential::Session { id, user_id, role, credential_generation, .. } => {
                let (session, user) = (PresentedSession { id, credential_generation }, user_id);
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
        self.session.id
    }

    /// The session, with the generation of the credential that the request presented.
    #[must_use]
    pub fn presented_session(&self) -> PresentedSession {
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
///
/// It may have lost the scope since authentication: see
/// [`AdminTx::lock`](crate::store::AdminTx::lock).
#[derive(Debug, Clone)]
pub struct AdminCaller(Caller);

impl AdminCaller {
    /// # Errors
    /// [`AuthError::Forbidden`] for an OAuth client; [`AuthError::InsufficientScope`] without the
    /// admin scope.
    pub fn new(caller: Caller) -> Result<Self, AuthError> {
        check_scope::check_scope(&caller.principal, Scope::Admin)?;
        check_scope::require_first_party(&caller.principal)?;
        Ok(Self(caller))
    }
}

impl Deref for AdminCaller {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0
    }
}
