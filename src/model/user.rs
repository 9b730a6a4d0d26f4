//! Users and their memberships in workspaces.

use time::OffsetDateTime;

use super::{
    fields::Fields,
    id::{UserId, WorkspaceId},
    scope::Role,
};

/// A registered user.
#[derive(Debug, Clone)]
pub struct User {
    /// The user's id; the `sub` of the user's access tokens.
    pub id: UserId,
    /// The address with which the user signs in.
    pub email: String,
    /// The user's name.
    pub full_name: Option<String>,
    /// Other profile fields that clients store.
    pub profile: Fields,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time of the email verification.
    pub email_verified_at: Option<OffsetDateTime>,
    /// The end of the time in which a password reset ends what was set up before, although the
    /// address is verified: it was verified by a link alone, and the password was kept.
    pub reclaimable_until: Option<OffsetDateTime>,
}

impl User {
    /// Returns true if another person than the owner of the address may have set up the account.
    #[must_use]
    pub fn is_reclaimable(&self, now: OffsetDateTime) -> bool {
        self.email_verified_at.is_none() || self.reclaimable_until.is_some_and(|until| now < until)
    }

    /// Returns the name or, if there is none, the address.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

/// A member of a workspace.
#[derive(Debug, Clone)]
pub struct Member {
    /// The user's id.
    pub user_id: UserId,
    /// The user's address.
    pub email: String,
    /// The user's name.
    pub full_name: Option<String>,
    /// The user's role in the workspace.
    pub role: Role,
    /// Time at which the user joined the workspace.
    pub joined_at: OffsetDateTime,
}

impl Member {
    /// Returns the name or, if there is none, the address.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

/// A user's membership in a workspace.
#[derive(Debug, Clone, Copy)]
pub struct Membership {
    /// The workspace's id.
    pub workspace_id: WorkspaceId,
    /// The user's role in the workspace.
    pub role: Role,
}
