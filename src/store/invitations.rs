//! Invitations to workspaces.
//!
//! A workspace has at most one open invitation to an address. An invitation is closed when it is
//! accepted, withdrawn or replaced.

use time::OffsetDateTime;

use super::{AdminTx, Store, StoreError, Tx, context::SignedDecision};
use crate::model::{
    email::Email,
    id::{ApiKeyId, Id, InvitationId, UserId, WorkspaceId},
    invitation::Invitation,
    page::{ListPage, PageRequest},
    scope::Role,
    timestamp,
};

/// The workspace and the address that the token of an invitation is bound to.
#[derive(Debug)]
pub struct InvitationOwner {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The invited address in lower case.
    pub email: String,
    /// The expiry. `None` if the invitation is closed.
    pub open_until: Option<OffsetDateTime>,
}

impl Store {
    /// Returns the workspace and the address of an invitation, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_invitation(
        &self,
        id: InvitationId,
    ) -> Result<Option<InvitationOwner>, StoreError> {
        Ok(sqlx::query_as!(
            InvitationOwner,
            r#"SELECT workspace_id AS "workspace!: WorkspaceId", normalized_email AS "email!",
                      open_until
               FROM find_invitation($1)"#,
            id.uuid(),
        )
        .fetch_optional(&self.pools.requests())
        .await?)
    }

    /// Deletes invitations that expired more than seven days ago.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_invitations(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_invitations($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

