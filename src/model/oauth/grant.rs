//! Grants: what somebody lets a client do in a workspace.

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

/// How long an authorization code lives (RFC 6749, section 4.1.2).
pub const CODE_LIFETIME: Duration = Duration::from_mins(1);

/// A grant to be stored.
#[derive(Debug)]
pub struct NewGrant {
    /// Its id.
    pub id: GrantId,
    /// To whom.
    pub client_id: ClientId,
    /// Where.
    pub workspace_id: WorkspaceId,
    /// By whom, and in which session; none: the client acts for itself.
    pub by: Option<(UserId, SessionId)>,
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: Vec<String>,
    /// Where its code goes, and what binds that; none: it has no code.
    pub code: Option<(String, CodeChallenge)>,
    /// When it is made.
    pub created_at: OffsetDateTime,
    /// Until when it must begin.
    pub begin_by: OffsetDateTime,
    /// What its refresh tokens are derived from.
    pub seed: RefreshSeed,
}

/// What authentication needs of a grant.
#[derive(Debug, Clone)]
pub struct GrantRecord {
    /// To whom.
    pub client_id: ClientId,
    /// What that calls itself.
    pub client_name: Arc<str>,
    /// Where.
    pub workspace_id: WorkspaceId,
    /// Who consented; none: the client acts for itself.
    pub person: Option<Holder>,
    /// What for.
    pub scope: Scope,
    /// Whether it was ended.
    pub ended: bool,
    /// Access tokens of it that were revoked one by one.
    pub revoked_tokens: Vec<Uuid>,
    /// The workspace's own limit, requests a minute.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether the workspace asks for a second factor that the person has not set up.
    pub lacks_second_factor: bool,
}

/// Who consented.
#[derive(Debug, Clone)]
pub struct Holder {
    /// Who.
    pub user_id: UserId,
    /// The name or, without one, address.
    pub name: Arc<str>,
    /// The role in the grant's workspace; none: no longer a member.
    pub role: Option<Role>,
}

/// A grant as the token endpoint meets it, locked.
#[derive(Debug)]
pub struct GrantState {
    /// To whom.
    pub client_id: ClientId,
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: Vec<String>,
    /// Where its code went, and what binds that.
    pub code: Option<(String, CodeChallenge)>,
    /// Until when it must begin.
    pub begin_by: OffsetDateTime,
    /// When it began.
    pub begun_at: Option<OffsetDateTime>,
    /// When it last gave tokens.
    pub last_used_at: Option<OffsetDateTime>,
    /// What its refresh tokens are derived from.
    pub seed: RefreshSeed,
    /// The generation of the refresh token that was given last.
    pub generation: u32,
    /// Whether it was ended.
    pub ended: bool,
}

/// A grant as people see it: a connected app.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// To whom.
    pub client_id: ClientId,
    /// What that calls itself.
    pub client_name: String,
    /// Where.
    pub workspace_id: WorkspaceId,
    /// What people call that.
    pub workspace_name: String,
    /// Who consented; none: the client acts for itself.
    pub user_id: Option<UserId>,
    /// What for.
    pub scope: Scope,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// When it last gave tokens.
    pub last_used_at: Option<OffsetDateTime>,
}

/// Why a grant ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantEnd {
    /// The client gave it back (RFC 7009).
    Client,
    /// The person, or an admin of the workspace, ended it.
    Person,
    /// Its code was used a second time.
    CodeReuse,
    /// A refresh token was used a second time.
    RefreshReuse,
    /// The address that it was granted under turned out to be another person's.
    Disowned,
    /// The client is gone.
    ClientDeleted,
    /// The person is no longer a member.
    Removed,
    /// The person has too many of the same client.
    Superseded,
}

impl GrantEnd {
    /// The name in the database and in an event's metadata.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Person => "person",
            Self::CodeReuse => "code_reuse",
            Self::RefreshReuse => "refresh_reuse",
            Self::Disowned => "disowned",
            Self::ClientDeleted => "client_deleted",
            Self::Removed => "removed",
            Self::Superseded => "superseded",
        }
    }

    /// What the log tells of the end of a grant: why, of which client, and by whom it was granted.
    #[must_use]
    pub fn told(self, client: ClientId, user: Option<UserId>) -> serde_json::Value {
        json!({ "reason": self.as_str(), "oauth_client": client, "user_id": user })
    }
}
