//! Invitations to workspaces.

use time::OffsetDateTime;

use super::{id::InvitationId, scope::Role};

/// An open invitation: neither accepted nor revoked.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// The invitation's id; the token of the mailed link is derived from it.
    pub id: InvitationId,
    /// The invited address.
    pub email: String,
    /// The offered role.
    pub role: Role,
    /// The public id of the inviting principal (`user_…`, `key_…`).
    pub invited_by: String,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The invitation cannot be accepted after this time.
    pub expires_at: OffsetDateTime,
}