/// Inserts an invitation, with the API key that sends it. An expired one to the same address is
/// closed first.
///
/// # Errors
/// [`Constraint::OpenInvitation`](super::Constraint::OpenInvitation) if the address has an open
/// invitation.
pub async fn insert(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    invitation: &Invitation,
    email: &Email,
    inviter_key: Option<ApiKeyId>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE invitations SET closed_at = $3
         WHERE workspace_id = $1 AND normalized_email = $2 AND closed_at IS NULL AND expires_at <= $3",
        workspace.uuid(),
        email.normalized(),
        invitation.created_at,
    )
    .execute(tx.conn())
    .await?;
    sqlx::query!(
        "INSERT INTO invitations
             (id, workspace_id, email, normalized_email, role, invited_by, created_at, expires_at,
              inviter_key_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        invitation.id.uuid(),
        workspace.uuid(),
        email.as_str(),
        email.normalized(),
        invitation.role.as_str(),
        invitation.invited_by,
        invitation.created_at,
        invitation.expires_at,
        inviter_key.map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Counts the invitations sent to an address since `since`, by all workspaces.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_by_email(
    tx: &mut Tx,
    email: &Email,
    since: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count_invitations_to_email($1, $2) AS "count!""#,
        email.normalized(),
        since
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Counts the invitations of a workspace to an address since `since`, also closed ones.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_to_email(
    tx: &mut Tx,
    workspace: WorkspaceId,
    email: &Email,
    since: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM invitations
           WHERE workspace_id = $1 AND normalized_email = $2 AND created_at > $3"#,
        workspace.uuid(),
        email.normalized(),
        since,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Counts the invitations of a workspace since `since`, also closed ones.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_since(
    tx: &mut Tx,
    workspace: WorkspaceId,
    since: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM invitations
           WHERE workspace_id = $1 AND created_at > $2"#,
        workspace.uuid(),
        since,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Counts the invitations of an inviter since `since`: those of the workspace by its public id, and
/// those of the transaction's user to all workspaces. The greater number counts.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_by_inviter(
    tx: &mut Tx,
    workspace: WorkspaceId,
    inviter: &str,
    since: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT greatest(count_invitations_by_user($3), count(*)) AS "count!" FROM invitations
           WHERE workspace_id = $1 AND invited_by = $2 AND created_at > $3"#,
        workspace.uuid(),
        inviter,
        since,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Lists the open invitations of a workspace, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    now: OffsetDateTime,
    page: PageRequest,
) -> Result<ListPage<Invitation>, StoreError> {
    let invitations = sqlx::query_as!(
        Invitation,
        r#"SELECT id AS "id: InvitationId", email, role AS "role: Role", invited_by, created_at,
                  expires_at
           FROM invitations
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $2
             AND ($3::uuid IS NULL OR id < $3)
           ORDER BY id DESC LIMIT $4 OFFSET $5"#,
        workspace.uuid(),
        now,
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(invitations, page.limit))
}

/// Counts the open invitations of a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(
    tx: &mut Tx,
    workspace: WorkspaceId,
    now: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM invitations
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $2"#,
        workspace.uuid(),
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Returns an open invitation.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: InvitationId,
    now: OffsetDateTime,
) -> Result<Option<Invitation>, StoreError> {
    Ok(sqlx::query_as!(
        Invitation,
        r#"SELECT id AS "id: InvitationId", email, role AS "role: Role", invited_by, created_at,
                  expires_at
           FROM invitations
           WHERE workspace_id = $1 AND id = $2 AND closed_at IS NULL AND expires_at > $3"#,
        workspace.uuid(),
        id.uuid(),
        now,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns an open invitation that can be accepted: an API key that sent it must still be active.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_acceptable(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: InvitationId,
    now: OffsetDateTime,
) -> Result<Option<Invitation>, StoreError> {
    Ok(sqlx::query_as!(
        Invitation,
        r#"SELECT id AS "id: InvitationId", email, role AS "role: Role", invited_by, created_at,
                  expires_at
           FROM invitations i
           WHERE workspace_id = $1 AND id = $2 AND closed_at IS NULL AND expires_at > $3
             AND (inviter_key_id IS NULL OR EXISTS (
                 SELECT FROM api_keys k
                 WHERE k.id = i.inviter_key_id AND k.workspace_id = $1
                   AND k.revoked_at IS NULL AND k.disabled_at IS NULL))"#,
        workspace.uuid(),
        id.uuid(),
        now,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Makes the user of `tx` a member of its workspace, and closes the invitation. False if it is
/// closed or expired, or not for the address of this user. Concurrent calls take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn accept(
    tx: &mut Tx,
    invitation: &Invitation,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    // The sender is a user or a key.
    let inviter = invitation.invited_by.parse::<UserId>().ok();
    let (id, accepted_at) = (invitation.id.uuid(), timestamp::to_micros(now));
    let SignedDecision { key_id, mac } = tx.context.sign_decision(
        "accept_invitation",
        &[
            id.as_bytes(),
            tx.ids.workspace.unwrap_or_default().as_bytes(),
            tx.ids.user.unwrap_or_default().as_bytes(),
            &accepted_at.to_be_bytes(),
        ],
    );
    Ok(sqlx::query_scalar!(
        r#"SELECT accept_invitation($1, $2, $3, $4, $5) AS "is_accepted!""#,
        id,
        inviter.map(Id::uuid),
        accepted_at,
        &key_id,
        &mac,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Closes an invitation. False if it is closed or expired. Concurrent calls take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn close(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    id: InvitationId,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE invitations SET closed_at = $3
         WHERE workspace_id = $1 AND id = $2 AND closed_at IS NULL AND expires_at > $3",
        workspace.uuid(),
        id.uuid(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Closes all open invitations of an inviter that may no longer invite to the workspace. `inviter`
/// is a public id.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn close_all_by_inviter(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    inviter: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE invitations SET closed_at = $3
         WHERE workspace_id = $1 AND invited_by = $2 AND closed_at IS NULL",
        workspace.uuid(),
        inviter,
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Closes all open invitations of a workspace. Returns their ids and addresses.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn close_all(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    now: OffsetDateTime,
) -> Result<Vec<(InvitationId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE invitations SET closed_at = $2
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $2
           RETURNING id AS "id: InvitationId", email"#,
        workspace.uuid(),
        now,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.email)).collect())
}
