//! Invitations to workspaces.

use time::OffsetDateTime;

use super::{id::InvitationId, scope::Role};

/// An invitation that is open.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Its id; the token of the mailed link is derived from it.
    pub id: InvitationId,
    /// Who is invited.
    pub email: String,
    /// As what.
    pub role: Role,
    /// Who invites, as a public id (`user_…`, `key_…`).
    pub invited_by: String,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// Until when it can be accepted.
    pub expires_at: OffsetDateTime,
}
