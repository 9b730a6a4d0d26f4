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
    Session(UserId, PresentedSession),
}

impl AdminCaller {
    /// # Errors
    /// [`AuthError::Forbidden`] for an OAuth client; [`AuthError::InsufficientScope`] without the
    /// admin scope.
    pub fn new(caller: Caller) -> Result<Self, AuthError> {
        check_scope::check_scope(&caller.principal, Scope::Admin)?;
        let credential = match &caller.principal.credential {
            Credential::ApiKey { id, .. } => AdminCredential::ApiKey(*id),
            Credential::Session { user_id, id, credential_generation, .. } => {
                let credential_generation = *credential_generation;
                let session = PresentedSession { id: *id, credential_generation };
                AdminCredential::Session(*user_id, session)
            }
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
