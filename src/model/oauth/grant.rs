//! Grants: the access of a client to a workspace, from consent until revocation.
//!
//! A grant is redeemed when its first tokens are issued. It must be redeemed before a deadline; see
//! [`GrantStage`].

use std::{sync::Arc, time::Duration};

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::pkce::CodeChallenge;
use crate::model::{
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
    scope::{Role, Scope},
};

/// Lifetime of an authorization code (RFC 6749, section 4.1.2).
pub const CODE_LIFETIME: Duration = Duration::from_mins(1);

/// The flow in which a user gives a grant, which determines the proof for its first tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantFlow {
    /// The client redeems an authorization code.
    AuthorizationCode {
        /// The redirect URI that got the code.
        redirect_uri: String,
        /// The PKCE challenge of the code.
        challenge: CodeChallenge,
    },
    /// The client polls with a device code.
    Device,
}

impl GrantFlow {
    /// Returns the redirect URI that got the code, if there is a code.
    #[must_use]
    pub fn redirect_uri(&self) -> Option<&str> {
        match self {
            Self::AuthorizationCode { redirect_uri, .. } => Some(redirect_uri),
            Self::Device => None,
        }
    }

    /// Returns the PKCE challenge of the code, if there is a code.
    #[must_use]
    pub fn challenge(&self) -> Option<&CodeChallenge> {
        match self {
            Self::AuthorizationCode { challenge, .. } => Some(challenge),
            Self::Device => None,
        }
    }
}

/// The stage of a user's grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantStage {
    /// The user approved it, and no tokens were issued yet.
    Approved {
        /// Deadline for the first tokens.
        redeem_by: OffsetDateTime,
    },
    /// Its code or device code was exchanged for tokens.
    Redeemed {
        /// Time at which tokens were last issued.
        last_used_at: OffsetDateTime,
        /// The generation of the last issued refresh token.
        generation: u32,
    },
    /// It was ended, and its tokens with it.
    Ended {
        /// True if tokens were issued before.
        was_redeemed: bool,
    },
}

/// A new grant of a user, to be stored.
#[derive(Debug)]
pub struct NewGrant {
    /// The grant's id.
    pub id: GrantId,
    /// The client that gets access.
    pub client_id: ClientId,
    /// The workspace to which the client gets access.
    pub workspace_id: WorkspaceId,
    /// The consenting user.
    pub user_id: UserId,
    /// The session in which the user consented.
    pub session_id: SessionId,
    /// The granted scope.
    pub scope: Scope,
    /// The protected resources for which tokens may be issued.
    pub resources: Vec<String>,
    /// The flow in which the user gives the grant.
    pub flow: GrantFlow,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Deadline for issuing the first tokens.
    pub redeem_by: OffsetDateTime,
    /// The sealed seed of the grant's refresh tokens.
    pub sealed_seed: Vec<u8>,
}

/// A new grant of a client that acts for itself (client credentials), to be stored.
#[derive(Debug)]
pub struct NewOwnGrant {
    /// The grant's id.
    pub id: GrantId,
    /// The client.
    pub client_id: ClientId,
    /// The client's workspace.
    pub workspace_id: WorkspaceId,
    /// The maximum scope of the client's tokens.
    pub scope: Scope,
    /// The protected resources for which tokens may be issued.
    pub resources: Vec<String>,
    /// Time of creation, at which its first tokens are issued.
    pub created_at: OffsetDateTime,
    /// The sealed seed, which every grant has. This one has no refresh tokens.
    pub sealed_seed: Vec<u8>,
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

/// The state of a user's grant at the token endpoint, read under a row lock.
#[derive(Debug)]
pub struct GrantState {
    /// The client's id.
    pub client_id: ClientId,
    /// The granted scope.
    pub scope: Scope,
    /// The protected resources for which tokens may be issued.
    pub resources: Vec<String>,
    /// The flow in which the user gave the grant.
    pub flow: GrantFlow,
    /// The stage of the grant.
    pub stage: GrantStage,
    /// The sealed seed of the grant's refresh tokens.
    pub sealed_seed: Vec<u8>,
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
    /// The account's unverified address was claimed by its real owner.
    EmailReclaimed,
    /// The user reset the password.
    PasswordReset,
    /// The client was deleted.
    ClientDeleted,
    /// An API key that had added a secret or a redirect URI to the client was revoked.
    ApiKeyRevoked,
    /// The user is no longer a member of the workspace.
    MembershipRemoved,
    /// The user has too many grants, of the same client or in total; this was an old one.
    Superseded,
    /// The database was restored from a backup.
    DatabaseRestored,
}

impl GrantEndReason {
    /// Returns the name in the database and in the metadata of audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RevokedByClient => "client",
            Self::RevokedByUser => "user",
            Self::CodeReuse => "code_reuse",
            Self::RefreshTokenReuse => "refresh_token_reuse",
            Self::EmailReclaimed => "email_reclaimed",
            Self::PasswordReset => "password_reset",
            Self::ClientDeleted => "client_deleted",
            Self::ApiKeyRevoked => "api_key_revoked",
            Self::MembershipRemoved => "membership_removed",
            Self::Superseded => "superseded",
            Self::DatabaseRestored => "database_restored",
        }
    }

    /// Returns the metadata of the audit event: the reason, the client and the user that consented.
    #[must_use]
    pub fn audit_metadata(self, client: ClientId, user: Option<UserId>) -> serde_json::Value {
        json!({ "reason": self.as_str(), "oauth_client": client, "user_id": user })
    }
}
