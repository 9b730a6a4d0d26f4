//! Grants: the access of a client to a workspace, from consent until revocation.
//!
//! A grant is redeemed when its first tokens are issued. It must be redeemed before a deadline.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::pkce::CodeChallenge;
use crate::model::{
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
    refresh_token::RefreshSeed,
    scope::{Role, Scope},
};

/// Lifetime of an authorization code (RFC 6749, section 4.1.2).
pub const CODE_LIFETIME: Duration = Duration::from_mins(1);

/// A new grant, to be stored.
#[derive(Debug)]
pub struct NewGrant {
    /// The grant's id.
    pub id: GrantId,
    /// The client that gets access.
    pub client_id: ClientId,
    /// The workspace to which the client gets access.
    pub workspace_id: WorkspaceId,
    /// The consenting user and session; `None` for a client credentials grant.
    pub granted_by: Option<(UserId, SessionId)>,
    /// The granted scope.
    pub scope: Scope,
    /// The protected resources for which tokens may be issued.
    pub resources: Vec<String>,
    /// The redirect URI and the PKCE challenge of the authorization code, if there is a code.
    pub code: Option<(String, CodeChallenge)>,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Deadline for issuing the first tokens.
    pub redeem_by: OffsetDateTime,
    /// The seed of the grant's refresh tokens.
    pub seed: RefreshSeed,
}

/// The data of a grant that authentication needs.
#[derive(Debug, Clone)]
pub struct GrantRecord {
    /// The client's id.
    pub client_id: ClientId,
    /// The client's name.
    pub client_name: Arc<str>,
    /// The workspace to which the client has access.
    pub workspace_id: WorkspaceId,
    /// The user that consented; `None` for a client credentials grant.
    pub user: Option<GrantUser>,
    /// The granted scope.
    pub scope: Scope,
    /// True if the grant was ended.
    pub is_ended: bool,
    /// The ids of access tokens that were revoked individually.
    pub revoked_tokens: Vec<Uuid>,
    /// The workspace's own rate limit in requests per minute; `None` is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// True if the workspace requires a second factor that the user has not set up.
    pub lacks_second_factor: bool,
}

/// The user that consented to a grant.
#[derive(Debug, Clone)]
pub struct GrantUser {
    /// The user's id.
    pub user_id: UserId,
    /// The user's name or, if there is none, address.
    pub name: Arc<str>,
    /// The user's role in the grant's workspace; `None` if the user is no longer a member.
    pub role: Option<Role>,
}

/// The state of a grant at the token endpoint, read under a row lock.
#[derive(Debug)]
pub struct GrantState {
    /// The client's id.
    pub client_id: ClientId,
    /// The granted scope.
    pub scope: Scope,
    /// The protected resources for which tokens may be issued.
    pub resources: Vec<String>,
    /// The redirect URI and the PKCE challenge of the authorization code, if there is a code.
    pub code: Option<(String, CodeChallenge)>,
    /// Deadline for issuing the first tokens.
    pub redeem_by: OffsetDateTime,
    /// Time at which the first tokens were issued.
    pub redeemed_at: Option<OffsetDateTime>,
    /// Time at which tokens were last issued.
    pub last_used_at: Option<OffsetDateTime>,
    /// The seed of the grant's refresh tokens.
    pub seed: RefreshSeed,
    /// The generation of the last issued refresh token.
    pub generation: u32,
    /// True if the grant was ended.
    pub is_ended: bool,
}

/// A grant in lists of connected apps.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The grant's id.
    pub id: GrantId,
    /// The client's id.
    pub client_id: ClientId,
    /// The client's name.
    pub client_name: String,
    /// The workspace to which the client has access.
    pub workspace_id: WorkspaceId,
    /// The workspace's name.
    pub workspace_name: String,
    /// The user that consented; `None` for a client credentials grant.
    pub user_id: Option<UserId>,
    /// The granted scope.
    pub scope: Scope,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time at which tokens were last issued.
    pub last_used_at: Option<OffsetDateTime>,
}

/// The reason for the end of a grant, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantEndReason {
    /// The client revoked it (RFC 7009).
    RevokedByClient,
    /// The user or an administrator of the workspace revoked it.
    RevokedByUser,
    /// The authorization code was reused.
    CodeReuse,
    /// A refresh token was reused.
    RefreshTokenReuse,
    /// The account's unverified address was claimed by its real owner with a password reset.
    EmailReclaimed,
    /// The client was deleted.
    ClientDeleted,
    /// The user is no longer a member of the workspace.
    MembershipRemoved,
    /// The user has too many grants of the same client; this was an old one.
    Superseded,
}

impl GrantEndReason {
    /// Returns the name in the database and in the metadata of audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RevokedByClient => "client",
            Self::RevokedByUser => "person",
            Self::CodeReuse => "code_reuse",
            Self::RefreshTokenReuse => "refresh_reuse",
            Self::EmailReclaimed => "disowned",
            Self::ClientDeleted => "client_deleted",
            Self::MembershipRemoved => "removed",
            Self::Superseded => "superseded",
        }
    }

    /// Returns the metadata of the audit event: the reason, the client and the user that consented.
    #[must_use]
    pub fn audit_metadata(self, client: ClientId, user: Option<UserId>) -> serde_json::Value {
        json!({ "reason": self.as_str(), "oauth_client": client, "user_id": user })
    }
}
