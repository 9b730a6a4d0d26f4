//! Workspaces: the tenants.

use time::OffsetDateTime;

use super::id::WorkspaceId;

/// A workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// What people call it.
    pub name: String,
    /// Its own rate limit for each credential, requests a minute; none is the configured default.
    pub rate_limit_per_minute: Option<u32>,
    /// Since when.
    pub created_at: OffsetDateTime,
}
