//! Workspaces, the tenants of the service.

use time::OffsetDateTime;

use super::{id::WorkspaceId, scope::Role};

/// A workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The workspace's id.
    pub id: WorkspaceId,
    /// The workspace's name.
    pub name: String,
    /// The workspace's own rate limit in requests per minute and credential; `None` is the
    /// configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// True if members must set up a second factor.
    pub require_second_factor: bool,
    /// Time of creation.
    pub created_at: OffsetDateTime,
}

/// A change to a workspace; `None` leaves a value unchanged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WorkspaceChange {
    /// The new name.
    pub name: Option<String>,
    /// The new requirement of a second factor.
    pub require_second_factor: Option<bool>,
}

/// A workspace with the role of one of its members.
#[derive(Debug, Clone)]
pub struct WorkspaceWithRole {
    /// The workspace.
    pub workspace: Workspace,
    /// The member's role in the workspace.
    pub role: Role,
}
