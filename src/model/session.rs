//! Sessions of people at the dashboard.

use std::{net::IpAddr, sync::Arc};

use time::OffsetDateTime;

use super::{
    id::{SessionId, UserId, WorkspaceId},
    refresh_token::RefreshSeed,
    scope::Role,
};

/// A session to be stored.
#[derive(Debug)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// The workspace that it acts in.
    pub workspace_id: WorkspaceId,
    /// When it begins.
    pub created_at: OffsetDateTime,
    /// When it ends at the latest.
    pub expires_at: OffsetDateTime,
    /// Where it was begun.
    pub ip: IpAddr,
    /// What it was begun with.
    pub user_agent: Option<String>,
    /// What its refresh tokens are derived from.
    pub seed: RefreshSeed,
}

/// Where a session's refresh tokens stand; read under a lock.
#[derive(Debug)]
pub struct RefreshState {
    /// What the tokens are derived from.
    pub seed: RefreshSeed,
    /// The generation of the token that was given last.
    pub generation: u32,
    /// When that was.
    pub refreshed_at: OffsetDateTime,
    /// When the session ends at the latest.
    pub expires_at: OffsetDateTime,
    /// Whether it has ended.
    pub ended: bool,
}

/// What authentication needs of a session.
#[derive(Debug, Clone)]
pub struct SessionRecord {
    /// Whose it is.
    pub user_id: UserId,
    /// The workspace that it acts in.
    pub workspace_id: WorkspaceId,
    /// The person's name or, without one, address.
    pub name: Arc<str>,
    /// The person's role in the workspace; none: no longer a member.
    pub role: Option<Role>,
    /// When the session ends at the latest.
    pub expires_at: OffsetDateTime,
    /// Whether it was ended.
    pub ended: bool,
    /// The workspace's own limit, requests a minute.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether the workspace asks for a second factor that the person has not set up.
    pub lacks_second_factor: bool,
}

/// A session as its person sees it.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The workspace that it acts in.
    pub workspace_id: WorkspaceId,
    /// When it began.
    pub created_at: OffsetDateTime,
    /// When it was last given a pair of tokens.
    pub last_seen_at: OffsetDateTime,
    /// Where it was begun.
    pub ip: Option<IpAddr>,
    /// What it was begun with.
    pub user_agent: Option<String>,
}

/// Which sessions of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// This one.
    One(SessionId),
    /// All but this one.
    AllBut(SessionId),
    /// Those in this workspace.
    In(WorkspaceId),
    /// All of them.
    All,
}

/// Why a session ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The person signed out.
    Logout,
    /// A refresh token was used a second time.
    Reuse,
    /// The person ended it from another one.
    Ended,
    /// The person chose another password.
    PasswordChanged,
    /// The person is no longer a member of the workspace that it was in.
    Removed,
    /// The person set a second factor up, from another one.
    SecondFactorAdded,
    /// The operator took what signs the person in away.
    SecondFactorRemoved,
    /// The person took a passkey away, from another one.
    PasskeyRemoved,
}

impl EndReason {
    /// The name in the database and in an event's metadata.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Reuse => "reuse",
            Self::Ended => "ended",
            Self::PasswordChanged => "password_changed",
            Self::Removed => "removed",
            Self::SecondFactorAdded => "second_factor_added",
            Self::SecondFactorRemoved => "second_factor_removed",
            Self::PasskeyRemoved => "passkey_removed",
        }
    }
}
