//! Cache invalidations: messages to all nodes that a credential changed.

use super::{
    api_key::KeyDigest,
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
};

/// A change after which every node must drop the cache entries that depend on the changed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// A key was revoked or changed.
    Key(KeyDigest),
    /// A session ended or switched to another workspace.
    Session(SessionId),
    /// A user's role, name or address changed. It affects the user's sessions and grants.
    User {
        /// The user.
        user: UserId,
        /// The affected workspace; `None` means all workspaces.
        workspace: Option<WorkspaceId>,
    },
    /// A workspace's settings changed. It affects all credentials of the workspace.
    Workspace(WorkspaceId),
    /// A grant ended or changed.
    Grant(GrantId),
    /// An OAuth client changed or was deleted. It affects all grants of the client.
    Client(ClientId),
}
