//! Workspaces: the tenants.

use time::OffsetDateTime;

use super::{id::WorkspaceId, scope::Role};

/// A workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// What people call it.
    pub name: String,
    /// Its own rate limit for each credential, requests a minute; none is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether its people need a second factor.
    pub require_second_factor: bool,
    /// Since when.
    pub created_at: OffsetDateTime,
}

/// What is to change about a workspace; none stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WorkspaceChange {
    /// What people call it.
    pub name: Option<String>,
    /// Whether its people need a second factor.
    pub require_second_factor: Option<bool>,
}

/// A workspace as one of its members sees it in a list.
#[derive(Debug, Clone)]
pub struct OwnWorkspace {
    /// The workspace.
    pub workspace: Workspace,
    /// The person's role there.
    pub role: Role,
}
