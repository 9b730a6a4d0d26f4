//! CSRF tokens of the dashboard's forms.
//!
//! A token is derived from what it is bound to, and not stored. Session cookies are in
//! [`session_cookie`](crate::model::session_cookie); [`super::authenticator`] verifies them.

use std::sync::Arc;

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::context::ServiceContext;
use crate::model::{
    id::{Id, SessionId, WorkspaceId},
    one_time_token::TokenPurpose,
};

/// The subject that a form's CSRF token is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CsrfBinding {
    /// A browser without regard to the user. The browser id is the browser's own claim, so this
    /// must not protect actions of a session.
    Browser(Uuid),
    /// A session, for forms about the user that are valid in any workspace.
    Session(SessionId),
    /// A session in a workspace. The form is rejected after the session has switched to another
    /// workspace, for example in another tab.
    SessionInWorkspace(SessionId, WorkspaceId),
}

impl CsrfBinding {
    fn purpose_and_id(self) -> (TokenPurpose, Uuid) {
        match self {
            Self::Browser(id) => (TokenPurpose::BrowserCsrf, id),
            Self::Session(id) => (TokenPurpose::SessionCsrf, id.uuid()),
            Self::SessionInWorkspace(id, workspace) => {
                let hasher = Sha256::new().chain_update(id.uuid()).chain_update(workspace.uuid());
                let digest: [u8; 32] = hasher.finalize().into();
                let truncated = digest.first_chunk().copied().unwrap_or_default();
                (TokenPurpose::SessionCsrf, Uuid::from_bytes(truncated))
            }
        }
    }
}

/// CSRF tokens of the dashboard.
pub struct BrowserSessions {
    pub(super) context: Arc<ServiceContext>,
}

impl BrowserSessions {
    /// The CSRF token of a form. Other sites cannot know it (OWASP, signed double-submit cookie).
    #[must_use]
    pub fn csrf_token(&self, binding: CsrfBinding) -> SecretString {
        let (purpose, id) = binding.purpose_and_id();
        self.context.token_key.derive(purpose, id)
    }

    /// True if a CSRF token is valid for this binding.
    #[must_use]
    pub fn is_valid_csrf_token(&self, binding: CsrfBinding, token: &str) -> bool {
        let (purpose, id) = binding.purpose_and_id();
        self.context.token_key.verify(purpose, token) == Some(id)
    }
}
