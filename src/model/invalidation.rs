//! What nodes are told not to believe any more.

use super::{
    api_key::KeyDigest,
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
};

/// What somebody changed, so that whatever was known of it has to be asked anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// A key was revoked or changed.
    Key(KeyDigest),
    /// A session ended or moved.
    Session(SessionId),
    /// A person's role, name or address changed: this touches the person's sessions, in one workspace
    /// where that is given.
    Person {
        /// Who.
        user: UserId,
        /// Where; none is everywhere.
        workspace: Option<WorkspaceId>,
    },
    /// A workspace's own settings changed: this touches everything in it.
    Workspace(WorkspaceId),
    /// A grant ended or changed.
    Grant(GrantId),
    /// An OAuth client changed or is gone: this touches all its grants.
    Client(ClientId),
}
