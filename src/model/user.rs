//! People and their membership of workspaces.

use time::OffsetDateTime;

use super::{
    fields::Fields,
    id::{UserId, WorkspaceId},
    scope::Role,
};

/// A person.
#[derive(Debug, Clone)]
pub struct User {
    /// Its id; the `sub` of its access tokens.
    pub id: UserId,
    /// The address that the person signs in with.
    pub email: String,
    /// What the person is called.
    pub full_name: Option<String>,
    /// Whatever else clients store about the person.
    pub profile: Fields,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// When the person showed that the address is theirs.
    pub email_verified_at: Option<OffsetDateTime>,
}

impl User {
    /// The name or, without one, the address.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

/// A person in a workspace.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
    /// The person's address.
    pub email: String,
    /// The person's name.
    pub full_name: Option<String>,
    /// The person's role here.
    pub role: Role,
    /// Since when.
    pub joined_at: OffsetDateTime,
}

impl Member {
    /// What to call them.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

/// A workspace of a person.
#[derive(Debug, Clone, Copy)]
pub struct Membership {
    /// Which.
    pub workspace_id: WorkspaceId,
    /// The person's role there.
    pub role: Role,
}
