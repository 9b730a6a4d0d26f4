//! Issues access tokens: JWTs by RFC 9068 and RFC 8725. [`super::authenticator`] verifies them.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AuthError, context::ServiceContext, signing_keys::SigningKeys};
use crate::model::{
    id::{GrantId, SessionId, UserId, WorkspaceId},
    scope::{Role, Scope},
};

/// The `client_id` in access tokens of direct sign-ins, without an OAuth client.
const DASHBOARD_CLIENT_ID: &str = "call2me-dashboard";

/// The claims of an access token (RFC 9068, section 2.2).
#[derive(Debug, Serialize, Deserialize)]
pub struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: Subject,
    pub(crate) aud: Audience,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) jti: Uuid,
    pub(crate) client_id: String,
    pub(crate) scope: String,
    pub(crate) workspace_id: WorkspaceId,
    pub(crate) sid: TokenBinding,
    /// The credential generation of the session. A change of the password or of a factor advances
    /// it, which invalidates the session's earlier tokens. Absent in tokens of OAuth grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session_generation: Option<u32>,
}

/// The `sub` claim: the user or client that a token represents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subject {
    /// A user.
    User(UserId),
    /// An OAuth client that acts for itself, by its `client_id`.
    Client(String),
}

/// The `aud` claim: the resources that accept a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One resource.
    One(String),
    /// Several resources.
    Many(Vec<String>),
}

/// The `sid` claim: the session or grant that a token ends with. The prefix of the id distinguishes
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenBinding {
    /// A user's session.
    Session(SessionId),
    /// An OAuth grant.
    Grant(GrantId),
}

/// The parameters of an access token for an OAuth client.
pub struct GrantTokenParams<'a> {
    /// The client's id, as the client sends it in requests.
    pub client_id: &'a str,
    /// The user that authorized the client; `None` if the client acts for itself.
    pub user: Option<UserId>,
    /// The workspace in which the grant is valid.
    pub workspace: WorkspaceId,
    /// The grant.
    pub grant: GrantId,
    /// The scope of the token.
    pub scope: Scope,
    /// The resources that become the token's audience.
    pub resources: &'a [String],
}

/// The claims that differ between kinds of tokens; the rest is the same for all.
struct TokenSpec {
    sub: Subject,
    aud: Audience,
    client_id: String,
    scope: Scope,
    workspace_id: WorkspaceId,
    sid: TokenBinding,
    session_generation: Option<u32>,
}

/// Issues access tokens.
pub struct TokenIssuer {
    pub(super) context: Arc<ServiceContext>,
    pub(super) signing_keys: Arc<SigningKeys>,
    pub(super) lifetime: Duration,
}

impl TokenIssuer {
    /// Issues an access token for a session. `generation` is the session's credential generation.
    pub(super) fn issue_session_token(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        session: SessionId,
        generation: u32,
        role: Role,
    ) -> Result<String, AuthError> {
        self.issue(TokenSpec {
            sub: Subject::User(user),
            aud: Audience::One(self.context.issuer.to_string()),
            client_id: DASHBOARD_CLIENT_ID.to_owned(),
            scope: role.scope(),
            workspace_id: workspace,
            sid: TokenBinding::Session(session),
            session_generation: Some(generation),
        })
    }

    /// Issues an access token for an OAuth grant.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if signing fails.
    pub fn issue_grant_token(&self, token: &GrantTokenParams<'_>) -> Result<String, AuthError> {
        let sub = match token.user {
            Some(user) => Subject::User(user),
            None => Subject::Client(token.client_id.to_owned()),
        };
        let aud = match token.resources {
            [one] => Audience::One(one.clone()),
            several => Audience::Many(several.to_vec()),
        };
        self.issue(TokenSpec {
            sub,
            aud,
            client_id: token.client_id.to_owned(),
            scope: token.scope,
            workspace_id: token.workspace,
            sid: TokenBinding::Grant(token.grant),
            session_generation: None,
        })
    }

    fn issue(&self, spec: TokenSpec) -> Result<String, AuthError> {
        let TokenSpec { sub, aud, client_id, scope, workspace_id, sid, session_generation } = spec;
        let now = self.context.env.clock.now().unix_timestamp();
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: self.context.issuer.to_string(),
            sub,
            aud,
            exp: now.saturating_add(lifetime),
            iat: now,
            jti: self.context.env.new_uuid(),
            client_id,
            scope: scope.oauth_scope(),
            workspace_id,
            sid,
            session_generation,
        };
        self.signing_keys.current().sign_access_token(&claims)
    }

    /// Lifetime of an access token.
    #[must_use]
    pub fn access_token_lifetime(&self) -> Duration {
        self.lifetime
    }
}
