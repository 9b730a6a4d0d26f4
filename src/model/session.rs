//! Sessions of users: their stored state, and the reasons for their end.
//!
//! A session acts in one workspace at a time. Its tokens are in [`super::refresh_token`].

use std::{net::IpAddr, sync::Arc};

use time::OffsetDateTime;

use super::{
    id::{SessionId, UserId, WorkspaceId},
    scope::Role,
    session_cookie::CookieDigest,
};

/// A new session, to be stored.
#[derive(Debug)]
pub struct NewSession {
    /// The session's id.
    pub id: SessionId,
    /// The session's user.
    pub user_id: UserId,
    /// The workspace in which the session acts.
    pub workspace_id: WorkspaceId,
    /// Time of the sign-in.
    pub created_at: OffsetDateTime,
    /// The session ends at this time at the latest.
    pub expires_at: OffsetDateTime,
    /// Client address at the sign-in.
    pub ip: IpAddr,
    /// `User-Agent` header at the sign-in.
    pub user_agent: Option<String>,
    /// The sealed seed of the session's refresh tokens.
    pub sealed_seed: Vec<u8>,
    /// The digest of the session's cookie.
    pub cookie_digest: CookieDigest,
}

/// A session as a request presented it: with the generation of the credential it was authenticated
/// with. After a change of the password or a factor, a request that is still in flight has an
/// earlier generation and must change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresentedSession {
    /// The session's id.
    pub id: SessionId,
    /// The generation of the presented cookie or access token.
    pub credential_generation: u32,
}

/// The credentials of a session that replace its earlier ones, all of which become invalid.
#[derive(Debug)]
pub struct ReplacedCredentials {
    /// The workspace in which the session acts.
    pub workspace_id: WorkspaceId,
    /// The generation of the new refresh token.
    pub refresh_generation: u32,
    /// The generation of the new access token.
    pub credential_generation: u32,
}

/// The state of a session's refresh tokens, read under a row lock.
#[derive(Debug)]
pub struct RefreshState {
    /// The sealed seed of the tokens.
    pub sealed_seed: Vec<u8>,
    /// The generation of the last issued token.
    pub generation: u32,
    /// The generation of valid access tokens.
    pub credential_generation: u32,
    /// Time at which that token was issued.
    pub refreshed_at: OffsetDateTime,
    /// The session ends at this time at the latest.
    pub expires_at: OffsetDateTime,
    /// True if the session was ended.
    pub is_ended: bool,
}

/// The data of a session that authentication needs.
#[derive(Debug, Clone)]
pub struct SessionRecord {
    /// The session's user.
    pub user_id: UserId,
    /// The workspace in which the session acts.
    pub workspace_id: WorkspaceId,
    /// The user's name or, if there is none, address.
    pub name: Arc<str>,
    /// The user's role in the workspace; `None` if the user is no longer a member.
    pub role: Option<Role>,
    /// The session ends at this time at the latest.
    pub expires_at: OffsetDateTime,
    /// True if the session was ended.
    pub is_ended: bool,
    /// The workspace's own rate limit in requests per minute; `None` is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// True if the workspace requires a second factor that the user has not set up.
    pub lacks_second_factor: bool,
    /// The digest of the session's cookie.
    pub cookie_digest: CookieDigest,
    /// The generation of the session's valid access tokens.
    pub credential_generation: u32,
}

/// A session in the list of its user.
#[derive(Debug, Clone)]
pub struct Session {
    /// The session's id.
    pub id: SessionId,
    /// The workspace in which the session acts.
    pub workspace_id: WorkspaceId,
    /// Time of the sign-in.
    pub created_at: OffsetDateTime,
    /// Time at which tokens were last issued.
    pub last_seen_at: OffsetDateTime,
    /// Client address at the sign-in.
    pub ip: Option<IpAddr>,
    /// `User-Agent` header at the sign-in.
    pub user_agent: Option<String>,
}

/// A selection among the sessions of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionSelector {
    /// Only this session.
    One(SessionId),
    /// All sessions except this one.
    AllExcept(SessionId),
    /// All sessions.
    All,
}

/// The reason for the end of a session, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEndReason {
    /// The user signed out.
    SignedOut,
    /// A refresh token was reused.
    RefreshTokenReuse,
    /// The user ended the session from another session.
    EndedByUser,
    /// The user changed or reset the password.
    PasswordChanged,
    /// The user is no longer a member of the session's workspace.
    MembershipRemoved,
    /// The user enrolled TOTP in another session.
    SecondFactorAdded,
    /// The user removed TOTP in another session, or the operator removed all factors.
    SecondFactorRemoved,
    /// The user renewed the recovery codes in another session.
    RecoveryCodesRenewed,
    /// The user removed a passkey in another session.
    PasskeyRemoved,
    /// The account's unverified address was claimed by its real owner.
    EmailReclaimed,
    /// The user has too many sessions; this was the oldest.
    Superseded,
    /// The database was restored from a backup.
    DatabaseRestored,
}

impl SessionEndReason {
    /// Returns the name in the database and in the metadata of audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignedOut => "signed_out",
            Self::RefreshTokenReuse => "refresh_token_reuse",
            Self::EndedByUser => "ended_by_user",
            Self::PasswordChanged => "password_changed",
            Self::MembershipRemoved => "membership_removed",
            Self::SecondFactorAdded => "second_factor_added",
            Self::SecondFactorRemoved => "second_factor_removed",
            Self::RecoveryCodesRenewed => "recovery_codes_renewed",
            Self::PasskeyRemoved => "passkey_removed",
            Self::EmailReclaimed => "email_reclaimed",
            Self::Superseded => "superseded",
            Self::DatabaseRestored => "database_restored",
        }
    }
}
