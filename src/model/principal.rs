//! Principals: the identity behind a verified credential.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use uuid::Uuid;

use super::{
    audit::RequestInfo,
    id::{ApiKeyId, ClientId, GrantId, Id, SessionId, UserId, WorkspaceId},
    scope::{Role, Scope},
    session::PresentedSession,
};

/// The identity behind a request: one verified credential in one workspace.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The workspace in which the principal acts.
    pub workspace_id: WorkspaceId,
    /// The effective scope: the lower of the credential's scope and the scope of the user's role.
    pub scope: Scope,
    /// The workspace's own rate limit in requests per minute; `None` is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// True if the workspace requires a second factor that the user has not set up. Until then,
    /// the user can only manage their own account.
    pub lacks_second_factor: bool,
    /// The credential.
    pub credential: Credential,
}

/// The credential behind a [`Principal`].
#[derive(Debug, Clone)]
pub enum Credential {
    /// An API key.
    ApiKey {
        /// The key's id.
        id: ApiKeyId,
        /// The key's name.
        name: Arc<str>,
        /// The networks from which the key may be used; empty allows all addresses.
        allowed_ips: Vec<IpNet>,
        /// The user that created the key.
        creator: Option<UserId>,
        /// The key's own rate limit in requests per minute; `None` is the workspace's.
        rate_limit_per_minute: Option<u32>,
    },
    /// A user's session.
    Session {
        /// The session's id.
        id: SessionId,
        /// The user's id.
        user_id: UserId,
        /// The user's name or, if there is none, address.
        name: Arc<str>,
        /// The user's role in the workspace.
        role: Role,
        /// The generation of the presented cookie or access token.
        credential_generation: u32,
    },
    /// An access token of an OAuth grant.
    Grant {
        /// The grant's id.
        id: GrantId,
        /// The `jti` of the access token.
        token_id: Uuid,
        /// The client's id.
        client_id: ClientId,
        /// The client's name.
        name: Arc<str>,
        /// The user that granted it, with the user's role; `None` for a client credentials grant.
        user: Option<(UserId, Role)>,
    },
}

/// The credentials behind a change that gives access. Both are `None` for the operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Creator {
    /// The user, directly or through an API key.
    pub user: Option<UserId>,
    /// The API key.
    pub key: Option<ApiKeyId>,
}

/// A principal in a request: the context of every operation on the principal's behalf.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal.
    pub principal: Arc<Principal>,
    /// The request.
    pub request: Arc<RequestInfo>,
}

impl Caller {
    /// Returns the workspace in which the caller acts.
    #[must_use]
    pub fn workspace(&self) -> WorkspaceId {
        self.principal.workspace_id
    }
}

impl Principal {
    /// Returns the user behind the credential: the session's user, the key's creator, or the user
    /// that granted access.
    #[must_use]
    pub fn user_id(&self) -> Option<UserId> {
        match &self.credential {
            Credential::ApiKey { creator, .. } => *creator,
            Credential::Session { user_id, .. } => Some(*user_id),
            Credential::Grant { user, .. } => user.map(|(user_id, _)| user_id),
        }
    }

    /// Returns the user whose rows a transaction for this principal may see and change: that of the
    /// session. API keys and OAuth grants belong to one workspace: they give no right to the rows
    /// of their creator or user, such as sessions, factors and other workspaces.
    #[must_use]
    pub fn context_user(&self) -> Option<UserId> {
        match &self.credential {
            Credential::Session { user_id, .. } => Some(*user_id),
            Credential::ApiKey { .. } | Credential::Grant { .. } => None,
        }
    }

    /// Returns the session and its user if the credential is a session.
    #[must_use]
    pub fn session(&self) -> Option<(PresentedSession, UserId)> {
        match self.credential {
            Credential::Session { id, user_id, credential_generation, .. } => {
                Some((PresentedSession { id, credential_generation }, user_id))
            }
            Credential::ApiKey { .. } | Credential::Grant { .. } => None,
        }
    }

    /// Returns the id of the API key if the credential is one.
    #[must_use]
    pub fn api_key(&self) -> Option<ApiKeyId> {
        match &self.credential {
            Credential::ApiKey { id, .. } => Some(*id),
            Credential::Session { .. } | Credential::Grant { .. } => None,
        }
    }

    /// Returns the id of the OAuth client if the credential is a token of one.
    #[must_use]
    pub fn client(&self) -> Option<ClientId> {
        match &self.credential {
            Credential::Grant { client_id, .. } => Some(*client_id),
            Credential::ApiKey { .. } | Credential::Session { .. } => None,
        }
    }

    /// Returns the credentials, to be recorded with what they create.
    #[must_use]
    pub fn creator(&self) -> Creator {
        Creator { user: self.user_id(), key: self.api_key() }
    }

    /// Returns the name of the key, user or client, for display and audit events.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match &self.credential {
            Credential::ApiKey { name, .. }
            | Credential::Session { name, .. }
            | Credential::Grant { name, .. } => name,
        }
    }

    /// Returns the public id of the subject: `key_…`, `user_…` or, for a client credentials grant,
    /// `client_…`.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.credential {
            Credential::ApiKey { id, .. } => super::id::format(ApiKeyId::PREFIX, id.uuid()),
            Credential::Session { user_id, .. } => {
                super::id::format(UserId::PREFIX, user_id.uuid())
            }
            Credential::Grant { user: Some((user_id, _)), .. } => user_id.to_string(),
            Credential::Grant { client_id, .. } => client_id.to_string(),
        }
    }

    /// Returns the credential's own rate limit in requests per minute; `None` is the workspace's.
    #[must_use]
    pub fn own_rate_limit(&self) -> Option<u32> {
        match &self.credential {
            Credential::ApiKey { rate_limit_per_minute, .. } => *rate_limit_per_minute,
            Credential::Session { .. } | Credential::Grant { .. } => None,
        }
    }

    /// Returns true if the credential may be used from this address.
    #[must_use]
    pub fn allows_address(&self, address: IpAddr) -> bool {
        match &self.credential {
            Credential::ApiKey { allowed_ips, .. } => {
                allowed_ips.is_empty() || allowed_ips.iter().any(|net| net.contains(&address))
            }
            Credential::Session { .. } | Credential::Grant { .. } => true,
        }
    }
}
