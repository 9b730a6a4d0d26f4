//! Who makes a request, once that is known.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    audit::RequestInfo,
    id::{ApiKeyId, ClientId, GrantId, Id, SessionId, UserId, WorkspaceId},
    scope::{Role, Scope},
};

/// Who makes a request: one credential, in one workspace.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The workspace that it acts in.
    pub workspace_id: WorkspaceId,
    /// What it may do now: of a token and a role, the lower.
    pub scope: Scope,
    /// Its workspace's own rate limit, requests a minute; none is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether it is a person whose workspace asks for a second factor that they have not set up: until they
    /// have, they do what is about themselves and nothing else.
    pub lacks_second_factor: bool,
    /// What kind of credential it is.
    pub credential: Credential,
}

/// The credential behind a [`Principal`].
#[derive(Debug, Clone)]
pub enum Credential {
    /// An API key.
    ApiKey {
        /// Its id.
        id: ApiKeyId,
        /// Its name.
        name: Arc<str>,
        /// The addresses that it may be used from; empty is any.
        allowed_ips: Vec<IpNet>,
        /// The person who minted it.
        creator: Option<UserId>,
    },
    /// A person's own session.
    Session {
        /// The session.
        id: SessionId,
        /// The person.
        user_id: UserId,
        /// The person's name or, without one, address.
        name: Arc<str>,
        /// The person's role in the workspace.
        role: Role,
    },
    /// What an OAuth client was granted.
    Grant {
        /// The grant.
        id: GrantId,
        /// The client.
        client_id: ClientId,
        /// What the client calls itself.
        name: Arc<str>,
        /// Who granted it; none: the client acts for itself.
        person: Option<(UserId, Role)>,
    },
}

/// A principal making a request: what everything done for it needs to know.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub principal: Arc<Principal>,
    /// In which request.
    pub request: Arc<RequestInfo>,
}

impl Caller {
    /// The workspace that the caller acts in.
    #[must_use]
    pub fn workspace(&self) -> WorkspaceId {
        self.principal.workspace_id
    }
}

impl Principal {
    /// The person that this is or works for, if any.
    #[must_use]
    pub fn person(&self) -> Option<UserId> {
        match &self.credential {
            Credential::ApiKey { creator, .. } => *creator,
            Credential::Session { user_id, .. } => Some(*user_id),
            Credential::Grant { person, .. } => person.map(|(user_id, _)| user_id),
        }
    }

    /// The API key, if this is one.
    #[must_use]
    pub fn api_key(&self) -> Option<ApiKeyId> {
        match &self.credential {
            Credential::ApiKey { id, .. } => Some(*id),
            Credential::Session { .. } | Credential::Grant { .. } => None,
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match &self.credential {
            Credential::ApiKey { name, .. }
            | Credential::Session { name, .. }
            | Credential::Grant { name, .. } => name,
        }
    }

    /// Its public id, the subject: `key_…`, `user_…` or, of a client that acts for itself, `client_…`.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.credential {
            Credential::ApiKey { id, .. } => super::id::format(ApiKeyId::PREFIX, id.uuid()),
            Credential::Session { user_id, .. } => {
                super::id::format(UserId::PREFIX, user_id.uuid())
            }
            Credential::Grant { person: Some((user_id, _)), .. } => user_id.to_string(),
            Credential::Grant { client_id, .. } => client_id.to_string(),
        }
    }

    /// Whether requests from this address are welcome.
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
